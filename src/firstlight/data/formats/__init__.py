"""Readers of the file formats that recommender data comes in; every one gives a ``Dataset``.

A format is one module that defines ``FORMAT`` (a :class:`~firstlight.data.formats.base.Format`) and one
line in :data:`FORMATS`. The order of the lines is the order in which a path is tried.
"""

from __future__ import annotations

from pathlib import Path

from firstlight.core.errors import InputError
from firstlight.core.registry import Registry
from firstlight.data.dataset import Dataset
from firstlight.data.formats.base import Format, Problems, ReadOptions

__all__ = ["FORMATS", "Format", "Problems", "ReadOptions", "choose_format", "detect_format", "read_dataset"]

FORMATS = Registry(
    "dataset format",
    {
        "dataset": "firstlight.data.formats.dataset:FORMAT",
        "lightgcn": "firstlight.data.formats.lightgcn:FORMAT",
        "recbole": "firstlight.data.formats.recbole:FORMAT",
        "grouplens": "firstlight.data.formats.grouplens:FORMAT",
        "table": "firstlight.data.formats.table:FORMAT",
    },
)


def detect_format(path: Path | str) -> str:
    """Tell which format a file or folder has.

    Args:
        path: A dataset folder, or a single table file.

    Returns:
        A name of :data:`FORMATS`.

    Raises:
        InputError: There is nothing at ``path``, or no format fits; the message says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file or folder", path=path)
    formats: list[Format] = [FORMATS.load(name) for name in FORMATS.names()]
    for candidate in formats:
        if candidate.detect(path):
            return candidate.name
    looked = "; ".join(f"{candidate.name}: {candidate.looks_for}" for candidate in formats)
    found = ""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        found = (
            f" (it holds {', '.join(names[:8])}{', …' if len(names) > 8 else ''})"
            if names
            else " (it is empty)"
        )
    raise InputError(f"no known dataset format here{found}", path=path, hint=f"looked for {looked}")


def choose_format(path: Path | str, options: ReadOptions) -> Format:
    """The format that a path has, after a check of options that only some formats can follow.

    Raises:
        InputError: As :func:`detect_format`, or an option means nothing to the format.
    """
    chosen: Format = FORMATS.load(detect_format(path))
    if options.header is False and chosen.name != "table":
        raise InputError(f"--no-header is for CSV and TSV tables, and this is {chosen.name}", path=path)
    if options.catalogue_item is not None and chosen.name not in ("table", "recbole"):
        raise InputError(
            f"--catalogue-item is for a table of items beside a log, and this is {chosen.name}", path=path
        )
    return chosen


def read_dataset(path: Path | str, options: ReadOptions | None = None) -> Dataset:
    """Read a dataset in any supported format.

    Args:
        path: A dataset folder, or a single table file.
        options: What counts as an interaction, and column names; the default keeps every pair once.

    Returns:
        The dataset; ``dropped`` says how many input rows were left out and why.

    Raises:
        InputError: The format is unknown, or a file is broken; with file, line and what to do.
    """
    options = options or ReadOptions()
    chosen = choose_format(path, options)
    return chosen.read(Path(path), options, Problems(options.on_bad_rows, flags=options.flags))
