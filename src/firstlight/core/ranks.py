"""Which of several processes this one is, told without importing torch."""

from __future__ import annotations

_joined: tuple[int, int] | None = None


def note_joined(rank: int, world: int) -> None:
    """Keep that this process has joined a group; it counts for as long as the process lives."""
    global _joined
    _joined = rank, world


def answers() -> bool:
    """Whether this process speaks for its group: it is the first of one, or never joined any.

    The environment does not tell: job schedulers set ``RANK`` and ``WORLD_SIZE`` for whatever they start.
    """
    return _joined is None or _joined[0] == 0
