"""MHCR for users whom training never saw: what items hand to them, and what becomes of it.

A user receives the sum over the history of

* what every layer of the click graph hands on, and every item–item graph (or the last layer, as released): divided by
  the square roots of the item's clicks and of the history's length;
* hyperedge logits and content vectors: as a mean, or logits as a sum where a user's memberships are made so.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.data.interactions import Interactions
from firstlight.graphs.hypergraph import memberships
from firstlight.models.histories import received, with_one
from firstlight.models.mhcr_config import MHCRConfig
from firstlight.models.mhcr_parts import Attention, Gate, NormGate, fused, summed


def columns(config: MHCRConfig, n_views: int) -> dict[str, slice]:
    """Where each part of a handed row stands; parts that no score reads are left out.

    Args:
        config: Of the model.
        n_views: Number of views.
    """
    widths = {"clicks": config.dim}
    if config.fusion == "side":
        widths |= {f"nodes.{view}": config.dim for view in range(n_views)}
    elif config.fusion == "last-layer":
        widths["last"] = config.dim
    if config.hyper_weight:
        widths |= {f"logits.{view}": config.hyperedges for view in range(n_views)}
    if config.user_content and config.content_weight:
        widths["content"] = config.dim
    ends = pairwise(accumulate(widths.values(), initial=0))
    return {name: slice(*ends_) for name, ends_ in zip(widths, ends, strict=True)}


class MHCRRule:
    """The rule of :meth:`firstlight.models.mhcr.MHCR.encode_users`.

    Args:
        config: Of the model.
        attention: Attention over views.
        gate: Gate of the specific parts.
        held: Per view, ``(hyperedges, dim)`` what the hyperedges hold.
    """

    kind: ClassVar[str] = "mhcr"
    reads: ClassVar[Literal["vectors", "handed"]] = "handed"

    def __init__(
        self, config: MHCRConfig, attention: Attention, gate: Gate | NormGate, held: list[Tensor]
    ) -> None:
        self._config, self._attention, self._gate, self._held = config, attention, gate, held
        self._columns = columns(config, len(held))

    @torch.no_grad()
    def users(self, histories: Interactions, handed: Tensor) -> Tensor:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        config, places = self._config, self._columns
        root = received(histories, handed, 0.5)
        # Both from one sum: powers of the same lengths lie between them.
        lengths = torch.from_numpy(histories.user_degrees.clip(min=1)).to(handed.dtype)[:, None]
        mean = root / lengths**0.5
        logits = mean if config.user_memberships == "mean" else root * lengths**0.5
        clicks = root[:, places["clicks"]]
        added = root[:, places["last"]] if "last" in places else None
        if config.fusion == "side":
            nodes = [root[:, places[f"nodes.{view}"]] for view in range(len(self._held))]
            present = torch.ones(len(clicks), len(nodes), dtype=torch.bool)
            added = fused(nodes, clicks, present, self._attention, self._gate)
        hyper = [
            memberships(logits[:, places[f"logits.{view}"]], config.membership_temperature) @ held
            for view, held in enumerate(self._held)
            if config.hyper_weight
        ]
        content = mean[:, places["content"]] * config.user_content if "content" in places else None
        made = summed(config.hyper_weight, clicks, added, hyper, content)
        if config.scoring == "trained" and config.normalise in ("both", "user"):
            made = F.normalize(made, dim=1)
        return with_one(made * torch.from_numpy(histories.user_degrees > 0)[:, None])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        modules: dict[str, nn.Module] = {"attention": self._attention, "gate": self._gate}
        tensors = {
            f"{name}.{key}": value.detach()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }
        tensors |= {f"held.{view}": held for view, held in enumerate(self._held)}
        return {"config": self._config.model_dump(mode="json"), "views": len(self._held)}, tensors

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        config = MHCRConfig.model_validate(settings["config"])
        shared, rng = config.gates == "shared", torch.Generator()
        attention = Attention(config.dim, shared, rng)
        gate = NormGate(config.dim, rng) if shared else Gate(config.dim, rng)
        for name, module in (("attention.", attention), ("gate.", gate)):
            own = {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}
            module.load_state_dict(own)
        return cls(config, attention, gate, [tensors[f"held.{view}"] for view in range(settings["views"])])
