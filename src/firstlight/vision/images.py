"""Sets of images: a folder, a Parquet file with bytes, or the covers of a data folder; all alike afterwards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.data.formats import detect_format, read_dataset
from firstlight.data.formats.columns import COVER_NAMES, find_common
from firstlight.vision.decoder import UnusableImageError, decode_rgb, image_bytes

__all__ = ["ImageSet", "UnusableImageError", "open_images"]

IntArray = npt.NDArray[np.int64]

#: File names that are taken for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".mpo")
#: Columns that name an image, in order of preference, as :func:`~firstlight.data.formats.columns.plain` has them.
ID_NAMES = ("itemid", "item", "imageid", "id", "movieid", "file", "filename", "path")
LABEL_NAMES = ("label", "class", "target")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by row; nothing is decoded before :meth:`load`.

    Attributes:
        ids: Raw id of each row, all different.
        source: Where the images came from.
        content_hash: SHA-256 over ids and bytes; for files, over ids and sizes (a million files would take too long).
        values: What the images are: bytes, paths relative to ``folder``, or ``{"bytes": …, "path": …}``.
        folder: Where paths start.
        labels: ``(n,)`` int64 class of each row, or None.
        classes: Name of each class, or None.
        missing: Rows of the source without an image; they are not counted among the rows here.
    """

    ids: list[str]
    source: str
    content_hash: str
    values: Sequence[Any]
    folder: Path | None = None
    labels: IntArray | None = None
    classes: list[str] | None = None
    missing: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, row: int, covers: tuple[int, int] | None = None) -> Image.Image:
        """One image as RGB, turned upright.

        Args:
            row: Which.
            covers: Height and width; a larger image is shrunk until it just covers them, which makes decoding a
                large JPEG several times faster. None: its own size.

        Raises:
            UnusableImageError: It cannot be read or decoded; the message says why.
        """
        content = image_bytes(self.values[row], self.folder)
        if content is None:
            raise UnusableImageError("there is no picture")
        if covers is None:
            return decode_rgb(content)
        side = max(covers)  # whichever way the picture is turned
        image = decode_rgb(content, at_least=(side, side))
        scale = max(covers[0] / image.height, covers[1] / image.width)
        if scale >= 1:
            return image
        size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
        return image.resize(size, Image.Resampling.BICUBIC)


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
    tables = _tables(path)
    if tables:
        return _from_tables(path, tables, image_column, id_column, label_column, split)
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


def _tables(path: Path) -> list[Path]:
    """The Parquet files of a path that hold images."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if path.is_dir() and _detected(
        path
    ):  # its reader knows which rows are items, and where their paths start
        return []
    return [file for file in files if not path.is_dir() or _image_columns(_schema(file))]


def _detected(path: Path) -> bool:
    """Whether a folder has an item table or a manifest, rather than merely a Parquet file."""
    if not any((path / f"{name}.parquet").exists() for name in ("items", "interactions")):
        return (path / "dataset.json").exists()
    return True


def _schema(file: Path) -> dict[str, Any]:
    try:
        return dict(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=file) from error


def _image_columns(schema: dict[str, Any]) -> list[str]:
    """Columns of bytes, or of ``{"bytes": …, "path": …}``."""
    return [
        name
        for name, kind in schema.items()
        if kind == pl.Binary or (isinstance(kind, pl.Struct) and any(f.name == "bytes" for f in kind.fields))
    ]


def _from_tables(
    path: Path,
    files: list[Path],
    image_column: str | None,
    id_column: str | None,
    label_column: str | None,
    split: str | None,
) -> ImageSet:
    schema = _schema(files[0])
    image = _column(schema, image_column, "image", path)
    if image is None:
        columns = _image_columns(schema)
        image = find_common(columns, COVER_NAMES) or (columns[0] if len(columns) == 1 else None)
    if image is None:
        raise InputError(
            f"cannot tell which column holds the images; columns found: {', '.join(schema)}",
            path=path,
            hint="name it with --image-column",
        )
    try:
        frame = pl.concat([pl.read_parquet(file, glob=False) for file in files])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error
    frame = _of_split(frame, split, path)
    ids = _ids(frame, _column(schema, id_column, "id", path), path)
    labels, classes = _labels(frame, _column(schema, label_column, "label", path), path)
    there = frame[image].is_not_null().to_numpy()
    rows = np.flatnonzero(there)
    if not len(rows):
        raise InputError(f"no row of column {image!r} holds an image", path=path)
    values = frame[image].gather(rows).to_list()  # polars must not be touched in forked workers
    return ImageSet(
        ids=[ids[row] for row in rows],
        source=str(path),
        content_hash=_hash(ids[row].encode() + _content(v) for row, v in zip(rows, values, strict=True)),
        values=values,
        folder=files[0].parent,
        labels=None if labels is None else labels[rows],
        classes=classes,
        missing=len(ids) - len(rows),
    )


def _column(schema: dict[str, Any], name: str | None, role: str, path: Path) -> str | None:
    if name is not None and name not in schema:
        raise InputError(
            f"there is no {role} column {name!r}", path=path, hint=f"columns found: {', '.join(schema)}"
        )
    return name


def _of_split(frame: pl.DataFrame, split: str | None, path: Path) -> pl.DataFrame:
    if split is None:
        return frame
    if "split" not in frame.columns:
        raise InputError(
            f"there is no column 'split', so no part {split!r}",
            path=path,
            hint=f"columns found: {', '.join(frame.columns)}",
        )
    part = frame["split"].cast(pl.String)
    if not (part == split).any():
        parts = ", ".join(sorted(str(name) for name in part.unique() if name is not None))
        raise InputError(f"no row belongs to the part {split!r}", path=path, hint=f"parts found: {parts}")
    return frame.filter(part == split)


def _ids(frame: pl.DataFrame, column: str | None, path: Path) -> list[str]:
    """A name for each row; of columns that were not asked for, the first whose names are all different."""
    if column is not None:
        names = frame[column].cast(pl.String)
        if names.null_count() or not names.is_unique().all():
            fault = "a row without an id" if names.null_count() else "the same id in two rows"
            raise InputError(f"column {column!r} has {fault}", path=path)
        return names.to_list()
    for name in ID_NAMES:
        found = find_common(frame.columns, (name,))
        if found is None or not (frame[found].dtype == pl.String or frame[found].dtype.is_integer()):
            continue
        names = frame[found].cast(pl.String)
        if not names.null_count() and names.is_unique().all():
            return names.to_list()
    return [str(row) for row in range(len(frame))]


def _labels(frame: pl.DataFrame, column: str | None, path: Path) -> tuple[IntArray | None, list[str] | None]:
    """Classes as numbers in the order of their sorted values."""
    asked = column is not None
    column = column or find_common(frame.columns, LABEL_NAMES)
    if column is None:
        return None, None
    values = frame[column]
    if values.null_count() or not (values.dtype == pl.String or values.dtype.is_integer()):
        if not asked:
            return None, None
        row = int(values.is_null().arg_true()[0]) + 1 if values.null_count() else None
        raise InputError(
            f"column {column!r} cannot be the class: "
            + ("it is empty here" if row else f"it holds {values.dtype}"),
            path=path,
            line=row,
        )
    classes = values.unique().sort()
    return classes.search_sorted(values).to_numpy().astype(np.int64), [str(name) for name in classes]


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    return value.encode() if isinstance(value, str) else bytes(value)


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()


def _from_dataset(path: Path) -> ImageSet | None:
    """The covers of a data folder's items, or None if it is none or has no covers."""
    try:
        detect_format(path)
    except InputError:
        return None
    dataset = read_dataset(path)
    items = dataset.catalogue.items
    if "cover" not in items.columns:
        return None
    covers, ids = items["cover"], dataset.item_ids.cast(pl.String)
    rows = [row for row, cover in enumerate(covers) if cover]
    if not rows:
        return None
    values, names = covers.gather(rows).to_list(), ids.gather(rows).to_list()
    return ImageSet(
        ids=names,
        source=str(path),
        content_hash=_hash(name.encode() + _content(v) for name, v in zip(names, values, strict=True)),
        values=values,
        folder=path if path.is_dir() else path.parent,
        missing=len(covers) - len(rows),
    )


def _from_files(path: Path, split: str | None) -> ImageSet | None:
    """All image files below a folder; the first sub-folder on the way to each is its class, if every file has one."""
    folder = path if split is None else path / split
    if not folder.is_dir():
        parts = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir())) or "none"
        raise InputError(f"there is no sub-folder {split!r}", path=path, hint=f"sub-folders found: {parts}")
    files = sorted(
        file
        for file in folder.rglob("*")
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
    return ImageSet(names, str(folder), _hash(sizes), names, folder, labels, classes)
