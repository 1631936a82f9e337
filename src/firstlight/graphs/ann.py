"""Candidates for nearest neighbours by inverted lists (Sivic & Zisserman, ICCV 2003), through faiss (extra ``ann``).

Keys are grouped around L = 4·√n centroids of a spherical k-means, and a query looks into the lists of the ``_PROBES``
nearest centroids only. What that costs, in products of two rows, for n keys that are the queries as well:

* exact: n a query, all in matrix products;
* inverted lists: 10 rounds of k-means on at most 64 rows a centroid are at most 10·L a key (and for a large n the
  constant 10·64·16), handing out the keys is L, finding the lists L: 48·√n in matrix products. Scanning 32 lists is
  32·n/L = 8·√n, row by row, at about an eighth of the speed: as much as 64·√n. Together 112·√n.

They break even at √n = 112, and halve the work at √n = 224: from 50,000 keys on they more than halve it.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

from firstlight.core.extras import require

#: Keys from which inverted lists pay; see the module.
PAYS_FROM = 50_000

_LISTS_PER_ROOT = 4
_PROBES = 32
#: Rows that k-means sees of each list at least (faiss warns below it) and at most (its default of 256 takes four times
#: as long for lists that are no better).
_FEWEST, _MOST = 39, 64
#: Queries at once: their lists are held for all of them.
_QUERIES = 1 << 16


def version() -> str:
    """Version of the library that ranks.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
    """
    return str(require("ann").__version__)


def candidates(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """Keys that are probably the k of largest inner product.

    Args:
        queries: ``(n, dim)`` float32.
        keys: ``(m, dim)`` float32 of length one.
        k: Candidates a query.

    Returns:
        ``(n, k)`` int64 rows of ``keys``, in no promised order; -1 where the lists held too few.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
    """
    faiss = require("ann")
    found = np.full((len(queries), k), -1, np.int64)
    if len(keys):
        lists = max(1, min(_LISTS_PER_ROOT * isqrt(len(keys)), len(keys) // _FEWEST))
        faiss.omp_set_num_threads(torch.get_num_threads())
        centroids = faiss.IndexFlatIP(keys.shape[1])
        index = faiss.IndexIVFFlat(centroids, keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _MOST
        index.nprobe = min(lists, _PROBES)
        rows = np.ascontiguousarray(keys.numpy())
        index.train(rows)
        index.add(rows)
        asked = np.ascontiguousarray(queries.numpy())
        for start in range(0, len(asked), _QUERIES):
            _, found[start : start + _QUERIES] = index.search(asked[start : start + _QUERIES], k)
    return torch.from_numpy(found)
