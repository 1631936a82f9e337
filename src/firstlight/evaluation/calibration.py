r"""Cold and warm items in one ranking: what one additive offset (and scale) on all cold scores can do.

With ``a · s + o`` as the score of a cold item, o decides alone how many of the k places go to cold items: the first j
places of a user's cold list stand in the whole list exactly if the j-th cold item beats the (k + 1 − j)-th warm one,

    o > t_j(u),   t_j(u) = w_(k+1−j)(u) − a · c_j(u),

and t_j ascends in j, since w and c are sorted. So two lists of k a user, ranked once, hold the answer for every o: each
t_j is the offset at which one cold item comes in and one warm item goes out. Sorted over all users they give the exact
curve of warm and cold recall, with all of its steps, and its exact maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.data.interactions import Interactions
from firstlight.evaluation.ranking import hit_matrix
from firstlight.evaluation.scorer import Scorer, rank

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_POINTS = 201  # of a curve whose offsets are not given
_ROUNDING = 1e-12  # differences of recall below it are sums in another order


@dataclass(frozen=True, eq=False)
class SplitLists:
    """The best warm and the best cold items of some users, best first; ties go to the smaller item row.

    Attributes:
        users: ``(n,)`` user rows.
        warm_ids: ``(n, k)`` int32, -1 where a list ends early.
        warm_scores: ``(n, k)`` float32, minus infinity there.
        cold_ids: As ``warm_ids``.
        cold_scores: As ``warm_scores``.
    """

    users: IntArray
    warm_ids: npt.NDArray[np.int32]
    warm_scores: npt.NDArray[np.float32]
    cold_ids: npt.NDArray[np.int32]
    cold_scores: npt.NDArray[np.float32]

    def merged(self) -> npt.NDArray[np.int32]:
        """``(n, k)`` item rows: the best of the whole pool."""
        ids = np.concatenate([self.warm_ids, self.cold_ids], axis=1)
        scores = np.concatenate([self.warm_scores, self.cold_scores], axis=1)
        order = np.lexsort((ids, -scores), axis=-1)[:, : self.warm_ids.shape[1]]
        return np.take_along_axis(ids, order, axis=1)


def split_lists(
    scorer: Scorer,
    users: IntArray,
    seen: Sequence[Interactions],
    cold: BoolArray,
    k: int,
    *,
    pool: BoolArray | None = None,
    block: int | None = None,
) -> SplitLists:
    """Rank warm and cold items apart, exactly, block by block.

    Args:
        scorer: What scores.
        users: ``(n,)`` user rows.
        seen: Logs whose pairs are not ranked.
        cold: ``(n_items,)`` bool: the cold items.
        k: Length of both lists.
        pool: ``(n_items,)`` bool: the items that exist at all; every item if None.
        block: Users per block, or None.

    Raises:
        InputError: Shapes do not fit.
        FirstlightError: A score is NaN.
    """
    if cold.shape != (scorer.n_items,) or cold.dtype != np.bool_:
        raise InputError(
            f"cold must be a ({scorer.n_items},) bool mask of the items, got {cold.shape} {cold.dtype}"
        )

    def best(side: BoolArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        ids = np.full((len(users), k), -1, np.int32)
        scores = np.full((len(users), k), -np.inf, np.float32)
        allowed = side if pool is None else side & pool
        if allowed.any():
            for rows, found in rank(scorer, users, k, seen, allowed, block=block):
                ids[rows], scores[rows] = found.ids.cpu().numpy(), found.scores.cpu().numpy()
        return ids, scores

    return SplitLists(users, *best(~cold), *best(cold))


@dataclass(frozen=True, eq=False)
class OffsetCurve:
    """Recall in the whole pool as a function of the offset on cold scores.

    Attributes:
        k: Cut-off.
        scale: What cold scores are multiplied by, before the offset is added.
        offsets: ``(m,)`` ascending.
        warm: ``(m,)`` mean recall@k of warm targets over users who have some; NaN if nobody has.
        cold: ``(m,)`` the same of cold targets.
        harmonic: ``(m,)`` harmonic mean of the two.
    """

    k: int
    scale: float
    offsets: FloatArray
    warm: FloatArray
    cold: FloatArray
    harmonic: FloatArray


@dataclass(frozen=True)
class Calibration:
    """How cold scores are brought beside warm ones: ``scale · score + offset``.

    Attributes:
        scale: Factor of cold scores.
        offset: Added to them.
        k: Cut-off that it was fitted at.
        warm: Recall@k of warm targets in the whole pool under it; NaN if there are none.
        cold: The same of cold targets.
        harmonic: Harmonic mean of the two; NaN where one of them is.
        fitted: False where there was nothing to fit on, and scores stay as they are.
    """

    scale: float
    offset: float
    k: int
    warm: float
    cold: float
    harmonic: float
    fitted: bool


class CalibratedScorer:
    """A scorer whose cold scores are scaled and shifted.

    Args:
        scorer: What scores.
        cold: ``(n_items,)`` bool.
        scale: Factor of cold scores.
        offset: Added to them; with vectors it lives in one more dimension that is one for every user.
    """

    def __init__(self, scorer: Scorer, cold: BoolArray, scale: float, offset: float) -> None:
        self._scorer, self._cold = scorer, torch.from_numpy(np.ascontiguousarray(cold))
        self._scale, self._offset = scale, offset
        self.n_users, self.n_items = scorer.n_users, scorer.n_items

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """The matrices with the offset as their last column, or None."""
        found = self._scorer.vectors()
        if found is None:
            return None
        users, items = found
        cold = self._cold.to(items.device, items.dtype)[:, None]
        scaled = items * (1 + cold * (self._scale - 1))
        return torch.cat([users, users.new_ones(len(users), 1)], 1), torch.cat(
            [scaled, cold * self._offset], 1
        )

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` scores."""
        scores = self._scorer.scores(users)
        return torch.where(self._cold.to(scores.device), scores * self._scale + self._offset, scores)


def harmonic_mean(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Elementwise 2ab / (a + b) of non-negative numbers; 0 where both are."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    total = a + b
    out: FloatArray = 2 * a * b / np.where(total == 0, 1.0, total)
    return out


def offset_curve(
    scorer: Scorer,
    targets: Interactions,
    seen: Sequence[Interactions],
    cold: BoolArray,
    offsets: npt.ArrayLike | None = None,
    k: int = 20,
    *,
    scale: float = 1.0,
    pool: BoolArray | None = None,
    block: int | None = None,
) -> OffsetCurve:
    """Warm and cold recall in the whole pool for a whole grid of offsets, from one ranking.

    Args:
        scorer: What scores.
        targets: Held-out pairs.
        seen: Logs whose pairs are not ranked.
        cold: ``(n_items,)`` bool: the items whose scores move.
        offsets: ``(m,)`` what is added to cold scores; if None, 200 even steps across the range in which the lists
            change, and 0.
        k: Cut-off.
        scale: Factor of cold scores, above 0.
        pool: ``(n_items,)`` bool: the items that exist at all; every item if None.
        block: Users per block, or None.

    Returns:
        The curve, offsets ascending; exact, ties included.

    Raises:
        InputError: Shapes do not fit, the scale is not positive, or there is no target.
    """
    steps = _steps(_Judged.of(scorer, targets, seen, cold, k, pool, block), scale)
    if offsets is None:
        inner = steps.at[np.isfinite(steps.at)]
        low, high = np.quantile(inner, [0.005, 0.995]) if len(inner) else (0.0, 0.0)
        offsets = np.append(np.linspace(float(low), float(high), _POINTS - 1), 0.0)
    chosen = np.unique(np.asarray(offsets, np.float64))
    warm, found = steps.recall(chosen)
    return OffsetCurve(k, scale, chosen, warm, found, harmonic_mean(warm, found))


def fit_offset(
    scorer: Scorer,
    targets: Interactions,
    seen: Sequence[Interactions],
    cold: BoolArray,
    k: int = 20,
    *,
    scales: Sequence[float] = (1.0,),
    slack: float = 0.02,
    pool: BoolArray | None = None,
    block: int | None = None,
) -> Calibration:
    """The offset (and scale) on cold scores that maximises the harmonic mean of warm and cold recall@k.

    The maximum is exact: every stretch of offsets over which no list changes is looked at, and without slack every
    single offset at which scores tie, too. A measured curve is a staircase, and its highest step is where luck helped
    most; so with slack the answer is the middle of the offsets around it that reach ``1 − slack`` of it, which carries
    over to other items better.

    Args:
        scorer: What scores.
        targets: Held-out pairs, of validation; on test this is the oracle (:func:`oracle_offset`).
        seen: Logs whose pairs are not ranked.
        cold: ``(n_items,)`` bool: the items whose scores move.
        k: Cut-off.
        scales: Factors of cold scores to try, above 0; of equal ones the nearest to 1 wins.
        slack: Share of the maximum that the middle may cost; 0 for the maximum itself.
        pool: ``(n_items,)`` bool: the items that exist at all; every item if None.
        block: Users per block, or None.

    Returns:
        The calibration; scale 1 and offset 0, ``fitted`` False, where there are no warm or no cold targets, or none
        of one kind is ever found.

    Raises:
        InputError: Shapes do not fit, or a scale is not positive.
    """
    if targets.n_pairs == 0:
        return Calibration(1.0, 0.0, k, float("nan"), float("nan"), float("nan"), False)
    judged = _Judged.of(scorer, targets, seen, cold, k, pool, block)
    best: Calibration | None = None
    for scale in sorted(scales, key=lambda s: (abs(np.log(s)) if s > 0 else 0.0, s)):
        steps = _steps(judged, scale)
        offset = steps.best_offset(slack)
        if offset is None:
            continue
        found = _calibration(steps, k, scale, offset, True)
        if best is None or found.harmonic > best.harmonic + _ROUNDING:
            best = found
    return best or _calibration(_steps(judged, 1.0), k, 1.0, 0.0, False)


def oracle_offset(
    scorer: Scorer,
    targets: Interactions,
    seen: Sequence[Interactions],
    cold: BoolArray,
    k: int = 20,
    *,
    pool: BoolArray | None = None,
) -> Calibration:
    """The single best offset, chosen with the very targets that it is judged on: a yardstick, never a method."""
    return fit_offset(scorer, targets, seen, cold, k, slack=0.0, pool=pool)


def _calibration(steps: _Steps, k: int, scale: float, offset: float, fitted: bool) -> Calibration:
    warm, cold = (float(values[0]) for values in steps.recall(np.array([offset])))
    return Calibration(float(scale), offset, k, warm, cold, float(harmonic_mean(warm, cold)), fitted)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Split lists and what each place of them is worth.

    ``warm_worth`` and ``cold_worth`` are ``(n, k)``: what a place adds to the mean recall of its kind. ``has_warm``
    and ``has_cold`` tell whether anybody has such targets.
    """

    lists: SplitLists
    warm_worth: FloatArray
    cold_worth: FloatArray
    has_warm: bool
    has_cold: bool

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        targets: Interactions,
        seen: Sequence[Interactions],
        cold: BoolArray,
        k: int,
        pool: BoolArray | None,
        block: int | None,
    ) -> _Judged:
        if targets.n_pairs == 0:
            raise InputError("no user has a target, so there is nothing to evaluate")
        if k < 1:
            raise InputError(f"the cut-off must be at least 1, got {k}")
        users = np.flatnonzero(targets.user_degrees)
        lists = split_lists(scorer, users, seen, cold, k, pool=pool, block=block)
        worth = []
        for ids, kind in ((lists.warm_ids, ~cold), (lists.cold_ids, cold)):
            held = targets.select(kind[targets.items]).user_degrees[users]
            share = np.where(held > 0, 1 / np.maximum(held, 1), 0.0) / max(1, int((held > 0).sum()))
            worth.append(hit_matrix(ids, users, targets) * share[:, None])
        any_cold = bool(cold[targets.items].any())
        any_warm = bool((~cold[targets.items]).any())
        return cls(lists, worth[0], worth[1], any_warm, any_cold)


def _steps(judged: _Judged, scale: float) -> _Steps:
    """All offsets at which a cold item pushes a warm one out and recall changes."""
    if scale <= 0:
        raise InputError(f"a scale of cold scores must be above 0, got {scale}")
    lists = judged.lists
    warm_scores = lists.warm_scores[:, ::-1].astype(np.float64)
    cold_scores = lists.cold_scores.astype(np.float64) * scale
    absent = lists.cold_ids < 0
    at = np.where(absent, np.inf, warm_scores - np.where(absent, 0.0, cold_scores))
    # On equal scores the smaller row comes first, so some cold items are in at the very offset.
    at_once = lists.cold_ids < lists.warm_ids[:, ::-1]
    gain, loss = judged.cold_worth, judged.warm_worth[:, ::-1]
    keep = ((gain > 0) | (loss > 0)) & (at < np.inf)
    order = np.lexsort((~at_once[keep], at[keep]))
    return _Steps(
        at[keep][order],
        at_once[keep][order],
        gain[keep][order],
        loss[keep][order],
        float(judged.warm_worth.sum()),
        judged.has_warm,
        judged.has_cold,
    )


@dataclass(frozen=True, eq=False)
class _Steps:
    """Changes of recall in order of the offset that they happen at."""

    at: FloatArray
    at_once: BoolArray
    gain: FloatArray
    loss: FloatArray
    start: float
    has_warm: bool
    has_cold: bool

    def recall(self, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``(m,)`` warm and cold recall at each offset."""
        sums = [np.zeros(len(offsets)), np.zeros(len(offsets))]
        sides: tuple[tuple[BoolArray, Literal["left", "right"]], ...]
        sides = ((self.at_once, "right"), (~self.at_once, "left"))
        for chosen, side in sides:
            done = np.searchsorted(self.at[chosen], offsets, side=side)
            for total, change in zip(sums, (self.loss[chosen], self.gain[chosen]), strict=True):
                total += np.r_[0.0, np.cumsum(change)][done]
        return self._known(self.start - sums[0], sums[1])

    def _known(self, warm: FloatArray, cold: FloatArray) -> tuple[FloatArray, FloatArray]:
        warm = np.maximum(warm, 0) if self.has_warm else np.full_like(warm, np.nan)
        return warm, cold if self.has_cold else np.full_like(cold, np.nan)

    def best_offset(self, slack: float) -> float | None:
        """The middle of the stretch around the maximum; None where the harmonic mean is zero or unknown."""
        # Between two neighbouring offsets of ``bounds`` nothing changes.
        bounds = np.unique(self.at[np.isfinite(self.at)])
        done = np.searchsorted(self.at, np.r_[bounds, np.inf], side="left")
        warm = self.start - np.r_[0.0, np.cumsum(self.loss)][done]
        values = harmonic_mean(*self._known(warm, np.r_[0.0, np.cumsum(self.gain)][done]))
        values = np.round(values / _ROUNDING) * _ROUNDING
        if not np.isfinite(values).all():
            return None
        top = int(values.argmax())
        if slack == 0 and len(bounds):
            # Where scores tie, some cold items may be in and others not: a value that holds at that offset alone.
            points = np.round(harmonic_mean(*self.recall(bounds)) / _ROUNDING) * _ROUNDING
            if points.max() > values[top]:
                return float(bounds[points.argmax()])
        if values[top] <= 0:
            return None
        below = np.flatnonzero(values < (1 - slack) * values[top])
        place = int(np.searchsorted(below, top))
        first = int(below[place - 1]) + 1 if place else 0
        last = int(below[place]) - 1 if place < len(below) else len(bounds)
        return _middle(bounds, first, last)


def _middle(bounds: FloatArray, first: int, last: int) -> float:
    """The middle of the pieces ``first … last`` of the line cut at ``bounds``; 0 for the whole line.

    Endless pieces reach a hundredth of the range beyond the outermost bound.
    """
    if first == 0 and last == len(bounds):
        return 0.0
    reach = 0.01 * float(bounds[-1] - bounds[0]) or 1.0
    low = bounds[0] - reach if first == 0 else bounds[first - 1]
    high = bounds[-1] + reach if last == len(bounds) else bounds[last]
    return float((low + high) / 2)
