"""Nearest-neighbour graphs over content features: blocked, exact, and the same for items that arrive later.

Similarities are cosines. ``n × n`` never exists: queries are ranked block by block (:mod:`firstlight.core.topk`), which
costs 2·n²·dim flops and a block of scores. Non-positive similarities are dropped, so a degree is never zero or
negative where an item has a neighbour, and an item without features has none. For the graph of a large catalogue faiss
may look for candidates instead (:mod:`firstlight.graphs.ann`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.extras import installed
from firstlight.core.topk import Exclusion, blocked_top_k, top_k_rows
from firstlight.graphs.ann import PAYS_FROM, candidates
from firstlight.graphs.propagation import SparseMap

#: Query rows whose scores are held at once where the catalogue is not copied for the product.
_FEW = 64
#: Query rows whose candidates are weighed at once: their keys are copied.
_WEIGHED = 512

#: Paths that are followed at once.
_PATHS = 2**22

#: How a catalogue's own neighbours are found; ``auto`` is ``faiss`` where it pays and is installed, else ``exact``.
Method = Literal["exact", "faiss", "auto"]
Weighting = Literal["cosine", "binary"]
Normalisation = Literal["symmetric", "rows"]


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query.

    Attributes:
        ids: ``(n, k)`` int64 rows of the keys, nearest first; -1 where there are fewer.
        similarities: ``(n, k)`` cosines in the features' dtype, 0 where there is no neighbour.
    """

    ids: Tensor
    similarities: Tensor


def nearest(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    allowed: Tensor | None = None,
    own: Tensor | None = None,
) -> Neighbours:
    """The k keys of largest positive cosine for each query, ties by smaller row.

    Args:
        queries: ``(n, dim)`` features; all-zero rows have no neighbour.
        keys: ``(m, dim)`` features.
        k: Neighbours to keep.
        allowed: ``(m,)`` bool: which keys may be neighbours (warm items); all if None.
        own: ``(n,)`` int64: the key that each query is, which is not its own neighbour; None for strangers.

    Returns:
        The neighbours.
    """
    unit_keys = F.normalize(keys.detach(), dim=1)
    unit_queries = unit_keys if queries is keys else F.normalize(queries.detach(), dim=1)
    return _nearest_of_many(unit_queries, unit_keys, k, allowed, own)


def _nearest_of_many(
    queries: Tensor, keys: Tensor, k: int, allowed: Tensor | None, own: Tensor | None
) -> Neighbours:
    """:func:`nearest` of rows of length one or zero; keys that are not allowed are never scored."""
    exclude: Exclusion | None = None
    if own is not None:
        exclude = (np.arange(len(queries) + 1), own.numpy())
    ids = torch.full((len(queries), k), -1, dtype=torch.int64)
    similarities = torch.zeros(len(queries), k, dtype=queries.dtype)
    for rows, best in blocked_top_k(queries.float(), keys.float(), k, exclude=exclude, allowed=allowed):
        scores: Tensor = best.scores
        if queries.dtype != torch.float32:  # ranked in single precision, weighed in the features' own
            scores = torch.einsum("nd,nkd->nk", queries[rows], keys[best.ids.clamp(min=0)])
        kept = (best.ids >= 0) & (scores > 0)
        ids[rows] = torch.where(kept, best.ids, -1)
        similarities[rows] = torch.where(kept, scores, 0.0)
    return Neighbours(ids, similarities)


class Finder(Protocol):
    """Finds the neighbours of a catalogue's items among themselves; :func:`item_neighbours`, or one that remembers."""

    def __call__(
        self,
        features: Tensor,
        k: int,
        *,
        allowed: Tensor | None = None,
        without_self: bool = False,
        method: Method = "exact",
    ) -> Neighbours:
        """See :func:`item_neighbours`."""


def item_neighbours(
    features: Tensor,
    k: int,
    *,
    allowed: Tensor | None = None,
    without_self: bool = False,
    method: Method = "exact",
) -> Neighbours:
    """The k items of largest positive cosine for each item of a catalogue.

    Args:
        features: ``(n, dim)``; all-zero rows have no neighbour and are nobody's.
        k: Neighbours to keep.
        allowed: ``(n,)`` bool: which items may be neighbours (warm ones); all if None.
        without_self: No item is its own neighbour.
        method: ``exact``; ``faiss``: similarities are exact, but a neighbour may be missed; or ``auto``.

    Returns:
        The neighbours.

    Raises:
        MissingExtraError: ``faiss`` is asked for, and the extra ``ann`` is not installed.
    """
    if chosen_method(method, len(features) if allowed is None else int(allowed.sum())) == "faiss":
        return _approximate(features.detach(), k, allowed, without_self)
    return nearest(
        features, features, k, allowed=allowed, own=torch.arange(len(features)) if without_self else None
    )


def chosen_method(method: Method, n_keys: int) -> Literal["exact", "faiss"]:
    """What ``auto`` comes to for so many keys, on this machine."""
    if method == "auto":
        return "faiss" if n_keys >= PAYS_FROM and installed("ann") else "exact"
    return method


def _approximate(features: Tensor, k: int, allowed: Tensor | None, without_self: bool) -> Neighbours:
    """As :func:`nearest`, over the candidates of inverted lists."""
    unit = F.normalize(features, dim=1)
    kept = unit.any(dim=1) if allowed is None else allowed & unit.any(dim=1)
    rows = kept.nonzero()[:, 0]
    found = candidates(unit.float(), unit[rows].float(), k + without_self)
    ids = torch.full((len(unit), k), -1, dtype=torch.int64)
    similarities = torch.zeros(len(unit), k, dtype=unit.dtype)
    for start in range(0, len(unit), _WEIGHED):
        block = slice(start, min(start + _WEIGHED, len(unit)))
        near = found[block]
        near = near if not len(rows) else torch.where(near >= 0, rows[near.clamp(min=0)], -1)
        scores = torch.einsum("nd,nkd->nk", unit[block], unit[near.clamp(min=0)])
        usable = (near >= 0) & (scores > 0)
        if without_self:
            usable &= near != torch.arange(block.start, block.stop)[:, None]
        scores = scores.masked_fill(~usable, 0.0)
        order = torch.from_numpy(np.lexsort((near.numpy(), -scores.numpy()), axis=1))[:, :k]
        ids[block] = near.masked_fill(~usable, -1).gather(1, order)
        similarities[block] = scores.gather(1, order)
    return Neighbours(ids, similarities)


def nearest_unit(
    queries: Tensor, keys: Tensor, k: int, allowed: Tensor | None = None, own: Tensor | None = None
) -> Neighbours:
    """:func:`nearest` against a catalogue whose rows are normalised already, as serving keeps them.

    Args:
        queries: ``(n, dim)`` of length one or zero.
        keys: ``(m, dim)`` of length one or zero.
        k: Neighbours to keep.
        allowed: ``(m,)`` bool, or None for all.
        own: As in :func:`nearest`.
    """
    if len(queries) > _FEW:
        return _nearest_of_many(queries, keys, k, allowed, own)
    # For a few, copying the keys that are allowed would cost more than to score them all.
    scores = queries @ keys.T
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    if own is not None:
        scores.scatter_(1, own[:, None], -torch.inf)
    best = top_k_rows(scores, k)
    kept = (best.ids >= 0) & (best.scores > 0)
    return Neighbours(torch.where(kept, best.ids, -1), torch.where(kept, best.scores, 0.0).to(queries.dtype))


def neighbour_map(
    neighbours: Neighbours,
    n_keys: int,
    *,
    weighting: Weighting = "cosine",
    normalisation: Normalisation = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> SparseMap:
    """The neighbour graph as a matrix that item vectors are multiplied by.

    Args:
        neighbours: ``(n, k)``.
        n_keys: Number of columns.
        weighting: ``cosine`` keeps the similarities (MGCN, MHCR), ``binary`` counts each as one (FREEDOM).
        normalisation: ``symmetric``: D^{-½} A D^{-½} with D of row sums, for a square graph (MHCR §2.2 of the
            specs: A is directed and stays so); ``rows``: each row sums to one, so that a row depends on its own
            neighbours alone.
        dtype: Of the products.

    Returns:
        ``(n, n_keys)``.
    """
    ids = neighbours.ids.numpy()
    kept = ids >= 0
    values = edge_weights(neighbours, weighting, normalisation)
    indptr = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=indptr[1:])
    return SparseMap(indptr, ids[kept], values[kept], n_keys, dtype)


def edge_weights(
    neighbours: Neighbours, weighting: Weighting, normalisation: Normalisation
) -> npt.NDArray[np.float64]:
    """``(n, k)`` entries of :func:`neighbour_map`; zero where there is no neighbour."""
    ids = neighbours.ids.numpy()
    kept = ids >= 0
    weights = neighbours.similarities.numpy().astype(np.float64) if weighting == "cosine" else kept * 1.0
    degrees = np.where(kept, weights, 0.0).sum(axis=1)
    safe = np.where(degrees > 0, degrees, 1.0)
    if normalisation == "rows":
        values: npt.NDArray[np.float64] = weights / safe[:, None]
    else:
        values = weights * safe[:, None] ** -0.5 * safe[np.maximum(ids, 0)] ** -0.5
    return values


def row_weights(neighbours: Neighbours) -> Tensor:
    """``(n, k)`` similarities over their sum; zero where there is no neighbour."""
    similarities = neighbours.similarities
    return similarities / similarities.sum(dim=1, keepdim=True).clamp(min=1e-12)


def returned(first: Neighbours, lists: Neighbours, own: Tensor, hops: int) -> Tensor:
    """How much of its own vector a row gets back over the neighbours of its neighbours.

    Args:
        first: ``(n, k)`` first hop; its ``similarities`` are the weights.
        lists: ``(n_keys, k')`` further hops, likewise.
        own: ``(n,)`` the key that each row is.
        hops: Hops in all; the weights of all paths that lead back are added up.

    Returns:
        ``(n,)``.
    """
    longest = first.ids.shape[1] * lists.ids.shape[1] ** (hops - 1)
    height = max(1, _PATHS // max(1, longest))
    parts = [first.similarities.new_zeros(0)]
    for start in range(0, len(own), height):
        rows = slice(start, start + height)
        ids, weights = first.ids[rows], first.similarities[rows]
        for _ in range(hops - 1):
            onward = lists.similarities[ids.clamp(min=0)] * weights[:, :, None]  # a weight of zero is no path
            ids, weights = lists.ids[ids.clamp(min=0)].flatten(1), onward.flatten(1)
        parts.append((weights * (ids == own[rows, None])).sum(dim=1))
    return torch.cat(parts)
