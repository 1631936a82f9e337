"""Plain tables: column names, id types, times, values, and what counts as an interaction."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.clean import k_core, order_ids
from firstlight.data.dataset import Dataset
from firstlight.data.formats import ReadOptions, detect_format, read_dataset
from firstlight.data.interactions import Interactions


def rows(dataset: Dataset) -> list[tuple[str, str]]:
    log = dataset.train
    return [
        (dataset.user_ids[int(u)], dataset.item_ids[int(i)])
        for u, i in zip(log.users, log.items, strict=True)
    ]


def save(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "header",
    [
        "user_id,item_id,rating,timestamp",
        "userId,movieId,value,time",
        "user,item,score,ts",
        "UID,IID,Rating,Timestamp",
    ],
)
def test_common_names_are_guessed(tmp_path: Path, header: str) -> None:
    dataset = read_dataset(save(tmp_path, header + "\n2,b,4.5,1000\n1,a,3,2000\n"))
    assert rows(dataset) == [("1", "a"), ("2", "b")]
    assert dataset.train.times is not None
    assert dataset.train.values is not None
    assert dataset.train.times.tolist() == [2000, 1000]
    assert dataset.train.values.tolist() == [3.0, 4.5]
    assert dataset.name == "log"
    assert dataset.split is None


def test_named_columns_and_column_switched_off(tmp_path: Path) -> None:
    path = save(tmp_path, "who,what,rating,when\nann,x,high,5\nbob,y,low,6\n")
    dataset = read_dataset(path, ReadOptions(user="who", item="what", time="when", value=""))
    assert rows(dataset) == [("ann", "x"), ("bob", "y")]
    assert dataset.train.values is None
    assert dataset.train.times is not None


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path, "who,item\nann,x\n")
    with pytest.raises(InputError, match=r"which column holds the user ids; columns found: 'who', 'item'"):
        read_dataset(path)
    with pytest.raises(InputError, match=r"did you mean 'who'"):
        read_dataset(path, ReadOptions(user="whom"))


@pytest.mark.parametrize(
    ("ids", "ordered"),
    [
        (["10", "9", "-3"], ["-3", "9", "10"]),
        (["12.0", "7.0"], ["12.0", "7.0"]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["9f0c", "é", "日本"], ["9f0c", "é", "日本"]),
    ],
)
def test_raw_ids_stay_what_the_file_says(tmp_path: Path, ids: list[str], ordered: list[str]) -> None:
    path = save(tmp_path, "user,item\n" + "".join(f"u,{raw}\n" for raw in ids))
    assert list(read_dataset(path).item_ids) == ordered


@given(st.sets(st.integers(-(10**12), 10**12), max_size=30))
def test_integer_ids_are_ordered_by_number(ids: set[int]) -> None:
    ordered = order_ids(pl.Series([str(raw) for raw in ids], dtype=pl.String))
    assert [int(raw) for raw in ordered] == sorted(ids)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_every_file_type_gives_the_same(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(
        {"user": ["u2", "u1", "u1"], "item": [3, 20, 3], "time": [7, 8, 9], "value": [1.0, 2.0, 0.5]}
    )
    path = tmp_path / f"log{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if suffix == ".tsv" else ",").encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    for where in (path, tmp_path):
        assert detect_format(where) == "table"
        dataset = read_dataset(where)
        assert rows(dataset) == [("u1", "3"), ("u1", "20"), ("u2", "3")]
        assert dataset.train.times is not None
        assert dataset.train.times.tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("964982703", 964982703),
        ("964982703.9", 964982703),
        ("964982703000", 964982703),
        ("964982703000000", 964982703),
        ("964982703000000000", 964982703),
        ("2000-07-30 18:45:03", 964982703),
        ("2000-07-30T18:45:03Z", 964982703),
        ("-5", -5),
    ],
)
def test_times_become_seconds(tmp_path: Path, cell: str, seconds: int) -> None:
    dataset = read_dataset(save(tmp_path, f"user,item,time\na,b,{cell}\n"))
    assert dataset.train.times is not None
    assert dataset.train.times.tolist() == [seconds]


def test_parquet_dates_become_seconds(tmp_path: Path) -> None:
    from datetime import datetime

    frame = pl.DataFrame({"user": [1], "item": [2], "date": [datetime(2000, 7, 30, 18, 45, 3)]})
    frame.write_parquet(tmp_path / "log.parquet")
    dataset = read_dataset(tmp_path)
    assert dataset.train.times is not None
    assert dataset.train.times.tolist() == [964982703]


def test_quotes_crlf_bom_and_semicolons(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfuser;item;note\r\n"a;b";x;"two\r\nlines"\r\nc;y;z\r\n'
    assert rows(read_dataset(save(tmp_path, text))) == [("a;b", "x"), ("c", "y")]


def test_a_path_with_pattern_characters(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    assert rows(read_dataset(save(folder, "user,item\n1,2\n"))) == [("1", "2")]


@pytest.mark.parametrize(("duplicates", "value"), [("first", 1.0), ("last", 4.0), ("sum", 7.0)])
def test_duplicates(tmp_path: Path, duplicates: str, value: float) -> None:
    path = save(tmp_path, "user,item,time,value\na,x,30,4\na,x,10,1\na,x,20,2\nb,x,1,9\n")
    dataset = read_dataset(path, ReadOptions(duplicates=duplicates))  # type: ignore[arg-type]
    assert dataset.train.values is not None
    assert dataset.train.values.tolist() == [value, 9.0]
    assert dataset.dropped == {"duplicate pair": 2}


def test_minimum_value_counts_merged_pairs_and_forgets_empty_rows(tmp_path: Path) -> None:
    path = save(tmp_path, "user,item,value\na,x,2\na,x,2\na,y,3\nb,y,1\nb,z,4\nc,w,1\n")
    dataset = read_dataset(path, ReadOptions(min_value=3, duplicates="sum"))
    assert rows(dataset) == [("a", "x"), ("a", "y"), ("b", "z")]
    assert list(dataset.user_ids) == ["a", "b"]
    assert list(dataset.item_ids) == ["x", "y", "z"]
    assert dataset.dropped == {"duplicate pair": 1, "value below 3": 2}


def test_minimum_value_without_values(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have none"):
        read_dataset(save(tmp_path, "user,item\na,x\n"), ReadOptions(min_value=1))


def test_items_of_the_catalogue_survive_a_minimum_value_but_not_a_core(tmp_path: Path) -> None:
    save(tmp_path, "user,item,value\na,x,1\na,y,5\nb,y,5\n", "interactions.csv")
    save(tmp_path, "item,title\ny,Why\nx,Ex\nnew,New\n", "items.csv")
    dataset = read_dataset(tmp_path, ReadOptions(min_value=2))
    assert list(dataset.item_ids) == ["new", "x", "y"]
    assert dataset.catalogue.items["title"].to_list() == ["New", "Ex", "Why"]
    core = read_dataset(tmp_path, ReadOptions(k_core=(1, 2)))
    assert list(core.item_ids) == ["y"]
    assert core.catalogue.items["title"].to_list() == ["Why"]


def brute_core(edges: set[tuple[int, int]], k: int, m: int) -> set[tuple[int, int]]:
    while True:
        users, items = Counter(u for u, _ in edges), Counter(i for _, i in edges)
        kept = {(u, i) for u, i in edges if users[u] >= k and items[i] >= m}
        if kept == edges:
            return kept
        edges = kept


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))), st.integers(0, 4), st.integers(0, 4))
def test_k_core_is_the_largest_log_with_these_degrees(edges: set[tuple[int, int]], k: int, m: int) -> None:
    users, items = np.array(sorted(edges), np.int64).reshape(-1, 2).T
    half = np.arange(len(users)) % 2 == 0
    parts = [Interactions.from_pairs(users[mask], items[mask], 8, 8) for mask in (half, ~half)]
    left = k_core(parts, k, m)
    found = {(int(u), int(i)) for part in left for u, i in zip(part.users, part.items, strict=True)}
    assert found == brute_core(edges, k, m)


def test_a_core_renumbers_everything(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        "user,item,time\n" + "".join(f"{u},{i},{u * 10 + i}\n" for u in (5, 7) for i in (1, 3)) + "6,2,9\n",
    )
    dataset = read_dataset(path, ReadOptions(k_core=(2, 2)))
    assert list(dataset.user_ids) == ["5", "7"]
    assert list(dataset.item_ids) == ["1", "3"]
    assert dataset.train.times is not None
    assert dataset.train.times.tolist() == [51, 53, 71, 73]
    assert dataset.dropped == {"outside the 2,2-core": 1}


def test_a_split_column_is_a_given_split(tmp_path: Path) -> None:
    path = save(tmp_path, "user,item,split\na,x,train\na,y,test\nb,x,valid\nb,x,train\n")
    dataset = read_dataset(path)
    assert {name: part.n_pairs for name, part in dataset.parts.items()} == {"train": 2, "valid": 1, "test": 1}
    assert dataset.split is not None
    assert dataset.split.name == "given"


def test_items_without_interactions(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["n2", "n1"], "title": ["Two", None], "cover": [b"\xff\xd8", None]}).write_parquet(
        tmp_path / "items.parquet"
    )
    dataset = read_dataset(tmp_path)
    assert (dataset.n_users, dataset.n_items, dataset.train.n_pairs) == (0, 2, 0)
    assert dataset.catalogue.items["title"].to_list() == [None, "Two"]
    assert dataset.catalogue.items["cover"].to_list() == [None, b"\xff\xd8"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=30))
def test_nothing_is_lost_on_the_way(
    tmp_path_factory: pytest.TempPathFactory, log: list[tuple[int, int, int]]
) -> None:
    path = save(
        tmp_path_factory.mktemp("table"), "user,item,time\n" + "".join(f"u{u},{i},{t}\n" for u, i, t in log)
    )
    dataset = read_dataset(path)
    assert set(rows(dataset)) == {(f"u{u}", str(i)) for u, i, _ in log}
    assert dataset.train.n_pairs + dataset.dropped.get("duplicate pair", 0) == len(log)
    earliest: dict[tuple[str, str], int] = {}
    for u, i, t in log:
        earliest[f"u{u}", str(i)] = min(t, earliest.get((f"u{u}", str(i)), t))
    assert dataset.train.times is not None
    assert dict(zip(rows(dataset), dataset.train.times.tolist(), strict=True)) == earliest


def test_each_timestamp_is_read_in_its_own_unit(tmp_path):
    """One stamp in milliseconds among seconds must not shrink the others."""
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,time\na,x,1700000000\nb,x,1700000000500\nc,x,1700000001000000\n", encoding="utf-8"
    )
    assert read_dataset(path).train.times.tolist() == [1_700_000_000, 1_700_000_000, 1_700_000_001]
