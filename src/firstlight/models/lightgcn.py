"""LightGCN (He et al., SIGIR 2020): linear propagation over the click graph, layers averaged."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.graphs.propagation import BipartitePropagation
from firstlight.models.base import EmbeddingConfig, EmbeddingModel, Encoded


class LightGCNConfig(EmbeddingConfig):
    """Config of :class:`LightGCN`."""

    name: Literal["lightgcn"] = "lightgcn"

    layers: int = Field(3, ge=0)
    """Number of hops K; 0 is matrix factorisation."""

    layer_weights: Literal["mean", "last"] = "mean"
    """``mean`` averages layers 0…K (eq. 8 with α = 1/(K + 1)); ``last`` takes layer K alone."""

    message_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of elements that training sets to zero after each hop (released Adap-τ: .1 on Yelp, else 0)."""

    plain_steps: int = Field(0, ge=0)
    """Training steps at the start that leave propagation out (K = 0): matrix factorisation, at a tenth of the
    price of a step, finds the coarse structure first. The paper and its code propagate from the first step (0)."""

    scoring: Literal["trained", "dot"] = "trained"
    """Whether ranking uses the space of training (cosine), or, as released, the inner product of the
    un-normalised vectors, where the length of an item's vector counts."""


class LightGCN(EmbeddingModel):
    """E^(k+1) = D^{-½} A D^{-½} E^(k); the result is the mean of all layers."""

    Config = LightGCNConfig
    config: LightGCNConfig

    def __init__(
        self, config: LightGCNConfig, train: Interactions, rng: torch.Generator | None = None
    ) -> None:
        super().__init__(config, train, rng)
        self.hop = BipartitePropagation(train.indptr, train.items, train.n_items)

    def encode(self, step: int, rng: torch.Generator | None) -> Encoded:
        """Propagate all users and items once, unless a training step falls into the plain start."""
        if rng is not None and step < self.config.plain_steps:
            return Encoded(None, None, rng)
        users: Tensor = self.user_table
        items: Tensor = self.item_table
        sum_users, sum_items = users, items
        for _ in range(self.config.layers):
            users, items = self.hop(users, items)
            users, items = self._message_drop(users, rng), self._message_drop(items, rng)
            sum_users, sum_items = sum_users + users, sum_items + items
        if self.config.layer_weights == "last":
            return Encoded(users, items, rng)
        share = 1 / (self.config.layers + 1)
        return Encoded(sum_users * share, sum_items * share, rng)

    def _message_drop(self, vectors: Tensor, rng: torch.Generator | None) -> Tensor:
        rate = self.config.message_dropout
        if rng is None or rate == 0:
            return vectors
        return vectors * (torch.rand(vectors.shape, generator=rng) >= rate) / (1 - rate)

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []

    @torch.no_grad()
    def vectors_for_scoring(self) -> tuple[Tensor, Tensor]:
        """Propagated vectors, normalised as in training or raw."""
        if self.config.scoring == "trained":
            return self.training_space()
        encoded = self.encode(0, None)
        users, items = encoded.users, encoded.items
        assert users is not None
        assert items is not None
        return users, items
