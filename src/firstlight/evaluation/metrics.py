r"""Ranking metrics of hit matrices: every list at once, every cut-off in one pass.

For a user with target set T and a list of ranks 1, 2, …, where h_r is 1 if the item at rank r is a target:

=============  =====================================================================================
``recall@k``     Σ_{r≤k} h_r / \|T\|
``ndcg@k``       Σ_{r≤k} h_r / log2(r + 1), over the same sum for a list that starts with min(\|T\|, k) hits
``precision@k``  Σ_{r≤k} h_r / k, also where fewer than k items are left to rank
``map@k``        Σ_{r≤k} h_r · precision@r, over min(\|T\|, k): 1 for a perfect list
``map_trec@k``   the same sum over \|T\|, as trec_eval does (AP@k of ir-measures)
``mrr@k``        1 / rank of the first hit, 0 if it lies beyond k
``hit@k``        1 if there is a hit
=============  =====================================================================================

All are averaged over users with at least one target (Adap-τ §4 of the protocol; LightGCN's convention).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Names of the metrics of one user, without the cut-off, in table order.
USER_METRICS = ("recall", "ndcg", "precision", "map", "map_trec", "mrr", "hit")
#: Names of the metrics of all lists together.
LIST_METRICS = ("coverage", "gini", "novelty")


def user_metrics(
    hits: npt.NDArray[np.bool_], n_targets: IntArray, ks: Sequence[int]
) -> dict[str, FloatArray]:
    """All metrics of every user.

    Args:
        hits: ``(n, width)``: whether the item at each rank is a target; ``width`` ≥ max(ks).
        n_targets: ``(n,)`` sizes of the target sets, at least 1.
        ks: Cut-offs.

    Returns:
        ``"recall@20"`` and so on → ``(n,)`` float64, cut-off by cut-off.
    """
    n, width = hits.shape
    user, rank = np.divmod(np.flatnonzero(hits), width)  # rank from 0, in reading order
    before = np.arange(len(user)) - np.searchsorted(user, user)  # hits of the same user above this one
    precision_there = (before + 1) / (rank + 1)
    gain = 1 / np.log2(rank + 2)
    first = np.flatnonzero(before == 0)
    out: dict[str, FloatArray] = {}
    for k in ks:
        inside = rank < k
        owner = user[inside]
        count = np.bincount(owner, minlength=n).astype(np.float64)
        average = np.bincount(owner, precision_there[inside], n)
        reachable = np.minimum(n_targets, k)
        ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))
        reciprocal = np.zeros(n)
        leading = first[rank[first] < k]
        reciprocal[user[leading]] = 1 / (rank[leading] + 1)
        values = (
            count / n_targets,
            np.bincount(owner, gain[inside], n) / ideal[reachable - 1],
            count / k,
            average / reachable,
            average / n_targets,
            reciprocal,
            (count > 0).astype(np.float64),
        )
        out |= {f"{name}@{k}": value for name, value in zip(USER_METRICS, values, strict=True)}
    return out


def exposure_counts(ids: npt.NDArray[np.integer], ks: Sequence[int], n_items: int) -> dict[int, IntArray]:
    """How often each item is within the first k places of a list.

    Args:
        ids: ``(n, width)`` item rows, -1 where a list ends early.
        ks: Cut-offs.
        n_items: Number of item rows.

    Returns:
        k → ``(n_items,)`` int64.
    """
    total = np.zeros(n_items + 1, np.int64)  # place 0 takes the -1s
    counts: dict[int, IntArray] = {}
    done = 0
    for k in sorted(set(ks)):
        places = ids[:, done:k].reshape(-1).astype(np.int64)
        places += 1
        total = total + np.bincount(places, minlength=n_items + 1)
        counts[k] = total[1:]
        done = k
    return counts


def list_metrics(
    exposure: dict[int, IntArray],
    pool: npt.NDArray[np.bool_] | None,
    popularity: npt.NDArray[np.integer] | None,
) -> dict[str, float]:
    """What the lists show of the catalogue.

    ``coverage@k`` is the share of the pool that is in at least one list; ``gini@k`` the Gini index of how
    often each item of the pool is shown (0: all equally, towards 1: always the same few); ``novelty@k`` the
    mean of −log2 of the shown items' share of all training clicks, with one click added to every item so
    that items without clicks count (only with ``popularity``).

    Args:
        exposure: k → ``(n_items,)`` counts, see :func:`exposure_counts`.
        pool: ``(n_items,)`` bool: which items could be shown, or None for all.
        popularity: ``(n_items,)`` training clicks, or None.

    Returns:
        Metric name with cut-off → value.
    """
    out: dict[str, float] = {}
    if popularity is not None:
        surprise = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    for k, shown in exposure.items():
        in_pool = shown if pool is None else shown[pool]
        out[f"coverage@{k}"] = float((in_pool > 0).sum() / max(1, len(in_pool)))
        out[f"gini@{k}"] = gini(in_pool)
        if popularity is not None:
            out[f"novelty@{k}"] = float((shown * surprise).sum() / max(1, shown.sum()))
    return out


def gini(amounts: npt.NDArray[np.integer]) -> float:
    """Gini index of non-negative amounts: Σ_i (2i − n − 1) x_(i) / (n Σ x), x ascending; 0 if all are zero."""
    n, total = len(amounts), float(amounts.sum())
    if n == 0 or total == 0:
        return 0.0
    ascending = np.sort(amounts).astype(np.float64)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ascending).sum() / (n * total))
