"""Matrix factorisation: a vector per user and item, scored by their cosine or inner product."""

from __future__ import annotations

from typing import Literal

from firstlight.models.base import EmbeddingConfig, EmbeddingModel


class MFConfig(EmbeddingConfig):
    """Config of :class:`MatrixFactorisation`.

    The released Adap-τ uses ``dim=64``, ``user_dropout=.1`` and ``l2`` between 1e-9 and 1e-3; its negatives are
    drawn per pair. Departures that are ours by default stand in the recipes, with their measured effect.
    """

    name: Literal["mf"] = "mf"


class MatrixFactorisation(EmbeddingModel):
    """Nothing beyond the two tables: :class:`~firstlight.models.base.EmbeddingModel` as it is."""

    Config = MFConfig
