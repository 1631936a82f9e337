"""A matrix that grows by rows while readers hold older states of it."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

#: Spare rows of a new storage: a tenth of it, but no fewer than this.
_SPARE = 1024


class _Storage:
    """Memory that several states of a matrix share: rows up to ``used`` are somebody's and never change."""

    def __init__(self, buffer: Tensor, used: int) -> None:
        self.buffer, self.used = buffer, used
        self.lock = threading.Lock()


class Rows:
    """An immutable ``(n, dim)`` float32 matrix whose extensions share its memory.

    Appending to the newest state writes behind its end, where nobody reads yet; anything else copies.

    Args:
        values: The rows; kept, not copied.
    """

    def __init__(self, values: Tensor) -> None:
        self._storage = _Storage(values, len(values))
        self._n = len(values)

    def __len__(self) -> int:
        return self._n

    @property
    def values(self) -> Tensor:
        """``(n, dim)``; not to be written to."""
        return self._storage.buffer[: self._n]

    def appended(self, more: Tensor) -> Rows:
        """These rows and then ``more`` ``(m, dim)``."""
        storage, n = self._storage, self._n + len(more)
        with storage.lock:
            if storage.used == self._n and n <= len(storage.buffer):
                storage.buffer[self._n : n] = more
                storage.used = n
                return self._state(storage, n)
        return self._state(self._copied(n), n, more)

    def replaced(self, rows: Tensor, values: Tensor) -> Rows:
        """The same with other ``values`` ``(m, dim)`` at ``rows`` ``(m,)``; costs a copy of the matrix."""
        storage = self._copied(self._n)
        storage.buffer[rows] = values
        return self._state(storage, self._n)

    def _copied(self, n: int) -> _Storage:
        capacity = n + max(_SPARE, n // 10)
        buffer = torch.empty(capacity, self._storage.buffer.shape[1])
        buffer[: self._n] = self.values
        return _Storage(buffer, n)

    def _state(self, storage: _Storage, n: int, more: Tensor | None = None) -> Rows:
        if more is not None:
            storage.buffer[self._n : n] = more
        state = Rows.__new__(Rows)
        state._storage, state._n = storage, n
        return state
