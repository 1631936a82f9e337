"""Item tables: titles, other texts and covers, aligned to the item rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.clean import RawPairs
from firstlight.data.formats.base import Problems
from firstlight.data.formats.columns import (
    COVER_NAMES,
    ID_NAMES,
    TITLE_NAMES,
    check_type,
    find_common,
    id_text,
    named_column,
)
from firstlight.data.formats.delimited import open_text_table, read_text_frame
from firstlight.data.formats.features import is_feature, read_lists
from firstlight.data.parquet import picture_columns, read_table

#: The file that item tables with pictures are in.
ITEM_TABLE = "items.parquet"
#: Columns that are no numbers whatever they hold.
TEXT_BY_NAME = frozenset({"item", "title", "cover", "clip", "role"})
_INTEGER = r"^\s*-?(?:0|[1-9][0-9]{0,17})\s*$"
_DECIMAL = r"^\s*-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?\s*$"
#: How many ids a message names.
EXAMPLES = 3
#: What data sets write where they have no text.
NOT_A_TEXT = ("", "N/A", "n/a", "NaN", "nan", "None", "null", "\\N")


def find_item_column(columns: Sequence[str], wanted: str | None, path: Path, *, flags: bool = True) -> str:
    """The id column of an item table: the one named like the log's item column, or a common name.

    Args:
        columns: What there is.
        wanted: The log's item column.
        path: The file, for messages.
        flags: Whether the user can name the column.

    Raises:
        InputError: There is none.
    """
    if wanted in columns:
        return str(wanted)
    found = find_common(columns, ID_NAMES)
    if found is None:
        raise InputError(
            f"cannot tell which column holds the item ids; columns found: {', '.join(columns)}",
            path=path,
            hint="name it with --catalogue-item" if flags else "call it item_id",
        )
    return found


def read_items(
    path: Path, problems: Problems, *, item: str | None = None, key: str | None = None, separator: str | None = None,
    quoted: bool = True, names: list[str] | None = None, pictures: bool = True,
) -> pl.DataFrame:  # fmt: skip
    """Read an item table, text or Parquet.

    Args:
        path: The file.
        problems: Gets bad and repeated rows.
        item: The name of the id column in the log, which it may have here, too.
        key: The name of the id column here, if the user gave it.
        separator: For text; guessed if None.
        quoted: For text: whether ``"`` quotes fields.
        names: For text without a header.
        pictures: As in :class:`~firstlight.data.formats.base.ReadOptions`.

    Returns:
        ``item`` (String, distinct) and the other columns: texts, with null where there is none, and numbers;
        ``title`` and ``cover`` by these names whatever the file calls them; lists joined by ``|``, but features
        (:func:`~firstlight.data.formats.features.is_feature`) as arrays of float32, null where they are absent.

    Raises:
        InputError: The file cannot be read or has no id column.
    """
    schema, lines = None, None
    if path.suffix.lower() == ".parquet":
        frame, schema = _read_parquet(path, pictures=pictures)
    else:
        table = open_text_table(path, separator=separator, quoted=quoted, names=names)
        frame, lines = read_text_frame(table, problems)
        frame = frame.rename({name: name.split(":")[0] for name in frame.columns})
    if key is None:
        key = find_item_column(frame.columns, item, path, flags=problems.flags)
    key = named_column(frame.columns, key, "item", path)
    check_type(key, frame.schema[key], "item", path)
    frame = frame.with_columns(id_text(pl.col(key), frame.schema[key]).alias("item"))
    frame = frame.drop(key) if key != "item" else frame
    frame = _read_features(frame, path, problems)
    frame = _drop_bad_ids(frame, lines or range(1, frame.height + 1), path, problems)
    if schema is None:
        return _with_numbers(_name_columns(frame, frame.schema))
    return _name_columns(frame, {name: dtype for name, dtype in schema.items() if not is_feature(dtype)})


def _read_parquet(path: Path, *, pictures: bool) -> tuple[pl.DataFrame, pl.Schema]:
    """A whole item table, and the types of its columns in the file."""
    try:
        schema = pl.Schema(pl.read_parquet_schema(path))
        cover = cover_column(schema)
        bytes_left_out = not pictures and cover is not None and schema[cover] == pl.Binary
        return read_table(path, cover if bytes_left_out else None), schema
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error


def _read_features(frame: pl.DataFrame, path: Path, problems: Problems) -> pl.DataFrame:
    """Make arrays of one width of all columns that hold features, so that they are put in order with the rest.

    Columns that are no matrix are left out, never read as words.
    """
    for name in [name for name, dtype in frame.schema.items() if is_feature(dtype)]:
        matrix = read_lists(frame[name], path, problems)
        if matrix is None:
            frame = frame.drop(name)
            continue
        arrays = frame.select(
            pl.when(pl.Series(matrix.present)).then(pl.lit(pl.Series(matrix.values))).alias(name)
        )
        frame = frame.with_columns(arrays)
    return frame


def cover_column(schema: Mapping[str, Any]) -> str | None:
    """The column of an item table that holds the covers: bytes by a common name, or whatever is called a cover."""
    return find_common(picture_columns(schema), COVER_NAMES) or find_common(list(schema), ("cover",))


def _drop_bad_ids(frame: pl.DataFrame, lines: Sequence[int], path: Path, problems: Problems) -> pl.DataFrame:
    """Leave out rows of the item table without an id, and repeated ones.

    Args:
        frame: The table.
        lines: Where each row stands in the file.
        path: The file.
        problems: Gets both.
    """
    empty = frame["item"].is_null() | (frame["item"].str.strip_chars() == "")
    for row in empty.arg_true():
        problems.bad_row("missing item id", path, lines[int(row)], "the item id is missing")
    again = ~frame["item"].is_first_distinct() & ~empty
    if again.any():
        row = int(again.arg_true()[0])
        told = f"item {frame['item'][row]!r} again; the first counts"
        problems.note("repeated item", path, told, int(again.sum()), lines[row])
    return frame.filter(~again & ~empty)


def _name_columns(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """Give the cover and the title their names, and make everything else text.

    Args:
        frame: The table.
        schema: Types of the columns as they are in the file, features left out.
    """
    pictures = picture_columns(schema)
    cover = cover_column(schema)
    texts = [name for name in frame.columns if name not in pictures and not is_feature(frame.schema[name])]
    title = find_common(texts, TITLE_NAMES)
    renamed = {
        old: new for old, new in ((cover, "cover"), (title, "title")) if old and new not in frame.columns
    }
    frame = frame.rename(renamed)
    columns = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.List):  # what is left of them: tags
            column = column.cast(pl.List(pl.String)).list.join("|")
        elif dtype != pl.String:
            continue
        columns.append(column.replace(dict.fromkeys(NOT_A_TEXT)).alias(name))
    return frame.with_columns(text for text in columns if text.meta.output_name() != "item")


def _with_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """Give columns of a text file that hold nothing but numbers the type that Parquet has for them.

    A year or a price is no text. Numbers with zeros in front are codes, and films are called 1984.
    """
    columns = []
    for name in frame.columns:
        filled = frame[name].drop_nulls()
        if name in TEXT_BY_NAME or filled.dtype != pl.String or not len(filled):
            continue
        if filled.str.contains(_INTEGER).all():
            columns.append(pl.col(name).str.strip_chars().cast(pl.Int64))
        elif filled.str.contains(_DECIMAL).all():
            columns.append(pl.col(name).str.strip_chars().cast(pl.Float64))
    return frame.with_columns(columns)


def unknown_items(
    items: pl.DataFrame,
    table: str,
    item_ids: pl.Series,
    parts: Mapping[str, RawPairs],
    problems: Problems,
    path: Path,
) -> tuple[str, ...]:
    """Tell of clicked items without a row in the item table: models that read content know nothing of them.

    Args:
        items: As from :func:`read_items`.
        table: Name of the item table's file.
        item_ids: ``(n_items,)`` ids in row order.
        parts: The clicks.
        problems: Gets a note.
        path: The folder.

    Returns:
        A sentence, or nothing if all are known.
    """
    clicked = np.unique(np.concatenate([pairs.items for pairs in parts.values()]))
    ids = item_ids.cast(pl.String).gather(clicked)
    missing = ids.filter(~ids.is_in(items["item"].implode()))
    if not len(missing):
        return ()
    such = ", ".join(map(repr, missing.head(EXAMPLES)))
    has = ", ".join(map(repr, items["item"].head(EXAMPLES))) or "none"
    there = "" if len(missing) < len(ids) else f"; its ids are such as {has}"
    told = f"{len(missing):,} of {len(ids):,} clicked items are not in {table}, such as {such}{there}"
    problems.note(f"clicked items not in {table}", path, told, len(missing))
    return (told,)


def align_items(items: pl.DataFrame, item_ids: pl.Series) -> pl.DataFrame:
    """Put an item table in row order; items that it does not know get nulls.

    Args:
        items: As from :func:`read_items`.
        item_ids: ``(n_items,)`` ids in row order.

    Returns:
        ``n_items`` rows, without the id column.
    """
    order = pl.DataFrame({"item": item_ids.cast(pl.String)})
    return order.join(items, on="item", how="left", maintain_order="left").drop("item")


def catalogue_of(items: pl.DataFrame, features: Mapping[str, FeatureMatrix] | None = None) -> Catalogue:
    """A catalogue of an item table, in which columns of features have become features.

    Args:
        items: As from :func:`align_items` or :func:`read_items`, without the id column.
        features: Further ones, row-aligned; of two of one name these count.
    """
    own = {}
    for name in [
        name for name, dtype in items.schema.items() if isinstance(dtype, pl.Array) and is_feature(dtype)
    ]:
        column = items[name]
        present = column.is_not_null().to_numpy()
        values = np.zeros((len(column), column.dtype.size), np.float32)  # type: ignore[attr-defined]
        values[present] = column.drop_nulls().explode().to_numpy().reshape(-1, values.shape[1])
        own[name] = FeatureMatrix(values, present, f"column {name}")
    return Catalogue(items.drop(own), {**own, **(features or {})})
