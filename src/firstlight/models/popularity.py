"""The floor of every table: the items with the most training clicks, the same for everybody."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.models.base import ModelConfig, Recommender


class PopularityConfig(ModelConfig):
    """Config of :class:`Popularity`: nothing to choose."""

    name: Literal["popularity"] = "popularity"


class Popularity(Recommender):
    """Scores are training degrees; ties fall to the lower item row."""

    Config = PopularityConfig
    trainable = False

    def __init__(
        self, config: PopularityConfig, train: Interactions, rng: torch.Generator | None = None
    ) -> None:
        super().__init__(config, train)
        self.config = config
        degrees = torch.from_numpy(train.item_degrees.astype(np.float32))
        self.register_buffer("degrees", degrees)
        self.degrees: Tensor

    def vectors_for_scoring(self) -> None:
        """Popularity has no vectors."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(len(users), n_items)``: the degrees, once per user."""
        return self.degrees.expand(len(users), -1)
