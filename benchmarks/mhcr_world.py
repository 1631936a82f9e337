"""A generated world of the size and degrees of MicroLens-100K, for the speed of MHCR: clicks, split, views, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.interactions import Interactions
from firstlight.models.base import Batch
from firstlight.training.neighbours import NeighbourCache

USERS, ITEMS, CLICKS, MOST = 100_000, 19_738, 719_405, 218
#: View → width, mean and standard deviation of the rows' norms.
VIEWS = {"image": (768, 25.85, 0.39), "text": (384, 1.0, 0.0), "video": (1024, 29.42, 2.89)}
#: Pairs, or users, of a step.
BATCH = 2048


def generate(scale: float, folder: Path) -> None:
    """Write clicks, split and features of the world to ``folder``."""
    rng = np.random.default_rng(0)
    n_users, n_items = round(USERS * scale), round(ITEMS * scale)
    users, items = clicks(n_users, n_items, round(CLICKS * scale), rng)
    train = training_share(users, n_users, rng)
    np.savez(folder / "clicks.npz", users=users, items=items, train=train, shape=(n_users, n_items))
    for name, (width, mean, spread) in VIEWS.items():
        values = rng.standard_normal((n_items, width), np.float32)
        norms = np.linalg.norm(values, axis=1)
        values *= (rng.normal(mean, spread, n_items) / norms).astype(np.float32)[:, None]
        np.save(folder / f"{name}.npy", values)


def clicks(n_users: int, n_items: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``n`` distinct pairs: at least 5 a user (median 6, most 218), at least one an item, popular items often."""
    degrees = 5 + np.minimum(np.floor(np.exp(rng.normal(0.5, 1.0, n_users))), MOST - 5).astype(np.int64)
    degrees[degrees.argmax()] = MOST
    while (missing := n - degrees.sum()) != 0:
        fit = np.flatnonzero(degrees > 6 if missing < 0 else (degrees > 5) & (degrees < MOST - 1))
        fit = fit[degrees[fit] < MOST]
        degrees[rng.choice(fit, min(abs(missing), len(fit)), replace=False)] += np.sign(missing)
    users = np.repeat(np.arange(n_users), degrees)
    popularity = (np.arange(n_items) + 20.0) ** -0.8
    items = rng.choice(n_items, n, p=popularity / popularity.sum())
    sure = rng.choice(n, n_items, replace=False)
    items[sure] = rng.permutation(n_items)
    fixed = np.zeros(n, np.bool_)
    fixed[sure] = True
    while True:  # draw again what a user clicked twice
        order = np.lexsort((~fixed, users * n_items + items))
        key = (users * n_items + items)[order]
        again = order[1:][key[1:] == key[:-1]]
        again = again[~fixed[again]]
        if not len(again):
            return users, items
        items[again] = rng.choice(n_items, len(again), p=popularity / popularity.sum())


def training_share(users: np.ndarray, n_users: int, rng: np.random.Generator) -> np.ndarray:
    """Split as released: 0 train, 1 validation, 2 test, per user at random (users with ten clicks: a fifth out)."""
    degrees = np.bincount(users, minlength=n_users)
    held = np.where(degrees < 10, 2, degrees // 5)
    order = np.lexsort((rng.random(len(users)), users))
    within = np.arange(len(users)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    part = np.zeros(len(users), np.int64)
    part[order] = np.where(within < held[users] // 2, 1, np.where(within < held[users], 2, 0))
    return part


class World:
    """The generated data, read back."""

    def __init__(self, folder: Path) -> None:
        stored = np.load(folder / "clicks.npz", allow_pickle=False)
        n_users, n_items = (int(n) for n in stored["shape"])
        parts = [stored["train"] == part for part in (0, 1, 2)]
        self.train, _, self.test = (
            Interactions.from_pairs(stored["users"][at], stored["items"][at], n_users, n_items)
            for at in parts
        )
        self.folder = folder
        self.warm = np.flatnonzero(self.train.item_degrees)
        self.known = self.train.users.astype(np.int64) * n_items + self.train.items

    def views(self, standardised: bool) -> dict[str, FeatureMatrix]:
        """Raw, or centred and of unit norm."""
        found = {}
        for name in VIEWS:
            values = np.load(self.folder / f"{name}.npy", allow_pickle=False)
            if standardised:
                values -= values.mean(axis=0)
                values /= np.linalg.norm(values, axis=1, keepdims=True)
            found[name] = FeatureMatrix(values, np.ones(len(values), np.bool_))
        return found

    def batch(self, step: int) -> Batch:
        """A step's pairs, each with a warm item that its user did not click."""
        rng = np.random.default_rng([1, step])
        rows = rng.choice(self.train.n_pairs, min(BATCH, self.train.n_pairs), replace=False)
        users, positives = self.train.users[rows].astype(np.int64), self.train.items[rows].astype(np.int64)
        negatives = rng.choice(self.warm, len(rows))
        while (bad := np.isin(users * self.train.n_items + negatives, self.known)).any():
            negatives[bad] = rng.choice(self.warm, int(bad.sum()))
        return Batch(*(torch.from_numpy(part) for part in (users, positives, negatives)))

    def users(self, step: int) -> Tensor:
        """A step's users, for what takes them with all their pairs."""
        active = np.flatnonzero(self.train.user_degrees)
        return torch.from_numpy(
            np.random.default_rng([2, step]).choice(active, min(BATCH, len(active)), replace=False)
        )

    def steps(self, *, by_users: bool) -> int:
        """Steps of an epoch, which shows every training click once: pairs, or users with all their pairs."""
        rows = int((self.train.user_degrees > 0).sum()) if by_users else self.train.n_pairs
        return -(-rows // BATCH)

    @property
    def finder(self) -> NeighbourCache:
        """Neighbours, found by whichever process needs them first."""
        return NeighbourCache(self.folder / "neighbours", worth=0)
