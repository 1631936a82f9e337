"""How results look where Python shows them: a line or two of words, and a table below."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from html import escape

import polars as pl

from firstlight.core.values import text

#: Rows of a table that are shown; all of them are in ``table``.
_ROWS = 40
#: Letters of a cell that are shown.
_LETTERS = 60
_GAP = "  "


class Shown:
    """A result that says what it is when it is printed, and is a table in a notebook.

    A subclass gives :attr:`heading` and :attr:`table`; a dataclass needs ``repr=False``, or its own representation
    would go before this one.
    """

    @property
    def heading(self) -> str:
        """What it is, in words; may have several lines."""
        raise NotImplementedError

    @property
    def table(self) -> pl.DataFrame:
        """Its numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self.heading}\n{drawn(self.table)}"

    def _repr_html_(self) -> str:
        heading = "<br>".join(escape(line) for line in self.heading.splitlines())
        names, rows, numeric = _cells(self.table)
        side = ["right" if number else "left" for number in numeric]
        head, *body = (
            _row(cells, side, tag) for cells, tag in [(names, "th"), *((row, "td") for row in rows)]
        )
        return f"<p>{heading}</p><table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _row(cells: Sequence[str], side: Sequence[str], tag: str) -> str:
    """A row of an HTML table."""
    pairs = zip(cells, side, strict=True)
    inside = (f'<{tag} style="text-align: {where}">{escape(cell)}</{tag}>' for cell, where in pairs)
    return f"<tr>{''.join(inside)}</tr>"


def drawn(table: pl.DataFrame) -> str:
    """A table as text. One that is wider than the terminal goes on below, under its first column."""
    names, rows, numeric = _cells(table)
    if not names:
        return ""
    columns = [[name, *(row[at] for row in rows)] for at, name in enumerate(names)]
    widths = [max(map(len, column)) for column in columns]
    columns = [
        [cell.rjust(width) if number else cell.ljust(width) for cell in column]
        for column, width, number in zip(columns, widths, numeric, strict=True)
    ]
    blocks = []
    for chosen in _blocks(widths, shutil.get_terminal_size().columns):
        head, *body = (_GAP.join(row).rstrip() for row in zip(*(columns[at] for at in chosen), strict=True))
        rule = "─" * max(map(len, (head, *body)))
        blocks.append("\n".join([head, rule, *body]))
    return "\n\n".join(blocks)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that stand beside each other; the first one leads every block."""
    blocks = [[0]]
    for at in range(1, len(widths)):
        used = sum(widths[other] + len(_GAP) for other in blocks[-1])
        if used + widths[at] > room and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(at)
    return blocks


def _cells(table: pl.DataFrame) -> tuple[list[str], list[list[str]], list[bool]]:
    """Names of the columns, rows of texts, and which columns hold numbers."""
    numeric = [dtype.is_numeric() for dtype in table.dtypes]
    rows = [[_cell(value) for value in row] for row in table.head(_ROWS).iter_rows()]
    if table.height > _ROWS and table.width:
        rows.append([f"… {table.height - _ROWS:,} more", *[""] * (table.width - 1)])
    return table.columns, rows, numeric


def _cell(value: object) -> str:
    line = " ".join(text(value).split())
    return line if len(line) <= _LETTERS else line[: _LETTERS - 1] + "…"
