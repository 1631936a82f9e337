"""Timestamps: numbers and ISO 8601 dates, read alike a column at a time and a cell at a time.

Other ways to write dates are refused: ``03/04/2024`` is March in one country and April in another.
"""

from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path

import polars as pl

from firstlight.data.formats.base import Problems

#: A date, and maybe a time of day and a zone; what lies below a second is cut off.
ISO = (
    r"^\s*([1-9]\d{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))"
    r"(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,]\d+)?)?\s?(Z|UTC|[+-]\d\d(?::?\d\d)?)?)?\s*$"
)
_ISO = re.compile(ISO, re.ASCII)
#: The same for polars, whose ``\d`` takes the digits of all scripts.
_ISO_COLUMN = ISO.replace(r"\d", "[0-9]")
_DAY = 86_400
_EPOCH = date(1970, 1, 1).toordinal()
#: Whole numbers that read as ``yyyymmdd``, with nothing, hours and minutes, or also seconds behind it.
_COMPACT = (1, 10**4, 10**6)
#: Whole numbers that are years where a column holds no others: as seconds they would be three minutes of 1970.
_YEARS = (1900, 2100)
DATE_HINT = "write dates as 2024-01-31 or 2024-01-31 17:30:00"


def parse_number(text: str) -> int | float | None:
    """A finite number, or None."""
    if "_" in text:  # Python reads 1_000, and nobody else does
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_time(text: str) -> int | None:
    """Seconds (or finer units) since the epoch from a number or an ISO 8601 date, or None.

    A date without a zone counts as UTC.
    """
    number = parse_number(text)
    if number is not None:
        return int(number) if abs(number) < 2**63 else None
    found = _ISO.match(text)
    if found is None:
        return None
    day, hour, minute, second, zone = found.groups()
    try:
        days = date.fromisoformat(day).toordinal() - _EPOCH
    except ValueError:  # February has no 30th
        return None
    seconds = days * _DAY + int(hour or 0) * 3600 + int(minute or 0) * 60 + int(second or 0)
    if zone is None or zone in ("Z", "UTC"):
        return seconds
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return seconds - (offset if zone[0] == "+" else -offset)


def whole(column: pl.Expr) -> pl.Expr:
    """Int64 from integers or from decimals such as ``12.0``; null where there is no finite number."""
    by_way_of_float = column.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
    return pl.coalesce(column.cast(pl.Int64, strict=False), by_way_of_float)


def iso_seconds(column: pl.Expr) -> pl.Expr:
    """:func:`parse_time` for the ISO dates of a String column; null for anything else."""
    text = column.str.strip_chars()
    days = text.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    rest = text.str.slice(16)  # what stands behind hours and minutes

    def number(part: pl.Expr) -> pl.Expr:
        return part.cast(pl.Int64, strict=False).fill_null(0)

    clock = number(text.str.slice(11, 2)) * 3600 + number(text.str.slice(14, 2)) * 60
    clock += pl.when(rest.str.starts_with(":")).then(number(rest.str.slice(1, 2))).otherwise(0)
    zone = rest.str.extract("([+-].*)$")
    digits = zone.str.replace(":", "", literal=True)
    offset = number(digits.str.slice(1, 2)) * 3600 + number(digits.str.slice(3, 2)) * 60
    behind = zone.str.starts_with("-").fill_null(value=False)
    seconds = days * _DAY + clock - pl.when(behind).then(-offset).otherwise(offset)
    return pl.when(column.str.contains(_ISO_COLUMN)).then(seconds)


def time_column(column: pl.Expr, dtype: pl.DataType, *, dates: bool = True) -> pl.Expr:
    """Times as Int64; null where a cell cannot be used.

    Args:
        column: Of that type.
        dtype: Text, numbers or moments.
        dates: Whether text may hold dates; if not, only numbers are looked for, which is faster.
    """
    if dtype.is_temporal():
        return column.cast(pl.Datetime("us"), strict=False).dt.epoch("s")
    if dtype == pl.String and dates:
        return pl.coalesce(iso_seconds(column), whole(column))
    return whole(column)


def looks_like_date(time: pl.Expr) -> pl.Expr:
    """Whether a whole number reads as ``20240131``, also with ``1730`` or ``173059`` behind it."""
    found = pl.lit(value=False)
    for below in _COMPACT:
        day = time // below
        month = day // 100 % 100
        found |= day.is_between(19000101, 21001231) & month.is_between(1, 12) & (day % 100).is_between(1, 31)
    return found


def refuse_compact_dates(count: int, rows: int, example: int | None, path: Path, problems: Problems) -> bool:
    """Refuse a column of times most of which read as ``yyyymmdd``.

    As seconds they would all lie in one month of 1970, and as milliseconds beyond the year 2600, so they are dates;
    but to guess is not for a reader to do.

    Args:
        count: Rows that do.
        rows: All rows.
        example: One of the times.
        path: The file.
        problems: In a tolerant list the times are left out.

    Returns:
        Whether the times were refused.

    Raises:
        InputError: They are, and the list is not tolerant.
    """
    if 2 * count <= rows:
        if count:
            told = f"such as {example}, which is read as a number of seconds or parts of them"
            problems.note("timestamp like a date without dashes", path, told, count)
        return False
    problems.fatal(
        f"timestamps such as {example} are dates without dashes, not numbers of seconds",
        path,
        _hint(DATE_HINT, problems),
    )
    return True


def refuse_years(least: int, largest: int, path: Path, problems: Problems) -> bool:
    """Refuse a column of times that are bare years, all of them.

    Args:
        least: The smallest time of all parts.
        largest: The largest.
        path: The file, or one of them.
        problems: In a tolerant list the times are left out.

    Returns:
        Whether the times were refused.

    Raises:
        InputError: They are, and the list is not tolerant.
    """
    if not _YEARS[0] <= least <= largest <= _YEARS[1]:
        return False
    problems.fatal(
        f"timestamps from {least} to {largest} are years, not numbers of seconds",
        path,
        _hint(f"write dates, for a year its first day: {largest}-01-01", problems),
    )
    return True


def _hint(text: str, problems: Problems) -> str:
    return text + (", or leave times out with --time ''" if problems.flags else "")
