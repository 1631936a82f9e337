"""Ready-made features: ``.npy`` files row by row, ``.parquet`` files by row or by id, and columns of item tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.formats.base import Problems
from firstlight.data.formats.columns import ID_NAMES, check_type, find_common, id_text

#: Rows that a message names.
_EXAMPLES = 5
_ONE_LENGTH = (
    "a feature has as many numbers in each row; leave the cell empty where an item has none, and write tags as lists "
    "of texts or of whole numbers"
)
#: What pandas calls the index of a frame when it writes one.
_PANDAS_INDEX = "__index_level_0__"


def read_feature(path: Path, name: str, problems: Problems) -> FeatureMatrix:
    """Read a feature matrix and mark the rows that say nothing.

    Rows that hold NaN or infinity, or only zeros (the usual filler), are absent; they become zero and
    are counted.

    Args:
        path: An ``.npy`` file of numbers, ``(n_items, dim)``.
        name: The feature's name, for the counts.
        problems: Gets the counts.

    Returns:
        The matrix and its mask.

    Raises:
        InputError: The file is torn, holds Python objects, or is not a matrix of numbers.
    """
    try:
        raw = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot be read as an .npy matrix ({error})",
            path=path,
            hint="pickled objects are refused; save with numpy.save(path, array.astype('float32'))"
            if path.suffix.lower() == ".npy"
            else "feature files are .npy, .safetensors or .parquet",
        ) from error
    if not isinstance(raw, np.ndarray) or raw.ndim != 2 or not np.issubdtype(raw.dtype, np.number):
        shape = getattr(raw, "shape", None)
        raise InputError(f"expected a matrix of numbers (items, dim), found shape {shape}", path=path)
    return _marked(raw, np.ones(len(raw), np.bool_), name, path, problems)


def _marked(
    raw: npt.NDArray[np.number],
    given: npt.NDArray[np.bool_],
    name: str,
    path: Path,
    problems: Problems,
    first_row: int = 0,
) -> FeatureMatrix:
    """The rows that are given and say something; the others are zero, absent and counted.

    Args:
        raw: ``(n, dim)`` numbers.
        given: ``(n,)`` bool: rows that hold something at all.
        name: The feature's name, for the counts.
        path: The file.
        problems: Gets the counts.
        first_row: What the first row is called: arrays count from 0, tables from 1.
    """
    # float64 beyond float32's range becomes infinite, and so absent
    with np.errstate(over="ignore"):
        values = np.array(raw, np.float32)
    finite = np.logical_and.reduce(np.isfinite(values), axis=1)
    zero = finite & ~values.any(axis=1)
    values[~finite] = 0
    for kind, rows in (("NaN or infinite", ~finite & given), ("all-zero", zero & given)):
        count = int(rows.sum())
        if count:
            first = int(np.flatnonzero(rows)[0]) + first_row
            problems.note(f"feature {name}: {kind} row", path, f"first at row {first}", count)
            problems.dropped[f"feature {name}: {kind} row"] += count
    return FeatureMatrix(values, finite & ~zero & given, path.name)


def is_feature(dtype: pl.DataType) -> bool:
    """Whether a column holds a feature: lists of decimals, or arrays of one width of any numbers.

    Lists of whole numbers are tags by their numbers, as many as an item happens to have.
    """
    if isinstance(dtype, pl.Array):
        return dtype.inner.is_numeric()
    return isinstance(dtype, pl.List) and dtype.inner.is_float()


def read_lists(
    column: pl.Series, path: Path, problems: Problems, *, demanded: bool = False
) -> FeatureMatrix | None:
    """Read a column of which :func:`is_feature` holds; null and empty lists are absent.

    Args:
        column: ``(n,)``, as it is in the file.
        path: The file, for messages.
        problems: Gets the counts of rows that say nothing, and columns that are left out.
        demanded: Whether the user named the file as a feature. If not, lists of different lengths, such as the prices
            of an item's variants, are left out: the rest of the table does not hang on them.

    Returns:
        The matrix and its mask, or None if no row holds a number or lengths differ.

    Raises:
        InputError: Lengths differ, and the feature was demanded.
    """
    lists = column.cast(pl.List(pl.Float32)) if isinstance(column.dtype, pl.Array) else column
    sizes = lists.list.len().fill_null(0).to_numpy()
    given = sizes > 0
    if not given.any():
        problems.note("column without numbers", path, f"column {column.name!r} holds no list of numbers")
        return None
    width = int(np.bincount(sizes[given]).argmax())
    odd = np.flatnonzero(given & (sizes != width))
    if len(odd):
        named = ", ".join(f"row {row + 1} ({sizes[row]})" for row in odd[:_EXAMPLES])
        more = f" and {len(odd) - _EXAMPLES:,} more" if len(odd) > _EXAMPLES else ""
        found = f"column {column.name!r} holds lists of {width} numbers, but others in {named}{more}"
        if demanded:
            raise InputError(found, path=path, hint=_ONE_LENGTH)
        kind = "column of lists of different lengths"
        problems.note(kind, path, f"{found}; it is left out: {_ONE_LENGTH}")
        problems.dropped[f"{kind}: {column.name}"] += 1
        return None
    raw = np.full((len(lists), width), np.nan, np.float32)
    raw[given] = lists.filter(pl.Series(given)).explode().cast(pl.Float32).to_numpy().reshape(-1, width)
    return _marked(raw, given, column.name, path, problems, first_row=1)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """A feature file whose rows may have names.

    Attributes:
        path: The file.
        matrix: ``(rows, dim)`` and its mask.
        ids: ``(rows,)`` raw item ids, each once, or None: row by row.
    """

    path: Path
    matrix: FeatureMatrix
    ids: pl.Series | None

    def aligned(self, item_ids: Sequence[str] | pl.Series) -> FeatureMatrix:
        """The rows of these items; items that the file does not name are absent. Without ids, the rows as they are.

        Raises:
            InputError: The file names none of the items.
        """
        if self.ids is None:
            return self.matrix
        wanted = pl.DataFrame({"item": pl.Series(item_ids, dtype=pl.String)})
        known = pl.DataFrame({"item": self.ids, "row": np.arange(len(self.ids))})
        rows = (
            wanted.join(known, on="item", how="left", maintain_order="left")["row"].fill_null(-1).to_numpy()
        )
        if len(rows) and (rows < 0).all():
            such = ", ".join(map(repr, self.ids.head(3))) or "none"
            raise InputError(
                f"none of the {len(rows):,} items is named here; its ids are such as {such}, "
                f"those of the items such as {wanted['item'][0]!r}",
                path=self.path,
            )
        found = rows >= 0
        values = self.matrix.values[rows] * found[:, None]
        return FeatureMatrix(values, self.matrix.present[rows] & found, self.matrix.extractor)


def read_feature_table(path: Path, name: str, problems: Problems, key: str | None = None) -> FeatureTable:
    """Read a feature from a Parquet file: one column of lists of numbers, or a column of numbers for each dimension.

    Rows that say nothing are absent and counted, as in :func:`read_feature`. A column of item ids names the rows.

    Args:
        path: The file.
        name: The feature's name, for the counts.
        problems: Gets the counts.
        key: Name that the id column may have besides those in common use.

    Raises:
        InputError: The file cannot be read, holds something else than numbers, or names an item twice.
    """
    try:
        table = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error
    own = key if key in table.columns else find_common(table.columns, ID_NAMES)
    ids = None if own is None else _ids(table, own, path)
    table = table.drop(own or ())
    lists = [column for column, dtype in table.schema.items() if _numbers(dtype)]
    if len(lists) > 1:
        raise InputError(
            f"there are several columns of lists: {', '.join(lists)}",
            path=path,
            hint="write one feature to a file",
        )
    matrix = read_lists(table[lists[0]].alias(name), path, problems, demanded=True) if lists else None
    if matrix is None:
        matrix = _from_columns(table, name, path, problems)
    return FeatureTable(path, FeatureMatrix(matrix.values, matrix.present, path.name), ids)


def _numbers(dtype: pl.DataType) -> bool:
    """Whether a column of a feature file holds lists of numbers; tags have no place there, so whole ones do as well."""
    return isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()


def _ids(table: pl.DataFrame, column: str, path: Path) -> pl.Series:
    dtype = table.schema[column]
    check_type(column, dtype, "item", path)
    ids = table.select(id_text(pl.col(column), dtype).alias("item"))["item"]
    missing = ids.is_null() | (ids.str.strip_chars() == "")
    if missing.any():
        raise InputError("the item id is missing", path=path, line=int(missing.arg_true()[0]) + 1)
    again = ~ids.is_first_distinct()
    if again.any():
        row = int(again.arg_true()[0])
        raise InputError(f"item {ids[row]!r} again", path=path, line=row + 1, hint="name every item once")
    return ids


def _from_columns(table: pl.DataFrame, name: str, path: Path, problems: Problems) -> FeatureMatrix:
    """One dimension a column."""
    odd = [column for column, dtype in table.schema.items() if not dtype.is_numeric()]
    if odd or not table.width or _PANDAS_INDEX in table.columns:
        found = f"column {odd[0]!r} holds {table.schema[odd[0]]}" if odd else "there is an unnamed index"
        raise InputError(
            found if table.width else "there is no column of numbers",
            path=path,
            hint="a feature file has one column of lists of numbers, or nothing but columns of numbers; "
            "a column called item may name the rows",
        )
    raw = table.select(pl.all().cast(pl.Float32)).to_numpy()
    return _marked(raw, np.ones(len(raw), np.bool_), name, path, problems, first_row=1)
