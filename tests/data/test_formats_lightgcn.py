"""LightGCN text: row numbers, gaps, names, and every way a line can be wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.data.formats import ReadOptions, detect_format, read_dataset


def pairs(dataset: Dataset, part: str = "train") -> set[tuple[str, str]]:
    log = dataset.parts[part]
    return {
        (dataset.user_ids[int(u)], dataset.item_ids[int(i)])
        for u, i in zip(log.users, log.items, strict=True)
    }


def write(folder: Path, **files: str | bytes) -> Path:
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def test_known_lines(tmp_path: Path) -> None:
    folder = write(tmp_path, train="0 2 0\n1 1\n", test="1 3\n")
    assert detect_format(folder) == "lightgcn"
    dataset = read_dataset(folder)
    assert (dataset.n_users, dataset.n_items) == (2, 4)
    assert dataset.train.row(0).tolist() == [0, 2]
    assert dataset.test is not None
    assert dataset.test.row(1).tolist() == [3]
    assert dataset.valid is None
    assert dataset.split is not None
    assert dataset.split.name == "given"
    assert dataset.name == tmp_path.name


def test_without_test_file_nothing_is_split(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, train="0 1\n1 0\n"))
    assert dataset.split is None
    assert dataset.test is None


def test_numbers_that_occur_nowhere_are_rows_when_the_numbering_is_dense(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, train="0 0 1 3\n2 4\n"))
    assert list(dataset.user_ids) == ["0", "1", "2"]
    assert list(dataset.item_ids) == ["0", "1", "2", "3", "4"]
    assert dataset.train.item_degrees.tolist() == [1, 1, 0, 1, 1]


def test_scattered_numbers_are_names_in_numeric_order(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, train="900 7000000 12\n20 12\n"))
    assert list(dataset.user_ids) == ["20", "900"]
    assert list(dataset.item_ids) == ["12", "7000000"]
    assert pairs(dataset) == {("900", "7000000"), ("900", "12"), ("20", "12")}


def test_a_user_without_items_is_a_row(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, train="0 0\n1 1\n", test="0 1\n2\n"))
    assert dataset.n_users == 3
    assert dataset.train.user_degrees.tolist() == [1, 1, 0]


def test_string_ids(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, train="bob b-7 a-1\nann a-1\n"))
    assert list(dataset.user_ids) == ["ann", "bob"]
    assert pairs(dataset) == {("bob", "b-7"), ("bob", "a-1"), ("ann", "a-1")}


@pytest.mark.parametrize(
    "train",
    [
        b"\xef\xbb\xbf0 0 1\n1 1\n",
        b"0 0 1\r\n1 1\r\n",
        b"\n0 0 1\n\n\n1 1",
        b"0\t0\t1 \n 1 1  \n",
        b"0 0 0 1 1\n1 1\n",
    ],
    ids=["bom", "crlf", "empty lines", "tabs and blanks", "repeats"],
)
def test_untidy_but_sound(tmp_path: Path, train: bytes) -> None:
    dataset = read_dataset(write(tmp_path, train=train))
    assert pairs(dataset) == {("0", "0"), ("0", "1"), ("1", "1")}
    assert dataset.dropped == ({"duplicate pair": 2} if b"0 0 0" in train else {})


def test_gzip(tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"0 0 1\n1 1\n"))
    assert pairs(read_dataset(tmp_path)) == {("0", "0"), ("0", "1"), ("1", "1")}


@pytest.mark.parametrize(
    ("train", "line", "words", "kind"),
    [
        ("0 0\n1 -1 1\n", 2, "id -1 is negative", "negative id"),
        ("0 0\n\n1 1 x\n", 3, "'x' is not a non-negative integer", "not an integer id"),
        ("0 0\n1 1 99999999999\n", 2, "out of range", "id out of range"),
        ("0 0\n1 1 2.0\n", 2, "'2.0'", "not an integer id"),
    ],
)
def test_bad_items_are_found_or_left_out(
    tmp_path: Path, train: str, line: int, words: str, kind: str
) -> None:
    folder = write(tmp_path, train=train)
    with pytest.raises(InputError, match=words) as caught:
        read_dataset(folder)
    assert (caught.value.path, caught.value.line) == (tmp_path / "train.txt", line)
    assert "--on-bad-rows skip" in str(caught.value)
    dataset = read_dataset(folder, ReadOptions(on_bad_rows="skip"))
    assert pairs(dataset) == {("0", "0"), ("1", "1")}
    assert dataset.dropped == {kind: 1}


def test_a_bad_user_costs_the_whole_line(tmp_path: Path) -> None:
    folder = write(tmp_path, train="0 0 1\n-4 0 1 2\n")
    dataset = read_dataset(folder, ReadOptions(on_bad_rows="skip"))
    assert dataset.dropped == {"negative id": 3}
    assert dataset.n_users == 1


@pytest.mark.parametrize("train", ["", "\n\n", "0\n1\n"])
def test_nothing_in_it(tmp_path: Path, train: str) -> None:
    with pytest.raises(InputError, match="no interactions"):
        read_dataset(write(tmp_path, train=train))


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.lists(st.integers(0, 30), max_size=6)), min_size=1, max_size=12
    ),
    st.booleans(),
)
def test_fast_and_careful_reading_agree(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, list[int]]], spoil: bool
) -> None:
    """A bad token sends the whole file down the careful path; nothing else may change."""
    if not any(items for _, items in lines):
        lines.append((0, [0]))
    folder = tmp_path_factory.mktemp("lightgcn")
    text = "".join(" ".join(map(str, [user, *items])) + "\n" for user, items in lines)
    write(folder, train=text + ("0 oops\n" if spoil else ""))
    dataset = read_dataset(folder, ReadOptions(on_bad_rows="skip"))
    expected = {(str(user), str(item)) for user, items in lines for item in items}
    assert pairs(dataset) == expected
    assert dataset.dropped.get("not an integer id", 0) == int(spoil)
    rows = sum(len(items) for _, items in lines)
    assert dataset.train.n_pairs + dataset.dropped.get("duplicate pair", 0) == rows
    assert np.all(np.diff([int(i) for i in dataset.item_ids]) > 0)
