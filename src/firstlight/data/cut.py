"""A dataset before its newest items arrive, and these items: what adding items to a trained model is tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.folder import write_dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import hash_parts

#: Names of the two datasets in the folder that :func:`write_cut` fills.
KNOWN, NEW = "known", "new"


def cut_dataset(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Part a dataset into what was there before the test part, and the items that only the test part knows.

    These are the items with the role ``cold-test``, which the splits ``time`` and ``cold-items`` give out.

    Args:
        dataset: A split dataset.

    Returns:
        The dataset without these items and without the clicks on them; and a dataset of these items alone, without
        users and clicks.

    Raises:
        InputError: No item has that role, or every one has it.
    """
    items = dataset.catalogue.items
    arrived = (
        (items["role"] == "cold-test").fill_null(False).to_numpy()
        if "role" in items.columns
        else np.zeros(dataset.n_items, np.bool_)
    )
    if not arrived.any() or arrived.all():
        raise InputError(
            "no item of this dataset is new at the test" if not arrived.any() else "every item is new at the test",
            path=dataset.source or None,
            hint="split it with --by time or --by cold-items",
        )  # fmt: skip
    rows, later = np.flatnonzero(~arrived), np.flatnonzero(arrived)
    parts = {name: on_rows(part, rows, len(rows)) for name, part in dataset.parts.items()}
    split = dataset.split
    known = Dataset(
        name=f"{dataset.name}-{KNOWN}",
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids.gather(rows),
        train=parts["train"],
        valid=parts.get("valid"),
        test=parts.get("test"),
        catalogue=_rows_of(dataset.catalogue, rows),
        source=dataset.source,
        split=None if split is None else SplitInfo(split.name, split.seed, hash_parts(parts)),
        notes=dataset.notes,
    )
    new = Dataset(
        name=f"{dataset.name}-{NEW}",
        user_ids=pl.Series("user", [], pl.String),
        item_ids=dataset.item_ids.gather(later),
        train=Interactions.empty(0, len(later)),
        catalogue=_rows_of(dataset.catalogue, later),
        source=dataset.source,
    )
    return known, new


def write_cut(known: Dataset, new: Dataset, out: Path) -> None:
    """Write both as dataset folders, ``OUT/known`` and ``OUT/new``; the latter comes last.

    Raises:
        InputError: One of them is there already.
    """
    write_dataset(known, out / KNOWN)
    write_dataset(new, out / NEW)


def on_rows(log: Interactions, rows: npt.NDArray[np.int64], n_items: int) -> Interactions:
    """``log`` over other item rows: old row ``rows[i]`` becomes ``i``; pairs on other items are left out."""
    place = np.full(log.n_items, -1)
    place[rows] = np.arange(len(rows))
    kept = log.select(place[log.items] >= 0)
    moved = place[kept.items]
    return Interactions.from_pairs(kept.users, moved, log.n_users, n_items, kept.times, kept.values)


def _rows_of(catalogue: Catalogue, rows: npt.NDArray[np.int64]) -> Catalogue:
    features = {
        name: FeatureMatrix(matrix.values[rows], matrix.present[rows], matrix.extractor)
        for name, matrix in catalogue.features.items()
    }
    return Catalogue(catalogue.items[rows], features)
