"""Item-based nearest neighbours on co-clicks: no training, a hard baseline to beat."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from firstlight.core.topk import top_k_rows
from firstlight.data.interactions import Interactions
from firstlight.models.base import ModelConfig, Recommender

#: Scores, or steps of the walk, that are held at once.
_BLOCK = 8 * 2**20


class ItemKNNConfig(ModelConfig):
    """Config of :class:`ItemKNN`."""

    name: Literal["item-knn"] = "item-knn"

    neighbours: int = Field(100, ge=1)
    """How many most similar items each item keeps."""

    shrinkage: float = Field(0.0, ge=0)
    """Added to the denominator of the cosine: pairs with few common users count less."""


class ItemKNN(Recommender):
    """s(u, i) = Σ over u's items j that count i among their neighbours of cos(i, j), on 0/1 click columns."""

    Config = ItemKNNConfig
    trainable = False
    fits_when_built = True

    def __init__(
        self,
        config: ItemKNNConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        *,
        fit: bool = True,
    ) -> None:
        super().__init__(config, train)
        self.config = config
        k = min(config.neighbours, train.n_items)
        self.register_buffer("neighbours", torch.zeros(train.n_items, k, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(train.n_items, k))
        self.register_buffer("indptr", torch.from_numpy(train.indptr.copy()))
        self.register_buffer("history", torch.from_numpy(train.items.astype(np.int64)))
        self.neighbours: Tensor
        self.weights: Tensor
        self.indptr: Tensor
        self.history: Tensor
        if fit:
            neighbours, weights = _neighbours(train, config)
            self.neighbours.copy_(torch.from_numpy(neighbours))
            self.weights.copy_(torch.from_numpy(weights))

    def vectors_for_scoring(self) -> None:
        """A neighbourhood model has no vectors."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(len(users), n_items)`` sums over the neighbours of each user's history."""
        scores = torch.zeros(len(users), self.n_items)
        for row, user in enumerate(users.tolist()):
            clicked = self.history[self.indptr[user] : self.indptr[user + 1]]
            scores[row].index_add_(0, self.neighbours[clicked].reshape(-1), self.weights[clicked].reshape(-1))
        return scores


def _neighbours(
    train: Interactions, config: ItemKNNConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The top neighbours of each item and their cosines, ``(n_items, k)``, ties by smaller row; a missing one weighs 0.

    Co-clicks of a block of items are counted by walking item → users → items, a bounded number of steps at a time, so
    memory is a block of rows and never grows with how dense the log is.
    """
    by_item = np.argsort(train.items, kind="stable")
    item_users = train.users[by_item]
    item_indptr = np.zeros(train.n_items + 1, np.int64)
    np.cumsum(train.item_degrees, out=item_indptr[1:])
    k = min(config.neighbours, train.n_items)
    ids = np.zeros((train.n_items, k), np.int64)
    weights = np.zeros((train.n_items, k), np.float32)
    norms = np.sqrt(np.maximum(train.item_degrees, 1)).astype(np.float32)
    height = max(1, _BLOCK // max(1, train.n_items))
    for lo in range(0, train.n_items, height):
        hi = min(train.n_items, lo + height)
        counts = torch.zeros((hi - lo) * train.n_items)
        users = item_users[item_indptr[lo] : item_indptr[hi]]
        owners = np.repeat(np.arange(hi - lo), np.diff(item_indptr[lo : hi + 1]))
        # Cut the walk where its length passes another multiple of the block.
        part = np.cumsum(train.user_degrees[users]) // _BLOCK
        for cut in np.split(np.arange(len(users)), np.flatnonzero(np.diff(part)) + 1):
            lengths = train.user_degrees[users[cut]]
            starts = np.repeat(train.indptr[users[cut]] - np.r_[0, np.cumsum(lengths)[:-1]], lengths)
            others = train.items[starts + np.arange(lengths.sum())].astype(np.int64)
            cells = np.repeat(owners[cut], lengths) * train.n_items + others
            counts.index_add_(0, torch.from_numpy(cells), torch.ones(len(cells)))
        cosine = counts.view(hi - lo, train.n_items)
        cosine /= torch.from_numpy(norms[lo:hi])[:, None] * torch.from_numpy(norms) + config.shrinkage
        cosine[torch.arange(hi - lo), torch.arange(lo, hi)] = 0
        best = top_k_rows(cosine, k)
        ids[lo:hi], weights[lo:hi] = best.ids.numpy(), best.scores.numpy()
    return ids, weights
