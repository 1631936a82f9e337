"""Content nearest neighbours: the control that every model for cold items must beat."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import ModelConfig, Recommender
from firstlight.models.content import ContentRows, content_rows
from firstlight.models.histories import FoldRule, Histories


class ContentKNNConfig(ModelConfig):
    """Config of :class:`ContentKNN`."""

    name: Literal["content-knn"] = "content-knn"

    weights: dict[str, float] = Field(default_factory=dict)
    """Share of a view in the cosine, relative to the other views; 1 for a view that is not named, 0 leaves it out."""

    @field_validator("weights")
    @classmethod
    def _usable(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= weight < float("inf") for weight in weights.values()):
            raise ValueError("a weight must be a number of at least 0")
        return weights


class ContentKNN(Recommender):
    """s(u, i) = cos(Σ over u's items j of x_j, x_i): nothing is trained, cold items are items like any other.

    x_i joins the unit rows of the views that item i has, each times √weight: the cosine of two items that have the same
    views is the weighted mean of the views' cosines. The profile weighs each item of the history alike; its mean and
    its sum give the same cosine.
    """

    Config = ContentKNNConfig
    trainable = False
    needs_views = True

    def __init__(
        self,
        config: ContentKNNConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train)
        if not views:
            raise InputError("this model reads content, and no view is given")
        self.config = config
        #: View name → width, in the order in which the vectors join them.
        self.view_dims = {name: matrix.values.shape[1] for name, matrix in views.items()}
        unknown = sorted(set(config.weights) - set(self.view_dims))
        if unknown:
            raise InputError(
                f"model.weights names the view {unknown[0]!r}, which there is not",
                hint=f"known: {', '.join(self.view_dims)}",
            )
        if not any(config.weights.get(name, 1.0) for name in self.view_dims):
            raise InputError(
                "model.weights leaves out every view, so that all scores would be zero",
                hint=f"give one of them a weight above 0: {', '.join(self.view_dims)}",
            )
        weights = torch.tensor([config.weights.get(name, 1.0) for name in self.view_dims])
        self.register_buffer("weights", weights)
        self.weights: Tensor
        rows = content_rows(views, self.view_dims)
        if len(rows) != train.n_items:
            raise InputError(f"the views have {len(rows)} rows, the log has {train.n_items} items")
        #: ``(n_items,)`` bool: items without a pair in the log.
        self.cold = torch.from_numpy(train.item_degrees == 0)
        self._items = self._joined(rows)

    def _joined(self, rows: ContentRows) -> Tensor:
        parts = [
            F.normalize(view, dim=1) * weight.sqrt()
            for view, weight in zip(rows.values, self.weights, strict=True)
        ]
        return F.normalize(torch.cat(parts, dim=1), dim=1)

    def encode_items(self, views: ItemViews) -> Tensor:
        """``(n, Σ dim_m)`` unit vectors of items from their views; zero for an item without any."""
        return self._joined(content_rows(views, self.view_dims))

    def histories(self) -> Histories:
        """How users are made of histories: the mean of the items, divided by its length."""
        return Histories(FoldRule(unit=True), self._items)

    def encode_users(self, histories: Interactions) -> Tensor:
        """``(n, Σ dim_m)`` unit profiles; zero for an empty history."""
        rule, handed = self.histories()
        return rule.users(histories, handed)

    def user_vectors(self) -> Tensor:
        """``(n_users, Σ dim_m)`` unit profiles of the training histories."""
        return self.encode_users(self.log)

    def item_vectors(self) -> Tensor:
        """``(n_items, Σ dim_m)`` unit vectors, of warm and cold items alike."""
        return self._items
