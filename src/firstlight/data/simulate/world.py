"""The truth of the generated world, and the clicks that it gives rise to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstlight.core.seeds import numpy_stream
from firstlight.data.simulate.config import SimulationConfig

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

DAY = 86_400
#: Most user × item cells that are held at once while clicks are drawn.
_CELLS = 1 << 22


@dataclass(frozen=True, eq=False)
class Truth:
    """What the world knows and a model has to guess.

    Attributes:
        user_tastes: ``(n_users, n_topics)`` float32; each row is a distribution over topics.
        item_topics: ``(n_items,)`` int64 main topic, the one that the cover shows.
        item_mixtures: ``(n_items, n_topics)`` float32; each row is a distribution over topics.
        user_vectors: ``(n_users, n_topics + n_styles + n_hidden)`` float32, strengths included.
        item_vectors: ``(n_items, n_topics + n_styles + n_hidden)`` float32.
        n_hidden: How many of the last columns of the vectors no content shows.
        popularity: ``(n_items,)`` float64, sums to 1; appeal apart from taste and age.
        arrived: ``(n_items,)`` int64 seconds since the epoch; may lie before the log begins.
        cut: Seconds since the epoch: test pairs are not older, all others are.
    """

    user_tastes: FloatArray
    item_topics: IntArray
    item_mixtures: FloatArray
    user_vectors: FloatArray
    item_vectors: FloatArray
    n_hidden: int
    popularity: npt.NDArray[np.float64]
    arrived: IntArray
    cut: int

    def affinity(self, users: npt.NDArray[np.integer], *, hidden: bool = True) -> FloatArray:
        """The true log-preference of users for all items, without popularity and age.

        Args:
            users: ``(b,)`` user rows.
            hidden: Whether the part that no content shows counts. Without it, this is the most that a
                model of content could know of an item that nobody clicked.

        Returns:
            ``(b, n_items)`` float32, in nats.
        """
        width = self.user_vectors.shape[1] - (0 if hidden else self.n_hidden)
        return self.user_vectors[users, :width] @ self.item_vectors[:, :width].T


def draw_truth(config: SimulationConfig) -> Truth:
    """Draw users, items, popularity and arrivals."""
    users = numpy_stream(config.seed, "simulate", "users")
    items = numpy_stream(config.seed, "simulate", "items")
    tastes = users.dirichlet(np.full(config.n_topics, config.taste_concentration), config.n_users)
    topics = items.integers(0, config.n_topics, config.n_items)
    beside = items.dirichlet(np.full(config.n_topics, 0.3), config.n_items)
    mixtures = config.mixture_share * beside
    mixtures[np.arange(config.n_items), topics] += 1 - config.mixture_share

    user_parts, item_parts = [config.topic_strength * tastes], [mixtures]
    strengths = ((config.n_styles, config.style_strength), (config.n_hidden, config.hidden_strength))
    for width, strength in strengths:
        # The inner product of two standard normal vectors has variance `width`.
        user_parts.append(strength / np.sqrt(max(width, 1)) * users.standard_normal((config.n_users, width)))
        item_parts.append(items.standard_normal((config.n_items, width)))

    ranks = items.permutation(config.n_items) + 1.0
    popularity = ranks**-config.popularity_exponent
    arrived = _draw_arrivals(config)
    return Truth(
        user_tastes=tastes.astype(np.float32),
        item_topics=topics,
        item_mixtures=mixtures.astype(np.float32),
        user_vectors=np.concatenate(user_parts, axis=1).astype(np.float32),
        item_vectors=np.concatenate(item_parts, axis=1).astype(np.float32),
        n_hidden=config.n_hidden,
        popularity=popularity / popularity.sum(),
        arrived=arrived,
        cut=instant(config, config.test_from),
    )


def instant(config: SimulationConfig, fraction: float) -> int:
    """The second at a fraction of the horizon."""
    return config.start + round(fraction * config.horizon_days * DAY)


def _draw_arrivals(config: SimulationConfig) -> IntArray:
    """``(n_items,)`` seconds: a share after the cut, the others from one lifetime before the log until it."""
    rng = numpy_stream(config.seed, "simulate", "arrivals")
    n_late = round(config.arriving_share * config.n_items)
    late = rng.permutation(config.n_items) < n_late
    cut, end = instant(config, config.test_from), instant(config, 1.0)
    # The last tenth of the test time brings no items: they would have no time to be clicked.
    last = cut + (end - cut) * 9 // 10
    first = config.start - round(config.lifetime_days * DAY)
    return np.where(
        late,
        rng.integers(cut, max(last, cut + 1), config.n_items),
        rng.integers(first, cut, config.n_items),
    ).astype(np.int64)


def draw_counts(config: SimulationConfig) -> IntArray:
    """``(n_users,)`` clicks per user: the fewest plus a geometric number, at most half of the items."""
    rng = numpy_stream(config.seed, "simulate", "activity")
    extra = config.mean_clicks - config.min_clicks
    counts = config.min_clicks + rng.geometric(1 / (extra + 1), config.n_users) - 1
    return np.minimum(counts, config.n_items // 2).astype(np.int64)


def exposure(config: SimulationConfig, truth: Truth) -> npt.NDArray[np.float64]:
    """``(n_items,)`` share of an item's appeal over all time that falls within the log."""
    life = config.lifetime_days * DAY
    begin = np.maximum(truth.arrived, config.start) - truth.arrived
    end = instant(config, 1.0) - truth.arrived
    return np.asarray(np.exp(-begin / life) - np.exp(-end / life))


def draw_clicks(config: SimulationConfig, truth: Truth, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Draw which items each user clicks, without repetition.

    Draws without replacement with probability proportional to weights are the winners of a race of
    independent exponential times divided by the weights; blocks of users bound the memory.

    Returns:
        ``(users, items)``, each ``(n_pairs,)`` int64, ascending by user.
    """
    rng = numpy_stream(config.seed, "simulate", "clicks")
    seen = exposure(config, truth).astype(np.float32)
    popularity = truth.popularity.astype(np.float32)
    block = max(1, _CELLS // config.n_items)
    users, items = [], []
    for start in range(0, config.n_users, block):
        rows = np.arange(start, min(start + block, config.n_users))
        affinity = truth.affinity(rows)
        weights = popularity * np.exp(affinity - affinity.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        weights = ((1 - config.noise_share) * weights + config.noise_share / config.n_items) * seen
        race = rng.standard_exponential(weights.shape, dtype=np.float32) / np.maximum(weights, 1e-30)
        longest = int(counts[rows].max())
        first = np.argpartition(race, longest - 1, axis=1)[:, :longest]
        places = np.argsort(np.take_along_axis(race, first, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(first, places, axis=1)
        taken = np.arange(longest) < counts[rows, None]
        users.append(np.repeat(rows, counts[rows]))
        items.append(order[taken])
    return np.concatenate(users), np.concatenate(items).astype(np.int64)


def draw_times(config: SimulationConfig, truth: Truth, items: IntArray) -> IntArray:
    """``(n_pairs,)`` seconds of clicks: density falling as exp(-age / λ) between arrival and the end."""
    rng = numpy_stream(config.seed, "simulate", "times")
    life = config.lifetime_days * DAY
    begin = np.maximum(truth.arrived, config.start)[items]
    span = instant(config, 1.0) - begin
    # Inverse distribution function of the exponential law truncated to [0, span].
    age = -life * np.log1p(rng.random(len(items)) * np.expm1(-span / life))
    return np.asarray(begin + np.minimum(np.floor(age), span - 1), np.int64)
