"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli.options import command, names
from firstlight.cli.output import Answer, tell


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "report")(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN …", help="Finished runs; the others are compared with the first."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file.")] = Path("report.html"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Dataset with titles and covers; the first run's own if it is where it was."
        ),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(metavar="ID,ID,…", help="Users whose lists are shown; some by chance if not given."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What probe --out wrote: adds the encoder's depth.")
    ] = None,
    arrivals: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What arrivals --json printed: adds the items that were added."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists.")] = 20,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
) -> Answer:
    """Write one self-contained HTML page about runs, and its pictures as PNGs beside it.

    Numbers that evaluate --protocol cold left with a run are read; what is missing is ranked now, and kept there.
    """
    from firstlight.reports.sources import report as write

    chosen = None if users is None else names(users)
    made = write(
        runs, out, data=data, users=chosen, probe=probe, arrivals=arrivals, k=k, title=title, emit=tell
    )
    return Answer(
        made, lambda console: console.print(f"{out.resolve().as_uri()} ({made['bytes'] / 1e6:.1f} MB)")
    )
