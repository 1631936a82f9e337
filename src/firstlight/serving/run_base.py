"""A finished run as the base of what is added to it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.data.interactions import Interactions
from firstlight.evaluation.scorer import Scorer
from firstlight.models.base import Recommender
from firstlight.models.content import ContentModel
from firstlight.models.histories import HistoryRule
from firstlight.serving.base import BoolArray, text_columns
from firstlight.serving.contents import Additions
from firstlight.serving.extras import Array, Extras
from firstlight.serving.pictures import Pictures, pictures_of
from firstlight.serving.reasons import Reasons, fit_reasons, rows_of


class FinishedRun(Protocol):
    """A run as training leaves it, by the names of its own parts."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def config(self) -> BaseModel:
        """The resolved config."""

    @property
    def user_ids(self) -> pl.Series:
        """Raw ids by user row."""

    @property
    def item_ids(self) -> pl.Series:
        """Raw ids by item row."""

    @property
    def parts(self) -> dict[str, Interactions]:
        """The split."""

    @property
    def seen(self) -> Interactions:
        """What the final model was trained on."""

    @property
    def model(self) -> Recommender:
        """The trained model."""

    @property
    def scorer(self) -> Scorer:
        """The same, as ranking wants it."""


class RunBase:
    """A run as the base of its own additions; the model is built when a vector is first needed.

    Args:
        run: A finished run.
        items: ``item`` (raw ids), text columns, and covers, in any order.
        folder: What relative cover paths are relative to.
    """

    def __init__(
        self, run: FinishedRun, items: pl.DataFrame | None = None, folder: Path | None = None
    ) -> None:
        self.run = run
        self.user_ids = run.user_ids
        self.table = pl.DataFrame([run.item_ids.alias("item").cast(pl.String)])
        self._pictures: Pictures | None = None
        self._covers: pl.Series | None = None
        if items is not None:
            ids = items["item"].cast(pl.String)
            texts = pl.DataFrame([ids, *text_columns(items).get_columns()])
            if "cover" in items.columns:
                joined = self.table.join(
                    pl.DataFrame([ids, items["cover"]]), on="item", how="left", maintain_order="left"
                )
                self._covers = joined["cover"]
                self._pictures = pictures_of(self._covers, folder)
            self.table = self.table.join(texts, on="item", how="left", maintain_order="left")
        self.alive: BoolArray = np.ones(len(run.item_ids), np.bool_)

    @cached_property
    def _vectors(self) -> tuple[Tensor, Tensor]:
        vectors = self.run.scorer.vectors()
        if vectors is None:
            raise InputError("the model of this run has no vectors", path=self.run.path)
        users, items = (rows.detach().to("cpu", torch.float32).contiguous() for rows in vectors)
        return users, items

    @property
    def user_vectors(self) -> Tensor:
        """``(n_users, dim)``."""
        return self._vectors[0]

    @property
    def item_vectors(self) -> Tensor:
        """``(n_items, dim)``."""
        return self._vectors[1]

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.item_vectors.shape[1]

    @cached_property
    def seen(self) -> Interactions:
        """What the run knows of its users: its training log, and validation where that was not trained on."""
        valid = self.run.parts.get("valid")
        return self.run.seen if valid is None else self.run.seen.union(valid)

    @cached_property
    def trained(self) -> BoolArray:
        """``(n_users,)``: users with a click in what the model was trained on."""
        return self.run.seen.user_degrees > 0

    def cover(self, row: int) -> bytes | None:
        """A small picture of an item row (JPEG), or None; made when asked for."""
        return None if self._pictures is None else self._pictures(row)

    def has_cover(self, row: int) -> bool:
        """Whether there is one, usable or not."""
        return self._covers is not None and bool(self._covers[row])

    @cached_property
    def _beside(self) -> tuple[dict[str, Array], Reasons | None, HistoryRule | None]:
        """Extras, and what reads them: as the model makes them, when they are first needed."""
        model, extras, reasons, rule = self.run.model, dict[str, Array](), None, None
        if isinstance(model, ContentModel):
            extras = rows_of(model, model.content)
            ids = self.table["item"].to_numpy()
            reasons = fit_reasons(model, ids, extras["views"])
        histories = model.histories()
        if histories is not None:
            rule = histories.rule
            if rule.reads == "handed":
                extras["handed"] = histories.handed.detach().to("cpu", torch.float32).numpy()
        return extras, reasons, rule

    @property
    def extras(self) -> Extras:
        """Rows beside the item vectors."""
        return self._beside[0]

    @property
    def reasons(self) -> Reasons | None:
        """What explains lists."""
        return self._beside[1]

    @property
    def rule(self) -> HistoryRule | None:
        """The model's own way from a history to a user."""
        return self._beside[2]

    @property
    def removed(self) -> frozenset[str]:
        """Nothing: a run knows what it was trained on."""
        return frozenset()

    @property
    def additions(self) -> Additions:
        """Nothing: what was added stands in segments."""
        return Additions()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tensors and the ids: additions of another model do not fit."""
        files = (self.run.path / name for name in ("model.safetensors", "ids.parquet"))
        return hash_strings(hash_file(file) for file in files)
