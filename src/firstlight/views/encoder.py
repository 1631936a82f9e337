"""Covers, and clips, through a vision transformer: what MIM-Refiner makes of a catalogue's pictures.

The weights are part of the fitted view: a run, and a bundle made from it, meets new items with the very encoder that it
was trained with, wherever it is taken. Everything heavy is loaded when the first picture comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.extras import installed, require
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError, nothing, summary
from firstlight.views.config import ClipConfig, EncoderConfig
from firstlight.views.scale import Scaled, Scaler, usable_rows
from firstlight.vision.decoder import UnusableImageError, decode_rgb, image_bytes, is_address

if TYPE_CHECKING:
    from firstlight.vision.encoder_file import Encoder

FloatArray = npt.NDArray[np.float32]

#: Picture files held at once.
_CHUNK_BYTES, _CHUNK_ROWS = 64 << 20, 512
#: Rows that are kept for later calls: fitting and transforming, search and refit ask for the same pictures.
_REMEMBERED_BYTES = 256 << 20
#: Largest clip.
_CLIP_BYTES = 512 << 20
#: Before the names of an encoder's weights among the arrays of a view.
_WEIGHT = "weight."


def vision_hash(path: Path | str) -> str:
    """Hash of all that decides an encoder's rows.

    Raises:
        InputError: There is no encoder.
    """
    from firstlight.vision.encoder_file import load_encoder

    return load_encoder(Path(path).expanduser()).state_hash()


def check_vision(config: EncoderConfig) -> None:
    """Refuse early what fitting would refuse: an encoder or a library that is not there.

    Raises:
        InputError: ``config.path`` is not there.
        MissingExtraError: The extra ``video`` is not installed, and clips are to be read.
    """
    if config.path is not None and not Path(config.path).expanduser().exists():
        raise InputError(
            "there is no encoder here",
            path=config.path,
            hint="give the folder of firstlight pretrain or refine, or a checkpoint file",
        )
    if isinstance(config, ClipConfig) and not installed("video"):
        require("video")


class _Known:
    """Rows by hash of the picture file, up to a limit."""

    def __init__(self) -> None:
        self.rows: dict[bytes, FloatArray] = {}
        self._bytes = 0

    def keep(self, key: bytes, row: FloatArray) -> None:
        if key not in self.rows and self._bytes + row.nbytes <= _REMEMBERED_BYTES:
            self.rows[key] = row
            self._bytes += row.nbytes


@lru_cache(maxsize=2)
def _known(digest: str, how: str) -> _Known:
    """What an encoder made already, in a way of reading."""
    return _Known()


@dataclass(frozen=True, eq=False)
class EncoderView(Scaled):
    """Rows of an encoder, scaled.

    They are made on the CPU, image by image, also where there is a GPU: fitting, training and serving must agree
    on the row of a picture, and a GPU's batches in bfloat16 would change it. For a large catalogue run
    ``firstlight embed`` first, which uses the GPU, and train on the feature that it leaves.

    Attributes:
        config: How pictures are read.
        about: The encoder's description (:func:`firstlight.vision.encoder_file.describe`).
        weights: Its tensors by name.
        digest: Hash of both.
        scaler: Fitted on the rows of warm items.
    """

    kind: ClassVar[str] = "encoder"
    column: ClassVar[str] = "cover"
    config: EncoderConfig
    about: dict[str, Any]
    weights: Arrays
    digest: str
    scaler: Scaler

    @property
    def extractor(self) -> str:
        """What made the rows."""
        return f"encoder {self.digest[:12]} on {self.column}s"

    @cached_property
    def _encoder(self) -> Encoder:
        import torch

        from firstlight.vision.encoder_file import from_description, with_precision

        # what a file gave is read-only, which torch does not know
        writable = {name: np.require(array, requirements="W") for name, array in self.weights.items()}
        weights = {name: torch.from_numpy(array) for name, array in writable.items()}
        return with_precision(from_description(self.about, weights), self.config.precision)

    @classmethod
    def fit(
        cls, config: EncoderConfig, catalogue: Catalogue, warm: npt.NDArray[np.bool_], folder: Path | None
    ) -> Self:
        """Load the encoder and fit the scale on the pictures of warm items.

        Raises:
            NothingToFitError: No warm item has a usable picture, or they are all alike.
            InputError: There is no such encoder, or pictures are paths and no folder is given.
            MissingExtraError: The extra ``video`` is not installed, and clips are to be read.
        """
        from firstlight.vision.encoder_file import describe, load_encoder, resized

        assert config.path is not None  # without a path there is no such view
        encoder = load_encoder(Path(config.path).expanduser())
        encoder = encoder if config.image_size is None else resized(encoder, config.image_size)
        encoder.vit.requires_grad_(False)
        weights = {name: tensor.numpy() for name, tensor in encoder.vit.state_dict().items()}
        unscaled = Scaler(np.zeros(0), np.zeros(0), None, None, False)
        view = cls(config, describe(encoder), weights, encoder.state_hash(), unscaled)
        rows = np.flatnonzero(warm)
        values, present, failures = view._describe(catalogue.items, rows, folder)
        if failures and not present.any():
            raise NothingToFitError(
                summary(f"{cls.column}s", failures, len(rows), catalogue.items, cls.column)
            )
        scaler = Scaler.fit(config, values, usable_rows(values, present))
        return cls(config, view.about, weights, view.digest, scaler)

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """See :meth:`firstlight.views.base.View.transform`; a picture that cannot be decoded is absent.

        Raises:
            InputError: Pictures are paths, and no folder is given.
        """
        if self.column not in catalogue.items.columns:
            return nothing(n_items, self.dim, self.extractor)
        values, present, failures = self._describe(catalogue.items, np.arange(n_items), folder)
        if failures:
            problems.append(summary(f"{self.column}s", failures, n_items, catalogue.items, self.column))
        return self.scaler.apply(values, present, self.extractor)

    def _describe(
        self, items: pl.DataFrame, rows: npt.NDArray[np.int64], folder: Path | None
    ) -> tuple[FloatArray, npt.NDArray[np.bool_], list[tuple[int, str]]]:
        """``(len(rows), dim)`` rows, ``(len(rows),)`` mask, and (item row, reason) of pictures that cannot be used."""
        encoder, known = self._encoder, _known(self.digest, self.config.model_dump_json())
        values = np.zeros((len(rows), encoder.dim()), np.float32)
        present = np.zeros(len(rows), np.bool_)
        failures: list[tuple[int, str]] = []
        for chunk in self._chunks(items[self.column], rows, folder, failures):
            new = {key: content for _, key, content in chunk if key not in known.rows}
            made = dict(zip(new, self._run(encoder, list(new.values())), strict=True))
            for at, key, _ in chunk:
                row = made[key] if key in made else known.rows[key]
                if isinstance(row, UnusableImageError):
                    failures.append((int(rows[at]), str(row)))
                    continue
                values[at], present[at] = row, True
                known.keep(key, row)
        return values, present, sorted(failures)

    def _chunks(
        self,
        cells: pl.Series,
        rows: npt.NDArray[np.int64],
        folder: Path | None,
        failures: list[tuple[int, str]],
    ) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """Some pictures at a time: place in ``rows``, hash and bytes of each file."""
        chunk: list[tuple[int, bytes, bytes]] = []
        size = 0
        for at, row in enumerate(rows.tolist()):
            cell = cells[row]
            if folder is None and isinstance(cell, str) and cell and not is_address(cell):
                raise InputError(
                    f"{self.column}s are paths (such as {cell!r}), and no folder is given that they start from",
                    hint="pass the dataset's folder",
                )
            try:
                content = self._read(cell, folder)
            except UnusableImageError as error:
                failures.append((row, str(error)))
                continue
            if content is None:
                continue
            chunk.append((at, hashlib.sha256(content).digest(), content))
            size += len(content)
            if size > _CHUNK_BYTES or len(chunk) == _CHUNK_ROWS:
                yield chunk
                chunk, size = [], 0
        yield chunk

    def _read(self, cell: Any, folder: Path | None) -> bytes | None:
        return image_bytes(cell, folder)

    def _run(self, encoder: Encoder, files: Sequence[bytes]) -> Iterator[FloatArray | UnusableImageError]:
        """Rows of picture files, in order."""
        from firstlight.vision.extract import extract_rows

        return extract_rows(encoder, files, decode_rgb, self.config.tokens)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`."""
        about, arrays = self.scaler.state()
        about |= {"config": self.config.model_dump(mode="json"), "encoder": self.about, "sha256": self.digest}
        return about, {**arrays, **{_WEIGHT + name: array for name, array in self.weights.items()}}

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A fitted view again; the transformer is built when the first picture comes."""
        config = (ClipConfig if cls is ClipView else EncoderConfig).model_validate(about["config"])
        weights = {
            name.removeprefix(_WEIGHT): array for name, array in arrays.items() if name.startswith(_WEIGHT)
        }
        scaler = Scaler.from_state(about, arrays)
        return cls(config, dict(about["encoder"]), weights, str(about["sha256"]), scaler)


@dataclass(frozen=True, eq=False)
class ClipView(EncoderView):
    """Frames of clips through an encoder, averaged (extra ``video``)."""

    kind: ClassVar[str] = "clip"
    column: ClassVar[str] = "clip"

    def _read(self, cell: Any, folder: Path | None) -> bytes | None:
        return image_bytes(cell, folder, _CLIP_BYTES)

    def _run(self, encoder: Encoder, files: Sequence[bytes]) -> Iterator[FloatArray | UnusableImageError]:
        from firstlight.core.threads import in_threads
        from firstlight.vision.clips import clip_row

        config = self.config
        assert isinstance(config, ClipConfig)
        require("video")

        def made(content: bytes) -> FloatArray | UnusableImageError:
            try:
                return clip_row(
                    encoder, content, config.tokens, seconds=config.seconds, most=config.most_frames
                )
            except UnusableImageError as error:
                return error

        work: Callable[[bytes], FloatArray | UnusableImageError] = made
        return in_threads(work, files)
