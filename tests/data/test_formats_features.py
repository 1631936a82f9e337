"""Features from Parquet: columns of item tables, and files of their own that go by row or by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.data.formats import read_dataset
from firstlight.data.formats.base import Problems
from firstlight.data.formats.features import read_feature_table
from firstlight.data.inspect import inspect_path
from firstlight.serving.new_items import read_new_items

ROWS = [[0.5, 1.5], None, [2.5, float("nan")], [], [0.0, 0.0], [3.0, 4.0]]


def shop(folder: Path, *columns: pl.Series) -> Path:
    """Six items a … f, of which the log knows the first two, and columns of an item table."""
    (folder / "clicks.csv").write_text("user,item\nu,b\nu,a\n")
    ids = pl.Series("item", list("abcdef"))
    pl.DataFrame([ids, *columns]).write_parquet(folder / "items.parquet")
    return folder


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float32, 2), pl.Array(pl.Float64, 2)]
)
def test_lists_of_decimals_are_features(tmp_path: Path, dtype: Any) -> None:
    rows = [None if isinstance(dtype, pl.Array) and not row else row for row in ROWS]
    shop(tmp_path, pl.Series("clip", rows, dtype=dtype), pl.Series("title", list("ABCDEF")))
    dataset = read_dataset(tmp_path)
    assert dataset.catalogue.items.columns == ["title"]
    matrix = dataset.catalogue.features["clip"]
    assert matrix.present.tolist() == [True, False, False, False, False, True]
    np.testing.assert_array_equal(matrix.values, [[0.5, 1.5], *[[0, 0]] * 4, [3, 4]])
    assert matrix.values.dtype == np.float32
    write_dataset(dataset, tmp_path / "out")
    back = read_dataset_folder(tmp_path / "out").catalogue
    assert back.content_hash == dataset.catalogue.content_hash
    found = inspect_path(tmp_path)
    assert [(one.name, one.shape, one.present) for one in found.features] == [("clip", (6, 2), 2)]
    assert (found.features[0].not_finite_rows, found.features[0].zero_rows) == (1, 1)
    assert found.texts == {"title": 6}
    assert "feature clip: 6 × 2, present for 2 items" in found.heading


def test_arrays_of_whole_numbers_are_features_and_lists_of_them_are_tags(tmp_path: Path) -> None:
    codes = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [1, 1]]
    shop(tmp_path, pl.Series("small", codes, dtype=pl.Array(pl.Int8, 2)), pl.Series("genres", codes),
         pl.Series("words", [["a", "b"], ["c"], None, [], ["N/A"], ["d"]]))  # fmt: skip
    catalogue = read_dataset(tmp_path).catalogue
    assert list(catalogue.features) == ["small"]
    np.testing.assert_array_equal(catalogue.features["small"].values, codes)
    assert catalogue.items["genres"].to_list() == ["1|2", "3|4", "5|6", "7|8", "9|9", "1|1"]
    assert catalogue.items["words"].to_list() == ["a|b", "c", None, None, None, "d"]


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ([[1.0, 2.0], [1.0], [3.0, 4.0], None, [1.0, 2.0, 3.0], [5.0, 6.0]],
         "column 'prices' holds lists of 2 numbers, but others in row 2 (1), row 5 (3); it is left out"),
        ([[1.0], [1.0, 2.0], [1.0] * 3, [1.0] * 4, [1.0] * 5, [1.0] * 6], "row 6 (6); it is left out"),
    ],
)  # fmt: skip
def test_lists_of_decimals_of_different_lengths_are_left_out_and_named(
    tmp_path: Path, lists: list[Any], told: str
) -> None:
    shop(
        tmp_path,
        pl.Series("prices", lists),
        pl.Series("clip", [[1.0, 2.0]] * 6),
        pl.Series("plot", list("ABCDEF")),
    )
    dataset = read_dataset(tmp_path)
    assert dataset.catalogue.items.columns == ["plot"]
    assert list(dataset.catalogue.features) == ["clip"]
    kind = "column of lists of different lengths"
    assert dataset.dropped == {f"{kind}: prices": 1}
    found = inspect_path(tmp_path)
    assert found.problem_totals == {kind: 1}
    assert told in found.problems[0].problem
    assert "leave the cell empty" in found.problems[0].problem
    assert any(told in note for note in read_new_items(tmp_path / "items.parquet").notes)


@pytest.mark.parametrize("name", ["clip", "cover", "title", "name"])
def test_a_column_without_any_list_is_left_out(tmp_path: Path, name: str) -> None:
    shop(
        tmp_path,
        pl.Series(name, [None, []] * 3, dtype=pl.List(pl.Float64)),
        pl.Series("plot", list("ABCDEF")),
    )
    dataset = read_dataset(tmp_path)
    assert (dataset.catalogue.items.columns, dict(dataset.catalogue.features)) == (["plot"], {})
    assert inspect_path(tmp_path).problem_totals == {"column without numbers": 1}


def test_a_feature_takes_no_name_of_a_text(tmp_path: Path) -> None:
    shop(tmp_path, pl.Series("name", [[1.0]] * 6), pl.Series("cover", [[2.0]] * 6))
    catalogue = read_dataset(tmp_path).catalogue
    assert (catalogue.items.width, sorted(catalogue.features)) == (0, ["cover", "name"])


TABLES = {
    "a list": pl.DataFrame({"x": [[1.0, 2.0], [3.0, 4.0], None]}),
    "an array": pl.DataFrame({"x": [[1.0, 2.0], [3.0, 4.0], None]}, schema={"x": pl.Array(pl.Float32, 2)}),
    "whole numbers": pl.DataFrame({"x": [[1, 2], [3, 4], []]}),
    "columns": pl.DataFrame({"0": [1.0, 3.0, None], "1": [2, 4, 5]}),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_feature_file_goes_row_by_row_or_by_id(tmp_path: Path, table: pl.DataFrame) -> None:
    path = tmp_path / "x.parquet"
    table.write_parquet(path)
    read = read_feature_table(path, "x", Problems())
    assert read.ids is None
    matrix = read.aligned(["p", "q", "r"])
    assert matrix.present.tolist() == [True, True, False]
    np.testing.assert_array_equal(matrix.values, [[1, 2], [3, 4], [0, 0]])
    for key, ids in (("item_id", ["p", "q", "r"]), ("sku", [7, 8, 9]), ("mine", [7.0, 8.0, 9.0])):
        table.insert_column(1, pl.Series(key, ids)).write_parquet(path)
        table = table.drop(key)
        names = [str(int(one)) if isinstance(one, float) else str(one) for one in ids]
        matrix = read_feature_table(path, "x", Problems(), "mine").aligned([names[1], "new", names[0]])
        assert matrix.present.tolist() == [True, False, True]
        np.testing.assert_array_equal(matrix.values, [[3, 4], [0, 0], [1, 2]])


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"item": ["a", "a"], "x": [[1.0], [2.0]]}, "x.parquet, row 2: item 'a' again"),
        ({"item": ["a", None], "x": [[1.0], [2.0]]}, "x.parquet, row 2: the item id is missing"),
        ({"x": [[1.0], [2.0, 3.0]]}, "column 'sound' holds lists of 1 numbers, but others in row 2 (2)"),
        ({"x": [[1.0]], "y": [[1.0]]}, "several columns of lists: x, y"),
        ({"x": [1.0], "note": ["good"]}, "column 'note' holds String"),
        ({"item": ["a"]}, "there is no column of numbers"),
        ({"x": [1.0], "__index_level_0__": [3]}, "unnamed index"),
        ({"item": ["b", "c"], "x": [1.0, 2.0]}, "none of the 1 items is named here; its ids are such as 'b', 'c'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_feature_file_is_told(tmp_path: Path, table: dict[str, Any], told: str) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(InputError) as caught:
        read_feature_table(path, "sound", Problems()).aligned(["a"])
    assert told in str(caught.value)


def test_torn_feature_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"x\.parquet: cannot be read as Parquet"):
        read_feature_table(tmp_path / "x.parquet", "x", Problems())


def test_features_beside_a_log_may_be_parquet(tmp_path: Path) -> None:
    (tmp_path / "toy.inter").write_text("userID\titemID\n0\ta\n0\tc\n1\tb\n")
    named = pl.DataFrame({"itemID": ["c", "d", "a"], "x": [[1.0], [2.0], [3.0]]})
    named.write_parquet(tmp_path / "image_feat.parquet")
    dataset = read_dataset(tmp_path)
    assert list(dataset.item_ids) == ["a", "b", "c", "d"]  # clicked or not
    matrix = dataset.catalogue.features["image"]
    assert matrix.present.tolist() == [True, False, True, True]
    assert matrix.values[:, 0].tolist() == [3, 0, 1, 2]
    (tmp_path / "toy.inter").write_text("userID\titemID\n0\t0\n0\t2\n")
    named.drop("itemID").write_parquet(tmp_path / "image_feat.parquet")
    np.save(tmp_path / "text_feat.npy", np.ones((3, 2)))
    dataset = read_dataset(tmp_path)
    assert list(dataset.item_ids) == ["0", "1", "2"]
    assert dataset.catalogue.features["image"].values[:, 0].tolist() == [1, 2, 3]
    np.save(tmp_path / "image_feat.npy", np.ones((3, 2)))
    with pytest.raises(InputError, match="feature 'image' is there twice"):
        read_dataset(tmp_path)
