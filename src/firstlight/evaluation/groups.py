"""Groups of items by training clicks, and how much of the recall each of them brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ItemGroups:
    """A partition of the items.

    Attributes:
        of_item: ``(n_items,)`` group number of each item, or -1 for items in no group.
        labels: Name of each group, in order.
    """

    of_item: IntArray
    labels: tuple[str, ...]


def popularity_groups(
    degrees: npt.NDArray[np.integer], n_groups: int = 10, equal: Literal["items", "clicks"] = "items"
) -> ItemGroups:
    """Items sorted by training clicks (ties by row) and cut into groups, least popular first.

    Args:
        degrees: ``(n_items,)`` training clicks.
        n_groups: Number of groups.
        equal: What the groups share out evenly: ``items`` (Adap-τ's popularity figure) or ``clicks``
            (SGL's: every group holds about the same number of training clicks).

    Returns:
        The groups; labels tell the range of clicks.
    """
    order = np.argsort(degrees, kind="stable")
    n = len(order)
    if equal == "items":
        number = np.arange(n) * n_groups // max(1, n)
    else:
        # The middle of an item's clicks decides, so one giant item does not empty the groups below it.
        middle = np.cumsum(degrees[order]) - degrees[order] / 2
        number = np.minimum((middle * n_groups / max(1, degrees.sum())).astype(np.int64), n_groups - 1)
    of_item = np.empty(n, np.int64)
    of_item[order] = number
    labels = []
    for group in range(n_groups):
        inside = degrees[of_item == group]
        clicks = f"{inside.min()}-{inside.max()}" if len(inside) else "empty"
        labels.append(f"{group + 1}: {clicks} clicks")
    return ItemGroups(of_item, tuple(labels))


def click_groups(degrees: npt.NDArray[np.integer], bounds: Sequence[int] = (0, 5, 20, 100)) -> ItemGroups:
    """Items grouped by fixed numbers of training clicks: 0, 1-5, 6-20, 21-100, more.

    Args:
        degrees: ``(n_items,)`` training clicks.
        bounds: Ascending last number of clicks of each group but the open last one.

    Returns:
        ``len(bounds) + 1`` groups.
    """
    of_item = np.searchsorted(np.asarray(bounds), degrees, side="left").astype(np.int64)
    lows = [0, *(bound + 1 for bound in bounds)]
    labels = [
        f"{low}" if low == high else f"{low}-{high}" for low, high in zip(lows[:-1], bounds, strict=True)
    ]
    return ItemGroups(of_item, (*labels, f"{lows[-1]}+"))


def group_table(
    groups: ItemGroups,
    ids: npt.NDArray[np.integer],
    hits: npt.NDArray[np.bool_],
    target_users: IntArray,
    target_items: npt.NDArray[np.integer],
    exposure: Mapping[int, IntArray],
) -> pl.DataFrame:
    """Recall and exposure by item group.

    Args:
        groups: The partition.
        ids: ``(n, width)`` recommended item rows, -1 for none.
        hits: ``(n, width)`` whether they are targets.
        target_users: ``(n_pairs,)`` ascending row in ``ids`` of each target pair.
        target_items: ``(n_pairs,)`` item of each target pair.
        exposure: k → ``(n_items,)``: how often each item is shown within the first k places.

    Returns:
        One row per group: ``group`` (label), ``n_items``, ``n_targets`` and for each k

        * ``share_of_recall@k``: mean over all users of (hits on the group's items) / |T|; over the groups
          these sum to ``recall@k``,
        * ``recall@k``: mean over users with targets in the group of the recall of those targets (null if
          there are none),
        * ``exposure@k``: share of all shown places.
    """
    n, width = hits.shape
    count = len(groups.labels)
    target_group = groups.of_item[target_items]
    n_targets = np.bincount(target_users, minlength=n)
    grouped = target_group >= 0
    per_user = np.bincount(target_users[grouped] * count + target_group[grouped], minlength=n * count)
    columns: dict[str, object] = {
        "group": list(groups.labels),
        "n_items": np.bincount(groups.of_item[groups.of_item >= 0], minlength=count),
        "n_targets": per_user.reshape(n, count).sum(0),
    }
    user, rank = np.divmod(np.flatnonzero(hits), width)
    group = groups.of_item[ids[user, rank]]
    user, rank, group = user[group >= 0], rank[group >= 0], group[group >= 0]
    users_with = (per_user.reshape(n, count) > 0).sum(0)
    for k, shown in exposure.items():
        inside = rank < k
        owner, of = user[inside], group[inside]
        within = np.bincount(of, 1 / per_user[owner * count + of], count)
        by_group = np.bincount(groups.of_item + 1, shown, count + 1)[1:]  # place 0: items in no group
        columns[f"share_of_recall@{k}"] = np.bincount(of, 1 / n_targets[owner], count) / max(1, n)
        columns[f"recall@{k}"] = [
            float(w / c) if c else None for w, c in zip(within, users_with, strict=True)
        ]
        columns[f"exposure@{k}"] = by_group / max(1, int(shown.sum()))
    return pl.DataFrame(columns)


def group_recalls(
    groups: ItemGroups,
    ids: npt.NDArray[np.integer],
    hits: npt.NDArray[np.bool_],
    target_users: IntArray,
    target_items: npt.NDArray[np.integer],
    ks: Sequence[int],
) -> npt.NDArray[np.float32]:
    """Recall of each user's targets in each group: what ``recall@k`` of :func:`group_table` is the mean of.

    Args:
        groups: The partition.
        ids: ``(n, width)`` recommended item rows, -1 for none.
        hits: ``(n, width)`` whether they are targets.
        target_users: ``(n_pairs,)`` row in ``ids`` of each target pair.
        target_items: ``(n_pairs,)`` item of each target pair.
        ks: Cut-offs.

    Returns:
        ``(n, groups, len(ks))``; NaN where a user has no target in the group.
    """
    n, count = len(hits), len(groups.labels)
    of_target = groups.of_item[target_items]
    inside = of_target >= 0
    wanted = np.bincount(target_users[inside] * count + of_target[inside], minlength=n * count)
    user, rank = np.divmod(np.flatnonzero(hits), hits.shape[1])
    group = groups.of_item[ids[user, rank]]
    found = np.empty((n, count, len(ks)), np.float32)
    for at, k in enumerate(ks):
        near = (group >= 0) & (rank < k)
        got = np.bincount(user[near] * count + group[near], minlength=n * count)
        shares = np.full(n * count, np.nan)
        np.divide(got, wanted, out=shares, where=wanted > 0)
        found[:, :, at] = shares.reshape(n, count)
    return found
