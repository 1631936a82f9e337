"""The one place that turns errors into messages and exit codes.

0 success, 1 failure, 2 bad input, 130 interrupted. With ``--json`` a failure is one JSON object on
standard output as well: ``{"error": {"kind": ..., "message": ..., ...}}``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from firstlight.core.errors import FirstlightError, InputError

OK = 0
FAILURE = 1
BAD_INPUT = 2
INTERRUPTED = 130

#: Set this variable to see the whole traceback of an error.
TRACEBACK_VARIABLE = "FIRSTLIGHT_TRACEBACK"


class Interrupted(Exception):
    """The user pressed Ctrl-C while a command ran.

    Args:
        hint: How to go on from here, or None.
    """

    def __init__(self, hint: str | None = None) -> None:
        self.hint = hint
        super().__init__("interrupted" + ("" if hint is None else f"; {hint}"))


def report(error: BaseException, *, as_json: bool) -> int:
    """Say on stderr what went wrong and give the exit code.

    Args:
        error: What ended the command.
        as_json: Whether to print the error as a JSON object on standard output, too.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone (`firstlight ... | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    code, details = describe(error)
    print(f"error: {details['message']}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": details}, ensure_ascii=False))
    return code


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON description of an error; ``message`` is what people read."""
    if isinstance(error, InputError):
        details = {
            "kind": "input",
            "message": str(error),
            "problem": error.problem,
            "path": None if error.path is None else str(error.path),
            "line": error.line,
            "hint": error.hint,
        }
        return BAD_INPUT, details
    if isinstance(error, FirstlightError):
        return FAILURE, {"kind": "failure", "message": str(error)}
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return INTERRUPTED, {"kind": "interrupted", "message": str(error) or "interrupted"}
    if is_usage_error(error):
        return BAD_INPUT, {"kind": "usage", "message": usage_message(error)}
    if isinstance(error, OSError):
        return FAILURE, {"kind": "failure", "message": str(error)}
    message = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    hint = f"\n  → this is a bug, run with {TRACEBACK_VARIABLE}=1 to see the traceback"
    return FAILURE, {"kind": "bug", "message": message + hint}


def is_usage_error(error: BaseException) -> bool:
    """Whether the argument parser raised ``error``.

    Typer brings its own copy of click from version 0.2x on and used the installed one before, so the class
    cannot be named here; the interface is the same.
    """
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def usage_message(error: Any) -> str:
    """What the argument parser complains about, and where the help is."""
    context = getattr(error, "ctx", None)
    path = "firstlight" if context is None else context.command_path
    return f"{error.format_message()}\n  → see: {path} --help"
