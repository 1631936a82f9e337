"""``firstlight pipeline`` as a function; ``firstlight.pipeline`` is the room of that name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, overload

from firstlight.api.paths import Place, changes, optional
from firstlight.pipeline.outline import Outcome, Outline, carry_out, outline


@overload
def run_pipeline(
    config: Place,
    out: Place | None = None,
    *,
    dry_run: Literal[False] = False,
    only: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> Outcome: ...


@overload
def run_pipeline(
    config: Place,
    out: Place | None = None,
    *,
    dry_run: Literal[True],
    only: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> Outline: ...


def run_pipeline(
    config: Place,
    out: Place | None = None,
    *,
    dry_run: bool = False,
    only: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> Outcome | Outline:
    """Go from catalogue and log to a bundle and a report; what is there already is not made again.

    Every step is a command, run in this process.

    Args:
        config: A YAML file, or the name of a shipped pipeline.
        out: Folder to fill; ``NAME-out`` if None.
        dry_run: Only say steps, sizes, times and the commands.
        only: Run this step alone; what it reads must be there.
        set: Any fields of the file: ``{"data.path": "clicks.csv"}``.

    Raises:
        InputError: The file or a step's own settings are wrong, or what a step reads is not there.
        FirstlightError: A step failed; its name stands before its own message.
    """
    from firstlight.cli.output import tell
    from firstlight.cli.pipeline import execute

    name, folder, texts = os.fspath(config), optional(out), changes(set)
    if dry_run:
        return outline(name, folder, texts, only=only)
    return carry_out(name, execute, folder, texts, only=only, emit=tell)
