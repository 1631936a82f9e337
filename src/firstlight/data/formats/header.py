"""Whether the first line of a table holds names, or is the first row of a table without a header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from firstlight.core.errors import InputError
from firstlight.data.formats.base import Problems
from firstlight.data.formats.columns import COMMON_NAMES, NUMBERED, plain
from firstlight.data.formats.delimited import TextTable, read_rows
from firstlight.data.formats.times import parse_number

#: Rows that are looked at.
ROWS = 1000


def _shape(text: str) -> str:
    """A text with its runs of digits and of letters each as one: ``u17`` and ``u2`` alike are ``a9``."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text))


def _looks_like(name: str, cells: Sequence[str]) -> bool:
    """Whether a name could be a cell of its column: a number, or digits in the form that the first cell has."""
    if parse_number(name) is not None:
        return True
    return bool(cells) and any(map(str.isdigit, name)) and _shape(name) == _shape(cells[0])


def refuse_data_as_header(table: TextTable, roles: Mapping[str, str]) -> None:
    """Refuse a first line that looks like data: its row would be lost.

    It does if the names of both id columns could be ids in them, or one of them occurs there again. Columns with common
    names, and columns that are numbered from 0 or 1, have a header.

    Args:
        table: The table, opened as one with a header.
        roles: role -> column name.

    Raises:
        InputError: It does.
    """
    names = [roles[role] for role in ("user", "item")]
    numbered = any(table.names == [str(n + start) for n in range(len(table.names))] for start in (0, 1))
    if numbered or any(plain(roles[role]) in COMMON_NAMES[role] for role in ("user", "item")):
        return
    places = [table.names.index(name) for name in names]
    rows = [fields for _, fields in islice(read_rows(table, Problems("skip")), ROWS)]
    columns = [[row[place] for row in rows] for place in places]
    again = any(name in column for name, column in zip(names, columns, strict=True))
    if again or all(map(_looks_like, names, columns)):
        found = ", ".join(map(repr, table.names))
        raise InputError(
            f"the first line looks like data, not like the names of columns ({found})",
            path=table.path,
            hint=f"{NUMBERED}; or pass --header if they are names",
        )
