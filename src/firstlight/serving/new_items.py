"""NEW_ITEMS of the command line: a dataset, a table of items, or one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.formats import Problems, ReadOptions, read_dataset
from firstlight.data.formats.features import read_feature
from firstlight.data.formats.items import read_items
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
    """

    ids: list[str]
    catalogue: Catalogue
    folder: Path | None = None
    notes: tuple[str, ...] = ()

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
        features: Name → ``.npy`` or ``.safetensors`` file of features, row-aligned to the items.

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
    if not features:
        return new
    read = {name: _feature(file, name, len(new.ids)) for name, file in features.items()}
    return NewItems(
        new.ids, Catalogue(new.catalogue.items, {**new.catalogue.features, **read}), new.folder, new.notes
    )


def _picture(path: Path, title: str | None, item: str | None) -> NewItems:
    try:
        cover = path.read_bytes()
    except OSError as error:
        raise InputError(f"the picture cannot be read ({error})", path=path) from error
    columns = {"cover": pl.Series("cover", [cover], pl.Binary)}
    if title is not None:
        columns["title"] = pl.Series("title", [title], pl.String)
    return NewItems([path.stem if item is None else item], Catalogue(pl.DataFrame(columns)), path.parent)


def _folder(path: Path) -> NewItems:
    dataset = read_dataset(path, ReadOptions(flags=False))
    clicks = sum(part.n_pairs for part in dataset.parts.values())
    notes = (f"{clicks:,} clicks of {path} are not read: only its items are added",) if clicks else ()
    return NewItems(dataset.item_ids.cast(pl.String).to_list(), dataset.catalogue, path, notes)


def _table(path: Path) -> NewItems:
    problems = Problems(flags=False)
    table = read_items(path, problems)
    notes = tuple(f"{kind}: {count}" for kind, count in problems.totals.items())
    return NewItems(table["item"].to_list(), Catalogue(table.drop("item")), path.parent, notes)


def _feature(path: Path, name: str, n: int) -> FeatureMatrix:
    if path.suffix == ".safetensors":
        try:
            arrays = load_file(path)
            values = np.asarray(arrays["values"], np.float32)
            found = FeatureMatrix(values, arrays.get("present", np.ones(len(values), np.bool_)), path.name)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"cannot be read as features ({error})", path=path) from error
    else:
        found = read_feature(path, name, Problems())
    if found.values.ndim != 2 or found.values.shape[0] != n or found.present.shape != (n,):
        raise InputError(f"feature {name!r} has shape {found.values.shape} for {n} new items", path=path)
    return found
