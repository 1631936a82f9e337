"""The table of commands and the program's entry point."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import firstlight
from firstlight.cli import (
    arrivals,
    data,
    embed,
    pipeline,
    probe,
    ranking,
    refine,
    serving,
    system,
    training,
    vision,
)
from firstlight.cli import report as reporting
from firstlight.cli.exits import OK, report

app = typer.Typer(
    help="Recommendations that work for items nobody has clicked yet.",
    no_args_is_help=True,
    # Plain help: rich would double the time that --help takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"firstlight {firstlight.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recommendations that work for items nobody has clicked yet."""


for room in (
    system,
    data,
    training,
    ranking,
    serving,
    arrivals,
    vision,
    refine,
    embed,
    probe,
    pipeline,
    reporting,
):
    room.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give the exit code; nothing is raised.

    Args:
        arguments: The words after ``firstlight``.

    Returns:
        0 success, 1 failure, 2 bad input, 130 interrupted.
    """
    with _one_answer():
        try:
            code = typer.main.get_command(app).main(
                args=list(arguments), prog_name="firstlight", standalone_mode=False
            )
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else OK
        except BaseException as error:
            return report(error, as_json="--json" in arguments)
        return code if isinstance(code, int) else OK


@contextlib.contextmanager
def _one_answer() -> Iterator[None]:
    """Of the processes that ``torchrun`` starts only the first one writes on standard output: one JSON object in all.

    By the environment, since the group is gone when a command says what came out.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0":
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def call(arguments: Sequence[str]) -> dict[str, Any]:
    """Run one command line and give what it prints with ``--json``; errors are raised.

    Args:
        arguments: The words after ``firstlight``, without ``--json``.

    Raises:
        FirstlightError: As the command raises it.
    """
    held, before = io.StringIO(), sys.argv
    # Runs keep the command that made them.
    sys.argv = ["firstlight", *arguments]
    try:
        with contextlib.redirect_stdout(held):
            typer.main.get_command(app).main(
                args=[*arguments, "--json"], prog_name="firstlight", standalone_mode=False
            )
    finally:
        sys.argv = before
    found: dict[str, Any] = json.loads(held.getvalue())
    return found


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))
