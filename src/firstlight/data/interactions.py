"""The immutable user × item log."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from firstlight.core.hashing import hash_arrays

Duplicates = Literal["first", "last", "sum"]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Interactions:
    """User × item pairs in compressed sparse rows; item rows ascend within a user and never repeat.

    Users and items are *rows*, 0-based; :class:`firstlight.data.dataset.Dataset` keeps the raw ids.

    Attributes:
        indptr: ``(n_users + 1,)`` int64; user ``u`` owns pairs ``indptr[u]:indptr[u + 1]``.
        items: ``(n_pairs,)`` int32 item rows.
        n_items: Number of item rows, clicked or not.
        times: ``(n_pairs,)`` int64 seconds since the epoch, or None.
        values: ``(n_pairs,)`` float32 strength (rating, watch time), or None.
    """

    indptr: IntArray
    items: Int32Array
    n_items: int
    times: IntArray | None = None
    values: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for array in (self.indptr, self.items, self.times, self.values):
            if array is not None:
                array.setflags(write=False)

    @classmethod
    def from_pairs(
        cls,
        users: npt.NDArray[np.integer],
        items: npt.NDArray[np.integer],
        n_users: int,
        n_items: int,
        times: npt.NDArray[np.integer] | None = None,
        values: npt.NDArray[np.floating] | None = None,
        duplicates: Duplicates = "first",
    ) -> Interactions:
        """Sort pairs into rows and merge repeated ones.

        Args:
            users: ``(n,)`` user rows in ``[0, n_users)``.
            items: ``(n,)`` item rows in ``[0, n_items)``.
            n_users: Number of user rows.
            n_items: Number of item rows.
            times: ``(n,)`` seconds, or None.
            values: ``(n,)`` strengths, or None.
            duplicates: Which of several equal pairs survives: the first or last (by time where there are
                times, else by input order), or their sum (values added, last time kept).

        Returns:
            The merged log.

        Raises:
            ValueError: A row is out of range or lengths differ.
        """
        users = np.asarray(users)
        items = np.asarray(items)
        n = len(users)
        if (
            len(items) != n
            or (times is not None and len(times) != n)
            or (values is not None and len(values) != n)
        ):
            raise ValueError("users, items, times and values must have the same length")
        if n and (users.min() < 0 or users.max() >= n_users or items.min() < 0 or items.max() >= n_items):
            raise ValueError("a user or item row is out of range")
        key = users.astype(np.int64) * n_items + items
        order = np.arange(n) if np.all(key[1:] > key[:-1]) else np.argsort(key, kind="stable")
        key = key[order]
        again = np.flatnonzero(key[1:] == key[:-1])
        if times is not None and len(again):
            # only repeated pairs need the order of time: sorting them alone halves the cost of a large log
            repeated = np.union1d(again, again + 1)
            tied = order[repeated]
            order[repeated] = tied[np.lexsort((np.asarray(times)[tied], key[repeated]))]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if n else np.zeros(0, np.int64)
        ends = np.r_[starts[1:], n] - 1 if n else starts
        chosen = order[starts if duplicates == "first" else ends]
        merged = None if values is None else np.asarray(values, np.float32)[chosen]
        if duplicates == "sum" and values is not None and n:
            merged = np.add.reduceat(np.asarray(values, np.float32)[order], starts).astype(np.float32)
        kept_users = users[chosen]
        indptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(kept_users, minlength=n_users), out=indptr[1:])
        return cls(
            indptr=indptr,
            items=items[chosen].astype(np.int32),
            n_items=n_items,
            times=None if times is None else np.asarray(times)[chosen].astype(np.int64),
            values=merged,
        )

    @classmethod
    def empty(cls, n_users: int, n_items: int) -> Interactions:
        """A log without pairs."""
        return cls(np.zeros(n_users + 1, np.int64), np.zeros(0, np.int32), n_items)

    @property
    def n_users(self) -> int:
        """Number of user rows, active or not."""
        return len(self.indptr) - 1

    @property
    def n_pairs(self) -> int:
        """Number of distinct pairs."""
        return len(self.items)

    @cached_property
    def users(self) -> Int32Array:
        """``(n_pairs,)`` int32: the user row of each pair."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), self.user_degrees)

    @property
    def user_degrees(self) -> IntArray:
        """``(n_users,)`` int64: pairs per user."""
        return np.diff(self.indptr)

    @cached_property
    def item_degrees(self) -> IntArray:
        """``(n_items,)`` int64: pairs per item."""
        return np.bincount(self.items, minlength=self.n_items)

    @property
    def density(self) -> float:
        """Share of all user × item cells that hold a pair."""
        return self.n_pairs / max(1, self.n_users * self.n_items)

    def row(self, user: int) -> Int32Array:
        """Item rows of one user, ascending."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def select(self, keep: npt.NDArray[np.bool_]) -> Interactions:
        """The log of the pairs where ``keep`` ``(n_pairs,)`` holds; rows keep their numbers."""
        indptr = np.zeros(self.n_users + 1, np.int64)
        np.cumsum(np.bincount(self.users[keep], minlength=self.n_users), out=indptr[1:])
        return Interactions(
            indptr,
            self.items[keep],
            self.n_items,
            None if self.times is None else self.times[keep],
            None if self.values is None else self.values[keep],
        )

    def in_common(self, other: Interactions) -> npt.NDArray[np.bool_]:
        """``(n_pairs,)``: which pairs ``other``, over the same rows, holds too."""
        keys = [log.users.astype(np.int64) * self.n_items + log.items for log in (self, other)]
        return np.isin(keys[0], keys[1], assume_unique=True)

    def union(self, other: Interactions) -> Interactions:
        """All pairs of both logs; a pair in both is taken from ``self``.

        Times and values survive only where both logs have them.
        """
        both_times = self.times is not None and other.times is not None
        both_values = self.values is not None and other.values is not None
        users = np.concatenate([self.users, other.users])
        items = np.concatenate([self.items, other.items])
        key = users.astype(np.int64) * self.n_items + items
        order = np.argsort(key, kind="stable")
        first = order[np.flatnonzero(np.r_[True, np.diff(key[order]) > 0])] if len(key) else order
        return Interactions.from_pairs(
            users[first],
            items[first],
            self.n_users,
            self.n_items,
            np.concatenate([self.times, other.times])[first] if both_times else None,
            np.concatenate([self.values, other.values])[first] if both_values else None,
        )

    def content_hash(self) -> str:
        """SHA-256 over the arrays."""
        return hash_arrays([self.indptr, self.items, np.array([self.n_items]), self.times, self.values])
