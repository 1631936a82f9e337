"""Nearest-neighbour graphs over content features: blocked, exact, and the same for items that arrive later.

Similarities are cosines. ``n × n`` never exists: queries are ranked block by block (:mod:`firstlight.core.topk`), which
costs 2·n²·dim flops and a block of scores. Non-positive similarities are dropped, so a degree is never zero or
negative where an item has a neighbour, and an item without features has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.topk import Exclusion, blocked_top_k, top_k_rows
from firstlight.graphs.propagation import SparseMap

#: Query rows whose scores are held at once where the catalogue is not copied for the product.
_FEW = 64

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
    without_self: bool = False,
) -> Neighbours:
    """The k keys of largest positive cosine for each query, ties by smaller row.

    Args:
        queries: ``(n, dim)`` features; all-zero rows have no neighbour.
        keys: ``(m, dim)`` features.
        k: Neighbours to keep.
        allowed: ``(m,)`` bool: which keys may be neighbours (warm items); all if None.
        without_self: Query r is key r and is not its own neighbour.

    Returns:
        The neighbours.
    """
    unit_keys = F.normalize(keys.detach(), dim=1)
    unit_queries = unit_keys if queries is keys else F.normalize(queries.detach(), dim=1)
    exclude: Exclusion | None = None
    if without_self:
        exclude = (np.arange(len(queries) + 1), np.arange(len(queries)))
    ids = torch.full((len(queries), k), -1, dtype=torch.int64)
    similarities = torch.zeros(len(queries), k, dtype=queries.dtype)
    found = blocked_top_k(unit_queries.float(), unit_keys.float(), k, exclude=exclude, allowed=allowed)
    for rows, best in found:
        scores: Tensor = best.scores
        if queries.dtype != torch.float32:  # ranked in single precision, weighed in the features' own
            scores = torch.einsum("nd,nkd->nk", unit_queries[rows], unit_keys[best.ids.clamp(min=0)])
        kept = (best.ids >= 0) & (scores > 0)
        ids[rows] = torch.where(kept, best.ids, -1)
        similarities[rows] = torch.where(kept, scores, 0.0)
    return Neighbours(ids, similarities)


def nearest_unit(queries: Tensor, keys: Tensor, k: int, allowed: Tensor | None = None) -> Neighbours:
    """:func:`nearest` for a few rows against a catalogue whose rows are normalised already, as serving keeps them.

    Args:
        queries: ``(n, dim)`` of length one or zero.
        keys: ``(m, dim)`` of length one or zero.
        k: Neighbours to keep.
        allowed: ``(m,)`` bool, or None for all.
    """
    ids, similarities = [], []
    for start in range(0, len(queries), _FEW):  # a block of score rows at a time
        scores = queries[start : start + _FEW] @ keys.T
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
        best = top_k_rows(scores, k)
        kept = (best.ids >= 0) & (best.scores > 0)
        ids.append(torch.where(kept, best.ids, -1))
        similarities.append(torch.where(kept, best.scores, 0.0).to(queries.dtype))
    if not ids:
        return Neighbours(torch.empty(0, k, dtype=torch.int64), queries.new_empty(0, k))
    return Neighbours(torch.cat(ids), torch.cat(similarities))


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
    weights = neighbours.similarities.numpy().astype(np.float64) if weighting == "cosine" else kept * 1.0
    degrees = np.where(kept, weights, 0.0).sum(axis=1)
    safe = np.where(degrees > 0, degrees, 1.0)
    if normalisation == "rows":
        values = weights / safe[:, None]
    else:
        values = weights * safe[:, None] ** -0.5 * safe[np.maximum(ids, 0)] ** -0.5
    indptr = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=indptr[1:])
    return SparseMap(indptr, ids[kept], values[kept], n_keys, dtype)
