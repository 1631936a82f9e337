"""VBPR (He & McAuley, AAAI 2016): matrix factorisation with a second half of the vector read from content."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import Batch, EmbeddingConfig, Encoded, Normalise, TrainsAsPublished
from firstlight.models.content import ContentModel, ContentRows
from firstlight.models.parts import linear


class VBPRConfig(EmbeddingConfig):
    """Config of :class:`VBPR`: the form that multimodal papers compare with (MMRec).

    Other than there: only rows of the batch are projected (the same loss, at a hundredth of the price); features are
    standardised by whoever made the views, where raw ones of larger norm drown the others; log σ is computed as a
    softplus instead of log(1e-10 + σ). The original's user, item and visual biases are left out there, too.
    """

    name: Literal["vbpr"] = "vbpr"

    dim: int = Field(64, ge=1)
    """Width of each half, ID and content (paper: K and D); vectors are twice as wide."""

    normalise: Normalise = "none"
    """The paper ranks by the inner product."""

    norm_weight: float = Field(0.1, ge=0)
    """λ of (‖P_B‖_F + ‖Q⁺_B‖_F + ‖Q⁻_B‖_F)/batch: norms, not their squares, of the batch's whole vectors
    (released grid: 2, 1, .1, … 1e-5; which one the published row used is not said)."""


class VBPR(TrainsAsPublished, ContentModel):
    """User p_u ∈ R^{2d}, item q_i = [e_i ‖ T x_i + b] with all views side by side in x_i (rivals A1)."""

    Config = VBPRConfig
    config: VBPRConfig
    user_rows = ("user_table", "user_content")

    def __init__(
        self,
        config: VBPRConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train, rng, views)
        assert rng is not None
        bound = float(np.sqrt(6 / (train.n_users + config.dim)))
        #: The users' content half, beside :attr:`user_table`.
        self.user_content = nn.Parameter(torch.empty(train.n_users, config.dim))
        with torch.no_grad():
            self.user_content.uniform_(-bound, bound, generator=rng)
        self.project = linear(sum(self.view_dims.values()), config.dim, rng)

    def vectors(self, encoded: Encoded, users: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(rows, 2·dim)`` and ``(k or n_items, 2·dim)``."""
        return self._normalised(self._drop(self._users(users), encoded.rng), self._items(items))

    def _users(self, rows: Tensor) -> Tensor:
        halves = [F.embedding(rows, table, sparse=True) for table in (self.user_table, self.user_content)]
        return torch.cat(halves, dim=1)

    def _items(self, rows: Tensor | None) -> Tensor:
        content = self.content if rows is None else self.content[rows]
        return torch.cat([self._rows(self.item_table, None, rows), self.project(content.joined())], dim=1)

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The batch norms, beside the seam's own L2 (of the ID halves)."""
        terms = super().extra_losses(encoded, batch)
        if self.config.norm_weight == 0:
            return terms
        squares = self._items(batch.negatives).square().sum(dim=1)
        if batch.index is not None:  # each draw counts, also of one item twice
            squares = squares * torch.bincount(batch.index.reshape(-1), minlength=len(squares))
        norms = self._users(batch.users).norm() + self._items(batch.positives).norm() + squares.sum().sqrt()
        return terms | {"norms": self.config.norm_weight * norms / len(batch.users)}

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """[0 ‖ T x + b]: the ID half is zero; as released it would be untrained noise."""
        projected = self.project(rows.joined())
        vectors = torch.cat([torch.zeros_like(projected), projected], dim=1)
        return self._normalised(vectors, vectors)[1]

    def sparse_rows(self) -> list[str]:
        """Both halves of the users, and the items' IDs."""
        return ["user_table", "user_content", "item_table"]
