"""LightGCN text: ``train.txt``, ``test.txt`` and ``valid.txt``, a line a user: ``user item item …``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.clean import PARTS, RawLog, RawPairs, build_dataset, order_ids
from firstlight.data.dataset import Dataset
from firstlight.data.formats.base import Format, Problems, ReadOptions
from firstlight.data.formats.text import read_bytes, read_lines

IntArray = npt.NDArray[np.int64]
#: Ids beyond this cannot be rows; such a number in a file of row numbers is an error, not a user.
LARGEST_ID = 2**31 - 2
#: Where fewer than this share of the numbers below the largest id occur, ids are names, not row numbers.
DENSE_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of one file; ``listed`` are the users that open a line, with items or without."""

    users: list[str] | IntArray
    items: list[str] | IntArray
    listed: list[str] | IntArray


def _find(folder: Path, part: str) -> Path | None:
    """The text file of a part, plain or gzipped."""
    for name in (f"{part}.txt", f"{part}.txt.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _parse_numbers(data: bytes) -> _Pairs | None:
    """Parse a well-formed file of non-negative integers without a loop, or give None."""
    if data.translate(None, b"0123456789 \t\r\n"):
        return None
    raw = np.frombuffer(data, np.uint8)
    digit = raw >= ord("0")
    begins = np.flatnonzero(digit & ~np.r_[False, digit[:-1]])
    ends = np.flatnonzero(digit & ~np.r_[digit[1:], False])
    if len(begins) and (ends - begins).max() >= 10:  # may not fit 32 bits: the careful path says where
        return None
    tokens = np.fromstring(data, np.int64, sep=" ") if len(begins) else np.zeros(0, np.int64)
    if len(tokens) != len(begins) or (len(tokens) and tokens.max() > LARGEST_ID):
        return None
    newlines = np.flatnonzero(raw == ord("\n"))
    line = np.searchsorted(newlines, begins)
    opens = np.r_[True, line[1:] != line[:-1]] if len(line) else np.zeros(0, bool)
    listed = tokens[opens]
    per_line = np.diff(np.r_[np.flatnonzero(opens), len(tokens)]) - 1
    return _Pairs(np.repeat(listed, per_line), tokens[~opens], listed)


def _complaint(token: str) -> tuple[str, str] | None:
    """What is wrong with a token in a file of row numbers: (kind, problem), or None."""
    if token.isascii() and token.isdigit():
        if int(token) > LARGEST_ID:
            return "id out of range", f"id {token} is out of range (the largest is {LARGEST_ID})"
        return None
    if token[:1] == "-" and token[1:].isdigit():
        return "negative id", f"id {token} is negative"
    return "not an integer id", f"{token!r} is not a non-negative integer, as the other ids are"


def _parse_carefully(path: Path, numbers: bool, problems: Problems) -> _Pairs:
    """Parse line by line: for string ids, and to say exactly which line is wrong."""
    users: list[str] = []
    items: list[str] = []
    listed: list[str] = []
    for line, text in read_lines(path, problems):
        tokens = text.split()
        if not tokens:
            continue
        user, rest = tokens[0], tokens[1:]
        complaint = _complaint(user) if numbers else None
        if complaint:
            problems.bad_row(complaint[0], path, line, f"user {complaint[1]}", rows=max(1, len(rest)))
            continue
        good = []
        for token in rest:
            complaint = _complaint(token) if numbers else None
            if complaint:
                problems.bad_row(complaint[0], path, line, f"item {complaint[1]}")
            else:
                good.append(token)
        listed.append(user)
        users += [user] * len(good)
        items += good
    if numbers:
        return _Pairs(*(np.array(column, np.int64) for column in (users, items, listed)))
    return _Pairs(users, items, listed)


def _opens_with_numbers(data: bytes) -> bool:
    """Whether the first line that says anything holds integers: then all ids must be integers."""
    head = next((line for line in data[:1_000_000].splitlines() if line.strip()), b"")
    return all(token.lstrip(b"-").isdigit() for token in head.split())


def _number_ids(seen: IntArray) -> tuple[pl.Series, IntArray | None]:
    """Ids in row order, and the sorted numbers to look rows up in (None where a row is its id).

    Published splits number users and items 0, 1, 2, …; an id inside that range that occurs nowhere still
    is a row there (``n = max + 1``), so it is here.
    """
    distinct = np.unique(seen)
    if len(distinct) and len(distinct) >= DENSE_SHARE * (distinct[-1] + 1):
        return pl.Series(np.arange(distinct[-1] + 1)).cast(pl.String), None
    return pl.Series(distinct).cast(pl.String), distinct


def _encode_numbers(files: dict[str, _Pairs]) -> tuple[pl.Series, pl.Series, dict[str, RawPairs]]:
    """Rows for integer ids."""
    user_ids, user_table = _number_ids(np.concatenate([np.asarray(p.listed) for p in files.values()]))
    item_ids, item_table = _number_ids(np.concatenate([np.asarray(p.items) for p in files.values()]))
    parts = {}
    for name, pairs in files.items():
        users, items = np.asarray(pairs.users), np.asarray(pairs.items)
        parts[name] = RawPairs(
            users if user_table is None else np.searchsorted(user_table, users),
            items if item_table is None else np.searchsorted(item_table, items),
        )
    return user_ids, item_ids, parts


def _encode_strings(files: dict[str, _Pairs]) -> tuple[pl.Series, pl.Series, dict[str, RawPairs]]:
    """Rows for ids that are names."""
    user_ids = order_ids(pl.Series(sorted({u for p in files.values() for u in p.listed}), dtype=pl.String))
    item_ids = order_ids(pl.Series(sorted({i for p in files.values() for i in p.items}), dtype=pl.String))
    user_row = {raw: row for row, raw in enumerate(user_ids)}
    item_row = {raw: row for row, raw in enumerate(item_ids)}
    parts = {
        name: RawPairs(
            np.array([user_row[u] for u in pairs.users], np.int64),
            np.array([item_row[i] for i in pairs.items], np.int64),
        )
        for name, pairs in files.items()
    }
    return user_ids, item_ids, parts


def detect(path: Path) -> bool:
    """Whether a folder holds ``train.txt``."""
    return path.is_dir() and _find(path, "train") is not None


def read(path: Path, options: ReadOptions, problems: Problems) -> Dataset:
    """Read a folder of LightGCN text.

    Ids are row numbers where they are integers, as in the published splits (Gowalla, Yelp2018,
    Amazon-Book), else names in ascending order.

    Args:
        path: The folder.
        options: What counts as an interaction.
        problems: Collects bad rows.

    Returns:
        The dataset; the split is ``given`` where there is a ``test.txt`` or ``valid.txt``.

    Raises:
        InputError: A file is broken or holds nothing.
    """
    paths = {part: found for part in PARTS if (found := _find(path, part)) is not None}
    contents = {part: read_bytes(file) for part, file in paths.items()}
    numbers = _opens_with_numbers(contents["train"])
    files = {}
    for part, file in paths.items():
        fast = _parse_numbers(contents.pop(part)) if numbers else None
        files[part] = fast if fast is not None else _parse_carefully(file, numbers, problems)
    if not len(files["train"].items):
        raise InputError("no interactions in this file", path=paths["train"])
    user_ids, item_ids, parts = (_encode_numbers if numbers else _encode_strings)(files)
    log = RawLog(user_ids, item_ids, parts, given_split=len(parts) > 1, dropped=problems.dropped)
    return build_dataset(log, options, path)


FORMAT = Format("lightgcn", "a folder with train.txt", detect, read)
