"""What every kind of view is, and what it says when there is nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix

#: Named arrays of a fitted state.
Arrays = Mapping[str, npt.NDArray[np.generic]]

#: How many examples a summary of problems names.
EXAMPLES = 5


class NothingToFitError(Exception):
    """The warm items give a view nothing to go by; the message says why."""


class View(Protocol):
    """One fitted view."""

    kind: ClassVar[str]

    @property
    def dim(self) -> int:
        """Width of the rows."""
        ...

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """Rows of all items of ``catalogue``; an item alone gives the same bits as among others.

        Args:
            catalogue: Raw items; what the view reads may be missing, for some items or altogether.
            n_items: Items in it.
            folder: What relative paths start from.
            problems: Gets one sentence a kind of problem that made items absent.
        """
        ...

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays that :meth:`from_state` needs."""
        ...


def count_items(catalogue: Catalogue) -> int:
    """How many items a catalogue has.

    Raises:
        InputError: The table and the features have different numbers of rows.
    """
    rows = {name: len(matrix.present) for name, matrix in catalogue.features.items()}
    rows |= {f"{name} (values)": len(matrix.values) for name, matrix in catalogue.features.items()}
    if catalogue.items.width:
        rows["item table"] = catalogue.items.height
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in rows.items())
        raise InputError(f"the parts of the catalogue have different numbers of rows ({listed})")
    return next(iter(rows.values()), 0)


def nothing(n_items: int, dim: int, extractor: str) -> FeatureMatrix:
    """A view that is absent for every item."""
    return FeatureMatrix(np.zeros((n_items, dim), np.float32), np.zeros(n_items, np.bool_), extractor)


def summary(
    what: str, failures: Sequence[tuple[int, str]], n_items: int, items: pl.DataFrame, column: str
) -> str:
    """One sentence on items that could not be used, naming the first few.

    Args:
        what: What they are, in the plural.
        failures: Item row and reason.
        n_items: How many were looked at.
        items: The item table; its column ``item``, if there is one, names the items, else their rows (from 0) do.
        column: Where the table has what could not be used; a file is named if the reason does not.
    """
    named = "; ".join(_named(items, column, row, reason) for row, reason in failures[:EXAMPLES])
    more = "; …" if len(failures) > EXAMPLES else ""
    return f"{len(failures)} of {n_items} {what} cannot be used and count as absent ({named}{more})"


def _named(items: pl.DataFrame, column: str, row: int, reason: str) -> str:
    item = f"item {items['item'][row]!r}" if "item" in items.columns else f"row {row}"
    file = items[column][row]
    told = isinstance(file, str) and repr(file) not in reason
    return f"{item}, {file}: {reason}" if told else f"{item}: {reason}"
