"""DropoutNet (Volkovs et al., NeurIPS 2017): towers that learn to do without the preference vector.

Departures from the released settings: layers start Xavier-uniform instead of from N(0, .01), from which three tanh
layers take very long to leave zero; preferences enter and leave the towers in units of their own size; an item is
dropped or kept as a whole in a step, whichever pairs it occurs in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import Batch, EmbeddingConfig, Encoded
from firstlight.models.content import ContentModel, ContentRows
from firstlight.models.histories import Histories, with_one
from firstlight.models.ials import Everybody, FactorOptions, SolveRule, factorise
from firstlight.models.towers import by_blocks, candidate_scores, content_input, perceptron


class DropoutNetConfig(EmbeddingConfig):
    """Config of :class:`DropoutNet`. Its tables are the frozen preferences, so fields of free tables are fixed."""

    name: Literal["dropoutnet"] = "dropoutnet"

    normalise: Literal["none"] = "none"
    """Fixed: scores are inner products, as the preferences' are."""

    user_dropout: float = Field(0.0, ge=0, le=0)
    """Fixed."""

    init: Literal["xavier"] = "xavier"
    """Fixed."""

    init_norm: None = None
    """Fixed."""

    l2: float = Field(0.0, ge=0, le=0)
    """Fixed."""

    dropped: float = Field(0.5, ge=0, le=1)
    """Share of a step's items whose preference input is set to zero (paper: p)."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (200, 100)
    """Widths of the hidden layers of both towers."""

    preference: FactorOptions = FactorOptions()
    """How the frozen preferences are made; their width is ``dim``."""


class DropoutNet(ContentModel):
    """û = f_U(U_u), v̂ = f_V([V_i; Φ_i]), trained to give U_u·V_i back with V_i often hidden from the input.

    ``user_table`` and ``item_table`` are the frozen U and V of implicit ALS. Cold items: f_V([0; Φ_i]).
    """

    Config = DropoutNetConfig

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Its own terms are the whole objective."""
        return {"loss": {"name": "none"}, "temperature": {"name": "fixed"}}

    own_loss = True
    fits_when_built = True
    user_rows = ()
    item_rows = ()
    config: DropoutNetConfig

    def __init__(
        self,
        config: DropoutNetConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
        *,
        fit: bool = True,
    ) -> None:
        super().__init__(config, train, rng, views)
        assert rng is not None
        for table in (self.user_table, self.item_table):
            table.requires_grad_(False)
        self.register_buffer("units", torch.ones(2))
        self.units: Tensor
        if fit:
            users, items = factorise(train, config.dim, config.preference, rng)
            self.user_table.copy_(users)
            self.item_table.copy_(items)
            self.units.copy_(torch.tensor([_unit(users), _unit(items)]))
        width = config.dim + sum(self.view_dims.values())
        self.user_tower, self.item_tower = (_tower(config, inputs, rng) for inputs in (config.dim, width))

    def _user_side(self, preferences: Tensor) -> Tensor:
        made: Tensor = self.user_tower(preferences / self.units[0]) * self.units[0]
        return made

    def _item_side(self, preferences: Tensor, rows: ContentRows) -> Tensor:
        inputs = torch.cat([preferences / self.units[1], content_input(rows)], dim=1)
        made: Tensor = self.item_tower(inputs) * self.units[1]
        return made

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """``(n, dim)`` f_V([0; Φ])."""
        return self._item_side(torch.zeros(len(rows), self.config.dim), rows)

    def vectors(self, encoded: Encoded, users: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of û and v̂ with every preference shown."""
        rows = torch.arange(self.n_items) if items is None else items
        return self._user_side(self.user_table[users]), self._item_side(
            self.item_table[rows], self.content[rows]
        )

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The objective: mean squared error of scores, half on the positives, half on the negatives drawn."""
        others = torch.arange(self.n_items) if batch.negatives is None else batch.negatives
        items, slots = torch.unique(torch.cat([batch.positives, others]), return_inverse=True)
        own, drawn = slots[: len(batch.positives)], slots[len(batch.positives) :]
        users, preferences = self.user_table[batch.users], self.item_table[items]
        shown = torch.rand(len(items), 1, generator=encoded.rng) >= self.config.dropped
        made_users = self._user_side(users)
        made_items = self._item_side(preferences * shown, self.content[items])
        positives = (users * preferences[own]).sum(dim=1) - (made_users * F.embedding(own, made_items)).sum(
            dim=1
        )
        negatives = candidate_scores(users, preferences[drawn], batch.index) - candidate_scores(
            made_users, F.embedding(drawn, made_items), batch.index
        )
        return {"squares": (positives.square().mean() + negatives.square().mean()) / 2}

    def sparse_rows(self) -> list[str]:
        """The tables do not move."""
        return []

    @torch.no_grad()
    def training_space(self) -> tuple[Tensor, Tensor]:
        """û and v̂ of everybody, items in blocks."""
        width = sum(self.view_dims.values()) + sum(self.config.hidden) + self.config.dim
        items = by_blocks(
            lambda rows: self._item_side(self.item_table[rows], self.content[rows]), self.n_items, width
        )
        return self._user_side(self.user_table), items

    @torch.no_grad()
    def histories(self) -> Histories:
        """How users are made of histories: f_U of the preference that one solve of the frozen factorisation gives.

        Training users had theirs from the same solve, so new ones enter the tower from the same distribution. Zero
        without a click.
        """
        options, preferences = self.config.preference, self.item_table.detach()
        solve = SolveRule(options, Everybody.of(preferences, options))
        return Histories(
            DropoutNetRule(solve, self.user_tower, self.config, float(self.units[0])), preferences
        )


class DropoutNetRule:
    """The rule of :meth:`DropoutNet.histories`; items hand on their preferences, and new ones have none.

    Args:
        solve: From a history to a preference.
        tower: f_U.
        config: Of the model.
        unit: Of the users' preferences.
    """

    kind: ClassVar[str] = "dropoutnet"
    reads: ClassVar[Literal["vectors", "handed"]] = "handed"

    def __init__(self, solve: SolveRule, tower: nn.Module, config: DropoutNetConfig, unit: float) -> None:
        self._solve, self._tower, self._config, self._unit = solve, tower, config, unit

    @torch.no_grad()
    def users(self, histories: Interactions, handed: Tensor) -> Tensor:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        preferences = self._solve.users(histories, handed)
        made = self._tower(preferences / self._unit) * self._unit
        return with_one(made * torch.from_numpy(histories.user_degrees > 0)[:, None])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        settings, tensors = self._solve.state()
        tower = {f"tower.{name}": value.detach() for name, value in self._tower.state_dict().items()}
        about = {"config": self._config.model_dump(mode="json"), "unit": self._unit, "solve": settings}
        return about, tensors | tower

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        config = DropoutNetConfig.model_validate(settings["config"])
        tower = _tower(config, config.dim, torch.Generator())
        tower.load_state_dict(
            {key.removeprefix("tower."): value for key, value in tensors.items() if key.startswith("tower.")}
        )
        return cls(SolveRule.from_state(settings["solve"], tensors), tower, config, settings["unit"])


def _tower(config: DropoutNetConfig, inputs: int, rng: torch.Generator) -> nn.Module:
    return perceptron([inputs, *config.hidden, config.dim], nn.Tanh, rng)


def _unit(preferences: Tensor) -> float:
    """The power of two next to the root-mean-square: dividing and multiplying by it loses no bit."""
    size = float(preferences.square().mean().sqrt())
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0
