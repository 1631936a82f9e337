"""The best items of a vector, in one version of the catalogue: exact, with every filter exact.

Scores are inner products. An item is in a list if it is in the catalogue, not blocked, not excluded (what the user has
seen), and among the candidates where there are any. A *boost* of factor f multiplies a positive score by f and divides
a negative one, so that a factor above one always lifts an item. Ties go to the older row.

:mod:`firstlight.serving.approximate` answers the same for catalogues that are too large for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.core.topk import TopK, top_k_rows
from firstlight.serving.snapshot import Snapshot

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

#: Bytes of scores that are held at once.
_BLOCK_BYTES = 64 << 20
_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Query:
    """One list that is asked for.

    Attributes:
        vector: ``(dim,)`` float32 in scoring space.
        k: Length of the list.
        exclude: Item rows that must not be in it.
        candidates: Item rows that alone may be in it; any if None.
    """

    vector: Tensor
    k: int
    exclude: IntArray = field(default_factory=lambda: _NOTHING)
    candidates: IntArray | None = None


class Found(NamedTuple):
    """A list: item rows and scores, best first; shorter than asked for where nothing is left."""

    rows: IntArray
    scores: FloatArray


class Index(Protocol):
    """Whatever makes lists."""

    def search(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
        """The lists, in the order of the queries."""


class ExactIndex:
    """Scores every item; queries that are asked together share the pass over the vectors."""

    def search(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
        """See :class:`Index`."""
        found: dict[int, Found] = {}
        whole = [at for at, query in enumerate(queries) if query.candidates is None]
        size = max(1, _BLOCK_BYTES // (4 * max(1, snapshot.n_rows)))
        for start in range(0, len(whole), size):
            block = whole[start : start + size]
            lists = _search_all(snapshot, [queries[at] for at in block])
            found.update(zip(block, lists, strict=True))
        for at, query in enumerate(queries):
            if query.candidates is not None:
                found[at] = _search_some(snapshot, query, query.candidates)
        return [found[at] for at in range(len(queries))]


def _search_all(snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
    asked = torch.stack([query.vector for query in queries])
    scores = asked @ snapshot.vectors().T
    if len(snapshot.hidden):
        scores.index_fill_(1, torch.from_numpy(snapshot.hidden), float("-inf"))
    rows, factors = snapshot.boosts
    if len(rows):
        at = torch.from_numpy(rows)
        scores[:, at] = boosted(scores[:, at], torch.from_numpy(factors))
    for row, query in zip(scores, queries, strict=True):
        if len(query.exclude):
            row[torch.from_numpy(query.exclude)] = float("-inf")
    best = top_k_rows(scores, max(query.k for query in queries))
    return [cut(best, at, query.k) for at, query in enumerate(queries)]


def _search_some(snapshot: Snapshot, query: Query, candidates: IntArray) -> Found:
    rows = np.unique(candidates)  # ascending: ties go to the older row
    rows = rows[snapshot.shown[rows]]
    rows = rows[~np.isin(rows, query.exclude)]
    if not len(rows):
        return Found(_NOTHING, np.empty(0, np.float32))
    best = top_k_rows(scores_of(snapshot, query.vector[None], rows), query.k)
    found = cut(best, 0, query.k)
    return Found(rows[found.rows], found.scores)


def scores_of(snapshot: Snapshot, vectors: Tensor, rows: IntArray) -> Tensor:
    """``(b, len(rows))`` scores of some items for ``(b, dim)`` vectors, boosts included."""
    scores = vectors @ snapshot.vectors()[torch.from_numpy(rows)].T
    lifted, factors = snapshot.boosts
    if len(lifted) and len(rows):
        place = np.searchsorted(lifted, rows).clip(max=len(lifted) - 1)
        hit = lifted[place] == rows
        if hit.any():
            at = torch.from_numpy(np.flatnonzero(hit))
            scores[:, at] = boosted(scores[:, at], torch.from_numpy(factors[place[hit]]))
    return scores


def boosted(scores: Tensor, factors: Tensor) -> Tensor:
    """``(b, n)`` scores times ``(n,)`` factors; negative scores are divided."""
    return torch.where(scores > 0, scores * factors, scores / factors)


def cut(best: TopK, at: int, k: int) -> Found:
    """One row of a block, without what fills it up, at length ``k``."""
    ids, scores = best.ids[at, :k].numpy(), best.scores[at, :k].numpy()
    known = ids >= 0
    return Found(ids[known], scores[known])


def merged(lists: Sequence[Found], k: int) -> Found:
    """The best k of several lists without common rows."""
    rows = np.concatenate([entry.rows for entry in lists])
    scores = np.concatenate([entry.scores for entry in lists])
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])
