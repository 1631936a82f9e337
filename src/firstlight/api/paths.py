"""What the functions are given, as the rooms take it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.data.dataset import Dataset
from firstlight.data.formats import read_dataset
from firstlight.training.recipes import setting_texts

#: A file or folder; what :func:`firstlight.train` and :func:`firstlight.pretrain` return is one.
Place = str | os.PathLike[str]
#: A dataset, or where one is.
Data = Dataset | Place


def dataset(data: Data) -> Dataset:
    """A dataset as it is, a path read."""
    return data if isinstance(data, Dataset) else read_dataset(Path(data))


def folder_of(data: Dataset) -> Path | None:
    """The folder that a dataset came from, if it is still there: what relative cover paths are relative to."""
    source = Path(data.source)
    if not data.source or not source.exists():
        return None
    return source if source.is_dir() else source.parent


def optional(place: Place | None) -> Path | None:
    """A path, if there is one."""
    return None if place is None else Path(place)


def ids(given: str | Iterable[object] | None, what: str) -> list[str] | None:
    """Raw ids as text; one alone is a list of one. None stands for all.

    Raises:
        InputError: The list is empty.
    """
    if given is None:
        return None
    found = [given] if isinstance(given, str) else [str(entry) for entry in given]
    if not found:
        raise InputError(f"the list of {what} is empty", hint="None stands for all of them")
    return found


def changes(fields: Mapping[str, Any] | None, **short: Any) -> list[str]:
    """``key=value`` texts of ``set``, and behind them fields that have an argument of their own (None: not given)."""
    named = {key.replace("__", "."): value for key, value in short.items() if value is not None}
    return setting_texts({**(fields or {}), **named})


def listener(progress: bool) -> AbstractContextManager[Emit]:
    """What draws a training's events on stderr, or nothing."""
    if not progress:
        return nullcontext(silent)
    from firstlight.cli.progress import TrainingProgress

    return TrainingProgress()
