"""NEW_ITEMS of the command line: a dataset, a table of items, or one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.formats import Problems, ReadOptions, read_dataset
from firstlight.data.formats.features import read_feature, read_feature_table
from firstlight.data.formats.items import catalogue_of, read_items
from firstlight.serving.pictures import pictures_of

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True, eq=False)
class NewItems:
    """Items to add.

    Attributes:
        ids: ``(n,)`` raw ids.
        catalogue: Their content, row-aligned.
        folder: What relative cover paths are relative to.
        notes: What a reader left out, in words.
        source: The file that says most of them.
        numbers: ``(n,)`` rows in the source, from 1, where they are known.
    """

    ids: list[str]
    catalogue: Catalogue
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    source: Path | None = None
    numbers: Sequence[int] | None = None

    def named(self, row: int) -> str:
        """An item as messages name it."""
        where = "" if self.numbers is None else f" (row {self.numbers[row]})"
        return f"item {self.ids[row]!r}{where}"

    def select(self, rows: Sequence[int]) -> NewItems:
        """Only these rows, in this order."""
        at = np.array(rows, np.int64)
        features = {
            name: FeatureMatrix(matrix.values[at], matrix.present[at], matrix.extractor)
            for name, matrix in self.catalogue.features.items()
        }
        items = self.catalogue.items
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            catalogue=Catalogue(items[at] if items.width else items, features),
            numbers=None if self.numbers is None else [self.numbers[row] for row in rows],
        )

    def pictures(self) -> list[bytes | None]:
        """``(n,)`` small pictures of the covers; None where there is none that can be used."""
        if "cover" not in self.catalogue.items.columns:
            return [None] * len(self.ids)
        picture = pictures_of(self.catalogue.items["cover"], self.folder)
        return [picture(row) for row in range(len(self.ids))]


def read_new_items(
    path: Path,
    *,
    title: str | None = None,
    item: str | None = None,
    features: Mapping[str, Path] | None = None,
) -> NewItems:
    """Read new items.

    Args:
        path: A dataset in any supported folder format (its clicks, if any, are not read), a table of items
            (``.csv``, ``.tsv``, ``.parquet``, … with a column of ids), or one picture.
        title: Title of the one item of a picture.
        item: Its id; the file's name without suffix if None.
        features: Name → ``.npy``, ``.safetensors`` or ``.parquet`` file of features, row-aligned to the items; a
            Parquet file with a column of ids is matched by them.

    Raises:
        InputError: Something cannot be read, or the rows do not fit together.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file or folder", path=path)
    picture = path.is_file() and path.suffix.lower() in PICTURES
    if not picture and (title is not None or item is not None):
        raise InputError("--title and --id go with one picture; tables bring their own", path=path)
    new = _picture(path, title, item) if picture else _folder(path) if path.is_dir() else _table(path)
    return with_features(new, features or {})


def with_features(new: NewItems, features: Mapping[str, Path]) -> NewItems:
    """The same items with features of files, row by row or by id.

    Raises:
        InputError: A file cannot be read, or has another number of rows.
    """
    read = {name: _feature(file, name, new.ids) for name, file in features.items()}
    return replace(new, catalogue=Catalogue(new.catalogue.items, {**new.catalogue.features, **read}))


def _picture(path: Path, title: str | None, item: str | None) -> NewItems:
    try:
        cover = path.read_bytes()
    except OSError as error:
        raise InputError(f"the picture cannot be read ({error})", path=path) from error
    columns = {"cover": pl.Series("cover", [cover], pl.Binary)}
    if title is not None:
        columns["title"] = pl.Series("title", [title], pl.String)
    ids = [path.stem if item is None else item]
    return NewItems(ids, Catalogue(pl.DataFrame(columns)), path.parent, source=path)


def _folder(path: Path) -> NewItems:
    dataset = read_dataset(path, ReadOptions(flags=False))
    clicks = sum(part.n_pairs for part in dataset.parts.values())
    notes = (f"{clicks:,} clicks of {path} are not read: only its items are added",) if clicks else ()
    ids = dataset.item_ids.cast(pl.String).to_list()
    return NewItems(ids, dataset.catalogue, path, notes, path)


def _table(path: Path) -> NewItems:
    problems = Problems(flags=False)
    table = read_items(path, problems)
    notes = tuple(_told(problems, kind, count) for kind, count in problems.totals.items())
    ids = table["item"].to_list()
    numbers = None if notes else range(1, len(ids) + 1)  # rows that were left out shift the others
    return NewItems(ids, catalogue_of(table.drop("item")), path.parent, notes, path, numbers)


def _told(problems: Problems, kind: str, count: int) -> str:
    """A kind of problem with its first cases, where they are known."""
    cases = [
        entry.problem + ("" if entry.line is None else f", line {entry.line}")
        for entry in problems.examples
        if entry.kind == kind
    ]
    return f"{kind}: {count}" + (f" ({'; '.join(cases[:5])})" if cases else "")


def _feature(path: Path, name: str, ids: Sequence[str]) -> FeatureMatrix:
    suffix, n = path.suffix.lower(), len(ids)
    if suffix == ".safetensors":
        try:
            arrays = load_file(path)
            values = np.asarray(arrays["values"], np.float32)
            found = FeatureMatrix(values, arrays.get("present", np.ones(len(values), np.bool_)), path.name)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"cannot be read as features ({error})", path=path) from error
    elif suffix == ".parquet":
        found = read_feature_table(path, name, Problems(flags=False)).aligned(ids)
    else:
        found = read_feature(path, name, Problems())
    if found.values.ndim != 2 or found.values.shape[0] != n or found.present.shape != (n,):
        raise InputError(f"feature {name!r} has shape {found.values.shape} for {n} new items", path=path)
    return found
