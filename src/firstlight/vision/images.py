"""Sets of images: a folder, a Parquet file with bytes, or the covers of a data folder; all alike afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.files import files_below
from firstlight.data.formats import ReadOptions, detect_format, read_dataset
from firstlight.data.formats.items import ITEM_TABLE
from firstlight.data.parquet import PLACES
from firstlight.vision.image_set import ImageSet, hash_of
from firstlight.vision.image_tables import cell_content, covers_at, from_tables, tables_of

#: File names that are taken for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".mpo")


def open_images(
    path: Path | str,
    image_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
) -> ImageSet:
    """Find the images of a path.

    Args:
        path: A Parquet file (or a folder of them) with a column of image bytes; any data folder whose items have
            covers; or a folder of image files, where sub-folders are classes.
        image_column: The column with the images, of a Parquet file; found by name and type if None.
        id_column: The column with their names; found by name if None, the row number if there is none.
        label_column: The column with their classes; ``label``, if there is one.
        split: Use only rows whose column ``split`` says so; of a folder of files, the sub-folder of that name.

    Returns:
        The images, at least one.

    Raises:
        InputError: There is nothing there, or no image in it; the message says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file or folder", path=path)
    tables = tables_of(path)
    if tables:
        return from_tables(path, tables, image_column, id_column, label_column, split)
    for option, value in (("image", image_column), ("id", id_column), ("label", label_column)):
        if value is not None:
            raise InputError(
                f"--{option}-column {value!r} needs a Parquet file with a column of images", path=path
            )
    found = _from_dataset(path) if split is None else None
    if found is None and path.is_dir():
        found = _from_files(path, split)
    if found is None:
        raise InputError(
            "there are no images here",
            path=path,
            hint="a folder of image files, a Parquet file with a column of image bytes, "
            "or a data folder whose items have covers",
        )
    return found


def _from_dataset(path: Path) -> ImageSet | None:
    """The covers of a data folder's items, or None if it is none or has no covers."""
    try:
        detect_format(path)
    except InputError:
        return None
    dataset = read_dataset(path, ReadOptions(pictures=False, flags=False))
    items = dataset.catalogue.items
    if "cover" not in items.columns:
        return None
    folder = path if path.is_dir() else path.parent
    covers, ids = items["cover"], dataset.item_ids.cast(pl.String)
    values: Sequence[Any]
    if covers.dtype == PLACES:
        rows, values = covers_at(folder / ITEM_TABLE, covers)
    else:
        rows = np.array([row for row, cover in enumerate(covers) if cover], np.int64)
        values = covers.gather(rows).to_list()
    if not len(rows):
        return None
    names = ids.gather(rows).to_list()
    return ImageSet(
        ids=names,
        source=str(path),
        content_hash=hash_of(name.encode() + cell_content(v) for name, v in zip(names, values, strict=True)),
        values=values,
        folder=folder,
        missing=len(covers) - len(rows),
    )


def _from_files(path: Path, split: str | None) -> ImageSet | None:
    """All image files below a folder; the first sub-folder on the way to each is its class, if every file has one.

    Links to files and folders are followed.
    """
    folder = path if split is None else path / split
    if not folder.is_dir():
        parts = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir())) or "none"
        raise InputError(f"there is no sub-folder {split!r}", path=path, hint=f"sub-folders found: {parts}")
    files = sorted(
        file
        for file in files_below(folder)
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        return None
    names = [file.relative_to(folder).as_posix() for file in files]
    above = [name.split("/")[0] if "/" in name else None for name in names]
    classes = None if None in above else sorted({name for name in above if name is not None})
    labels = None
    if classes is not None:
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[name] for name in above if name is not None], np.int64)
    sizes = (f"{name}/{file.stat().st_size}".encode() for name, file in zip(names, files, strict=True))
    return ImageSet(names, str(folder), hash_of(sizes), names, folder, labels, classes, listed=True)
