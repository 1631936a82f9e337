"""``firstlight data …`` and ``simulate`` as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import polars as pl

from firstlight.api.paths import Data, Place, dataset, place
from firstlight.core.choices import one_of
from firstlight.core.outputs import output
from firstlight.data.cut import KNOWN, NEW, cut_dataset, write_cut
from firstlight.data.dataset import Dataset
from firstlight.data.folder import write_dataset
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.data.inspect import Inspection, inspect_path
from firstlight.data.split import SplitName, SplitOptions, split_dataset


class ReaderOptions(TypedDict, total=False):
    """What counts as an interaction, and where a table keeps it; see :class:`firstlight.data.formats.ReadOptions`."""

    user: str
    item: str
    time: str
    value: str
    min_value: float
    k_core: tuple[int, int]
    duplicates: Literal["first", "last", "sum"]
    on_bad_rows: Literal["error", "skip"]
    header: bool
    catalogue_item: str


def _options(options: ReaderOptions) -> ReadOptions:
    for name, allowed in (("duplicates", ("first", "last", "sum")), ("on_bad_rows", ("error", "skip"))):
        if name in options:
            one_of(str(options.get(name)), allowed, name)
    return ReadOptions(**options)


def read(path: Place | pl.DataFrame, **options: Unpack[ReaderOptions]) -> Dataset:
    """Read a click log, and what is known of its items, in any supported format.

    Args:
        path: A folder or file; or a polars data frame of clicks, with the columns that a file would have.
        **options: What counts as an interaction: ``user``, ``item``, ``time`` and ``value`` name columns of a table;
            ``catalogue_item`` the ids' column in the table of items; ``min_value``, ``k_core``, ``duplicates``,
            ``on_bad_rows`` and ``header`` as the commands have them.

    Raises:
        InputError: The format is unknown, or a file is broken; with file, line and what to do.
    """
    return dataset(path, _options(options))


def inspect(path: Place, **options: Unpack[ReaderOptions]) -> Inspection:
    """Count what is there and list what is wrong, with line numbers.

    Args:
        path: A folder or file in any supported format.
        **options: As for :func:`read`.

    Raises:
        InputError: Nothing can be read at all.
    """
    return inspect_path(place(path, "path"), _options(options))


def convert(data: Data, out: Place) -> Dataset:
    """Write a dataset folder.

    Args:
        data: A dataset, or where one is, in any supported format.
        out: Folder to write; it must not hold anything.

    Returns:
        What was written.

    Raises:
        InputError: ``data`` cannot be read, or ``out`` holds something.
    """
    read = dataset(data)
    with output(out):
        write_dataset(read, Path(out))
    return read_dataset(Path(out))


def split(
    data: Data,
    out: Place | None = None,
    *,
    by: SplitName,
    seed: int | None = None,
    valid_share: float | None = None,
    test_share: float | None = None,
) -> Dataset:
    """Split a dataset into train, valid and test.

    Args:
        data: A dataset, or where one is; parts that it has are pooled first.
        out: A folder to write it to, if it is to be kept; it must not hold anything.
        by: ``random``, ``time``, ``leave-last`` or ``cold-items``; see :mod:`firstlight.data.split`.
        seed: Seed of the splits that draw at random; 0 if None.
        valid_share: Share held out for choosing models; 0.1 if None.
        test_share: Share held out for final numbers; 0.2 if None.

    Raises:
        InputError: ``data`` cannot be read or split so, or ``out`` holds something.
    """
    from firstlight.cli.output import say
    from firstlight.training.notes import of_split

    told = {"seed": seed, "valid_share": valid_share, "test_share": test_share}
    given = {name: value for name, value in told.items() if value is not None}
    options = SplitOptions(by, **given)  # type: ignore[arg-type]  # each of its own type
    whole = dataset(data)
    parts = split_dataset(whole, options)
    for note in of_split(options, list(given), whole, parts):
        say(note)
    return parts if out is None else convert(parts, out)


def cut(data: Data, out: Place | None = None) -> tuple[Dataset, Dataset]:
    """Part a dataset into what was known before the test part, and the items that came after.

    These are the items that a split by time or by cold items keeps for the test.

    Args:
        data: A split dataset, or where one is.
        out: A folder to write them to, as ``known`` and ``new``, if they are to be kept.

    Returns:
        What was known, to train on; and the items that came after, without users and clicks, to be added.

    Raises:
        InputError: ``data`` cannot be read, no item of it is new at the test, or ``out`` holds them already.
    """
    known, new = cut_dataset(dataset(data))
    if out is None:
        return known, new
    with output(out):
        write_cut(known, new, Path(out))
    return read_dataset(Path(out) / KNOWN), read_dataset(Path(out) / NEW)


def simulate(
    out: Place,
    *,
    users: int | None = None,
    items: int | None = None,
    seed: int | None = None,
    set: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write a generated micro-video world, whose truth is known, and read it.

    Args:
        out: Folder to write; it must not hold anything.
        users: Number of users.
        items: Number of micro-videos.
        seed: Equal seeds give equal worlds.
        set: Any other field of :class:`firstlight.data.simulate.SimulationConfig`.

    Raises:
        InputError: A setting is not one, or ``out`` holds something.
    """
    from firstlight.cli.options import validated
    from firstlight.data.simulate import SimulationConfig, write_simulation
    from firstlight.data.simulate import simulate as draw

    named = {"n_users": users, "n_items": items, "seed": seed}
    given = {name: number for name, number in named.items() if number is not None}
    world = draw(validated(SimulationConfig, {**(set or {}), **given}, "set"))
    with output(out):
        write_simulation(world, Path(out))
    return read_dataset(Path(out))
