"""From raw pairs to a dataset: id order, merged duplicates, minimum value, k-core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.formats.base import ReadOptions
from firstlight.data.interactions import Interactions
from firstlight.data.split import hash_parts

PARTS = ("train", "valid", "test")
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RawPairs:
    """The pairs of one part as a file gave them, repeats included.

    Attributes:
        users: ``(n,)`` user rows.
        items: ``(n,)`` item rows.
        times: ``(n,)`` int64 seconds, or None.
        values: ``(n,)`` float32 strengths, or None.
    """

    users: npt.NDArray[np.integer]
    items: npt.NDArray[np.integer]
    times: npt.NDArray[np.int64] | None = None
    values: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class RawLog:
    """Everything a reader found, before cleaning.

    Attributes:
        user_ids: ``(n_users,)`` raw ids as strings, in row order.
        item_ids: ``(n_items,)`` raw ids as strings, in row order.
        parts: Pairs by part name; ``train`` is always there.
        catalogue: Aligned to ``item_ids``.
        given_split: Whether the parts came with the files.
        dropped: reason -> rows already left out.
        notes: What else the reader found odd, a sentence each.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    parts: Mapping[str, RawPairs]
    catalogue: Catalogue = field(default_factory=Catalogue)
    given_split: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def order_ids(ids: pl.Series) -> pl.Series:
    """Sort distinct raw ids: by number where all are integers, else as strings.

    Args:
        ids: Distinct ids, String.

    Returns:
        The same ids, ascending.
    """
    ids = ids.cast(pl.String)
    if len(ids) and ids.str.contains(r"^-?\d{1,18}$").all():
        # the string breaks ties between "7" and "007"
        return pl.DataFrame({"n": ids.cast(pl.Int64), "id": ids}).sort("n", "id")["id"]
    return ids.sort()


def take_items(catalogue: Catalogue, keep: BoolArray) -> Catalogue:
    """The catalogue of the items where ``keep`` ``(n_items,)`` holds."""
    items = catalogue.items.filter(pl.Series(keep)) if catalogue.items.width else catalogue.items
    features = {
        name: FeatureMatrix(matrix.values[keep], matrix.present[keep], matrix.extractor)
        for name, matrix in catalogue.features.items()
    }
    return Catalogue(items, features)


def _compact(part: Interactions, keep_users: BoolArray, keep_items: BoolArray) -> Interactions:
    """Renumber rows after users and items without pairs are removed; order within a user stays."""
    degrees = part.user_degrees[keep_users]
    renumbered = (np.cumsum(keep_items) - 1).astype(np.int32)
    return Interactions(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(degrees)]),
        renumbered[part.items],
        int(keep_items.sum()),
        part.times,
        part.values,
    )


def k_core(parts: Sequence[Interactions], user_min: int, item_min: int) -> list[Interactions]:
    """Drop users and items of too low a degree, counted over all parts, until none is left.

    Args:
        parts: Logs over the same rows.
        user_min: Smallest number of pairs of a user.
        item_min: Smallest number of pairs of an item.

    Returns:
        The parts' remaining pairs, in the same row numbering.
    """
    parts = list(parts)
    while True:
        users = np.asarray(sum(part.user_degrees for part in parts)) >= user_min
        items = np.asarray(sum(part.item_degrees for part in parts)) >= item_min
        masks = [users[part.users] & items[part.items] for part in parts]
        if all(mask.all() for mask in masks):
            return parts
        parts = [part.select(mask) for part, mask in zip(parts, masks, strict=True)]


def _filter(
    parts: dict[str, Interactions], options: ReadOptions, path: Path, dropped: Counter[str]
) -> dict[str, Interactions]:
    """Apply the minimum value and the k-core, and count what they drop."""
    if options.min_value is not None:
        for name, part in parts.items():
            if part.values is None:
                raise InputError(
                    f"--min-value needs values, and the {name} pairs have none",
                    path=path,
                    hint="name the column of ratings or strengths with --value",
                )
            parts[name] = part.select(part.values >= options.min_value)
            dropped[f"value below {options.min_value:g}"] += part.n_pairs - parts[name].n_pairs
    if options.k_core is not None:
        before = sum(part.n_pairs for part in parts.values())
        parts = dict(zip(parts, k_core(list(parts.values()), *options.k_core), strict=True))
        left = sum(part.n_pairs for part in parts.values())
        dropped["outside the {},{}-core".format(*options.k_core)] += before - left
    return parts


def build_dataset(log: RawLog, options: ReadOptions, path: Path, name: str | None = None) -> Dataset:
    """Merge duplicates, apply the minimum value, then the k-core, and freeze the result.

    Values are compared *after* duplicates are merged, since a pair has one value.

    Args:
        log: What the reader found.
        options: What counts as an interaction.
        path: Where it was read, for the name, the provenance and messages.
        name: The dataset's name; the folder's or file's name by default.

    Returns:
        The dataset.

    Raises:
        InputError: A minimum value is asked for, but there are no values.
    """
    dropped: Counter[str] = Counter(log.dropped)
    parts: dict[str, Interactions] = {}
    for part_name in PARTS:
        if part_name not in log.parts:
            continue
        raw = log.parts[part_name]
        part = Interactions.from_pairs(
            raw.users,
            raw.items,
            len(log.user_ids),
            len(log.item_ids),
            raw.times,
            raw.values,
            options.duplicates,
        )
        dropped["duplicate pair"] += len(raw.users) - part.n_pairs
        parts[part_name] = part
    dataset = Dataset(
        name=name or path.resolve().name,
        user_ids=log.user_ids.alias("user"),
        item_ids=log.item_ids.alias("item"),
        train=parts["train"],
        valid=parts.get("valid"),
        test=parts.get("test"),
        catalogue=log.catalogue,
        source=str(path),
        split=SplitInfo("given", None, hash_parts(parts)) if log.given_split else None,
        dropped={reason: count for reason, count in dropped.items() if count},
        notes=log.notes,
    )
    return clean_dataset(dataset, options, path)


def clean_dataset(dataset: Dataset, options: ReadOptions, path: Path) -> Dataset:
    """Apply the minimum value, then the k-core, and remove the rows they leave empty.

    Degrees of the k-core are counted over all parts. Users left without pairs are removed. Items left
    without pairs stay if the catalogue knows them, except under a k-core, which is meant to remove them.

    Args:
        dataset: A dataset without repeated pairs.
        options: ``min_value`` and ``k_core`` are used.
        path: Where it was read, for messages.

    Returns:
        The smaller dataset, or the same object if there is nothing to apply.

    Raises:
        InputError: A minimum value is asked for, but there are no values; or nothing is left.
    """
    if options.min_value is None and options.k_core is None:
        return dataset
    dropped: Counter[str] = Counter(dataset.dropped)
    parts = _filter(dataset.parts, options, path, dropped)
    if not any(part.n_pairs for part in parts.values()):
        raise InputError(
            "no interaction is left under --min-value and --k-core",
            path=path,
            hint=", ".join(f"{count} dropped: {reason}" for reason, count in dropped.items() if count),
        )
    catalogue = dataset.catalogue
    keep_users = np.asarray(sum(part.user_degrees for part in parts.values())) > 0
    keep_items = np.asarray(sum(part.item_degrees for part in parts.values())) > 0
    if options.k_core is None and (catalogue.items.width or catalogue.features):
        keep_items[:] = True
    parts = {name: _compact(part, keep_users, keep_items) for name, part in parts.items()}
    split = dataset.split
    return replace(
        dataset,
        train=parts["train"],
        valid=parts.get("valid"),
        test=parts.get("test"),
        user_ids=dataset.user_ids.filter(pl.Series(keep_users)),
        item_ids=dataset.item_ids.filter(pl.Series(keep_items)),
        catalogue=take_items(catalogue, keep_items),
        split=None if split is None else SplitInfo(split.name, split.seed, hash_parts(parts)),
        dropped={reason: count for reason, count in dropped.items() if count},
    )
