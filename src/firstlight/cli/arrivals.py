"""The command ``arrivals``: whether people find the items that were added."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.options import Reading, command
from firstlight.cli.output import Answer, draw_table, tell

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.pipeline.arrivals import ArrivalReport


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "arrivals", reads=True)(arrivals)


def arrivals(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="What items were added to with add-items.")
    ],
    path: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Its test part holds the clicks to look for; ids are matched."),
    ],
    reading: Reading,
    label: Annotated[
        str | None, typer.Option(help="What to call the bundle; its model's name if not given.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists.")] = 20,
) -> Answer:
    """Measure whether people find the items that were added to a bundle.

    Every item is ranked for every user who clicked something in the test part of DATA. Beside the bundle stand content
    nearest neighbours on the same views, popularity and chance; for a generated world the truth, too.
    """
    from firstlight.pipeline.arrivals import measure_arrivals
    from firstlight.pipeline.served import open_served

    bundle, later = open_served(target, tell), reading.read(path)
    folder = path if path.is_dir() else path.parent
    found = measure_arrivals(bundle, later, label=label, k=k, folder=folder)
    return Answer(found.to_dict(), lambda console: draw_arrivals(console, found))


def draw_arrivals(target: Console, found: ArrivalReport) -> None:
    """Draw what :func:`arrivals` found."""
    target.print(found.heading)
    draw_table(target, found.table.columns, [list(row) for row in found.table.rows()])
