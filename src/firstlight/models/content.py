"""The seam of models that read content: item vectors from features alone, and a fair place for cold items.

An item is *cold* if the log that the model was built on holds no pair of it. Its vector comes from content, by the
same :meth:`ContentModel.content_vectors` whether it was in the catalogue during training or arrives a year later, so
adding an item changes no other vector. Scores of cold and warm items are made comparable by a scale and an additive
offset on cold vectors, fitted on cold validation items (:mod:`firstlight.evaluation.cold`); the offset lives in one
more dimension that is one for every user, so that a score stays an inner product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.data.catalogue import FeatureMatrix, ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import EmbeddingConfig, EmbeddingModel
from firstlight.models.histories import FoldRule, Histories, fit_fold, with_one


@dataclass(frozen=True)
class ContentRows:
    """Content of some items, view by view.

    Attributes:
        values: One ``(n, dim_m)`` float32 matrix a view; rows of absent items are zero.
        present: ``(n, n_views)`` bool.
        ids: ``(n,)`` int64 rows of the catalogue that the model was built on, whose own neighbours these items are
            not; None for items from outside.
    """

    values: tuple[Tensor, ...]
    present: Tensor
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: Tensor) -> ContentRows:
        """The chosen items, in that order."""
        ids = None if self.ids is None else self.ids[rows]
        return ContentRows(tuple(view[rows] for view in self.values), self.present[rows], ids)

    def joined(self) -> Tensor:
        """``(n, Σ dim_m)``: all views side by side."""
        return torch.cat(self.values, dim=1)


def content_rows(views: ItemViews, dims: Mapping[str, int]) -> ContentRows:
    """Views as tensors, in the order of ``dims``.

    Args:
        views: View name → rows; a view that is missing altogether is absent for every item.
        dims: The views that a model was built with, and their widths.

    Raises:
        InputError: A view has another width, there is no known view, or the row counts differ.
    """
    known = [name for name in dims if name in views]
    if not known:
        raise InputError(
            f"none of the views that the model reads is given ({', '.join(dims)})",
            hint=f"given: {', '.join(views) or 'none'}",
        )
    n = len(views[known[0]].present)
    values, present = [], []
    for name, dim in dims.items():
        matrix = views.get(name)
        if matrix is None:
            matrix = FeatureMatrix(np.zeros((n, dim), np.float32), np.zeros(n, np.bool_))
        if matrix.values.shape != (n, dim):
            raise InputError(f"view {name!r} has shape {matrix.values.shape}, the model reads {(n, dim)}")
        present.append(torch.from_numpy(np.ascontiguousarray(matrix.present)))
        rows = torch.from_numpy(np.ascontiguousarray(matrix.values, np.float32))
        values.append(rows * present[-1][:, None])
    return ContentRows(tuple(values), torch.stack(present, dim=1))


class ContentModel(EmbeddingModel):
    """A model with ID tables that can also make an item's vector from its content.

    A subclass defines :meth:`content_vectors` and, where tables are not looked up directly, ``encode``/``vectors``.

    Args:
        config: The model's config.
        train: The training log.
        rng: Random stream of the start.
        views: Content of the items, row-aligned to the log. Standardised by whoever made them (``views/``).
    """

    needs_views = True

    def __init__(
        self,
        config: EmbeddingConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train, rng)
        if not views:
            raise InputError("this model reads content, and no view is given")
        #: View name → width, in the order of :attr:`content`.
        self.view_dims = {name: matrix.values.shape[1] for name, matrix in views.items()}
        self.content = replace(content_rows(views, self.view_dims), ids=torch.arange(train.n_items))
        if len(self.content) != train.n_items:
            raise InputError(f"the views have {len(self.content)} rows, the log has {train.n_items} items")
        #: ``(n_items,)`` bool: items without a pair in the log.
        self.cold = torch.from_numpy(train.item_degrees == 0)
        self.register_buffer("cold_scale", torch.ones(()))
        self.register_buffer("cold_offset", torch.zeros(()))
        self.cold_scale: Tensor
        self.cold_offset: Tensor

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """``(n, dim)`` vectors of items from content alone, in scoring space, before calibration.

        A row's vector must depend on that row only (and on what training left), never on the rows beside it.
        """
        raise NotImplementedError

    def content_bias(self, rows: ContentRows) -> Tensor | None:
        """``(n,)`` what an item's content adds to its score for everybody, or None where no such thing is learned.

        In scoring space, before calibration.
        """
        return None

    def handing(self, rows: ContentRows) -> tuple[Tensor, Tensor | None]:
        """:meth:`content_vectors`, and what such items hand to those who click them.

        Returns:
            ``(n, dim)``; and ``(n, width)`` beside the rows of :meth:`histories`, or None where the rule reads
            vectors, or nothing is known of an item that nobody has clicked.
        """
        return self.content_vectors(rows), None

    def hyperedges(self, rows: ContentRows) -> Tensor | None:
        """``(n, n_views, n_edges)`` memberships of items in learned hyperedges that count in the score, or None.

        Zero in a view that an item lacks.
        """
        return None

    def raw_vectors(self) -> tuple[Tensor, Tensor]:
        """User and item vectors in scoring space as training left them, cold items not yet replaced."""
        return self.training_space()

    @torch.no_grad()
    def encode_items(self, views: ItemViews) -> Tensor:
        """Vectors of items from content alone, as they stand beside :meth:`item_vectors`.

        Args:
            views: View name → rows of the new items; views may be missing, as a whole or per item.

        Returns:
            ``(n, dim + 1)`` in scoring space, calibrated.
        """
        rows = content_rows(views, self.view_dims)
        return self._as_cold(rows, self.content_vectors(rows))

    @torch.no_grad()
    def encode_and_hand(self, rows: ContentRows) -> tuple[Tensor, Tensor | None]:
        """``(n, dim + 1)`` as :meth:`encode_items`, and what such items hand on; see :meth:`handing`."""
        vectors, handed = self.handing(rows)
        return self._as_cold(rows, vectors), handed

    @torch.no_grad()
    def as_if_cold(self, rows: Tensor) -> Tensor:
        """``(n, dim + 1)`` vectors of catalogue items ``rows`` ``(n,)`` by their content alone, calibrated.

        As if nobody had clicked them: a warm item is not among its own neighbours.
        """
        content = self.content[rows]
        return self._as_cold(content, self.content_vectors(content))

    def _as_cold(self, rows: ContentRows, vectors: Tensor) -> Tensor:
        bias = self.content_bias(rows)
        offset = self.cold_offset if bias is None else self.cold_offset + self.cold_scale * bias
        return torch.cat([vectors * self.cold_scale, offset.expand(len(vectors))[:, None]], dim=1)

    @torch.no_grad()
    def histories(self) -> Histories:
        """How users are made of histories: by the mean of their items, led to where training puts users.

        See :func:`~firstlight.models.histories.fold_in`. For a fifth of the users of MovieLens (small), kept out of
        training of a two-tower model, Recall@20 on cold and on warm test items was .24 and .12 with the mean alone,
        .29 and .23 with this map, and .31 and .26 with a gradient fit of each user by the training loss, which only a
        caller that knows the loss could make.
        """
        users, items = self.vectors_for_scoring()
        weights = fit_fold(items[:, :-1], users[:, :-1], self.log)
        return Histories(FoldRule(weights, self.config.normalise in ("both", "user"), constant=True), items)

    @torch.no_grad()
    def encode_users(self, histories: Interactions) -> Tensor:
        """Vectors of users that training never saw, from what they clicked, by the rule of :meth:`histories`.

        Args:
            histories: ``(n, n_items)`` log of the new users over the model's item rows.

        Returns:
            ``(n, dim + 1)`` in scoring space; zero but for the last coordinate without a click, in most models.
        """
        rule, handed = self.histories()
        return rule.users(histories, handed)

    @torch.no_grad()
    def vectors_for_scoring(self) -> tuple[Tensor, Tensor]:
        """Both sides, ``(·, dim + 1)``; cold items by their content."""
        users, items = self.raw_vectors()
        cold = self.cold.nonzero()[:, 0]
        items = torch.cat([items, items.new_zeros(len(items), 1)], dim=1)
        if len(cold):
            items[cold] = self.as_if_cold(cold).to(items.dtype)
        return with_one(users), items

    def calibrate(self, scale: float, offset: float) -> None:
        """Set how cold vectors are scaled and what is added to their scores."""
        self.cold_scale.fill_(scale)
        self.cold_offset.fill_(offset)
