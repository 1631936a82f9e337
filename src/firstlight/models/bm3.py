"""BM3 (Zhou et al., WWW 2023): bootstrapped multimodal recommendation, which contrasts nothing with negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.graphs.propagation import BipartitePropagation
from firstlight.models.base import Batch, EmbeddingConfig, Encoded, Normalise
from firstlight.models.content import ContentModel, ContentRows
from firstlight.models.parts import light_propagation, linear


class BM3Config(EmbeddingConfig):
    """Config of :class:`BM3`; the defaults are the authors' best ones on Amazon Baby (their repository, issue 2).

    Other than as released: features are frozen, not trained on from where they start (a new item's features would be
    strangers to the model), and absent views of an item take part in nothing.
    """

    name: Literal["bm3"] = "bm3"

    normalise: Normalise = "none"
    """The paper ranks by the inner product."""

    layers: int = Field(1, ge=0)
    """Layers of LightGCN (published grid: 1, 2)."""

    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of elements of a target that are zeroed: with the one-sided gradient, all that keeps the vectors from
    falling together (published grid: .3, .5)."""

    content_weight: float = Field(2.0, ge=0)
    """Weight of the terms that align content with items and with itself (λ_cl; released: 2)."""

    norm_weight: float = Field(0.1, ge=0)
    """λ of (‖U‖_F + ‖H‖_F)/n_items (published grid: .1, .01)."""


class BM3(ContentModel):
    """Online vectors h(y) chase frozen, dropped-out targets y of the other side (rivals A3).

    U = LGN users, H = LGN items + e_i, t_m = T_m x_m + b_m, h(y) = W y + c; ranked by h(U_u)·h(H_i). The terms of
    :meth:`extra_losses` are the whole objective; a ranking loss may be added to them.
    """

    Config = BM3Config
    config: BM3Config

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Its own terms are the whole objective."""
        return {"loss": {"name": "none"}, "temperature": {"name": "fixed"}}

    own_loss = True

    def __init__(
        self,
        config: BM3Config,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train, rng, views)
        assert rng is not None
        self.hop = BipartitePropagation(train.indptr, train.items, train.n_items)
        self.predictor = linear(config.dim, config.dim, rng)
        self.projections = nn.ModuleList(linear(dim, config.dim, rng) for dim in self.view_dims.values())

    def encode(self, step: int, rng: torch.Generator | None) -> Encoded:
        """U and H; the predictor follows on the rows that are asked for."""
        users, items = light_propagation(self.hop, self.user_table, self.item_table, self.config.layers)
        return Encoded(users, items + self.item_table, rng)

    def vectors(self, encoded: Encoded, users: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predicted rows, h(U) and h(H)."""
        u, i = (
            self._rows(self.user_table, encoded.users, users),
            self._rows(self.item_table, encoded.items, items),
        )
        return self._normalised(self._drop(self.predictor(u), encoded.rng), self.predictor(i))

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Alignment of users with items, of content with both, and the norm term."""
        terms = super().extra_losses(encoded, batch)
        assert encoded.users is not None
        assert encoded.items is not None
        users, items = F.embedding(batch.users, encoded.users), F.embedding(batch.positives, encoded.items)
        everyone = torch.ones(len(users), dtype=torch.bool)
        user_target, item_target = self._target(users, encoded.rng), self._target(items, encoded.rng)
        terms["alignment"] = self._gap(users, item_target, everyone) + self._gap(items, user_target, everyone)
        if self.config.content_weight:
            content, total = self.content[batch.positives], users.new_zeros(())
            for values, projection, present in zip(
                content.values, self.projections, content.present.T, strict=True
            ):
                latent = projection(values)
                total = total + self._gap(latent, item_target, present)
                total = total + self._gap(latent, self._target(latent, encoded.rng), present)
            terms["content"] = self.config.content_weight * total
        if self.config.norm_weight:
            norms = encoded.users.norm() + encoded.items.norm()
            terms["norms"] = self.config.norm_weight * norms / self.n_items
        return terms

    def _target(self, vectors: Tensor, rng: torch.Generator | None) -> Tensor:
        """A copy without gradient, elements dropped in training."""
        vectors, rate = vectors.detach(), self.config.dropout
        if rng is None or rate == 0:
            return vectors
        return vectors * (torch.rand(vectors.shape, generator=rng) >= rate) / (1 - rate)

    def _gap(self, vectors: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """1 − cos(h(vectors), target), mean over the chosen rows; zero if there are none."""
        gaps = 1 - F.cosine_similarity(self.predictor(vectors), target, dim=1)
        return (gaps * rows).sum() / rows.sum().clamp(min=1)

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """The mean of h(t_m) over an item's views, in place of h(H_i).

        Training pulls h(t_m) and h(U_u) towards the same target H_i, so the two are compared as they are. A second h
        on top, as h(H_i) has it, found fewer held-out pairs of cold items (TikTok's small log: .0247 against .0306).
        """
        total = torch.zeros(len(rows), self.config.dim)
        for values, projection, present in zip(rows.values, self.projections, rows.present.T, strict=True):
            total = total + self.predictor(projection(values)) * present[:, None]
        vectors = total / rows.present.sum(dim=1, keepdim=True).clamp(min=1)
        return self._normalised(vectors, vectors)[1]

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []
