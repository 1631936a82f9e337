"""Item tables beside click logs: ids that match or do not, and what their columns are read as."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.folder import write_dataset
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.data.inspect import inspect_path
from firstlight.views.words import text_columns


def shop(folder: Path, log: str, items: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "clicks.csv").write_text(log)
    (folder / "items.csv").write_text(items)
    return folder


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_whole_floats_are_the_ids_that_integers_are(tmp_path: Path, dtype: pl.DataType) -> None:
    log = pl.DataFrame({"user": [7.0, 8.0, 8.0], "item": [1.0, 2.0, 2.5]}, schema_overrides={"item": dtype})
    log.write_parquet(tmp_path / "clicks.parquet")
    (tmp_path / "items.csv").write_text("item,title\n1,One\n2,Two\n2.5,Two and a half\n")
    dataset = read_dataset(tmp_path)
    assert list(dataset.user_ids) == ["7", "8"]
    assert list(dataset.item_ids) == ["1", "2", "2.5"]
    assert dataset.catalogue.items["title"].to_list() == ["One", "Two", "Two and a half"]
    assert dataset.notes == ()
    (tmp_path / "items.csv").unlink()
    pl.DataFrame({"item": [1.0, 2.0, 2.5], "title": list("abc")}).write_parquet(tmp_path / "items.parquet")
    assert list(read_dataset(tmp_path).item_ids) == ["1", "2", "2.5"]


def test_a_float_that_is_no_number_is_a_missing_id(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a", "b"], "item": [1.0, float("nan")]}).write_parquet(tmp_path / "log.parquet")
    found = inspect_path(tmp_path)
    assert found.problem_totals == {"missing item id": 1}


def test_clicked_items_that_the_catalogue_does_not_know_are_told_of(tmp_path: Path) -> None:
    folder = shop(tmp_path / "a", "user,item\nu,a\nu,b\nv,c\n", "item,title\na,A\nd,D\n")
    dataset = read_dataset(folder)
    told = "2 of 3 clicked items are not in items.csv, such as 'b', 'c'"
    assert dataset.notes == (told,)
    found = inspect_path(folder)
    assert found.problem_totals == {"clicked items not in items.csv": 2}
    assert [problem.problem for problem in found.problems] == [told]
    write_dataset(dataset, tmp_path / "out")
    assert read_dataset(tmp_path / "out").notes == (told,)
    assert inspect_path(tmp_path / "out").problem_totals == {"found when it was converted": 1}


def test_ids_of_another_form_are_shown_side_by_side(tmp_path: Path) -> None:
    folder = shop(tmp_path / "a", "user,item\nu,1.0\nv,2.0\n", "item,title\n1,A\n2,D\n")
    told = "2 of 2 clicked items are not in items.csv, such as '1.0', '2.0'; its ids are such as '1', '2'"
    assert read_dataset(folder).notes == (told,)


def test_columns_of_numbers_are_no_texts_whatever_the_file_type(tmp_path: Path) -> None:
    log = "user,item\nu,01\nv,02\n"
    table = "item,title,year,price,zip,mixed,empty\n01,1984,1999,2.5,01234,7,\n02,1917,,3,00120,x,\n"
    as_text = read_dataset(shop(tmp_path / "a", log, table)).catalogue.items
    numbers = {"year": pl.Int64, "price": pl.Float64}
    assert dict(as_text.schema) == {name: numbers.get(name, pl.String) for name in as_text.columns}
    assert as_text["zip"].to_list() == ["01234", "00120"]
    assert as_text["year"].to_list() == [1999, None]
    assert text_columns(as_text) == ["title", "zip", "mixed", "empty"]
    found = inspect_path(tmp_path / "a")
    assert found.numbers == ("year", "price")
    assert found.texts == {"title": 2, "zip": 2, "mixed": 2, "empty": 0}
    parquet = shop(tmp_path / "b", log, "")
    (parquet / "items.csv").unlink()
    pl.DataFrame(
        {"item": ["01", "02"], "title": ["1984", "1917"], "year": [1999, None], "price": [2.5, 3.0],
         "zip": ["01234", "00120"], "mixed": ["7", "x"], "empty": [None, ""]}
    ).write_parquet(parquet / "items.parquet")  # fmt: skip
    assert read_dataset(parquet).catalogue.items.equals(as_text)


def test_lines_of_text_are_those_of_the_file_and_parquet_has_rows(tmp_path: Path) -> None:
    table = 'item,title\n\n1,"One\nand a half"\n,Nobody\n1,Again\n'
    folder = shop(tmp_path / "a", "user,item\nu,1\n", table)
    with pytest.raises(InputError, match=r"items\.csv, line 5: the item id is missing"):
        read_dataset(folder)
    found = inspect_path(folder)
    assert [(problem.kind, problem.line) for problem in found.problems] == [
        ("missing item id", 5),
        ("repeated item", 6),
    ]
    (folder / "items.csv").unlink()
    pl.DataFrame({"item": ["1", None], "title": ["One", "Nobody"]}).write_parquet(folder / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet, row 2: the item id is missing"):
        read_dataset(folder)


def test_the_item_table_may_call_the_ids_something_else(tmp_path: Path) -> None:
    folder = shop(tmp_path / "a", "user,item_id\nu,a\n", "artikel,title\na,A\n")
    with pytest.raises(InputError, match="name it with --catalogue-item"):
        read_dataset(folder)
    dataset = read_dataset(folder, ReadOptions(catalogue_item="artikel"))
    assert dataset.catalogue.items["title"].to_list() == ["A"]
    with pytest.raises(InputError, match=r"there is no item column 'artikle'(?s:.*)did you mean 'artikel'"):
        read_dataset(folder, ReadOptions(catalogue_item="artikle"))
    (folder / "clicks.csv").unlink()
    assert list(read_dataset(folder, ReadOptions(catalogue_item="artikel")).item_ids) == ["a"]
    by_itself = shop(tmp_path / "b", "user,item_id\nu,a\n", "sku,title\na,A\n")
    assert read_dataset(by_itself).catalogue.items["title"].to_list() == ["A"]


def test_a_named_item_column_without_an_item_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user,item\nu,a\n")
    with pytest.raises(InputError, match="there is no such table"):
        read_dataset(tmp_path, ReadOptions(catalogue_item="sku"))
    (tmp_path / "train.txt").write_text("0 1\n")
    with pytest.raises(InputError, match="this is lightgcn"):
        read_dataset(tmp_path, ReadOptions(catalogue_item="sku"))


@pytest.mark.parametrize(
    ("log", "items"),
    [
        ("user,item\nu,a\n", "artikel,title\na,A\n"),
        ("who,what\nu,a\n", "item,title\na,A\n"),
        ("user,item\nu,a\n", "item,title\n,A\n"),
        ("user,item,time\nu,a,20240131\n", "item,title\na,A\n"),
    ],
)
def test_hints_name_no_option_where_there_is_none(tmp_path: Path, log: str, items: str) -> None:
    folder = shop(tmp_path / "a", log, items)
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    assert "--" in str(caught.value.hint)
    with pytest.raises(InputError) as caught:
        read_dataset(folder, ReadOptions(flags=False))
    assert caught.value.hint
    assert "--" not in caught.value.hint
