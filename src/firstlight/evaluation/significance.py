"""Bootstrap intervals, paired tests over users and over seeds, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstlight.core.errors import InputError
from firstlight.core.seeds import numpy_stream

FloatArray = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 16


def bootstrap_interval(
    values: npt.ArrayLike, seed: int, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: ``(m,)`` one value per user.
        seed: Seed of the resampling.
        n: Number of resamples.
        level: Coverage.

    Returns:
        Lower and upper end.
    """
    low, high = bootstrap_intervals(np.asarray(values, np.float64)[:, None], seed, n, level)
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    table: FloatArray, seed: int, n: int = 1000, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Percentile bootstrap intervals of several means, all on the same resamples of users.

    Args:
        table: ``(users, metrics)``.
        seed: Seed of the resampling.
        n: Number of resamples.
        level: Coverage.

    Returns:
        Lower and upper ends, ``(metrics,)`` each.

    Raises:
        InputError: There are no users, or a value is not finite.
    """
    if len(table) == 0 or not np.isfinite(table).all():
        raise InputError("a bootstrap needs at least one user and finite values")
    if n < 1 or not 0 < level < 1:
        raise InputError(f"a bootstrap needs n >= 1 and a level between 0 and 1, got {n} and {level}")
    users = len(table)
    stream = numpy_stream(seed, "bootstrap")
    means = np.empty((n, table.shape[1]))
    for start in range(0, n, _DRAWS_AT_ONCE):  # counts of a few resamples at a time keep memory flat
        draws = stream.integers(0, users, (min(_DRAWS_AT_ONCE, n - start), users), dtype=np.int32)
        counts = np.stack([np.bincount(draw, minlength=users) for draw in draws]).astype(np.float64)
        means[start : start + len(draws)] = counts @ table / users
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two lists of values.

    Attributes:
        difference: Mean of ``second − first``.
        interval: Interval of that mean.
        p: Two-sided p-value of "the mean difference is zero".
        n: Number of pairs.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    n: int


def paired_t(first: npt.ArrayLike, second: npt.ArrayLike, level: float = 0.95) -> PairedTest:
    """Student's paired t-test with its interval, over users or over seeds.

    With thousands of users the mean is close to normal whatever the metric's shape; with a handful of
    seeds Student's distribution assumes that the differences are.

    Args:
        first: ``(n,)`` values of the reference.
        second: ``(n,)`` values of the other, paired by position.
        level: Coverage of the interval.

    Returns:
        The test. If all differences are equal, p is 1 where they are zero and 0 otherwise.

    Raises:
        InputError: Lengths differ, or there are fewer than two pairs.
    """
    from scipy.stats import t  # deferred: costs a second, and most commands do not need it

    delta = _differences(first, second)
    n = len(delta)
    mean, error = float(delta.mean()), float(delta.std(ddof=1) / np.sqrt(n))
    # An error at the level of rounding means that all differences are equal.
    if error <= 1e-15 * max(1.0, abs(mean)):
        return PairedTest(mean, (mean, mean), 1.0 if mean == 0 else 0.0, n)
    reach = float(t.ppf((1 + level) / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1))
    return PairedTest(mean, (mean - reach, mean + reach), p, n)


def paired_bootstrap(
    first: npt.ArrayLike, second: npt.ArrayLike, seed: int, n: int = 1000, level: float = 0.95
) -> PairedTest:
    """Paired bootstrap: resample users, keep pairs together.

    The p-value is that of the differences shifted to mean zero: how often a resampled mean is at least as
    far from zero as the observed one, counting the observed one itself, so it is never below 1 / (n + 1).

    Args:
        first: ``(m,)`` values of the reference.
        second: ``(m,)`` values of the other, paired by position.
        seed: Seed of the resampling.
        n: Number of resamples.
        level: Coverage of the interval.

    Returns:
        The test, with the percentile interval.

    Raises:
        InputError: Lengths differ, or there are fewer than two pairs.
    """
    delta = _differences(first, second)
    mean = float(delta.mean())
    stream = numpy_stream(seed, "bootstrap")
    means = np.empty(n)
    for i in range(n):
        means[i] = delta[stream.integers(0, len(delta), len(delta), dtype=np.int32)].mean()
    extreme = int((np.abs(means - mean) >= abs(mean) * (1 - 1e-12)).sum())
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return PairedTest(mean, (float(low), float(high)), (extreme + 1) / (n + 1), len(delta))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values for testing several hypotheses.

    Args:
        p: Raw p-values.

    Returns:
        Adjusted p-values in the same order: each may be compared with the level as it is.
    """
    order = np.argsort(np.asarray(p, np.float64), kind="stable")
    adjusted = np.empty(len(p))
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def _differences(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"paired values must have the same length, got {a.shape} and {b.shape}")
    if len(a) < 2:
        raise InputError("a paired test needs at least two pairs", hint="use more users or more seeds")
    delta: FloatArray = b - a
    return delta
