"""Images through an encoder into a feature of a DATASET folder: resumable, in bounded memory.

Rows are made in parts under ``OUT/.embed-NAME``; a part that is there is not made again. When all are there they are
laid into the order of the dataset's items, and the parts are removed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.core.hashing import hash_strings
from firstlight.data.dataset import Dataset
from firstlight.data.feature_file import Block, add_feature, check_feature_name, feature_origin, folder_items
from firstlight.data.folder import MANIFEST, write_dataset
from firstlight.data.interactions import Interactions
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder, Precision, Tokens, with_precision
from firstlight.vision.extract import extract_rows
from firstlight.vision.image_set import ImageSet

#: Most bytes and rows of a part: what an interruption costs at most, and what is held in memory.
_PART_BYTES, _PART_ROWS = 32 << 20, 512


def embed(
    images: ImageSet,
    encoder: Encoder,
    out: Path | str,
    *,
    name: str = "encoder",
    tokens: Tokens | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Run all images through an encoder and write the rows as a feature.

    Args:
        images: The images. Their ids are item ids; a file name also fits the item called so without suffix.
        encoder: The encoder, on any device.
        out: A DATASET folder, which gets the feature; or a folder that does not exist yet, which becomes one with the
            images as items.
        name: The feature's name.
        tokens: As in :meth:`~firstlight.vision.encoder_file.Encoder.features`; patches are laid end to end.
        precision: Of products; None: bfloat16 on a GPU, float32 on a CPU.
        threads: Images at a time on a CPU.
        emit: Gets ``images`` (``done``, ``total``) and a ``message`` for each unusable image.

    Returns:
        JSON values: what was written, and what could not be used.

    Raises:
        InputError: ``out`` cannot take the feature, or no image is of one of its items.
    """
    out = Path(out)
    check_feature_name(name)  # before a folder is made for it
    how = encoder.kind_of_row(tokens)
    items = _items(images, out)
    places = _places(images.ids, items, out)
    origin = {
        "encoder": encoder.state_hash(),
        "tokens": how,
        "images": images.content_hash,
        "items": hash_strings(items),
    }
    usual = "float32" if next(encoder.vit.parameters()).device.type == "cpu" else "bfloat16"
    if precision not in (None, usual):  # to ask for what is done anyway makes no other feature
        origin["precision"] = precision
    ready = encoder if precision is None else with_precision(encoder, precision)
    known = feature_origin(out, name)
    if known is not None and dict(known) != origin:
        raise InputError(
            f"the dataset has a feature {name!r} of another encoder, of other images or in another precision", path=out,
            hint="choose another one with --name",
        )  # fmt: skip
    parts = _Parts(out / f".embed-{name}", len(images), encoder.dim(how), origin)
    started, made = time.perf_counter(), 0
    if known is None:
        made = _make(parts, images, ready, how, threads, emit)
        shape = (len(items), parts.dim)
        extractor = f"encoder {origin['encoder'][:12]}, {how}"
        add_feature(out, name, _in_order(parts, places), shape, extractor=extractor, origin=origin)
    unusable = parts.unusable() if known is None else {}
    shutil.rmtree(parts.folder, ignore_errors=True)
    seconds = time.perf_counter() - started
    return {
        "dataset": str(out),
        "feature": name,
        "tokens": how,
        "dim": parts.dim,
        "items": len(items),
        "images": len(images),
        "already_there": known is not None,
        "made_now": made,
        "unusable": unusable,
        "images_that_are_no_items": int(len(images) - (places >= 0).sum()),
        "seconds": seconds,
        "images_per_second": made / seconds if made else None,
    }


def _items(images: ImageSet, out: Path) -> list[str]:
    """Item ids of the dataset in ``out``, which is made if there is none."""
    if not (out / MANIFEST).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                "this is neither a dataset folder of firstlight nor empty", path=out,
                hint="convert it first: firstlight data convert",
            )  # fmt: skip
        dataset = Dataset(
            name=out.name,
            user_ids=pl.Series("user", [], pl.String),
            item_ids=pl.Series("item", images.ids, pl.String),
            train=Interactions.empty(0, len(images)),
            source=images.source,
        )
        write_dataset(dataset, out)
    return folder_items(out)


def _places(ids: list[str], items: list[str], out: Path) -> npt.NDArray[np.int64]:
    """``(n_items,)`` image of each item, -1 where there is none."""
    rows = {item: row for row, item in enumerate(items)}
    places = np.full(len(items), -1, np.int64)
    for image, own in enumerate(ids):
        row = rows.get(own, rows.get(Path(own).stem))
        if row is not None and (
            places[row] < 0 or own in rows
        ):  # the very id goes before a name without suffix
            places[row] = image
    if not (places >= 0).any():
        raise InputError(
            f"no image is of an item of the dataset (images: {', '.join(ids[:3])}; items: {', '.join(items[:3])})",
            path=out,
        )
    return places


@dataclass(frozen=True)
class _Parts:
    """Rows on disk, some thousand in a file.

    Attributes:
        folder: Where they are.
        n: Rows of all.
        dim: Width.
        origin: What decides them.
    """

    folder: Path
    n: int
    dim: int
    origin: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows of a part."""
        return max(1, min(_PART_ROWS, _PART_BYTES // (4 * self.dim)))

    def starts(self) -> range:
        """First row of each part."""
        return range(0, self.n, self.rows)

    def _file(self, start: int) -> Path:
        return self.folder / f"{start // self.rows:06d}.npy"

    def open(self) -> None:
        """Keep the parts that are there if they are of the same images and encoder, else begin anew."""
        plan = {**self.origin, "rows": self.rows, "n": self.n}
        try:
            same = read_json(self.folder / "plan.json") == plan
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self.folder / "plan.json", plan)

    def has(self, start: int) -> bool:
        """Whether a part is there; its list of unusable images is written last."""
        return self._file(start).with_suffix(".json").exists()

    def save(self, start: int, values: npt.NDArray[np.float32], unusable: dict[str, str]) -> None:
        """Write a part."""
        with atomic_path(self._file(start)) as temporary:
            np.save(temporary, values)
        write_json(self._file(start).with_suffix(".json"), unusable)

    def load(self, start: int) -> npt.NDArray[np.float32]:
        """Rows of a part, read from disk as they are asked for."""
        rows: npt.NDArray[np.float32] = np.load(self._file(start), mmap_mode="r", allow_pickle=False)
        return rows

    def unusable(self) -> dict[str, str]:
        """Id → reason, of all parts."""
        found = (read_json(self._file(start).with_suffix(".json")) for start in self.starts())
        return dict(chain.from_iterable(part.items() for part in found))


def _make(
    parts: _Parts, images: ImageSet, encoder: Encoder, tokens: Tokens, threads: int | None, emit: Emit
) -> int:
    """Make the parts that are not there yet; the number of images run."""
    parts.open()
    missing = [start for start in parts.starts() if not parts.has(start)]
    rows = [row for start in missing for row in range(start, min(start + parts.rows, parts.n))]
    done = parts.n - len(rows)
    if done:
        emit("message", text=f"{done:,} images were done before")

    def load(row: int) -> Image.Image:
        return images.load(row)

    made = extract_rows(encoder, rows, load, tokens, threads=threads)
    for start in missing:
        size = min(parts.rows, parts.n - start)
        values, unusable = np.zeros((size, parts.dim), np.float32), {}
        for at in range(size):
            row = next(made)
            if isinstance(row, UnusableImageError):
                unusable[images.ids[start + at]] = str(row)
                emit("message", text=f"left out {images.ids[start + at]}: {row}")
            else:
                values[at] = row
            done += 1
            emit("images", done=done, total=parts.n)
        parts.save(start, values, unusable)
    return len(rows)


def _in_order(parts: _Parts, places: npt.NDArray[np.int64]) -> Iterator[Block]:
    """Rows by item, a few at a time; unusable images are absent, as are items without one."""
    for start in range(0, len(places), parts.rows):
        wanted = places[start : start + parts.rows]
        values = np.zeros((len(wanted), parts.dim), np.float32)
        for part in np.unique(wanted[wanted >= 0] // parts.rows):
            here = np.flatnonzero((wanted >= 0) & (wanted // parts.rows == part))
            values[here] = parts.load(part * parts.rows)[wanted[here] - part * parts.rows]
        yield values, np.asarray(values.any(axis=1))
