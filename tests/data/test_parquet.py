"""Parquet files a piece at a time: what stands in a footer, and that no row is lost or moved."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data import parquet
from firstlight.data.parquet import PLACES, column_pieces, read_table, row_groups, write_table


def table(n: int = 50, size: int = 1000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    pictures = [None if row % 7 == 3 else rng.bytes(size + row) for row in range(n)]
    both = [{"bytes": picture, "path": f"{row}.png"} for row, picture in enumerate(pictures)]
    return pl.DataFrame({"item": [f"é{row}" for row in range(n)], "cover": pictures, "image": both})


@pytest.mark.parametrize("compression", ["zstd", "snappy", "uncompressed"])
@pytest.mark.parametrize("rows", [None, 1, 7, 50])
def test_row_groups_are_those_that_were_written(tmp_path, rows, compression):
    table().write_parquet(tmp_path / "x.parquet", row_group_size=rows, compression=compression)
    groups = row_groups(tmp_path / "x.parquet")
    full = rows or 50
    assert [group.rows for group in groups] == [full] * (50 // full) + ([50 % full] if 50 % full else [])
    held = sum(len(picture) for picture in table()["cover"].drop_nulls())
    for column in ("cover", "image"):  # the second one has two columns below it
        assert held < sum(group.sizes[column] for group in groups) < 1.2 * held + 200 * len(groups)


def test_a_footer_with_many_columns_and_groups(tmp_path):
    """Long lists and field numbers that are not written as steps."""
    wide = pl.DataFrame({f"column {i}": [float(i), None, -1.5] for i in range(40)})
    wide.write_parquet(tmp_path / "x.parquet", row_group_size=1, statistics="full")
    assert [group.rows for group in row_groups(tmp_path / "x.parquet")] == [1, 1, 1]
    pl.DataFrame({"a": []}, {"a": pl.Int64}).write_parquet(tmp_path / "none.parquet")
    assert sum(group.rows for group in row_groups(tmp_path / "none.parquet")) == 0


@pytest.mark.parametrize("rows", [None, 7])
def test_pieces_are_the_column(tmp_path, monkeypatch, rows):
    """Whatever the row groups; those that are too large are cut into at most four."""
    monkeypatch.setattr(parquet, "PIECE_BYTES", 5000)
    table().write_parquet(tmp_path / "x.parquet", row_group_size=rows)
    for column in ("cover", "image"):
        pieces = list(column_pieces(tmp_path / "x.parquet", column))
        starts = np.cumsum([0, *(len(piece) for _, piece in pieces)])
        assert [first for first, _ in pieces] == starts[:-1].tolist()
        assert pl.concat([piece for _, piece in pieces]).equals(table()[column])
        assert len(pieces) == (4 if rows is None else 15)  # of 7 rows, 6 pictures and 6 kB: two pieces


def test_what_is_no_parquet_file_is_said(tmp_path):
    table().write_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for name, content in (
        ("empty", b""),
        ("short", b"PAR1"),
        ("cut", whole[:-20]),
        ("cut in front", whole[-1000:]),
        ("scrambled", whole[:footer] + bytes(200) + whole[footer + 200 :]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read as Parquet"):
            list(column_pieces(tmp_path / name, "cover"))


def test_a_column_that_is_left_out_tells_its_places(tmp_path):
    table().write_parquet(tmp_path / "x.parquet", row_group_size=9)
    assert read_table(tmp_path / "x.parquet").equals(table())
    found = read_table(tmp_path / "x.parquet", "cover")
    assert found.columns == ["item", "cover", "image"]
    assert found["cover"].dtype == PLACES
    assert found["cover"].struct.field("row").to_list() == list(range(50))
    assert found.drop("cover").equals(table().drop("cover"))


def test_bytes_are_written_in_small_row_groups(tmp_path, monkeypatch):
    write_table(table(), tmp_path / "small.parquet")
    assert len(row_groups(tmp_path / "small.parquet")) == 1
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 10_000)
    write_table(table(), tmp_path / "large.parquet")
    groups = row_groups(tmp_path / "large.parquet")
    assert len(groups) > 3
    assert max(group.sizes["cover"] for group in groups) < 15_000
    assert pl.read_parquet(tmp_path / "large.parquet").equals(table())
    write_table(table().select("item"), tmp_path / "text.parquet")
    assert len(row_groups(tmp_path / "text.parquet")) == 1
