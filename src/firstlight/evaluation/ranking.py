"""Exact full-ranking evaluation: every user against every item of the pool, nothing sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.interactions import Interactions
from firstlight.evaluation.groups import (
    ItemGroups,
    click_groups,
    group_recalls,
    group_table,
    popularity_groups,
)
from firstlight.evaluation.metrics import exposure_counts, list_metrics, user_metrics
from firstlight.evaluation.scorer import Scorer, rank
from firstlight.evaluation.significance import bootstrap_intervals

IntArray = npt.NDArray[np.int64]

_BITMAP_BYTES = 16 << 20


def metric_table(metrics: Mapping[str, float]) -> pl.DataFrame:
    """Metrics as a table: ``metric``, then one column a cut-off (``@10``), ascending; null where there is none."""
    names = list(dict.fromkeys(name.partition("@")[0] for name in metrics))
    cuts = sorted({int(name.partition("@")[2]) for name in metrics if "@" in name})
    columns = {f"@{k}": [metrics.get(f"{name}@{k}") for name in names] for k in cuts}
    return pl.DataFrame({"metric": names, **columns})


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
        metrics: ``"recall@20"`` and so on → mean over users, or value over all lists.
        per_user: One row per evaluated user: ``user`` (row), ``n_targets``, then every per-user metric.
        groups: Grouping name → table of recall and exposure by item group.
        unreachable: Target pairs that could not be recommended, because the item is outside the pool or
            among the user's seen items. They count as missed.
        seed: Seed of the bootstrap.
        click_recalls: ``(users, groups, cut-offs)`` recall of the grouping ``clicks``, NaN where a user has no target
            in the group; None without that grouping.
    """

    metrics: dict[str, float]
    per_user: pl.DataFrame
    groups: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    unreachable: int = 0
    seed: int = 0
    click_recalls: npt.NDArray[np.float32] | None = None

    @property
    def n_users(self) -> int:
        """Number of users evaluated (those with at least one target)."""
        return self.per_user.height

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over users, for every per-user metric; computed on first use."""
        names = self.per_user.columns[2:]
        table = self.per_user.select(names).to_numpy()
        low, high = bootstrap_intervals(table, self.seed)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def evaluate_ranking(
    scorer: Scorer,
    targets: Interactions,
    seen: Sequence[Interactions] = (),
    ks: Sequence[int] = (10, 20, 50),
    *,
    pool: npt.NDArray[np.bool_] | None = None,
    popularity: npt.NDArray[np.integer] | None = None,
    groups: Mapping[str, ItemGroups] | None = None,
    seed: int = 0,
    block: int | None = None,
) -> Evaluation:
    """Rank every user who has targets, once, and compute all metrics at all cut-offs.

    Args:
        scorer: What scores.
        targets: Held-out pairs; users without any are left out of the means.
        seen: Logs whose pairs are not ranked: train, and for the test stage validation too.
        ks: Cut-offs, each at least 1.
        pool: ``(n_items,)`` bool: which items are ranked; all if None.
        popularity: ``(n_items,)`` training clicks. Gives ``novelty@k`` and the groupings ``popularity``
            (ten equal groups) and ``clicks`` (0, 1-5, 6-20, 21-100, more).
        groups: Further groupings to report.
        seed: Seed of the bootstrap intervals.
        block: Users per block, or None.

    Returns:
        Means, per-user values and group tables.

    Raises:
        InputError: There is nothing to evaluate, or shapes do not fit.
        FirstlightError: A score is NaN.
    """
    users = np.flatnonzero(targets.user_degrees)
    check_request(scorer, targets, len(users), ks, popularity)
    ids = np.empty((len(users), max(ks)), np.int32)
    for rows, best in rank(scorer, users, max(ks), seen, pool, block=block):
        ids[rows] = best.ids.cpu().numpy()
    return evaluate_lists(
        ids, users, targets, ks, seen=seen, pool=pool, popularity=popularity, groups=groups, seed=seed
    )


def evaluate_lists(
    ids: npt.NDArray[np.integer],
    users: IntArray,
    targets: Interactions,
    ks: Sequence[int],
    *,
    seen: Sequence[Interactions] = (),
    pool: npt.NDArray[np.bool_] | None = None,
    popularity: npt.NDArray[np.integer] | None = None,
    groups: Mapping[str, ItemGroups] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compute all metrics of ready-made lists.

    Args:
        ids: ``(n, width)`` item rows, best first, no repeats within a row, -1 where a list ends early.
        users: ``(n,)`` user row of each list; each must have targets.
        targets: Held-out pairs.
        ks: Cut-offs, at most ``width``.
        seen: Logs that were not to be ranked; only to count unreachable targets.
        pool: Items that could be listed, or None for all.
        popularity: ``(n_items,)`` training clicks, or None.
        groups: Further groupings to report.
        seed: Seed of the bootstrap intervals.

    Returns:
        See :class:`Evaluation`.
    """
    hits = hit_matrix(ids, users, targets)
    n_targets = targets.user_degrees[users]
    per_user = user_metrics(hits, n_targets, ks)
    metrics = {name: float(values.mean()) for name, values in per_user.items()}
    exposure = exposure_counts(ids, ks, targets.n_items)
    metrics |= list_metrics(exposure, pool, popularity)
    tables, by_clicks = {}, None
    groupings = dict(groups or {})
    if popularity is not None:
        groupings = {
            "popularity": popularity_groups(popularity),
            "clicks": click_groups(popularity),
            **groupings,
        }
    if groupings:
        owners, items = _pairs(users, targets)
        tables = {
            name: group_table(grouping, ids, hits, owners, items, exposure)
            for name, grouping in groupings.items()
        }
        if popularity is not None:
            by_clicks = group_recalls(groupings["clicks"], ids, hits, owners, items, ks)
    return Evaluation(
        metrics=metrics,
        per_user=pl.DataFrame({"user": users, "n_targets": n_targets, **per_user}),
        groups=tables,
        unreachable=_unreachable(targets, seen, pool),
        seed=seed,
        click_recalls=by_clicks,
    )


def hit_matrix(ids: npt.NDArray[np.integer], users: IntArray, targets: Interactions) -> npt.NDArray[np.bool_]:
    """Whether each listed item is a target of its user.

    Args:
        ids: ``(n, width)`` item rows, -1 for none.
        users: ``(n,)`` user row of each list.
        targets: Target pairs.

    Returns:
        ``(n, width)`` bool.
    """
    n, width = ids.shape
    columns = targets.n_items + 1  # id -1 reads the last column of the row before, which is never set
    hits = np.empty((n, width), np.bool_)
    size = max(1, min(n, _BITMAP_BYTES // columns))
    bitmap = np.zeros(size * columns + 1, np.bool_)
    for start in range(0, n, size):
        chosen = users[start : start + size]
        rows = np.arange(len(chosen))
        owners, items = _pairs(chosen, targets)
        marked = owners * columns + items + 1
        bitmap[marked] = True
        np.take(
            bitmap, rows[:, None] * columns + 1 + ids[start : start + size], out=hits[start : start + size]
        )
        bitmap[marked] = False
    return hits


def _pairs(users: IntArray, log: Interactions) -> tuple[IntArray, npt.NDArray[np.int32]]:
    """All pairs of ``users``: position in ``users``, ascending, and item."""
    counts = log.user_degrees[users]
    owners = np.repeat(np.arange(len(users)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, log.items[log.indptr[users][owners] + within]


def _unreachable(
    targets: Interactions, seen: Sequence[Interactions], pool: npt.NDArray[np.bool_] | None
) -> int:
    """Number of target pairs outside the pool or inside ``seen``."""
    lost = np.zeros(targets.n_pairs, np.bool_) if pool is None else ~pool[targets.items]
    key = targets.users.astype(np.int64) * targets.n_items + targets.items
    for log in seen:
        other = log.users.astype(np.int64) * log.n_items + log.items  # ascending, as every log is
        if len(other):
            place = np.minimum(np.searchsorted(other, key), len(other) - 1)
            lost |= other[place] == key
    return int(lost.sum())


def check_request(
    scorer: Scorer,
    targets: Interactions,
    n_targets: int,
    ks: Sequence[int],
    popularity: npt.NDArray[np.integer] | None,
) -> None:
    """Refuse what cannot be evaluated.

    Args:
        scorer: What scores.
        targets: Held-out pairs.
        n_targets: How many of them, or of their users, count.
        ks: Cut-offs.
        popularity: ``(n_items,)`` clicks in training, or None.

    Raises:
        InputError: The shapes do not fit, nothing is to be found, or the cut-offs are none.
    """
    if (targets.n_users, targets.n_items) != (scorer.n_users, scorer.n_items):
        raise InputError(
            f"the model scores {scorer.n_users} users × {scorer.n_items} items, the targets have "
            f"{targets.n_users} × {targets.n_items}",
            hint="evaluate a model on the dataset that it was trained on",
        )
    if n_targets == 0:
        raise InputError(
            "no user has a target, so there is nothing to evaluate",
            hint="evaluation needs a part with held-out pairs: split the dataset first",
        )
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise InputError(f"cut-offs must be distinct numbers of at least 1, got {list(ks)}")
    if popularity is not None and popularity.shape != (targets.n_items,):
        raise InputError(f"popularity must hold {targets.n_items} numbers, got {popularity.shape}")
