"""Cold-start protocols: warm and cold targets, each in its own pool and in the whole one, and users with few clicks.

An item is *cold* if the log that a model was trained on holds no pair of it. Numbers of cold targets among cold items
alone say how good the content vectors are; numbers in the whole pool say whether a cold item is ever shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.seeds import numpy_stream
from firstlight.data.interactions import Interactions
from firstlight.evaluation.calibration import (
    CalibratedScorer,
    Calibration,
    OffsetCurve,
    fit_offset,
    harmonic_mean,
    offset_curve,
    oracle_offset,
    split_lists,
)
from firstlight.evaluation.ranking import Evaluation, check_request, evaluate_lists, evaluate_ranking
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.evaluation.significance import PairedTest, bootstrap_intervals

__all__ = [
    "PROTOCOLS",
    "CalibratedScorer",
    "Calibration",
    "ColdReport",
    "OffsetCurve",
    "cold_protocols",
    "fit_offset",
    "harmonic_mean",
    "known_clicks_protocol",
    "offset_curve",
    "oracle_offset",
    "paired_harmonic",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: What is looked for / what is ranked.
PROTOCOLS = ("warm/warm", "warm/all", "cold/cold", "cold/all", "all/all")
_METRICS = ("recall", "ndcg")
_DRAWS = 1000
_DRAWS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class ColdReport:
    """One ranking under all cold-start protocols.

    Attributes:
        protocols: A name of :data:`PROTOCOLS` → its evaluation; left out where it has no target.
        pairs: The same names → number of target pairs.
        n_warm: Warm items in the pool.
        n_cold: Cold items in the pool.
        ks: Cut-offs.
        groups: Recall by number of training clicks (0, 1-5, 6-20, 21-100, more), all targets in the whole pool; None
            if the clicks were not given.
        seed: Seed of the bootstrap.
    """

    protocols: dict[str, Evaluation]
    pairs: dict[str, int]
    n_warm: int
    n_cold: int
    ks: tuple[int, ...]
    groups: pl.DataFrame | None
    seed: int = 0

    @property
    def harmonic(self) -> dict[str, float]:
        """``recall@k`` and ``ndcg@k`` → harmonic mean of warm and cold targets in the whole pool.

        Empty where one of them has no target.
        """
        if not {"warm/all", "cold/all"} <= self.protocols.keys():
            return {}
        warm, cold = (self.protocols[name].metrics for name in ("warm/all", "cold/all"))
        return {name: float(harmonic_mean(warm[name], cold[name])) for name in self._names}

    @cached_property
    def harmonic_intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of :attr:`harmonic` over users with any target."""
        if not self.harmonic:
            return {}
        means = _resampled(np.stack([self._pairs_of(name) for name in self._names]), self.seed)
        low, high = np.nanquantile(harmonic_mean(means[..., 0], means[..., 1]), [0.025, 0.975], axis=1)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self._names)}

    @cached_property
    def group_intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Group of :attr:`groups` → ``recall@k`` → 95 % bootstrap interval over users with targets in the group."""
        recalls, found = self.protocols["all/all"].click_recalls, {}
        if recalls is None or self.groups is None:
            return {}
        for at, group in enumerate(self.groups["group"]):
            values = recalls[~np.isnan(recalls[:, at, 0]), at].astype(np.float64)
            if len(values):
                ends = bootstrap_intervals(values, self.seed)
                spans = [(float(low), float(high)) for low, high in zip(*ends, strict=True)]
                found[group] = dict(zip((f"recall@{k}" for k in self.ks), spans, strict=True))
        return found

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """``user``, then recall and NDCG under each protocol (``cold/all recall@20``); null without such targets."""
        table = pl.DataFrame({"user": self.protocols["all/all"].per_user["user"]})
        for protocol, found in self.protocols.items():
            columns = [pl.col(name).alias(f"{protocol} {name}") for name in self._names]
            own = found.per_user.select("user", *columns)
            table = table.join(own, on="user", how="left", maintain_order="left")
        return table

    def table(self) -> list[dict[str, Any]]:
        """One row a protocol: ``targets``, ``pool``, ``users``, ``pairs``, recall and NDCG; the harmonic mean last."""
        rows: list[dict[str, Any]] = []
        for protocol, found in self.protocols.items():
            targets, _, pool = protocol.partition("/")
            head = {"targets": targets, "pool": pool, "users": found.n_users, "pairs": self.pairs[protocol]}
            rows.append(head | {name: found.metrics[name] for name in self._names})
        if self.harmonic:
            head = {"targets": "harmonic mean of warm and cold", "pool": "all", "users": None, "pairs": None}
            rows.append(head | self.harmonic)
        return rows

    @property
    def _names(self) -> list[str]:
        return [f"{metric}@{k}" for metric in _METRICS for k in self.ks]

    def _pairs_of(self, name: str) -> FloatArray:
        """``(users, 2)`` warm and cold values of one metric, NaN where a user has no such targets."""
        columns = [f"{protocol} {name}" for protocol in ("warm/all", "cold/all")]
        values: FloatArray = self.per_user.select(pl.col(columns).fill_null(float("nan"))).to_numpy()
        return values


def cold_protocols(
    scorer: Scorer,
    targets: Interactions,
    seen: Sequence[Interactions],
    cold: BoolArray,
    ks: Sequence[int] = (10, 20, 50),
    *,
    popularity: npt.NDArray[np.integer] | None = None,
    pool: BoolArray | None = None,
    seed: int = 0,
    block: int | None = None,
) -> ColdReport:
    """Evaluate warm and cold targets apart, each among its own kind and among all items.

    Warm and cold items are ranked once each; the whole pool is the merge of the two lists, which is exact.

    Args:
        scorer: What scores.
        targets: Held-out pairs, warm and cold.
        seen: Logs whose pairs are not ranked.
        cold: ``(n_items,)`` bool: the items that training never saw.
        ks: Cut-offs.
        popularity: ``(n_items,)`` training clicks, for the groups and for novelty.
        pool: ``(n_items,)`` bool: the items that exist at all, such as all but another part's cold items; every item
            if None.
        seed: Seed of the bootstrap intervals.
        block: Users per block, or None.

    Returns:
        The report; protocols without a target are left out of it.

    Raises:
        InputError: There is nothing to evaluate, or shapes do not fit.
        FirstlightError: A score is NaN.
    """
    check_request(scorer, targets, targets.n_pairs, ks, popularity)
    users = np.flatnonzero(targets.user_degrees)
    lists = split_lists(scorer, users, seen, cold, max(ks), pool=pool, block=block)
    ids = {"warm": lists.warm_ids, "cold": lists.cold_ids, "all": lists.merged()}
    kinds = {"warm": ~cold, "cold": cold, "all": np.ones(len(cold), np.bool_)}
    found: dict[str, Evaluation] = {}
    pairs: dict[str, int] = {}
    for protocol in PROTOCOLS:
        of, _, among = protocol.partition("/")
        wanted = targets.select(kinds[of][targets.items])
        has = wanted.user_degrees[users] > 0
        if not has.any():
            continue
        pairs[protocol] = wanted.n_pairs
        found[protocol] = evaluate_lists(
            ids[among][has],
            users[has],
            wanted,
            ks,
            seen=seen,
            pool=kinds[among] if pool is None else kinds[among] & pool,
            popularity=popularity,
            seed=seed,
        )
    inside = np.ones(len(cold), np.bool_) if pool is None else pool
    groups = None if popularity is None else found["all/all"].groups["clicks"]
    n_cold = int((inside & cold).sum())
    return ColdReport(found, pairs, int(inside.sum()) - n_cold, n_cold, tuple(ks), groups, seed)


def known_clicks_protocol(
    encode_users: Callable[[Interactions], Tensor],
    item_vectors: Tensor,
    histories: Interactions,
    ks: Sequence[int] = (10, 20, 50),
    counts: Sequence[int] = (1, 2, 5, 10),
    *,
    pool: BoolArray | None = None,
    seed: int = 0,
) -> dict[int, Evaluation]:
    """How well users are served that training never saw, by how many of their clicks are known.

    Of each user n clicks are shown, and those beyond the first ``max(counts)`` of a random order are looked for: the
    same users, the same targets and the same items ranked for every n (the first ``max(counts)`` clicks never are), so
    that rows differ only in what is known. The clicks shown for a small n are among those for a larger one.

    Args:
        encode_users: Log of known clicks ``(n, n_items)`` → ``(n, dim)`` vectors.
        item_vectors: ``(n_items, dim)`` in the same space.
        histories: All clicks of the new users, over the model's item rows.
        ks: Cut-offs.
        counts: Numbers of known clicks, each at least 1.
        pool: ``(n_items,)`` bool: the items that are ranked; all if None.
        seed: Seed of the choice of clicks, and of the bootstrap.

    Returns:
        n → evaluation; its users are rows of ``histories``.

    Raises:
        InputError: A count is below 1, or no user has more than ``max(counts)`` clicks.
    """
    if not counts or min(counts) < 1:
        raise InputError(f"numbers of known clicks must be at least 1, got {list(counts)}")
    enough = histories.user_degrees > max(counts)
    if not enough.any():
        raise InputError(
            f"no new user has more than {max(counts)} clicks",
            hint="give smaller numbers of known clicks, or more users",
        )
    log = histories.select(enough[histories.users])
    order = np.lexsort((numpy_stream(seed, "known-clicks").random(log.n_pairs), log.users))
    place = np.empty(log.n_pairs, np.int64)  # of each click in its user's random order
    place[order] = np.arange(log.n_pairs) - log.indptr[:-1][log.users]
    shown, hidden = log.select(place < max(counts)), log.select(place >= max(counts))
    out = {}
    for count in counts:
        scorer = VectorScorer(encode_users(log.select(place < count)), item_vectors)
        out[count] = evaluate_ranking(scorer, hidden, [shown], ks, pool=pool, seed=seed)
    return out


def paired_harmonic(
    first: FloatArray, second: FloatArray, seed: int = 0, n: int = _DRAWS, level: float = 0.95
) -> PairedTest:
    """Paired bootstrap of the difference of two harmonic means of warm and cold values.

    A harmonic mean is not a mean over users, so users are resampled and both harmonic means are taken anew.

    Args:
        first: ``(users, 2)`` warm and cold values of the reference; NaN where a user has no such targets.
        second: The same of the other, paired by row.
        seed: Seed of the resampling.
        n: Number of resamples.
        level: Coverage of the interval.

    Returns:
        The test of ``second − first``, with the percentile interval; its ``p`` is at least 1 / (n + 1).

    Raises:
        InputError: Shapes or the users with targets differ, or one kind of target is missing altogether.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] != 2:
        raise InputError(f"paired values must both be (users, 2), got {first.shape} and {second.shape}")
    if (np.isnan(first) != np.isnan(second)).any():
        raise InputError("paired values must have targets for the same users")
    if len(first) < 2 or np.isnan(first).all(axis=0).any():
        raise InputError("a paired test needs at least two users, and warm and cold targets")
    both = np.stack([first, second])
    means = np.nanmean(both, axis=1)
    observed = harmonic_mean(means[:, 0], means[:, 1])
    difference = float(observed[1] - observed[0])
    drawn = _resampled(both, seed, n)
    values = harmonic_mean(drawn[..., 0], drawn[..., 1])
    deltas = values[1] - values[0]
    extreme = int((np.abs(deltas - difference) >= abs(difference) * (1 - 1e-12)).sum())
    low, high = np.nanquantile(deltas, [(1 - level) / 2, (1 + level) / 2])
    return PairedTest(difference, (float(low), float(high)), (extreme + 1) / (n + 1), len(first))


def _resampled(values: FloatArray, seed: int, n: int = _DRAWS) -> FloatArray:
    """``(tables, n, 2)``: means of resampled users, NaN entries left out; ``values`` is ``(tables, users, 2)``.

    All tables see the same resamples. A resample without any value of a column gives NaN there.
    """
    tables, users, _ = values.shape
    known = ~np.isnan(values)
    flat = np.concatenate([np.where(known, values, 0.0), known], axis=0)  # sums, then counts
    flat = flat.transpose(1, 0, 2).reshape(users, -1)
    drawn = np.empty((n, flat.shape[1]))
    for rows, counts in _draws(users, seed, n):
        drawn[rows] = counts @ flat
    sums = drawn.reshape(n, 2 * tables, 2).transpose(1, 0, 2)
    total, number = sums[:tables], sums[tables:]
    out: FloatArray = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return out


def _draws(users: int, seed: int, n: int) -> Iterator[tuple[slice, FloatArray]]:
    """How often each user is in each resample, a few resamples at a time."""
    stream = numpy_stream(seed, "bootstrap")
    for start in range(0, n, _DRAWS_AT_ONCE):
        stop = min(n, start + _DRAWS_AT_ONCE)
        draws = stream.integers(0, users, (stop - start, users), dtype=np.int32)
        yield (
            slice(start, stop),
            np.stack([np.bincount(draw, minlength=users) for draw in draws]).astype(np.float64),
        )
