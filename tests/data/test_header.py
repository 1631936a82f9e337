"""Tables without a header: their first row is never lost without a word."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.formats import ReadOptions, detect_format, read_dataset
from firstlight.data.inspect import inspect_path

NUMBERED = ReadOptions(user="1", item="2", value="3", time="4", header=False)


def save(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["u.data", "log.tsv", "ratings.dat", "log.csv"])
def test_every_row_of_a_table_without_header_counts(tmp_path: Path, name: str) -> None:
    rows = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n"
    path = save(tmp_path, rows.replace("\t", "::") if name == "ratings.dat" else rows, name)
    assert detect_format(path) == "table"
    dataset = read_dataset(path, NUMBERED)
    assert list(dataset.user_ids) == ["22", "186", "196"]
    assert dataset.train.times is not None
    assert dataset.train.times.tolist() == [878887116, 891717742, 881250949]
    assert dataset.train.values is not None
    assert dataset.train.values.tolist() == [1, 3, 3]
    with pytest.raises(InputError, match="--no-header and number the columns, such as --user 1 --item 2"):
        read_dataset(path)


@pytest.mark.parametrize(
    "rows",
    [["u1,i1", "u2,i2"], ["7,8", "9,10"], ["ann,soup", "bob,cake", "ann,tart"], ["bob,7f3", "ann,soup", "ann,7f3"]],
)  # fmt: skip
def test_following_the_hint_loses_no_row(tmp_path: Path, rows: list[str]) -> None:
    path = save(tmp_path, "".join(f"{row}\n" for row in rows))
    user, item = rows[0].split(",")
    with pytest.raises(InputError, match="the first line looks like data") as caught:
        read_dataset(path, ReadOptions(user=user, item=item))
    assert "--no-header" in str(caught.value)
    assert read_dataset(path, ReadOptions(user="1", item="2", header=False)).train.n_pairs == len(rows)
    assert read_dataset(path, ReadOptions(user=user, item=item, header=True)).train.n_pairs == len(rows) - 1
    assert inspect_path(path, ReadOptions(user="1", item="2", header=False)).parts == {"train": len(rows)}


@pytest.mark.parametrize(
    ("header", "user", "item"),
    [("who,what", "who", "what"), ("0,1", "0", "1"), ("1,2", "1", "2"), ("user2,item2", "user2", "item2"),
     ("x1,user", "x1", "user")],
)  # fmt: skip
def test_names_are_taken_for_names(tmp_path: Path, header: str, user: str, item: str) -> None:
    path = save(tmp_path, f"{header}\n81,x9\n82,x9\n")
    assert read_dataset(path, ReadOptions(user=user, item=item)).train.n_pairs == 2


def test_no_header_where_there_is_one_by_nature(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a"], "item": ["x"]}).write_parquet(tmp_path / "log.parquet")
    save(tmp_path, "user_id:token\titem_id:token\na\tx\n", "toy.inter")
    for path in (tmp_path / "log.parquet", tmp_path / "toy.inter"):
        with pytest.raises(InputError, match="--no-header is for CSV and TSV tables"):
            read_dataset(path, NUMBERED)
