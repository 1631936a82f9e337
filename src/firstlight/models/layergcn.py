"""LayerGCN (Zhou et al., ICDE 2023): propagation whose layers are weighed by how like the start they still are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.graphs.pruning import PrunedGraph
from firstlight.models.base import (
    Batch,
    EmbeddingConfig,
    EmbeddingModel,
    Encoded,
    Normalise,
    TrainsAsPublished,
)


class LayerGCNConfig(EmbeddingConfig):
    """Config of :class:`LayerGCN`.

    Other than as released: losses are means over the batch, not sums (under Adam the scale of a loss does not matter),
    degrees carry no 1e-7, and pruning follows the step's number, so that a resumed run is the same run.
    """

    name: Literal["layergcn"] = "layergcn"

    normalise: Normalise = "none"
    """The paper ranks by the inner product."""

    layers: int = Field(4, ge=1)
    """Number of hops L."""

    prune: float = Field(0.1, ge=0, lt=1)
    """Share of pairs left out while training (ρ; published grid: 0, .1, .2)."""

    prune_every: int | None = Field(None, ge=1)
    """Steps between draws of the pruned graph; None: about an epoch, as in the paper."""

    ego_l2: float = Field(1e-3, ge=0)
    """λ of ½ Σ ‖ego rows of users, positives and negatives‖² per pair (published grid: 1e-2 … 1e-5)."""


class LayerGCN(TrainsAsPublished, EmbeddingModel):
    """X^l = cos(ÂX^{l-1}, E) ⊙ ÂX^{l-1}; the result is the sum of layers 1…L, without the start (rivals A2).

    Users and items without a pair are exactly zero: the model has no place for cold items.
    """

    Config = LayerGCNConfig
    config: LayerGCNConfig

    def __init__(
        self, config: LayerGCNConfig, train: Interactions, rng: torch.Generator | None = None
    ) -> None:
        super().__init__(config, train, rng)
        log = train.indptr, train.items, train.n_items
        self.graph = PrunedGraph(*log, config.prune, config.prune_every, alternate=True)
        self.register_buffer("graph_seed", torch.randint(2**62, (), generator=rng))
        self.graph_seed: Tensor

    def encode(self, step: int, rng: torch.Generator | None) -> Encoded:
        """Propagate all users and items: on the step's pruned graph in training, else on the whole one."""
        hop = self.graph.whole if rng is None else self.graph.at(step, int(self.graph_seed))
        users: Tensor = self.user_table
        items: Tensor = self.item_table
        sum_users, sum_items = torch.zeros_like(users), torch.zeros_like(items)
        for _ in range(self.config.layers):
            users, items = hop(users, items)
            users, items = _refined(users, self.user_table), _refined(items, self.item_table)
            sum_users, sum_items = sum_users + users, sum_items + items
        return Encoded(sum_users, sum_items, rng)

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The L2 term on ego rows, beside the seam's own (on propagated ones)."""
        terms = super().extra_losses(encoded, batch)
        if self.config.ego_l2 == 0:
            return terms
        negatives = self.item_table if batch.negatives is None else self.item_table[batch.negatives]
        squares = (
            self.user_table[batch.users].square().sum() + self.item_table[batch.positives].square().sum()
        )
        squares = squares + batch.negative_uses * negatives.square().sum()
        return terms | {"ego_l2": self.config.ego_l2 / 2 / len(batch.users) * squares}

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []


def _refined(layer: Tensor, start: Tensor) -> Tensor:
    return layer * F.cosine_similarity(layer, start, dim=1, eps=1e-8)[:, None]
