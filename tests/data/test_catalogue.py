"""The identity of what is known of the items: every difference counts, and nothing else."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from firstlight.core.hashing import hash_strings
from firstlight.data.catalogue import Catalogue

LONG = "a long tag that a print would cut, with its only difference at the very end: "


def hashed(column: pl.Series) -> str:
    return Catalogue(pl.DataFrame([column.alias("tags")])).content_hash


def changed(cell: list[object], at: int, value: object) -> list[object]:
    return [*cell[:at], value, *cell[at + 1 :]]


@pytest.mark.parametrize("at", [0, 15, 29])
def test_any_element_of_a_list_counts(at: int) -> None:
    numbers: list[object] = [float(n) for n in range(30)]
    words: list[object] = [f"{LONG}{n}" for n in range(30)]
    for cell, other in ((numbers, -1.0), (words, f"{LONG}x"), (words, None)):
        for dtype in (pl.List, pl.Array):
            inner = pl.String if cell is words else pl.Float32
            kind = pl.List(inner) if dtype is pl.List else pl.Array(inner, 30)
            one, two = (pl.Series([row, None], dtype=kind) for row in (cell, changed(cell, at, other)))
            assert hashed(one) != hashed(two)
            assert hashed(one) == hashed(one.clone())


def test_lists_of_anything_have_an_identity() -> None:
    cells = [
        [[1, 2], [3]],
        [[1], [2, 3]],
        [[b"a"]],
        [[date(2024, 1, 31)]],
        [[{"a": 1}, {"a": 2}]],
        [],
        [None],
    ]
    assert len({hashed(pl.Series([cell])) for cell in cells}) == len(cells)
    assert hashed(pl.Series([["a", "b"]])) != hashed(pl.Series([["a, b"]]))


NAN = float("nan")


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64, pl.Int8, pl.Int64, pl.UInt64])
def test_lists_of_numbers_are_told_apart_by_lengths_values_and_nulls(dtype: type[pl.DataType]) -> None:
    columns: list[list[object]] = [
        [[1, 2], [3]],
        [[1], [2, 3]],
        [[1, 2], [4]],
        [[1, 2], [], [3]],
        [[1, 2], None, [3]],
        [[1, 2], [None], [3]],
        [[1, 2], [0], [3]],
        [[], []],
        [None, []],
        [None, None],
    ]
    hashes = [hashed(pl.Series(column, dtype=pl.List(dtype))) for column in columns]
    assert len(set(hashes)) == len(columns)
    parts = [pl.Series(column, dtype=pl.List(dtype)) for column in ([[9], [1, 2]], [[3], [9]])]
    assert hashed(pl.concat(parts, rechunk=False)[1:3]) == hashes[0]


def test_neither_width_nor_kind_of_lists_of_numbers_counts() -> None:
    for cells, types in (
        ([[1, 2], None, [3, -4]], (pl.Int8, pl.Int64)),
        ([[0.5, None], None, [NAN, -4.0]], (pl.Float32, pl.Float64)),
    ):
        kinds = [kind for inner in types for kind in (pl.List(inner), pl.Array(inner, 2))]
        assert len({hashed(pl.Series(cells, dtype=kind)) for kind in kinds}) == 1
    assert hashed(pl.Series([[1, 2]])) != hashed(pl.Series([[1.0, 2.5]]))
    assert hashed(pl.Series([[2**64 - 1]], dtype=pl.List(pl.UInt64))) != hashed(
        pl.Series([[2**63]], dtype=pl.List(pl.UInt64))
    )


def test_long_lists_of_numbers_are_not_written_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand embeddings took a second."""

    def refused(*_: object, **__: object) -> str:
        raise AssertionError

    monkeypatch.setattr("firstlight.data.catalogue.json.dumps", refused)
    rows = np.random.default_rng(0).standard_normal((50, 768))
    for dtype in (pl.List(pl.Float64), pl.Array(pl.Float32, 768)):
        assert hashed(pl.Series(rows.tolist(), dtype=dtype))
    with pytest.raises(AssertionError):
        hashed(pl.Series([["a"]]))


def test_tables_without_lists_keep_the_identity_that_finished_runs_have() -> None:
    table = pl.DataFrame({"title": ["A", None], "year": [1999, 2000], "price": [0.1, float("nan")],
                          "cover": [b"\xff", None], "place": [{"row": 1}, {"row": 2}]})  # fmt: skip
    columns = [
        ["cover", r"b'\xff'", "\0"],
        ["place", "{'row': 1}", "{'row': 2}"],
        ["price", "0.1", "nan"],
        ["title", "A", "\0"],
        ["year", "1999", "2000"],
    ]
    assert Catalogue(table).content_hash == hash_strings(hash_strings(column) for column in columns)
