"""Images in Parquet files: which column holds them, what else is told of them, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.formats.columns import COVER_NAMES, find_common
from firstlight.data.formats.items import cover_column
from firstlight.data.parquet import column_pieces, row_groups
from firstlight.vision.image_set import ImageSet, IntArray, hash_of
from firstlight.vision.picture_store import PictureStore, store_pictures

#: Columns that name an image, in order of preference, as :func:`~firstlight.data.formats.columns.plain` has them.
ID_NAMES = ("itemid", "item", "imageid", "id", "movieid", "file", "filename", "path")
LABEL_NAMES = ("label", "class", "target")
#: Cells that are turned into Python's bytes at once.
_TURNED = 64
#: The column that counts rows, beside those of a file.
_NUMBER = "\0row"


def tables_of(path: Path) -> list[Path]:
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
    return [name for name, kind in schema.items() if kind == pl.Binary or _is_picture(kind)]


def _is_picture(kind: Any) -> bool:
    """Whether a type is ``{"bytes": …, "path": …}``; either may be there for nothing, as a column of nulls."""
    inside = {field.name: field.dtype for field in kind.fields} if isinstance(kind, pl.Struct) else {}
    path = inside.get("path", pl.Null)
    return inside.get("bytes") in (pl.Binary, pl.Null) and path in (pl.String, pl.Null)


def from_tables(
    path: Path,
    files: list[Path],
    image_column: str | None,
    id_column: str | None,
    label_column: str | None,
    split: str | None,
) -> ImageSet:
    """The images of Parquet files.

    Args:
        path: Where they were looked for.
        files: The files, all of one schema.
        image_column: The column that is asked for, or None; so are the others.
        id_column: Likewise.
        label_column: Likewise.
        split: The part that is asked for, or None.

    Raises:
        InputError: A column is not there or does not fit, or no row holds an image.
    """
    schema = _schema(files[0])
    image = _image_column(schema, _column(schema, image_column, "image", path), path)
    label = _label_column(schema, _column(schema, label_column, "label", path), path)
    candidates = _id_columns(schema, _column(schema, id_column, "id", path))
    if split is not None and "split" not in schema:
        raise InputError(
            f"there is no column 'split', so no part {split!r}",
            path=path,
            hint=f"columns found: {', '.join(schema)}",
        )
    wanted = [*candidates, *([] if label is None else [label]), *([] if split is None else ["split"])]
    frame = _facts(files, list(dict.fromkeys(wanted)), path)
    chosen = np.arange(len(frame)) if split is None else _of_split(frame["split"], split, path)
    frame = frame[chosen]
    ids = _ids(frame, candidates, id_column is not None, path)
    labels, classes = _labels(frame, label, label_column is not None, path)
    rows, values = _pictures(files, image, chosen)
    if not len(rows):
        raise InputError(f"no row of column {image!r} holds an image", path=path)
    ids = [ids[row] for row in rows]
    return ImageSet(
        ids=ids,
        source=str(path),
        content_hash=hash_of(name.encode() + cell_content(v) for name, v in zip(ids, values, strict=True)),
        values=values,
        folder=files[0].parent,
        labels=None if labels is None else labels[rows],
        classes=classes,
        missing=len(chosen) - len(rows),
    )


def _column(schema: dict[str, Any], name: str | None, role: str, path: Path) -> str | None:
    if name is not None and name not in schema:
        raise InputError(
            f"there is no {role} column {name!r}", path=path, hint=f"columns found: {', '.join(schema)}"
        )
    return name


def _image_column(schema: dict[str, Any], asked: str | None, path: Path) -> str:
    columns = _image_columns(schema)
    if asked is None:
        asked = find_common(columns, COVER_NAMES) or (columns[0] if len(columns) == 1 else None)
    if asked is None:
        raise InputError(
            f"cannot tell which column holds the images; columns found: {', '.join(schema)}",
            path=path,
            hint="name it with --image-column",
        )
    if asked not in columns and schema[asked] != pl.String:
        raise InputError(
            f"column {asked!r} holds neither bytes nor paths but {schema[asked]}",
            path=path,
            hint=f"columns with bytes: {', '.join(columns) or 'none'}",
        )
    return asked


def _label_column(schema: dict[str, Any], asked: str | None, path: Path) -> str | None:
    column = asked or find_common(list(schema), LABEL_NAMES)
    if column is None or _names(schema[column]):
        return column
    if asked is not None:
        raise InputError(f"column {asked!r} cannot be the class: it holds {schema[asked]}", path=path)
    return None


def _id_columns(schema: dict[str, Any], asked: str | None) -> list[str]:
    """The columns that may hold the names of the images, the best one first."""
    if asked is not None:
        return [asked]
    found = (find_common(list(schema), (name,)) for name in ID_NAMES)
    return [name for name in found if name is not None and _names(schema[name])]


def _names(kind: Any) -> bool:
    """Whether values of a type can be names or classes."""
    return bool(kind == pl.String or kind.is_integer())


def _facts(files: list[Path], columns: list[str], path: Path) -> pl.DataFrame:
    """All but the images: some columns of all files, one after the other, and the number of each row."""
    try:
        parts = [pl.read_parquet(file, columns=columns, glob=False) for file in files] if columns else []
        counts = [len(part) for part in parts] or [sum(g.rows for g in row_groups(file)) for file in files]
        numbers = pl.Series(_NUMBER, np.arange(sum(counts), dtype=np.int64))
        return pl.concat(parts).with_columns(numbers) if parts else pl.DataFrame([numbers])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error


def _of_split(parts: pl.Series, split: str, path: Path) -> IntArray:
    """The rows of a part."""
    names = parts.cast(pl.String)
    rows = (names == split).arg_true().to_numpy().astype(np.int64)
    if not len(rows):
        found = ", ".join(sorted(str(name) for name in names.unique() if name is not None))
        raise InputError(f"no row belongs to the part {split!r}", path=path, hint=f"parts found: {found}")
    return rows


def _ids(frame: pl.DataFrame, candidates: list[str], asked: bool, path: Path) -> list[str]:
    """A name for each row; of columns that were not asked for, the first whose names are all different."""
    for column in candidates:
        names = frame[column].cast(pl.String)
        if not names.null_count() and names.is_unique().all():
            return names.to_list()
        if asked:
            fault = "a row without an id" if names.null_count() else "the same id in two rows"
            raise InputError(f"column {column!r} has {fault}", path=path)
    return [str(row) for row in range(len(frame))]


def _labels(
    frame: pl.DataFrame, column: str | None, asked: bool, path: Path
) -> tuple[IntArray | None, list[str] | None]:
    """Classes as numbers in the order of their sorted values."""
    if column is None:
        return None, None
    values = frame[column]
    if values.null_count():
        if not asked:
            return None, None
        line = int(frame[_NUMBER].filter(values.is_null())[0]) + 1
        raise InputError(f"column {column!r} cannot be the class: it is empty here", path=path, line=line)
    classes = values.unique().sort()
    return classes.search_sorted(values).to_numpy().astype(np.int64), [str(name) for name in classes]


def _pictures(files: list[Path], column: str, chosen: IntArray) -> tuple[IntArray, PictureStore]:
    """The pictures of chosen rows of Parquet files, laid out where they can be read one by one.

    Args:
        files: The files; rows are counted through all of them.
        column: The column with the pictures.
        chosen: ``(m,)`` rows, ascending.

    Returns:
        ``(n,)`` which of the chosen rows have a picture, ascending, and the pictures.
    """
    there: list[IntArray] = []

    def read() -> Iterator[bytes | str | None]:
        before = 0
        for file in files:
            for first, piece in column_pieces(file, column):
                start = before + first
                low, high = np.searchsorted(chosen, [start, start + len(piece)])
                if high - low < len(piece):
                    piece = piece.gather(chosen[low:high] - start)
                there.append(low + np.flatnonzero(piece.is_not_null().to_numpy()))
                for at in range(0, len(piece), _TURNED):
                    cells = piece.slice(at, _TURNED).to_list()
                    yield from (_picture(cell) for cell in cells if cell is not None)
                del piece  # it is large, and the next one comes
            before += sum(group.rows for group in row_groups(file))

    store = store_pictures(read())
    return (np.concatenate(there) if there else np.zeros(0, np.int64)), store


def _picture(value: Any) -> bytes | str | None:
    """The picture in a cell: bytes, or the path where only that is given."""
    found: bytes | str | None = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    return found


def cell_content(value: Any) -> bytes:
    """What a cell is known by: the bytes of its picture, or its path."""
    found = _picture(value) or b""
    return found.encode() if isinstance(found, str) else found


def covers_at(file: Path, places: pl.Series) -> tuple[IntArray, PictureStore]:
    """The covers of items by their places in an item table: which items have one, and the pictures."""
    column = cover_column(_schema(file))
    assert column is not None  # the places are those of its rows
    rows = places.struct.field("row")
    items = np.flatnonzero(rows.is_not_null().to_numpy())
    wanted = rows.gather(items).to_numpy()
    order = np.argsort(wanted)
    found, store = _pictures([file], column, wanted[order])
    stored = np.full(len(items), -1)
    stored[order[found]] = np.arange(len(found))
    full = (stored >= 0) & (store.lengths[stored] > 0)
    return items[full], store.select(stored[full])
