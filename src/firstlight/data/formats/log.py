"""From scanned columns to rows of a click log: checks, times in seconds, ids to row numbers.

Everything runs over lazy frames in pieces, so that the ids of a log, which are its largest part, never
stand in memory as strings: one pass checks, one reads them as categories, and each category is looked
up once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.clean import PARTS, RawPairs, order_ids
from firstlight.data.formats.base import Problems
from firstlight.data.formats.columns import LABELS, check_type, id_text
from firstlight.data.formats.delimited import TextTable, complaint, mend, scan_text
from firstlight.data.formats.times import (
    looks_like_date,
    parse_number,
    refuse_compact_dates,
    refuse_years,
    time_column,
)

#: Largest plausible absolute value of a timestamp, by how many of its units make a second.
TIME_UNITS = ((10**11, 1), (10**14, 1_000), (10**17, 1_000_000), (2**63, 1_000_000_000))


@dataclass(frozen=True, eq=False)
class Scan:
    """Sound rows of one file, not read yet.

    Attributes:
        frame: ``user`` and ``item`` String, and, if the file has them, ``time`` Int64 (any unit), ``value``
            Float32, ``label`` Int64.
        path: The file.
        rows: Number of rows.
        largest_time: Largest absolute timestamp, or None.
        owner: Keeps scratch files alive for as long as the frame.
        time_ends: The smallest and the largest timestamp, or None.
    """

    frame: pl.LazyFrame
    path: Path
    rows: int
    largest_time: int | None
    owner: TextTable | None = None
    time_ends: tuple[int, int] | None = None


def _typed(schema: Mapping[str, pl.DataType], *, dates: bool) -> list[pl.Expr]:
    """Columns by role, in their types; null where a cell cannot be used.

    Args:
        schema: role -> type in the file.
        dates: Whether times that are strings may be dates.
    """
    columns = []
    for role, dtype in schema.items():
        column = pl.col(role)
        if role in ("user", "item"):
            text = id_text(column, dtype)
            columns.append(pl.when(text.str.strip_chars() != "").then(text).alias(role))
        elif role == "time":
            columns.append(time_column(column, dtype, dates=dates).alias(role))
        elif role == "value":
            number = column.cast(pl.Float32, strict=False)
            columns.append(pl.when(number.is_finite()).then(number).alias(role))
        else:
            text = column.cast(pl.String).str.to_lowercase()
            columns.append(text.replace_strict(LABELS, default=None, return_dtype=pl.Int64).alias(role))
    return columns


def _summary(frame: pl.LazyFrame, roles: Collection[str], bad: pl.Expr) -> dict[str, int]:
    """Number of rows, of bad rows, and of the timestamps: the ends of their range, and those that read as dates."""
    wanted = [pl.len().alias("rows"), bad.sum().alias("bad")]
    if "time" in roles:
        time = pl.col("time")
        wanted += [
            time.abs().max().alias("largest_time"),
            time.min().alias("first_time"),
            time.max().alias("last_time"),
            looks_like_date(time).sum().alias("compact"),
            time.filter(looks_like_date(time)).first().alias("compact_example"),
        ]
    return frame.select(wanted).collect(engine="streaming").row(0, named=True)


def _scan(
    frame: pl.LazyFrame,
    path: Path,
    summary: Mapping[str, int],
    roles: Collection[str],
    problems: Problems,
    owner: TextTable | None = None,
) -> Scan:
    """The sound rows, without times that nobody can be sure of."""
    if "time" not in roles:
        return Scan(frame, path, summary["rows"], None, owner)
    if refuse_compact_dates(summary["compact"], summary["rows"], summary["compact_example"], path, problems):
        return Scan(frame.drop("time"), path, summary["rows"], None, owner)
    ends = summary["first_time"], summary["last_time"]
    return Scan(frame, path, summary["rows"], summary["largest_time"], owner, None if None in ends else ends)


def _without_years(scans: Mapping[str, Scan], problems: Problems) -> dict[str, Scan]:
    """The scans, without times if these are bare years in all of them together.

    One part of a split by time holds a short stretch: counted steps from 1900 to 1999 are no years where others begin
    at 0.
    """
    ends = [scan.time_ends for scan in scans.values() if scan.time_ends is not None]
    if not ends:
        return dict(scans)
    path = next(scan.path for scan in scans.values() if scan.time_ends is not None)
    if not refuse_years(min(first for first, _ in ends), max(last for _, last in ends), path, problems):
        return dict(scans)
    return {
        name: scan
        if scan.time_ends is None
        else replace(scan, frame=scan.frame.drop("time"), largest_time=None, time_ends=None)
        for name, scan in scans.items()
    }


def _holds_dates(frame: pl.LazyFrame, schema: Mapping[str, pl.DataType]) -> bool:
    """Whether the first time that is there is text and no number."""
    if schema.get("time") != pl.String:
        return False
    first = frame.select(pl.col("time").drop_nulls().first()).collect().item()
    return first is not None and parse_number(first) is None


def scan_delimited(table: TextTable, roles: Mapping[str, str], problems: Problems) -> Scan:
    """Check a text file and make its sound rows ready.

    Args:
        table: The file.
        roles: role -> column name; roles are ``user``, ``item``, ``time``, ``value``, ``label``.
        problems: Gets bad rows.

    Returns:
        The rows.

    Raises:
        InputError: A row is bad and the policy is to stop, or the file has no rows.
    """
    schema: dict[str, pl.DataType] = dict.fromkeys(roles, pl.String())
    unusable = pl.any_horizontal(pl.col(role).is_null() for role in roles)
    short = pl.col("last").is_null()  # where a row has too few fields, the last one is null
    try:
        raw = scan_text(table)
        picked = raw.select(
            *(pl.col(str(table.names.index(column))).alias(role) for role, column in roles.items()),
            pl.col(str(len(table.names) - 1)).alias("last"),
        )
        dates = _holds_dates(picked, schema)
        typed = _typed(schema, dates=dates)
        summary = _summary(picked.select(*typed, "last"), roles, unusable | short)
        frame = picked.select(typed)
        sound = summary["bad"] == 0
    except pl.exceptions.PolarsError:
        sound = False  # ragged rows, broken quotes, foreign encodings: the careful way tells which
    if not sound:
        frame = mend(table, roles, problems).select(_typed(schema, dates=False))
        summary = _summary(frame, roles, unusable)
    if not summary["rows"]:
        raise InputError("no interactions in this file", path=table.path)
    return _scan(frame, table.path, summary, roles, problems, table)


def _report_rows(
    raw: pl.LazyFrame, frame: pl.LazyFrame, roles: Collection[str], path: Path, problems: Problems
) -> None:
    """Report every row of a Parquet file that has a cell that cannot be used."""
    cells = raw.select(pl.col(role).cast(pl.String) for role in roles)
    null = frame.select(pl.col(role).is_null().alias(f"no {role}") for role in roles)
    both = pl.concat([cells, null], how="horizontal").with_row_index("row", offset=1)
    bad = both.filter(pl.any_horizontal(f"no {role}" for role in roles)).collect()
    for row in bad.iter_rows(named=True):
        role = next(role for role in roles if row[f"no {role}"])
        kind, problem = complaint(role, row[role])
        problems.bad_row(kind, path, row["row"], problem)


def scan_parquet(path: Path, choose: Callable[[list[str]], dict[str, str]], problems: Problems) -> Scan:
    """Check a Parquet file and make its sound rows ready.

    Args:
        path: The file.
        choose: Gives role -> column for the file's columns.
        problems: Gets bad rows.

    Returns:
        The rows.

    Raises:
        InputError: The file is torn or has no rows, a column has a type that cannot be used, or a row is
            bad and the policy is to stop.
    """
    try:
        raw = pl.scan_parquet(path, glob=False)
        types = raw.collect_schema()
        roles = choose(types.names())
        for role, column in roles.items():
            check_type(column, types[column], role, path)
        schema = {role: types[column] for role, column in roles.items()}
        picked = raw.select(pl.col(column).alias(role) for role, column in roles.items())
        frame = picked.select(_typed(schema, dates=True))
        unusable = pl.any_horizontal(pl.col(role).is_null() for role in roles)
        summary = _summary(frame, roles, unusable)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error
    if summary["bad"]:
        _report_rows(picked, frame, roles, path, problems)
        frame = frame.filter(~unusable)
    if summary["rows"] == summary["bad"]:
        raise InputError("no interactions in this file", path=path)
    return _scan(frame, path, {**summary, "rows": summary["rows"] - summary["bad"]}, roles, problems)


def _in_seconds(scan: Scan, problems: Problems) -> pl.LazyFrame:
    """Rescale timestamps that are too large to be seconds, each by its own size: a file may mix units."""
    if scan.largest_time is None:
        return scan.frame
    divisor = next(divisor for limit, divisor in TIME_UNITS if scan.largest_time < limit)
    if divisor == 1:
        return scan.frame
    unit = {1_000: "milliseconds", 1_000_000: "microseconds"}.get(divisor, "nanoseconds")
    problems.note("timestamps not in seconds", scan.path, f"the largest are read as {unit}", count=scan.rows)
    time = pl.col("time")
    seconds = time // TIME_UNITS[-1][1]
    for limit, smaller in reversed(TIME_UNITS[:-1]):
        seconds = pl.when(time < limit).then(time // smaller).otherwise(seconds)
    return scan.frame.with_columns(seconds.alias("time"))


def _distinct(columns: Sequence[pl.Series], known: pl.Series | None) -> pl.Series:
    """All ids of a side, in row order."""
    found = [column.unique().cast(pl.String) for column in columns]
    return order_ids(pl.concat([*found, *([] if known is None else [known.alias(found[0].name)])]).unique())


def _rows(column: pl.Series, ids: pl.Series) -> npt.NDArray[np.int32]:
    """Row numbers of categorical ids: only the distinct ids are looked up by name."""
    distinct = column.unique()
    codes = distinct.to_physical().to_numpy()
    if not len(codes):
        return np.zeros(0, np.int32)
    order = pl.DataFrame({"id": ids, "row": np.arange(len(ids), dtype=np.int32)})
    named = pl.DataFrame({"id": distinct.cast(pl.String)})
    table = np.zeros(int(codes.max()) + 1, np.int32)
    table[codes] = named.join(order, on="id", how="left", maintain_order="left")["row"].to_numpy()
    rows: npt.NDArray[np.int32] = table[column.to_physical().to_numpy()]
    return rows


def encode_log(
    scans: Mapping[str, Scan],
    problems: Problems,
    *,
    known_items: pl.Series | None = None,
    user_ids: pl.Series | None = None,
    item_ids: pl.Series | None = None,
) -> tuple[pl.Series, pl.Series, dict[str, RawPairs]]:
    """Turn ids into rows.

    Args:
        scans: part name -> sound rows. A part whose rows have a ``label`` is split by it: 0 train, 1 valid,
            2 test.
        problems: Hears of timestamps in other units than seconds, and of years.
        known_items: Items that exist whether they have pairs or not.
        user_ids: The users in row order, where that is settled; else all that occur, ascending.
        item_ids: The items in row order, where that is settled.

    Returns:
        User ids, item ids (both in row order) and the pairs by part.

    Raises:
        InputError: The timestamps of all parts are years, and the list is not tolerant.
    """
    logs = {
        name: _in_seconds(scan, problems)
        .with_columns(pl.col("user", "item").cast(pl.Categorical))
        .collect(engine="streaming")
        for name, scan in _without_years(scans, problems).items()
    }
    if user_ids is None:
        user_ids = _distinct([log["user"] for log in logs.values()], None)
    if item_ids is None:
        item_ids = _distinct([log["item"] for log in logs.values()], known_items)
    parts: dict[str, RawPairs] = {}
    for name, log in logs.items():
        users, items = _rows(log["user"], user_ids), _rows(log["item"], item_ids)
        times = log["time"].to_numpy() if "time" in log.columns else None
        values = log["value"].to_numpy() if "value" in log.columns else None
        if "label" not in log.columns:
            parts[name] = RawPairs(users, items, times, values)
            continue
        labels = log["label"].to_numpy()
        for code, part in enumerate(PARTS):
            chosen = labels == code
            if chosen.any() or part == "train":
                parts[part] = RawPairs(
                    users[chosen],
                    items[chosen],
                    None if times is None else times[chosen],
                    None if values is None else values[chosen],
                )
    return user_ids, item_ids, parts
