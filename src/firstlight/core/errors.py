"""Errors that tell the user what is wrong, where, and what to do about it."""

from __future__ import annotations

from pathlib import Path


def place(path: Path | str, line: int | None = None) -> str:
    """A file and the line in it; Parquet files have rows."""
    if line is None:
        return str(path)
    return f"{path}, {'row' if Path(path).suffix.lower() == '.parquet' else 'line'} {line}"


class FirstlightError(Exception):
    """Base of every error that firstlight raises on purpose; the command line exits with status 1."""


class InputError(FirstlightError):
    """The user's input cannot be used; the command line exits with status 2.

    Args:
        problem: What is wrong, in one sentence.
        path: The file at fault, if there is one.
        line: 1-based line number in a text file, or the row number in a table.
        hint: What the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = None if path is None else Path(path)
        self.line = line
        self.hint = hint
        where = "" if path is None else f"{place(path, line)}: "
        super().__init__(where + problem + ("" if hint is None else f"\n  → {hint}"))


class MissingExtraError(FirstlightError):
    """An optional library is needed but not installed; the message names the extra that brings it."""


class DivergenceError(FirstlightError):
    """Training produced a non-finite number; the last good checkpoint is kept."""
