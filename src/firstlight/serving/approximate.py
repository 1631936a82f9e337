"""Lists of very large catalogues through faiss (extra ``ann``), with the recall that was measured kept beside them.

A graph (HNSW, Malkov & Yashunin 2018) or inverted lists (IVF, Sivic & Zisserman 2003) is built over the vectors of a
base, which never change, and stands beside it in the bundle::

    BUNDLE/base-00000001.index/  index.json    kind, effort, recall against exact, hash of the base and of the file
                                 index.faiss

What was added, replaced or boosted since is scored exactly and merged, so a new item is in the lists at once. Filters
are exact: items that are gone or blocked are left out by the search itself, what a user has seen by asking for more
than is needed; where too little is left, that list is made exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.extras import require
from firstlight.core.files import atomic_folder, read_json, write_json
from firstlight.core.hashing import hash_file
from firstlight.core.topk import blocked_top_k
from firstlight.serving.base import Base, FolderBase
from firstlight.serving.index import ExactIndex, Found, IntArray, Query, merged, scores_of
from firstlight.serving.snapshot import Snapshot

KINDS = ("auto", "exact", "hnsw", "ivf")
#: Items up to which ``auto`` stays exact; beyond, it takes inverted lists. On a million trained vectors these were
#: built in a tenth of a graph's time, half as large, and answered in half of its time at a higher recall (RESULTS.md).
EXACT_UP_TO = 250_000

#: Recall at :data:`_K` that is aimed at; the effort of a search is doubled until it is reached, by so many standard
#: errors, since it has to hold for users who are not in the sample.
TARGET = 0.98
_K, _SAMPLE, _SURE = 20, 400, 2.0
_EFFORTS = (32, 64, 128, 256, 512, 1024)
_NEIGHBOURS, _BUILD_EFFORT = 32, 100
#: Rows of k-means a list, at least and at most; see :mod:`firstlight.graphs.ann`.
_FEWEST, _MOST = 39, 64
#: Lists for which more would have to be asked for are made exactly, and so are those of a filter that leaves few.
_ASK_FOR, _FEW = 2048, 20_000


def choose(n_items: int, kind: str = "auto") -> str:
    """``exact``, ``hnsw`` or ``ivf``, by size unless one is named."""
    if kind != "auto":
        return kind
    return "exact" if n_items <= EXACT_UP_TO else "ivf"


def folder_of(base: FolderBase) -> Path:
    """Where the index of a base stands."""
    return base.folder.with_name(f"{base.folder.name}.index")


def open_index(base: Base, kind: str = "auto") -> ExactIndex | ApproximateIndex:
    """The index of a base: the one that stands beside it, a new one, or the exact one.

    A base in memory or in a run gets no approximate index. One that did not reach :data:`TARGET` is not used.

    Raises:
        InputError: ``kind`` is none of :data:`KINDS`, or a file of the index was changed.
        MissingExtraError: One is needed, and faiss is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"there is no index {kind!r}", hint=f"one of: {', '.join(KINDS)}")
    if not isinstance(base, FolderBase):
        return ExactIndex()
    chosen = choose(base.about["counts"]["items"], kind)
    if chosen == "exact":
        return ExactIndex()
    folder = folder_of(base)
    # A folder without it was being removed when the process was killed.
    about = read_json(folder / "index.json") if (folder / "index.json").exists() else None
    if about is None or about["base"] != base.fingerprint or (kind != "auto" and about["kind"] != kind):
        about = build(base, chosen)
    if not about["reached"]:
        return ExactIndex()
    return ApproximateIndex.load(folder, about)


def build(base: FolderBase, kind: str) -> dict[str, Any]:
    """Build an index, find the effort that it takes, and write it beside its base.

    Returns:
        What ``index.json`` says.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    faiss = require("ann")
    faiss.omp_set_num_threads(torch.get_num_threads())
    vectors = np.ascontiguousarray(base.item_vectors.numpy())
    n, dim = vectors.shape
    started = time.perf_counter()
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_EFFORT
    else:
        lists = max(1, min(4 * isqrt(n), n // _FEWEST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = False
        index.cp.max_points_per_centroid = _MOST
        index.train(vectors)
    index.add(vectors)
    seconds = time.perf_counter() - started
    effort, recall, error = _tune(index, kind, base)
    about = {
        "kind": kind,
        "effort": effort,
        f"recall@{_K}": recall,
        "standard_error": error,
        "target": TARGET,
        "reached": recall - _SURE * error >= TARGET,
        "users": min(_SAMPLE, len(base.user_vectors)),
        "seconds": round(seconds, 2),
        "faiss": faiss.__version__,
        "base": base.fingerprint,
        "items": n,
    }
    folder = folder_of(base)
    if folder.exists():  # of another kind: nothing but what can be made again is lost
        import shutil

        (folder / "index.json").unlink(missing_ok=True)  # first, so that a folder cut short is none
        shutil.rmtree(folder)
    with atomic_folder(folder) as out:
        faiss.write_index(index, str(out / "index.faiss"))
        about["sha256"] = hash_file(out / "index.faiss")
        write_json(out / "index.json", about)
    return about


def _tune(index: Any, kind: str, base: FolderBase) -> tuple[int, float, float]:
    """The smallest effort that reaches the target, or the largest; the recall that it has, and its standard error."""
    users = base.user_vectors
    asked = users[:: max(1, len(users) // _SAMPLE)][:_SAMPLE].contiguous()
    k = min(_K, len(base.item_vectors))
    exact = torch.cat([best.ids for _, best in blocked_top_k(asked, base.item_vectors, k)]).numpy()
    recall = error = 0.0
    for effort in _EFFORTS:
        _, found = index.search(asked.numpy(), k, params=_parameters(kind, effort))
        shares = [np.isin(row, right).mean() for row, right in zip(found, exact, strict=True)]
        if shares:
            recall, error = float(np.mean(shares)), float(np.std(shares)) / len(shares) ** 0.5
        if recall - _SURE * error >= TARGET:
            break
    return effort, recall, error


def _parameters(kind: str, effort: int, selector: Any = None) -> Any:
    faiss = require("ann")
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
    return faiss.SearchParametersIVF(nprobe=effort, sel=selector)


class ApproximateIndex:
    """A faiss index over a base, completed exactly by what has changed since.

    Args:
        index: The faiss index; ids are rows of the base.
        about: What ``index.json`` says.
    """

    def __init__(self, index: Any, about: dict[str, Any]) -> None:
        self._index, self.about = index, about
        self._exact = ExactIndex()
        self._prepared: tuple[Snapshot, IntArray, int, Any] | None = None

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ApproximateIndex:
        """Read an index.

        Raises:
            InputError: It is not the one that was written.
        """
        path = folder / "index.faiss"
        if not path.is_file() or hash_file(path) != about["sha256"]:
            raise InputError("this index was changed (its SHA-256 differs)", path=path, hint="delete it")
        return cls(require("ann").read_index(str(path)), about)

    def search(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
        """See :class:`firstlight.serving.index.Index`."""
        apart, open_rows, selector = self._prepare(snapshot)
        fast = [
            at
            for at, query in enumerate(queries)
            if query.candidates is None and query.k + len(query.exclude) <= _ASK_FOR and open_rows > _FEW
        ]
        found: dict[int, Found] = {}
        if fast:
            lists = self._ask(snapshot, [queries[at] for at in fast], apart, open_rows, selector)
            found = {at: entry for at, entry in zip(fast, lists, strict=True) if entry is not None}
        slow = [at for at in range(len(queries)) if at not in found]
        lists_exact = self._exact.search(snapshot, [queries[at] for at in slow])
        found.update(zip(slow, lists_exact, strict=True))
        return [found[at] for at in range(len(queries))]

    def _ask(
        self, snapshot: Snapshot, queries: Sequence[Query], apart: IntArray, open_rows: int, selector: Any
    ) -> list[Found | None]:
        """Lists, or None where too little is left of what was found."""
        fetch = min(max(query.k + len(query.exclude) for query in queries), open_rows)
        asked = torch.stack([query.vector for query in queries])
        kind, effort = self.about["kind"], self.about["effort"]
        if kind == "hnsw":
            effort = max(effort, fetch)
        _, ids = self._index.search(asked.numpy(), fetch, params=_parameters(kind, effort, selector))
        return [
            self._finish(snapshot, query, row, apart, open_rows)
            for query, row in zip(queries, ids, strict=True)
        ]

    def _finish(
        self, snapshot: Snapshot, query: Query, ids: IntArray, apart: IntArray, open_rows: int
    ) -> Found | None:
        ids = ids[ids >= 0]
        kept = ids[~np.isin(ids, query.exclude)]
        if len(kept) < min(query.k, open_rows - len(query.exclude)):
            return None
        more = apart[~np.isin(apart, query.exclude)]
        lists = [_scored(snapshot, query.vector, rows) for rows in (kept, more)]
        return merged(lists, query.k)

    def _prepare(self, snapshot: Snapshot) -> tuple[IntArray, int, Any]:
        """Rows that are scored apart, how many rows the index may return, and what tells it which."""
        kept = self._prepared
        if kept is not None and kept[0] is snapshot:
            return kept[1:]
        faiss = require("ann")
        changed = np.fromiter(snapshot.texts, np.int64, len(snapshot.texts))
        apart = np.union1d(changed, snapshot.boosts[0])
        apart = apart[snapshot.shown[apart]]
        n = self.about["items"]
        allowed = snapshot.shown[:n].copy()
        allowed[apart[apart < n]] = False
        selector = None
        if not allowed.all():
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        self._prepared = (snapshot, apart, int(allowed.sum()), selector)
        return self._prepared[1:]


def _scored(snapshot: Snapshot, vector: Tensor, rows: IntArray) -> Found:
    return Found(rows, scores_of(snapshot, vector[None], rows)[0].numpy())
