"""What the functions are given, as the rooms take it."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.data.dataset import Dataset
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.training.recipes import setting_texts

if TYPE_CHECKING:
    from firstlight.serving.new_items import NewItems

#: A file or folder; what :func:`firstlight.train` and :func:`firstlight.pretrain` return is one.
Place = str | os.PathLike[str]
#: A dataset, where one is, or a polars data frame of clicks.
Data = Dataset | Place | pl.DataFrame


def dataset(data: Data, options: ReadOptions | None = None) -> Dataset:
    """A dataset as it is, a path read, a frame read as the table that it would be in a file.

    Raises:
        InputError: It is neither, or cannot be read.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, pl.DataFrame):
        return read_dataset(place(data, "data"), options)
    with _written(data) as file:
        return replace(read_dataset(file, options), name="frame", source="")


def new_items(given: Place | pl.DataFrame) -> Path | NewItems:
    """New items as serving takes them: a path, or the rows of a frame; covers by path start from where we are."""
    if not isinstance(given, pl.DataFrame):
        return place(given, "new_items")
    from firstlight.serving.new_items import read_new_items  # brings torch

    with _written(given) as file:
        return replace(read_new_items(file), folder=Path.cwd(), source=None)


def place(given: object, what: str) -> Path:
    """A path.

    Raises:
        InputError: It is something else.
    """
    if isinstance(given, str | os.PathLike):
        return Path(given)
    kind = type(given)
    pandas = kind.__module__.partition(".")[0] == "pandas"
    hint = "polars.from_pandas makes a polars data frame of it" if pandas else None
    raise InputError(
        f"{what} is a {kind.__module__}.{kind.__qualname__}, and neither a path nor a polars data frame",
        hint=hint or "give a file, a folder, or a polars data frame",
    )


@contextmanager
def _written(frame: pl.DataFrame) -> Iterator[Path]:
    """A frame as a file, so that it is read, and its faults are told, as those of a file are."""
    with TemporaryDirectory(prefix="firstlight-") as folder:
        file = Path(folder) / "frame.parquet"
        try:
            frame.write_parquet(file)
            yield file
        except pl.exceptions.PolarsError as error:
            raise InputError(f"the data frame cannot be read: {error}") from error
        except InputError as error:
            if error.path is None or Path(folder) not in error.path.parents:
                raise
            where = "the data frame" + ("" if error.line is None else f", row {error.line}")
            raise InputError(f"{where}: {error.problem}", hint=error.hint) from error


def lengths(k: int | Iterable[int]) -> list[int]:
    """Lengths of lists, ascending, each once; one alone is a list of one.

    Raises:
        InputError: There is none, or one is not a whole number above zero.
    """
    try:
        several = k if isinstance(k, Iterable) else [k]
        found = [operator.index(entry) for entry in several]
    except TypeError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"k is {k!r}", hint="give a whole number above zero, or several: k=[10, 20]")
    return sorted({*found})


def length(k: int) -> int:
    """The length of a list.

    Raises:
        InputError: It is not a whole number above zero.
    """
    if not hasattr(k, "__index__") or operator.index(k) < 1:
        raise InputError(f"k is {k!r}", hint="give a whole number above zero")
    return operator.index(k)


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
