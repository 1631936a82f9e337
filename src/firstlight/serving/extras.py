"""What stands beside an item's vector, a row an item: what explains it, and what it hands to histories.

::

    views          int8      unit features of the item, view by view, reduced (:mod:`firstlight.serving.reasons`)
    edges          int16     per view, the hyperedge with the highest weight for the item; -1: none
    edge-weights   float16   that weight
    handed         float32   what the item hands to users (:mod:`firstlight.models.histories`)

A catalogue has those that its model has. Rows of the base are mapped into memory, not read: ``rows.NAME.bin`` holds one
behind the other. Where nothing is known of an item stands the value of :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firstlight.core.errors import InputError

Array = npt.NDArray[Any]
#: Name → ``(n, width)``.
Extras = Mapping[str, Array]


class Kind(NamedTuple):
    """A type, and the value where nothing is known."""

    dtype: type[np.generic]
    nothing: float


KINDS: dict[str, Kind] = {
    "views": Kind(np.int8, 0),
    "edges": Kind(np.int16, -1),
    "edge-weights": Kind(np.float16, 0),
    "handed": Kind(np.float32, np.nan),
}


def nothing(name: str, n: int, width: int) -> Array:
    """``(n, width)`` rows of items of which nothing is known."""
    return np.full((n, width), KINDS[name].nothing, KINDS[name].dtype)


def fitting(extras: Extras, widths: Mapping[str, int], n: int) -> dict[str, Array]:
    """The extras of new items that a catalogue has a place for; one of another width means something else there.

    Args:
        extras: Of the new items.
        widths: Name → width in the catalogue.
        n: Number of new items.

    Raises:
        InputError: There are not as many rows as items.
    """
    for name, rows in extras.items():
        if rows.ndim != 2 or len(rows) != n:
            raise InputError(f"the extra {name!r} has shape {rows.shape} for {n} items")
    kept = {name: rows for name, rows in extras.items() if widths.get(name) == rows.shape[1]}
    return {name: np.ascontiguousarray(rows, KINDS[name].dtype) for name, rows in kept.items()}


def file_of(name: str) -> str:
    """The file that holds an extra in a base."""
    return f"rows.{name}.bin"


def write_extras(folder: Path, extras: Extras) -> dict[str, int]:
    """Write one file an extra; gives the widths."""
    for name, rows in extras.items():
        with (folder / file_of(name)).open("wb") as out:
            out.write(np.ascontiguousarray(rows, KINDS[name].dtype).data)
    return {name: int(rows.shape[1]) for name, rows in extras.items()}


def open_extra(path: Path, name: str, n: int, width: int) -> Array:
    """The rows of a base, mapped into memory."""
    if not n * width:
        return nothing(name, n, width)
    rows: Array = np.memmap(path, KINDS[name].dtype, "r", shape=(n, width))
    return rows
