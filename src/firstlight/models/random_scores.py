"""Chance: the level that every cold table must be read against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.models.base import ModelConfig, Recommender

#: Odd 63-bit multipliers: a product modulo 2⁶⁴ by one is a bijection that carries low bits upwards.
_MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)


class RandomConfig(ModelConfig):
    """Config of :class:`RandomScores`: nothing to choose; the run's seed decides the numbers."""

    name: Literal["random"] = "random"


class RandomScores(Recommender):
    """A uniform score in [0, 1) for each (user, item), always the same one, computed when asked for."""

    Config = RandomConfig
    trainable = False

    def __init__(self, config: RandomConfig, train: Interactions, rng: torch.Generator | None = None) -> None:
        super().__init__(config, train)
        self.config = config
        self.register_buffer("key", torch.randint(2**62, (), generator=rng or torch.Generator()))
        self.key: Tensor

    def vectors_for_scoring(self) -> None:
        """Chance has no vectors."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(len(users), n_items)`` hashes of (key, user, item), on 2²⁴ levels."""
        rows = _mixed(users.long() + self.key)
        return (_mixed(rows[:, None] + torch.arange(self.n_items)) >> 39 & (2**24 - 1)) / 2**24


def _mixed(values: Tensor) -> Tensor:
    """A bijection of int64 under which neighbouring values have nothing in common (multiply, shift, xor)."""
    for factor in _MIX:
        values = values * factor
        # The shift of a negative number brings ones in: keep the 31 bits that moved.
        values = values ^ (values >> 33 & (2**31 - 1))
    return values
