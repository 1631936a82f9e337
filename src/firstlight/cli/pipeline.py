"""The command ``pipeline``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.exits import Interrupted
from firstlight.cli.options import command
from firstlight.cli.output import Answer, draw_table, tell
from firstlight.cli.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.pipeline.outline import Outcome


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "pipeline", interrupted="the same command goes on where it stopped")(pipeline)


def pipeline(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped pipeline.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fill; NAME-out if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show steps, sizes, times and the commands.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="STEP", help="Run this step alone; what it reads must be there.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of the file, e.g. data.path=clicks.csv."),
    ] = None,
) -> Answer:
    """Go from catalogue and log to a bundle and a report; what is there already is not made again.

    Every step is one of the other commands, and can be run by itself; --dry-run prints them.
    """
    from firstlight.pipeline.outline import carry_out, outline

    if dry_run:
        ahead = outline(config, out, changes or [], only=only).to_dict()
        return Answer(ahead, lambda console: _draw_dry(console, ahead))
    done = carry_out(config, execute, out, changes or [], only=only, emit=tell)
    return Answer(done.to_dict(), lambda console: _draw(console, done))


def execute(words: Sequence[str]) -> dict[str, Any]:
    """Run one command of a pipeline in this process; what it prints with ``--json``."""
    from firstlight.cli.app import call

    try:
        return call(words)
    except Interrupted:
        raise KeyboardInterrupt from None


def _draw_dry(target: Console, value: dict[str, Any]) -> None:
    body = [
        [
            row["step"],
            row["state"],
            row["size"],
            ("" if row["measured"] else "about ") + duration(row["seconds"]),
        ]
        for row in value["steps"]
    ]
    draw_table(target, ["step", "state", "size", "time"], body)
    target.print()
    for row in value["steps"]:
        target.print(f"# {row['step']}")
        for line in row["commands"]:
            target.print(line, soft_wrap=True)
    target.print()
    target.print(
        f"about {duration(value['seconds_left'])} (minutes:seconds, on two cores) to go; nothing was run"
    )


def _draw(target: Console, done: Outcome) -> None:
    body = [
        [row["step"], "was there" if row["was"] == "done" else duration(row["seconds"]), row["output"]]
        for row in done.table.iter_rows(named=True)
    ]
    draw_table(target, ["step", "time", "where"], body)
    _draw_numbers(target, done.numbers)
    if done.arrivals is not None:
        from firstlight.cli.arrivals import draw_arrivals
        from firstlight.pipeline.arrivals import ArrivalReport

        draw_arrivals(target, ArrivalReport.from_dict(done.arrivals))
        target.print()
    there = done.places
    program = "firstlight" if not sys.argv[0].endswith("/firstlight") else sys.argv[0]
    if "bundle" in there:
        target.print(f"open the page:   {program} serve {there['bundle']}")
    if "page" in there:
        target.print(f"read the report: {there['page'].resolve().as_uri()}")


def _draw_numbers(target: Console, numbers: dict[str, Any]) -> None:
    columns = ("warm/warm", "cold/cold", "warm/all", "cold/all", "all/all")
    body = []
    for name, found in numbers.items():
        k = 20 if 20 in found["k"] else found["k"][0]
        protocols = found["protocols"]
        values = [protocols[c]["metrics"][f"recall@{k}"] if c in protocols else None for c in columns]
        body.append([name, *values, found["harmonic"]["metrics"].get(f"recall@{k}")])
    if body:
        target.print()
        draw_table(
            target, ["run", *columns, "harmonic"], body, title="recall, targets / items that are ranked"
        )
        target.print()
