"""Subsets of labelled images: a few a class, a share of each class, a long tail, a held-out part.

All are drawn class by class from one permutation per seed and class, so a smaller subset lies within a larger one of
the same seed, and adding a class moves no other one's draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from firstlight.core.seeds import numpy_stream

IntArray = npt.NDArray[np.int64]


def shots(labels: IntArray, n: int, seed: int) -> IntArray:
    """``n`` rows of every class; a class with fewer keeps what it has.

    Args:
        labels: ``(rows,)`` classes.
        n: Rows a class.
        seed: Of the draw.

    Returns:
        Rows, ascending.
    """
    return _drawn(labels, seed, lambda label, size: n)


def share(labels: IntArray, part: float, seed: int) -> IntArray:
    """That share of every class, rounded, and at least one row of it.

    Args:
        labels: ``(rows,)`` classes.
        part: Between 0 and 1.
        seed: Of the draw.

    Returns:
        Rows, ascending.
    """
    return _drawn(labels, seed, lambda label, size: _part_of(part, size))


def held_out(labels: IntArray, part: float, seed: int) -> tuple[IntArray, IntArray]:
    """A share of every class, and the rest, which keeps a row of each: it could not know the class otherwise.

    Args:
        labels: ``(rows,)`` classes.
        part: Between 0 and 1.
        seed: Of the draw.

    Returns:
        Rows that are held out, and rows that are not, both ascending.
    """
    held = _drawn(labels, seed, lambda label, size: min(size - 1, _part_of(part, size)))
    return held, np.setdiff1d(np.arange(len(labels)), held)


def long_tailed(labels: IntArray, ratio: float, seed: int) -> IntArray:
    """Thin the classes out along an exponential: from all rows of the largest class down to 1 / ``ratio`` of them.

    Class c of C, largest first (ties by class), keeps ``largest · ratio^(−c / (C − 1))`` rows, at least one, or
    what it has (the profile of Cui et al. 2019).

    Args:
        labels: ``(rows,)`` classes.
        ratio: Largest class over smallest.
        seed: Of the draw.

    Returns:
        Rows, ascending.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    order = classes[np.lexsort((classes, -sizes))]
    place = {int(label): c / max(1, len(order) - 1) for c, label in enumerate(order)}
    largest = int(sizes.max(initial=0))

    def keep(label: int, size: int) -> int:
        return max(1, math.floor(largest * float(ratio ** -place[label]) + 0.5))

    return _drawn(labels, seed, keep)


def _part_of(part: float, size: int) -> int:
    return max(1, math.floor(part * size + 0.5))


def _drawn(labels: IntArray, seed: int, count: Callable[[int, int], int]) -> IntArray:
    """The first ``count(class, size)`` rows of each class's own permutation."""
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = numpy_stream(seed, "subset", int(label)).permutation(len(members))
        rows.append(members[order[: count(int(label), len(members))]])
    return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)
