"""The table of commands and the program's entry point."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO, cast

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
from firstlight.core.ranks import answers

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
    with contextlib.redirect_stdout(cast(TextIO, _OneAnswer(sys.stdout))):
        try:
            code = typer.main.get_command(app).main(
                args=list(arguments), prog_name="firstlight", standalone_mode=False
            )
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else OK
        except BaseException as error:
            return report(error, as_json="--json" in arguments)
        return code if isinstance(code, int) else OK


class _OneAnswer:
    """Standard output, of the processes of a group only for the first: one JSON object in all.

    Each write asks anew, since a command joins its group while it runs.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text) if answers() else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
