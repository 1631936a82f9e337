"""Why each item of a list is in it: the item of the history that it is most like, the view, the hyperedge."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from firstlight.serving.reasons import Reasons
from firstlight.serving.snapshot import Snapshot

IntArray = npt.NDArray[np.int64]

#: Items of a history, by row, that are looked through for the one most like a recommendation.
_AMONG = 2000
#: Items that a hyperedge is told by.
_TOLD = 3
#: Shares of an item, if all hyperedges had the same, from which on one of them is told: below it says nothing.
_CLEAR = 2.0


def explain(snapshot: Snapshot, rows: IntArray, history: IntArray) -> list[dict[str, Any] | None]:
    """What explains each item of a list; None without a history.

    Args:
        snapshot: The version that the list was made from.
        rows: ``(k,)`` the list.
        history: ``(n,)`` item rows.
    """
    history = history[-_AMONG:]
    if not len(history) or not len(rows):
        return [None] * len(rows)
    vectors = snapshot.vectors()
    past = F.normalize(vectors[torch.from_numpy(history)], dim=1)
    likeness = vectors[torch.from_numpy(rows)] @ past.T
    near = history[likeness.argmax(dim=1).numpy()]
    titles: dict[int, str | None] = {}

    def title(row: int) -> str | None:
        if row not in titles:
            titles[row] = snapshot.item(row).get("title")
        return titles[row]

    found: list[dict[str, Any]] = [
        {"item": snapshot.ids.name(row), "title": title(row), "view": None, "hyperedge": None}
        for row in near.tolist()
    ]
    reasons = snapshot.base.reasons
    if reasons is None:
        return [*found]
    views = reasons.strongest(snapshot.extra("views", rows), snapshot.extra("views", near))
    edges = weights = None
    if reasons.hyperedges:
        edges, weights = snapshot.extra("edges", rows), snapshot.extra("edge-weights", rows)
    for at, (why, view) in enumerate(zip(found, views, strict=True)):
        if view is None:
            continue
        why["view"] = reasons.views[view].name
        if edges is None or weights is None or edges[at, view] < 0:
            continue
        number, weight = int(edges[at, view]), float(weights[at, view])
        if weight * len(reasons.views[view].members) >= _CLEAR:
            told = _members(snapshot, reasons, view, number, int(rows[at]))
            items = [{"id": snapshot.ids.name(row), "title": title(row)} for row in told]
            why["hyperedge"] = {"number": number, "weight": round(weight, 3), "items": items}
    return [*found]


def _members(snapshot: Snapshot, reasons: Reasons, view: int, edge: int, without: int) -> list[int]:
    """Rows that tell a hyperedge: of items that may be shown, the explained one left out."""
    rows = (snapshot.row(item) for item in reasons.views[view].members[edge])
    shown = [row for row in rows if row is not None and row != without and snapshot.shown[row]]
    return shown[:_TOLD]
