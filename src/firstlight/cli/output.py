"""What a command says at its end: one JSON object, or a table for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firstlight.core.values import plain, text

if TYPE_CHECKING:
    from rich.console import Console

#: Columns to draw for when the output is no terminal: a file or a pipe has no edge to wrap at.
WIDE = 240


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        value: What ``--json`` prints.
        draw: Draws the same for people on a console.
        exit_code: What the process returns.
    """

    value: Mapping[str, Any]
    draw: Callable[[Console], None]
    exit_code: int = 0


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer on standard output."""
    if as_json:
        print(json.dumps(plain(answer.value), ensure_ascii=False, allow_nan=False))
    else:
        answer.draw(console())
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """A rich console that does not wrap where there is no terminal and never guesses at markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def say(message: str) -> None:
    """A line for people on stderr."""
    print(message, file=sys.stderr, flush=True)


def tell(event: str, /, **values: Any) -> None:
    """An event listener that says messages and leaves all other events alone."""
    if event == "message":
        say(str(values["text"]))


def draw_table(
    target: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None
) -> None:
    """Draw a table; columns that hold only numbers are set flush right."""
    from rich import box
    from rich.table import Table

    if title is not None:
        target.print(title, style="bold")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = all((isinstance(c, int | float) and not isinstance(c, bool)) or c is None for c in cells)
        table.add_column(name, justify="right" if numeric and cells else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(text(cell) for cell in row))
    target.print(table)


def draw_pairs(target: Console, pairs: Mapping[str, Any], *, title: str | None = None) -> None:
    """Draw names and values, one a line."""
    if title is not None:
        target.print(title, style="bold")
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        target.print(f"  {name:<{width}}  {text(value)}")
