"""Which column of a table is the user, the item, the time, the value."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.formats.base import ReadOptions

#: Names in common use, in order of preference, without case, ``_``, ``-`` and spaces.
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "useridx", "customerid", "reviewerid", "visitorid", "sessionid"),
    "item": (
        "itemid", "item", "movieid", "iid", "itemidx", "videoid", "parentasin", "asin", "productid", "songid",
        "trackid", "artistid", "bookid", "newsid", "articleid", "businessid",
    ),
    "time": ("timestamp", "time", "ts", "unixreviewtime", "unixtimestamp", "datetime", "date"),
    "value": ("rating", "value", "score", "overall", "stars", "weight", "playcount", "watchtime", "plays"),
}  # fmt: skip
#: Columns of ids in tables of nothing but items.
ID_NAMES = (*COMMON_NAMES["item"], "id", "sku")
#: Columns with pictures, and titles, in an item table.
COVER_NAMES = ("cover", "posterjpeg", "coverjpeg", "poster", "image", "imagebytes", "jpeg", "thumbnail")
TITLE_NAMES = ("title", "movietitle", "itemtitle", "videotitle", "name", "itemname", "productname")
NUMBERED = "pass --no-header and number the columns, such as --user 1 --item 2"
FLAGS = {role: f"--{role}" for role in COMMON_NAMES}
#: Columns that say which part a row belongs to, and how the parts are called in them.
LABEL_NAMES = ("xlabel", "split")
LABELS = {
    "0": 0, "train": 0, "training": 0,
    "1": 1, "valid": 1, "validation": 1, "val": 1, "dev": 1,
    "2": 2, "test": 2,
}  # fmt: skip


def plain(name: str) -> str:
    """A column name without its RecBole type, case and separators: ``user_id:token`` -> ``userid``."""
    name = name.split(":")[0]
    return "".join(letter for letter in name.lower() if letter not in "_- .")


def find_common(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose plain name stands first in ``names``, or None."""
    by_plain: dict[str, str] = {}
    for column in columns:
        by_plain.setdefault(plain(column), column)
    return next((by_plain[name] for name in names if name in by_plain), None)


def id_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Ids as text, in logs and item tables alike: a whole number is written without decimals, NaN is no id.

    Tools turn whole numbers into 1.0, 2.0 where one is missing, and the other table still says 1, 2.
    """
    text = column.cast(pl.String)
    if not dtype.is_float():
        return text
    whole = column.cast(pl.Int64, strict=False)
    written = pl.when(whole.cast(dtype) == column).then(whole.cast(pl.String)).otherwise(text)
    return pl.when(column.is_not_nan()).then(written)


def check_type(column: str, dtype: pl.DataType, role: str, path: Path) -> None:
    """Refuse a column that no reading makes an id, a time or a value of.

    Raises:
        InputError: It holds lists, a time of day without a date, or the like.
    """
    odd = dtype.is_nested() or dtype == pl.Object
    if role == "time":
        odd = odd or dtype in (pl.Time, pl.Duration, pl.Boolean, pl.Binary)
    if odd:
        named = {"time": "timestamp", "label": "name of a part", "value": "value"}
        what = named.get(role, f"{role} id")
        raise InputError(
            f"column {column!r} holds {dtype}, and one {what} was expected",
            path=path,
            hint=f"write one {what} in each row",
        )


def named_column(columns: Sequence[str], wanted: str, role: str, path: Path) -> str:
    """The column that the user asked for, with or without its RecBole type."""
    for column in columns:
        if wanted in (column, column.split(":")[0]):
            return column
    near = difflib.get_close_matches(wanted, columns, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"there is no {role} column {wanted!r}", path=path, hint=f"{guess}columns found: {', '.join(columns)}"
    )


def choose_columns(
    columns: Sequence[str], options: ReadOptions, path: Path, *, may_lack_header: bool = False
) -> dict[str, str]:
    """Find the columns of a table of interactions.

    Args:
        columns: The names that the file has.
        options: Names that the user gave; the rest is guessed.
        path: The file, for messages.
        may_lack_header: Whether the user can say that the file has no header.

    Returns:
        role -> column, with ``user`` and ``item`` and, where there are such, ``time``, ``value`` and
        ``label`` (the part a row belongs to).

    Raises:
        InputError: A named column is not there, or users or items cannot be told.
    """
    chosen: dict[str, str] = {}
    for role, names in COMMON_NAMES.items():
        wanted: str | None = getattr(options, role)
        if wanted:
            chosen[role] = named_column(columns, wanted, role, path)
        elif wanted is None:
            found = find_common(columns, names)
            if found is not None:
                chosen[role] = found
    label = find_common([column for column in columns if column not in chosen.values()], LABEL_NAMES)
    if label is not None:
        chosen["label"] = label
    missing = [role for role in ("user", "item") if role not in chosen]
    if missing:
        raise InputError(
            f"cannot tell which column holds the {' and the '.join(missing)} ids; "
            f"columns found: {', '.join(map(repr, columns)) or 'none'}",
            path=path,
            hint=_missing_hint(missing, options, may_lack_header=may_lack_header),
        )
    return chosen


def _missing_hint(missing: Sequence[str], options: ReadOptions, *, may_lack_header: bool) -> str:
    """What to do about columns that cannot be told; only what the user can do."""
    if not options.flags:
        return "call them " + " and ".join(missing)
    named = "name them with " + " and ".join(FLAGS[role] for role in missing)
    if may_lack_header and options.header is None:
        return f"{named}; if the first line is no header, {NUMBERED}"
    return named
