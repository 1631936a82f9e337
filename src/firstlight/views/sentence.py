"""Texts through a sentence encoder from a local folder (extra ``text``; Reimers & Gurevych, EMNLP 2019)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.extras import installed, require
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError, nothing
from firstlight.views.config import SentenceConfig
from firstlight.views.scale import Scaled, Scaler, usable_rows
from firstlight.views.text import chosen_columns
from firstlight.views.words import cells, pieces

FloatArray = npt.NDArray[np.float32]

#: Characters read of each cell; encoders read a few hundred words.
_CHARACTERS = 20_000
#: Rows that an encoder keeps in memory: fitting and transforming, search and refit ask for the same texts.
_REMEMBERED_BYTES = 256 << 20


def encoder_hash(path: Path | str) -> str:
    """Hash over names and contents of the files in an encoder's folder, hidden ones and Markdown left out.

    Raises:
        InputError: There is no such folder, or nothing in it.
    """
    folder = _folder(path)
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    read = sorted(
        name.as_posix()
        for name in names
        if name.suffix.lower() != ".md" and not any(part.startswith(".") for part in name.parts)
    )
    if not read:
        raise InputError("there is no encoder in this folder", path=folder)
    return hash_strings(part for name in read for part in (name, hash_file(folder / name)))


def check_encoder(config: SentenceConfig) -> None:
    """Refuse early what :meth:`SentenceView.fit` would refuse: a folder or a library that is not there.

    Raises:
        InputError: ``config.path`` is not a folder.
        MissingExtraError: The extra is not installed.
    """
    if config.path is not None:
        _folder(config.path)
        if not installed("text"):
            require("text")


def _folder(path: Path | str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(
            "there is no folder of a sentence encoder here",
            path=folder,
            hint="views.sentence.path takes a folder on this machine; nothing is fetched by name",
        )
    return folder


def sentences(items: pl.DataFrame, columns: Sequence[str]) -> list[str | None]:
    """One text an item: the pieces of a cell joined by commas, the columns by full stops; None without a text."""
    there = [cells(items, name) for name in columns if name in items.columns]
    texts: list[str | None] = []
    for row in range(items.height):
        parts = (", ".join(piece.strip() for piece in pieces(cell[row], _CHARACTERS)) for cell in there)
        texts.append(". ".join(part for part in parts if part) or None)
    return texts


class _Encoder:
    """A loaded encoder and the rows that it made already."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._known: dict[str, FloatArray] = {}
        self._bytes = 0

    def rows(self, texts: Sequence[str]) -> FloatArray:
        """``(len(texts), dim)`` float32; each text goes through the encoder on its own, and only once.

        In batches, padding and the shape of the products would move a row by rounding. On a CPU nothing is lost: a
        MiniLM of six layers took 42 ms for a film one by one, 48 ms in batches of 32.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        fresh: dict[str, FloatArray] = {}
        if new:
            made = np.asarray(
                self._model.encode(new, batch_size=1, show_progress_bar=False, convert_to_numpy=True),
                np.float32,
            )
            if made.ndim != 2 or len(made) != len(new):
                raise InputError(
                    f"the encoder gave {made.shape} for {len(new)} texts, not a row each", path=self._folder
                )
            fresh = dict(zip(new, made, strict=True))
            if self._bytes + made.nbytes <= _REMEMBERED_BYTES:
                self._known |= fresh
                self._bytes += made.nbytes
        return np.stack([fresh[text] if text in fresh else self._known[text] for text in texts])


@contextmanager
def _offline() -> Iterator[None]:
    """The library reads these variables when it is loaded: it asks no hub for anything, and draws no bars."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@lru_cache(maxsize=1)
def _loaded(folder: Path, digest: str) -> _Encoder:
    """The encoder in ``folder``, if its content is the one that ``digest`` names."""
    if encoder_hash(folder) != digest:
        raise InputError(
            "the sentence encoder in this folder is another one than in training (its content differs)",
            path=folder,
            hint="put back the folder that the run was trained with, or train anew with this one",
        )
    with _offline():
        library = require("text")
        try:
            # Weights as safetensors only: unpickling a foreign file would run it.
            model = library.SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:  # whatever the library raises on a foreign folder
            raise InputError(
                f"the sentence encoder cannot be loaded ({type(error).__name__}: {error})",
                path=folder,
                hint="give the folder that SentenceTransformer.save_pretrained wrote, with safetensors weights",
            ) from error
    return _Encoder(model, folder)


@dataclass(frozen=True, eq=False)
class SentenceView(Scaled):
    """Rows of a sentence encoder, scaled.

    Texts are encoded one by one, so that an item alone gives the same bits as among others, as far as the encoder
    allows: with the same library, on the same kind of processor, with as many threads. Elsewhere the row differs by
    rounding.

    Attributes:
        config: How texts are read.
        columns: Columns that are read, where a catalogue has them.
        folder: The encoder's, absolute.
        digest: Hash of its content (:func:`encoder_hash`).
        scaler: Fitted on the rows of warm items.
    """

    kind: ClassVar[str] = "sentence"
    config: SentenceConfig
    columns: tuple[str, ...]
    folder: Path
    digest: str
    scaler: Scaler

    @property
    def extractor(self) -> str:
        """What made the rows."""
        return f"sentence encoder {self.folder.name} ({self.digest[:12]}) on {', '.join(self.columns)}"

    @classmethod
    def fit(cls, config: SentenceConfig, catalogue: Catalogue, warm: npt.NDArray[np.bool_]) -> Self:
        """Fit the scale on the texts of warm items.

        Args:
            config: The encoder's folder, and how texts are read.
            catalogue: All items.
            warm: ``(n_items,)``.

        Raises:
            NothingToFitError: Warm items have no texts, or all the same.
            InputError: A named column is not there, or the folder holds no encoder that can be loaded.
            MissingExtraError: The extra ``text`` is not installed.
        """
        assert config.path is not None  # without a path there is no such view
        columns = chosen_columns(config, catalogue.items)
        folder, digest = _folder(config.path), encoder_hash(config.path)
        texts = [text for text in sentences(catalogue.items.filter(pl.Series(warm)), columns) if text]
        if not texts:
            raise NothingToFitError("no warm item has a text")
        rows = _loaded(folder, digest).rows(texts)
        scaler = Scaler.fit(config, rows, usable_rows(rows, np.ones(len(rows), np.bool_)))
        return cls(config, columns, folder, digest, scaler)

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """See :meth:`firstlight.views.base.View.transform`; an item without a text is absent.

        Raises:
            InputError: The encoder's folder is gone, or holds another encoder than in training.
            MissingExtraError: The extra ``text`` is not installed.
        """
        if not set(self.columns) & set(catalogue.items.columns):
            return nothing(n_items, self.dim, self.extractor)
        texts = sentences(catalogue.items, self.columns)
        present = np.array([text is not None for text in texts], np.bool_)
        values = np.zeros((n_items, len(self.scaler.mean)), np.float32)
        if present.any():
            known = [text for text in texts if text is not None]
            values[present] = _loaded(self.folder, self.digest).rows(known)
        lost = int(present.sum()) - len(usable_rows(values, present))
        if lost:
            problems.append(f"sentences: {lost} of {n_items} rows are NaN, infinite or all zero: absent")
        return self.scaler.apply(values, present, self.extractor)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`; of the encoder, its folder and hash."""
        about, arrays = self.scaler.state()
        about |= {"columns": list(self.columns), "sentence": self.config.model_dump(mode="json")}
        return {**about, "folder": str(self.folder), "sha256": self.digest}, arrays

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A fitted view again; the encoder is looked for when the first text comes."""
        config = SentenceConfig.model_validate(about["sentence"])
        columns = tuple(map(str, about["columns"]))
        scaler = Scaler.from_state(about, arrays)
        return cls(config, columns, Path(about["folder"]), str(about["sha256"]), scaler)
