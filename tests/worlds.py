"""Small datasets whose right answers are known."""

from __future__ import annotations

import numpy as np
import polars as pl

from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions


def checkerboard(n_users: int = 24, n_items: int = 20, hold: int = 1, seed: int = 0) -> Dataset:
    """Even users like all even items, odd users all odd ones; ``hold`` likes of each user go to test."""
    rng = np.random.default_rng(seed)
    users, items, test_users, test_items = [], [], [], []
    for user in range(n_users):
        liked = rng.permutation(np.arange(user % 2, n_items, 2))
        users += [user] * (len(liked) - hold)
        items += liked[hold:].tolist()
        test_users += [user] * hold
        test_items += liked[:hold].tolist()
    log = lambda u, i: Interactions.from_pairs(  # noqa: E731
        np.array(u, np.int64), np.array(i, np.int64), n_users, n_items
    )
    return Dataset(
        name="checkerboard",
        user_ids=pl.Series([f"u{u}" for u in range(n_users)]),
        item_ids=pl.Series([f"i{i}" for i in range(n_items)]),
        train=log(users, items),
        test=log(test_users, test_items),
    )


def random_log(n_users: int, n_items: int, n_pairs: int, seed: int = 0) -> Interactions:
    """Uniform random pairs, at least one per user."""
    rng = np.random.default_rng(seed)
    users = np.concatenate([np.arange(n_users), rng.integers(n_users, size=n_pairs)])
    items = rng.integers(n_items, size=len(users))
    return Interactions.from_pairs(users, items, n_users, n_items)


def random_views(n_items: int, dims: tuple[int, ...] = (5, 3), seed: int = 0) -> dict[str, FeatureMatrix]:
    """Gaussian rows that know nothing of the clicks; the last item of the last view is absent."""
    rng = np.random.default_rng(seed)
    views = {}
    for place, dim in enumerate(dims):
        present = np.ones(n_items, np.bool_)
        present[-1] = place < len(dims) - 1
        values = rng.standard_normal((n_items, dim)).astype(np.float32) * present[:, None]
        views[f"view{place}"] = FeatureMatrix(values, present)
    return views
