"""Parquet tables whose columns of bytes do not fit into memory: read and written a few rows at a time.

A Parquet file is a chain of *row groups*, and polars reads whole ones. Where they end stands in the file's footer, in
Thrift's compact encoding, which is read here by hand: polars does not tell.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from firstlight.core.errors import InputError

#: Bytes of a column that are decoded at once.
PIECE_BYTES = 64 << 20
#: A row group is read anew for each piece of it, so it is cut into no more than these.
_MOST_PIECES = 4
#: Type of a column that says where something stands that was not read.
PLACES = pl.Struct({"row": pl.Int64})
#: Bytes of a row group that is written.
_GROUP_BYTES = 16 << 20


class RowGroup(NamedTuple):
    """Some rows of a Parquet file.

    Attributes:
        rows: How many.
        sizes: Top-level column → its bytes when decoded.
    """

    rows: int
    sizes: dict[str, int]


def row_groups(file: Path) -> list[RowGroup]:
    """The row groups of a Parquet file, in order.

    Raises:
        InputError: It is not a Parquet file, or its footer is torn.
    """
    try:
        with file.open("rb") as handle:
            handle.seek(-8, 2)
            size, mark = struct.unpack("<I4s", handle.read(8))
            if mark != b"PAR1":
                raise ValueError("it does not end in PAR1")
            handle.seek(-8 - size, 2)
            footer = _Compact(handle.read(size)).fields()
        # FileMetaData.num_rows = 3, .row_groups = 4; RowGroup.columns = 1, .num_rows = 3; ColumnChunk.meta_data = 3;
        # ColumnMetaData.path_in_schema = 3, .total_uncompressed_size = 6.
        groups = []
        for group in footer[4]:
            sizes: dict[str, int] = {}
            for column in group[1]:
                name = column[3][3][0].decode()
                sizes[name] = sizes.get(name, 0) + column[3][6]
            groups.append(RowGroup(group[3], sizes))
        if sum(group.rows for group in groups) != footer[3]:
            raise ValueError("its row groups do not have as many rows as the file")
        return groups
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"cannot be read as Parquet ({error})", path=file) from error


def column_pieces(file: Path, column: str) -> Iterator[tuple[int, pl.Series]]:
    """One column of a Parquet file, a few rows at a time, in order.

    What is held is a piece of about :data:`PIECE_BYTES`, and the compressed bytes of the row group that it is of.

    Args:
        file: The Parquet file.
        column: Its name.

    Yields:
        The first row of a piece, and the piece.

    Raises:
        InputError: The file cannot be read.
    """
    scan = pl.scan_parquet(file, glob=False, low_memory=True).select(pl.col(column))
    start = 0
    for group in row_groups(file):
        pieces = min(_MOST_PIECES, max(1, -(-group.sizes.get(column, 0) // PIECE_BYTES)))
        length = max(1, -(-group.rows // pieces))
        for first in range(start, start + group.rows, length):
            # no name here holds the piece while the next one is made
            yield first, _collected(scan.slice(first, min(length, start + group.rows - first)), file)
        start += group.rows


def _collected(scan: pl.LazyFrame, file: Path) -> pl.Series:
    try:
        return scan.collect().to_series()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=file) from error


def picture_columns(schema: Mapping[str, Any]) -> list[str]:
    """The columns of bytes."""
    return [name for name, kind in schema.items() if kind == pl.Binary]


def read_table(file: Path, left_out: str | None = None) -> pl.DataFrame:
    """A whole Parquet file.

    Args:
        file: The file.
        left_out: A column that is not read; in its place each row tells where it stands in the file (:data:`PLACES`).

    Raises:
        polars.exceptions.PolarsError: It cannot be read (OSError: likewise).
    """
    if left_out is None:
        return pl.read_parquet(file, glob=False)
    scan = pl.scan_parquet(file, glob=False)
    names = scan.collect_schema().names()
    table = scan.select(pl.exclude(left_out)).with_row_index(left_out).collect()
    place = pl.struct(pl.col(left_out).cast(pl.Int64).alias("row"))
    return table.with_columns(place.alias(left_out)).select(names)


def write_table(table: pl.DataFrame, file: Path) -> None:
    """Write a Parquet file; where it holds bytes, in row groups small enough to be read one by one."""
    held = sum(int(table[name].estimated_size()) for name in picture_columns(table.schema))
    groups = -(-held // _GROUP_BYTES)
    table.write_parquet(file, row_group_size=max(1, -(-len(table) // groups)) if groups > 1 else None)


class _Compact:
    """Thrift's compact encoding: structures as dictionaries by field number, lists, whole numbers, bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _bytes(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("the footer is torn")
        self.at += size
        return self.data[self.at - size : self.at]

    def fields(self) -> dict[int, Any]:
        """A structure."""
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 0x0F
            field = field + step if step else self._signed()
            # of a field, unlike of a list, true and false are kinds of their own
            found[field] = kind == 1 if kind in (1, 2) else self._value(kind)
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 0x0F) for _ in range(size)]
        if kind == 12:
            return self.fields()
        raise ValueError(f"the footer holds a value of kind {kind}")
