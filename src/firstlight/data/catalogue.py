"""What is known of the items besides clicks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.hashing import hash_arrays, hash_strings


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """One ready-made feature per item, with a mask of which items have it.

    Attributes:
        values: ``(n_items, dim)`` float32; rows of absent items are zero.
        present: ``(n_items,)`` bool.
        extractor: Free text: what made the features.
    """

    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    extractor: str = "unknown"


#: Whole numbers that numpy has, too.
_WHOLE = frozenset({pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64})

#: Content as models read it: view name -> rows aligned to the item rows.
ItemViews = Mapping[str, FeatureMatrix]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Item texts, covers and features, row-aligned to the item rows of the dataset.

    Attributes:
        items: A table with ``n_items`` rows, aligned to the item rows, without the id column: any text
            column (``title``, …), ``cover`` (bytes, or a path relative to the dataset folder), ``clip``,
            ``arrived`` (int64 seconds), ``role`` (``warm``, ``cold-valid``, ``cold-test``).
        features: name -> :class:`FeatureMatrix`.
    """

    items: pl.DataFrame = field(default_factory=pl.DataFrame)
    features: Mapping[str, FeatureMatrix] = field(default_factory=dict)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all columns and features; ``role`` left out, since it follows from the split."""
        parts = [
            hash_strings([name, *_identity(self.items[name])])
            for name in sorted(self.items.columns)
            if name != "role"
        ]
        for name in sorted(self.features):
            matrix = self.features[name]
            parts += [name, hash_arrays([matrix.values, matrix.present])]
        return hash_strings(parts)

    def files_hash(self, folder: Path | str | None) -> str:
        """SHA-256 over the sizes of the files that covers and clips name (reading a million takes too long).

        Args:
            folder: Where paths start; None: nothing is looked up.
        """
        sizes: list[str] = []
        for name in ("cover", "clip"):
            if folder is not None and name in self.items.columns and self.items[name].dtype == pl.String:
                sizes += [name, *(_size(folder, value) for value in self.items[name])]
        return hash_strings(sizes)


def _identity(column: pl.Series) -> Iterable[str]:
    """What tells a column from every other one."""
    inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else None
    if inner is None or not (inner.is_float() or inner in _WHOLE):
        return _cells(column)
    return ("lists of numbers", _numbers_hash(column, floats=inner.is_float()))


def _numbers_hash(column: pl.Series, *, floats: bool) -> str:
    """SHA-256 over lengths, values and nulls: embeddings of a million items are too many to write as text.

    Neither the width of the numbers nor the kind of the list counts.
    """
    lists = column.cast(pl.List(column.dtype.inner))  # type: ignore[attr-defined]
    sizes = lists.list.len().cast(pl.Int64).fill_null(-1)
    flat = lists.filter(sizes > 0).explode()  # versions differ in what they make of an empty list
    if flat.dtype != pl.UInt64:
        flat = flat.cast(pl.Float64 if floats else pl.Int64)
    values = flat.fill_null(0).to_numpy().copy()
    if floats:
        values[np.isnan(values)] = np.nan  # of whatever bits
    return hash_arrays([sizes.to_numpy(), values, flat.is_null().to_numpy()])


def _cells(column: pl.Series) -> Iterator[str]:
    """Each cell as text that tells it from every other, and changes with no version of a library."""
    nested = isinstance(column.dtype, pl.List | pl.Array)
    for value in column:
        if value is None:
            yield "\0"
        elif nested:  # str() of a series leaves out its middle, and the ends of long texts
            yield json.dumps(value.to_list(), sort_keys=True, default=_as_json)
        else:
            yield str(value)


def _as_json(value: object) -> str:
    """What JSON has no form for, such as bytes and dates."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _size(folder: Path | str, name: str | None) -> str:
    try:
        return "" if name is None else str((Path(folder) / name).stat().st_size)
    except (OSError, ValueError):  # not there, or no path at all
        return "missing"


def with_ids(catalogue: Catalogue, item_ids: Sequence[str] | pl.Series) -> Catalogue:
    """The catalogue with the ids as a column ``item``, so that messages can name items.

    Args:
        catalogue: A catalogue.
        item_ids: ``(n_items,)`` raw ids.
    """
    ids = pl.Series("item", item_ids).cast(pl.String)
    columns = [column for column in catalogue.items.get_columns() if column.name != "item"]
    return replace(catalogue, items=pl.DataFrame([*columns, ids]))
