"""A two-layer tower on content beside free vectors: the plain way to recommend what nobody has clicked yet."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import EmbeddingConfig, Encoded
from firstlight.models.content import ContentModel, ContentRows
from firstlight.models.towers import by_blocks, content_input, dropped, perceptron


class TowerConfig(EmbeddingConfig):
    """Config of :class:`Tower`."""

    name: Literal["tower"] = "tower"

    hidden: int = Field(256, ge=1)
    """Width of the hidden layer."""

    use_id: bool = True
    """Whether a warm item also has a free vector, added to what its content gives."""

    id_dropout: float = Field(0.5, ge=0, le=1)
    """Share of items whose free vector a training step leaves out, so that content alone learns to rank (specs:
    ρ). 0 never trains content alone, 1 never trains the free vectors."""

    content_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of hidden units that training sets to zero."""


class Tower(ContentModel):
    """z_i = f(x_i) + m_i e_i, f two layers on the joined views, m_i = 0 for cold items and at random in training.

    Users are free vectors. Any ranking loss of the seam trains it; both sides are normalised as the config says.
    """

    Config = TowerConfig
    config: TowerConfig

    def __init__(
        self,
        config: TowerConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train, rng, views)
        assert rng is not None
        width = sum(self.view_dims.values())
        self.tower = perceptron([width, config.hidden, config.dim], nn.GELU, rng)

    def _content_part(self, rows: ContentRows, rng: torch.Generator | None) -> Tensor:
        hidden = self.tower[:-1](content_input(rows))
        made: Tensor = self.tower[-1](dropped(hidden, self.config.content_dropout, rng))
        return made

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """``(n, dim)`` f(x), normalised as in training."""
        made = self._content_part(rows, None)
        return self._normalised(made[:0], made)[1]

    def vectors(self, encoded: Encoded, users: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base; an item that occurs twice in a step goes through the tower once, with one mask."""
        raw_users = self._drop(self._rows(self.user_table, None, users), encoded.rng)
        if items is None:
            made = self._joined(self.content, self.item_table, encoded.rng)
        else:
            unique, slots = torch.unique(items, return_inverse=True)
            ids = self._rows(self.item_table, None, unique)
            made = F.embedding(slots, self._joined(self.content[unique], ids, encoded.rng))
        return self._normalised(raw_users, made)

    def _joined(self, rows: ContentRows, ids: Tensor, rng: torch.Generator | None) -> Tensor:
        """``(n, dim)``: what content gives plus the free vectors, in training some of them only."""
        made = self._content_part(rows, rng)
        if not self.config.use_id:
            return made
        if rng is not None and self.config.id_dropout:
            ids = ids * (torch.rand(len(ids), 1, generator=rng) >= self.config.id_dropout)
        return made + ids

    def sparse_rows(self) -> list[str]:
        """The tables; the tower is dense."""
        return ["user_table", "item_table"]

    @torch.no_grad()
    def training_space(self) -> tuple[Tensor, Tensor]:
        """As the base; items in blocks."""
        encoded = self.encode(0, None)
        nobody = torch.zeros(0, dtype=torch.int64)
        users = self.vectors(encoded, torch.arange(self.n_users), nobody)[0]
        width = sum(self.view_dims.values()) + self.config.hidden
        return users, by_blocks(lambda rows: self.vectors(encoded, nobody, rows)[1], self.n_items, width)
