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


def list_metrics(
    ids: npt.NDArray[np.integer],
    ks: Sequence[int],
    pool: npt.NDArray[np.bool_] | None,
    n_items: int,
    popularity: npt.NDArray[np.integer] | None,
) -> dict[str, float]:
    """What the lists show of the catalogue.

    ``coverage@k`` is the share of the pool that is in at least one list; ``gini@k`` the Gini index of how
    often each item of the pool is shown (0: all equally, towards 1: always the same few); ``novelty@k`` the
    mean of −log2 of the shown items' share of all training clicks, with one click added to every item so
    that items without clicks count (only with ``popularity``).

    Args:
        ids: ``(n, width)`` item rows, -1 where a list ends early.
        ks: Cut-offs.
        pool: ``(n_items,)`` bool: which items could be shown, or None for all.
        n_items: Number of item rows.
        popularity: ``(n_items,)`` training clicks, or None.

    Returns:
        Metric name with cut-off → value.
    """
    shown = np.zeros(n_items + 1, np.int64)  # place 0 takes the -1s
    size = n_items if pool is None else int(pool.sum())
    if popularity is not None:
        surprise = -np.log2((popularity + 1) / (popularity.sum() + n_items))
    out: dict[str, float] = {}
    done = 0
    counted: dict[int, IntArray] = {}
    for k in sorted(set(ks)):
        shown = shown + np.bincount((ids[:, done:k] + 1).reshape(-1), minlength=n_items + 1)
        counted[k] = shown[1:]
        done = k
    for k in ks:
        exposure = counted[k] if pool is None else counted[k][pool]
        out[f"coverage@{k}"] = float((exposure > 0).sum() / max(1, size))
        out[f"gini@{k}"] = gini(exposure)
        if popularity is not None:
            out[f"novelty@{k}"] = float(counted[k] @ surprise / max(1, counted[k].sum()))
    return out


def gini(amounts: npt.NDArray[np.integer]) -> float:
    """Gini index of non-negative amounts: Σ_i (2i − n − 1) x_(i) / (n Σ x), x ascending; 0 if all are zero."""
    n, total = len(amounts), float(amounts.sum())
    if n == 0 or total == 0:
        return 0.0
    ascending = np.sort(amounts).astype(np.float64)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ascending / (n * total))
