"""Files as they really come: every one ends in a dataset or in a message that names file and line."""

from __future__ import annotations

import gzip
from datetime import time
from pathlib import Path

import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.formats import ReadOptions, detect_format, read_dataset

SKIP = ReadOptions(on_bad_rows="skip")
GOOD = "user,item,time,value\na,x,1,5\nb,y,2,4\n"


def save(folder: Path, data: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


BAD_ROWS = {
    "too many fields": ("c,z,3,4,9", "5 fields, where there are 4 columns", "wrong number of fields"),
    "too few fields": ("c,z,3", "3 fields, where there are 4 columns", "wrong number of fields"),
    "no user": (",z,3,4", "the user id is missing", "missing user id"),
    "blank item": ("c,  ,3,4", "the item id is missing", "missing item id"),
    "quoted empty item": ('c,"",3,4', "the item id is missing", "missing item id"),
    "time is a word": ("c,z,soon,4", "timestamp 'soon' is not a number", "timestamp is not a number"),
    "no time": ("c,z,,4", "the timestamp is missing", "missing timestamp"),
    "value is a word": ("c,z,3,good", "value 'good' is not a number", "value is not a number"),
    "value is nan": ("c,z,3,nan", "value 'nan' is not a number", "value is not a number"),
    "value is infinite": ("c,z,3,-inf", "value '-inf' is not a number", "value is not a number"),
}


@pytest.mark.parametrize(("row", "words", "kind"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_of_text(tmp_path: Path, row: str, words: str, kind: str) -> None:
    path = save(tmp_path, GOOD + "\n" + row + "\nd,x,7,8\n")
    with pytest.raises(InputError, match=words) as caught:
        read_dataset(path)
    assert (caught.value.path, caught.value.line) == (path, 5)
    assert "--on-bad-rows skip" in str(caught.value)
    dataset = read_dataset(path, SKIP)
    assert list(dataset.user_ids) == ["a", "b", "d"]
    assert dataset.train.n_pairs == 3
    assert dataset.dropped == {kind: 1}


def test_a_row_that_is_short_only_in_a_column_that_is_not_used(tmp_path: Path) -> None:
    path = save(tmp_path, "user,item,note\na,x,hm\nb,y\n")
    with pytest.raises(InputError, match="2 fields, where there are 3 columns") as caught:
        read_dataset(path)
    assert caught.value.line == 3
    whole = save(tmp_path, "user,item,note\na,x,hm\nb,y,\n")
    assert read_dataset(whole).train.n_pairs == 2


def test_line_numbers_count_lines_within_quotes(tmp_path: Path) -> None:
    path = save(tmp_path, 'user,item,note\na,x,"one\ntwo"\n,y,z\n')
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert caught.value.line == 4


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"user": ["a", None, "c", "d"], "item": [1, 2, None, 4], "value": [1.0, 2.0, 3.0, float("nan")]}
    ).write_parquet(path)
    with pytest.raises(InputError, match="the user id is missing") as caught:
        read_dataset(path)
    assert caught.value.line == 2
    dataset = read_dataset(path, SKIP)
    assert dataset.train.n_pairs == 1
    assert dataset.dropped == {"missing user id": 1, "missing item id": 1, "value is not a number": 1}


def test_latin_1_ids_are_read_and_not_merged(tmp_path: Path) -> None:
    path = save(tmp_path, "user,item\na,caf\xe9\nb,caf\xe8\n".encode("latin-1"))
    assert list(read_dataset(path).item_ids) == ["caf\xe8", "caf\xe9"]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz", "log.parquet", "log.inter"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    data = gzip.compress(b"") if name.endswith("gz") else b""
    with pytest.raises(InputError) as caught:
        read_dataset(save(tmp_path, data, name))
    assert caught.value.path == tmp_path / name


@pytest.mark.parametrize("data", [b"user,item\n", b"user,item", b"\xef\xbb\xbfuser,item\r\n\r\n"])
def test_header_only(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="no interactions in this file"):
        read_dataset(save(tmp_path, data))


def test_empty_parquet_table(tmp_path: Path) -> None:
    pl.DataFrame(schema={"user": pl.String, "item": pl.Int64}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="no interactions in this file"):
        read_dataset(tmp_path)


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no interactions in this file"):
        read_dataset(save(tmp_path, "user,item\n,x\ny,\n"), SKIP)


def test_torn_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": range(1000), "item": range(1000)}).write_parquet(path)
    for keep in (path.stat().st_size // 2, 3):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
            read_dataset(path)
        assert caught.value.path == path


def test_parquet_with_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [f"u{n * 7919 % 1000}" for n in range(5000)], "item": range(5000)}).write_parquet(
        path
    )
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert caught.value.path == path


def test_torn_gzip(tmp_path: Path) -> None:
    data = gzip.compress((GOOD * 50).encode())
    with pytest.raises(InputError, match="compressed data is broken"):
        read_dataset(save(tmp_path, data[: len(data) // 2], "log.csv.gz"))
    with pytest.raises(InputError, match="compressed data is broken"):
        read_dataset(save(tmp_path, b"not gzip at all", "log.csv.gz"))


def test_a_column_that_cannot_be_an_id(tmp_path: Path) -> None:
    pl.DataFrame({"user": [[1], [2]], "item": [1, 2]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"column 'user' holds List\(Int64\), and one user id") as caught:
        read_dataset(tmp_path)
    assert caught.value.path == tmp_path / "log.parquet"
    save(tmp_path, "user,item\na,1\n", "interactions.csv")
    (tmp_path / "log.parquet").unlink()
    pl.DataFrame({"product_id": [[1], [2]]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet: column 'product_id' holds List"):
        read_dataset(tmp_path)


def test_a_time_of_day_is_no_timestamp(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1], "item": [1], "time": [time(12)]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="column 'time' holds Time, and one timestamp"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "LOG.CSV.GZ", "Items.CSV"])
def test_any_encoding_and_any_end_of_lines(tmp_path: Path, encoding: str, end: str, name: str) -> None:
    data = f"user,item{end}é,日本{end}b,x{end},y{end}".encode(encoding)
    path = save(tmp_path, gzip.compress(data) if name.lower().endswith("gz") else data, name)
    with pytest.raises(InputError, match="the user id is missing") as caught:
        read_dataset(path)
    assert (caught.value.path, caught.value.line) == (path, 4)
    assert list(read_dataset(path, SKIP).item_ids) == ["x", "日本"]


def test_old_encodings_keep_their_letters_when_lines_end_in_cr(tmp_path: Path) -> None:
    path = save(tmp_path, "user,item\ra,caf\xe9\rb,x\r".encode("latin-1"))
    assert list(read_dataset(path).item_ids) == ["caf\xe9", "x"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PAR1\x15\x04", "not text but Parquet"),
        (b"PK\x03\x04rest", "an Excel sheet"),
        (gzip.compress(b"user,item\n"), "compressed by gzip"),
        ("user,item\na,x\n".encode("utf-16-le"), "zero bytes"),
        ("user,item\na,x\n".encode("utf-16") + b"\0", "not utf-16"),
    ],
)
def test_files_that_are_no_text_say_what_to_do(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_dataset(save(tmp_path, data))
    assert caught.value.hint


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a"], "item": ["x"]}).write_parquet(tmp_path / "clicks.PARQUET")
    pl.DataFrame({"item": ["x"], "title": ["Ex"]}).write_parquet(tmp_path / "ITEMS.Parquet")
    assert list(read_dataset(tmp_path / "clicks.PARQUET").item_ids) == ["x"]
    assert read_dataset(tmp_path).catalogue.items["title"].to_list() == ["Ex"]


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "train.txt").mkdir()
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(InputError, match="no known dataset format"):
        detect_format(tmp_path)
    with pytest.raises(InputError, match="no known dataset format"):
        detect_format(tmp_path / "log.csv")


def test_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        detect_format(tmp_path / "nowhere")
    with pytest.raises(InputError, match="it is empty"):
        detect_format(tmp_path)
    save(tmp_path, "hello", "notes.md")
    with pytest.raises(InputError, match=r"it holds notes\.md") as caught:
        detect_format(tmp_path)
    for format_ in ("dataset.json", "train.txt", "NAME.inter", "ratings.csv", ".parquet"):
        assert format_ in str(caught.value)


def test_two_tables(tmp_path: Path) -> None:
    save(tmp_path, GOOD, "a.csv")
    save(tmp_path, GOOD, "b.csv")
    with pytest.raises(InputError, match=r"a\.csv, b\.csv"):
        read_dataset(tmp_path)
    save(tmp_path, "item\nx\n", "items.csv")
    with pytest.raises(InputError, match="cannot tell which table holds the interactions"):
        read_dataset(tmp_path)


def test_repeated_and_nameless_items(tmp_path: Path) -> None:
    save(tmp_path, "user,item\na,x\n", "interactions.csv")
    save(tmp_path, "item,title\nx,First\n,Nobody\nx,Second\n", "items.csv")
    with pytest.raises(InputError, match="the item id is missing") as caught:
        read_dataset(tmp_path)
    assert caught.value.path == tmp_path / "items.csv"
    dataset = read_dataset(tmp_path, SKIP)
    assert dataset.catalogue.items["title"].to_list() == ["First"]
    assert dataset.dropped["missing item id"] == 1
