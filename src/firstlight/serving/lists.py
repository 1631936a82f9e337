"""Lists of a served catalogue as tables: what ``firstlight recommend`` and ``similar`` write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F

from firstlight.core.errors import InputError
from firstlight.core.topk import TopK, blocked_top_k, list_length
from firstlight.evaluation.scorer import VectorScorer, rank
from firstlight.serving.bundle import Bundle
from firstlight.serving.index import scores_of
from firstlight.serving.snapshot import Snapshot

#: Users whose lists are held at once.
_CHUNK = 50_000
IntArray = npt.NDArray[np.int64]


def recommend_all(bundle: Bundle, users: Sequence[str] | None = None, k: int = 20) -> Iterator[pl.DataFrame]:
    """The k best unseen items of users, in chunks of users, all from one version.

    Args:
        bundle: A bundle, or a run opened with its additions.
        users: Raw user ids; all users if None.
        k: Length of the lists; users with fewer items left get fewer.

    Yields:
        Tables with columns ``user``, ``rank`` (from 1), ``item``, ``score``; raw ids.

    Raises:
        InputError: An id is unknown.
    """
    snapshot = bundle.snapshot
    base, names = snapshot.base, snapshot.ids.names(snapshot.n_rows)
    rows, k = _rows(base.user_ids, users, "user"), list_length(k, snapshot.n_rows)
    scorer, seen = VectorScorer(base.user_vectors, snapshot.vectors()), snapshot.seen()
    lifted = snapshot.boosts[0]
    pool = None if snapshot.shown.all() else snapshot.shown
    if len(lifted):
        pool = snapshot.shown.copy()
        pool[lifted] = False
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        blocks = rank(scorer, chunk, k, [seen], pool)
        if len(lifted):
            blocks = ((part, _with_boosts(snapshot, chunk[part], best, k)) for part, best in blocks)
        yield pl.concat([_table(base.user_ids, names, chunk[part], best, "user") for part, best in blocks])


def similar_items(bundle: Bundle, items: Sequence[str] | None = None, k: int = 20) -> Iterator[pl.DataFrame]:
    """The k items whose vectors point most nearly the same way.

    Args:
        bundle: A bundle, or a run opened with its additions.
        items: Raw item ids; all items if None.
        k: Length of the lists.

    Yields:
        Tables with columns ``item``, ``rank``, ``similar``, ``score`` (cosine).

    Raises:
        InputError: An id is unknown, or the item was removed.
    """
    snapshot = bundle.snapshot
    names, shown = snapshot.ids.names(snapshot.n_rows), torch.from_numpy(snapshot.shown.copy())
    rows = np.flatnonzero(snapshot.alive) if items is None else _rows(names, items, "item")
    k = list_length(k, snapshot.n_rows)
    gone = rows[~snapshot.alive[rows]]
    if len(gone):
        raise InputError(f"item {names[int(gone[0])]!r} was removed from the catalogue", path=bundle.folder)
    unit = F.normalize(snapshot.vectors(), dim=1)
    own = (np.arange(len(rows) + 1), rows.astype(np.int32))
    allowed = None if bool(shown.all()) else shown
    for part, best in blocked_top_k(unit[torch.from_numpy(rows)], unit, k, exclude=own, allowed=allowed):
        yield _table(names, names, rows[part], best, "item")


def _with_boosts(snapshot: Snapshot, users: IntArray, best: TopK, k: int) -> TopK:
    """Lists without the boosted items, completed by them."""
    base, rows = snapshot.base, snapshot.boosts[0]
    rows = rows[snapshot.shown[rows]]
    scores = scores_of(snapshot, base.user_vectors[torch.from_numpy(users)], rows)
    for at, user in enumerate(users.tolist()):
        scores[at, torch.from_numpy(np.isin(rows, base.seen.row(user)))] = float("-inf")
    ids = torch.where(scores > float("-inf"), torch.from_numpy(rows), -1)
    ids, scores = torch.cat([best.ids, ids], dim=1), torch.cat([best.scores, scores], dim=1)
    order = torch.from_numpy(np.lexsort((ids.numpy(), -scores.numpy()), axis=1)[:, :k])
    return TopK(ids.gather(1, order), scores.gather(1, order))


def _rows(ids: pl.Series, wanted: Sequence[str] | None, kind: str) -> IntArray:
    """Rows of raw ids; all rows if ``wanted`` is None."""
    if wanted is None:
        return np.arange(len(ids))
    lookup = pl.DataFrame({"id": ids, "row": np.arange(len(ids))})
    asked = pl.DataFrame({"id": list(wanted)}, schema={"id": pl.String})
    found = asked.join(lookup, on="id", how="left", maintain_order="left")
    missing = found.filter(pl.col("row").is_null())["id"].to_list()
    if missing:
        raise InputError(f"{len(missing)} {kind} ids are unknown, the first is {missing[0]!r}")
    return found["row"].to_numpy().astype(np.int64)


def _table(owners: pl.Series, items: pl.Series, rows: IntArray, best: TopK, kind: str) -> pl.DataFrame:
    ids, scores = best.ids.numpy(), best.scores.numpy()
    known = ids >= 0
    ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)
    return pl.DataFrame(
        {
            kind: owners.gather(np.repeat(rows, known.sum(axis=1))),
            "rank": ranks[known],
            "item" if kind == "user" else "similar": items.gather(ids[known]),
            "score": scores[known],
        }
    )
