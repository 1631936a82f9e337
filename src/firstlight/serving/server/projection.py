"""The catalogue in two dimensions: principal axes of the items' directions, and topics by k-means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.serving.snapshot import Snapshot

#: Items that axes and topics are fitted on, at most.
_FITTED = 5000
_TOPICS = 12

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Projection:
    """A map, fitted once a base: items that come later are placed on it, and nothing moves.

    Attributes:
        mean: ``(dim,)`` of the directions.
        axes: ``(dim, 2)``.
        centres: ``(topics, dim)``.
    """

    mean: Tensor
    axes: Tensor
    centres: Tensor

    @classmethod
    def fit(cls, snapshot: Snapshot) -> Projection:
        """Fit on evenly spaced items of a version."""
        from sklearn.cluster import KMeans

        rows = np.flatnonzero(snapshot.alive)
        unit = F.normalize(snapshot.vectors()[torch.from_numpy(_spread(rows, _FITTED))], dim=1)
        dim = snapshot.base.dim
        if len(unit) < 2:
            return cls(torch.zeros(dim), torch.eye(dim, 2), torch.zeros(1, dim))
        mean = unit.mean(dim=0)
        values, axes = torch.linalg.eigh((unit - mean).T @ (unit - mean))
        axes = axes[:, values.argsort(descending=True)[:2]]
        # The sign of an axis means nothing: its largest entry is made positive, so that maps stay as they are.
        axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        axes = F.pad(axes, (0, 2 - axes.shape[1]))
        clusters = KMeans(min(_TOPICS, len(unit)), n_init=1, random_state=0, max_iter=50).fit(unit.numpy())
        return cls(mean, axes, torch.from_numpy(clusters.cluster_centers_.astype(np.float32)))

    def place(self, snapshot: Snapshot, limit: int) -> list[dict[str, Any]]:
        """Points of at most ``limit`` items: new ones first, at most half, the others evenly spaced."""
        new = _spread(np.flatnonzero(snapshot.shown & snapshot.new)[::-1], max(1, limit // 2))
        warm = _spread(np.flatnonzero(snapshot.shown & ~snapshot.new), limit - len(new))
        rows = np.concatenate([warm, new])
        unit = F.normalize(snapshot.vectors()[torch.from_numpy(rows)], dim=1)
        places = ((unit - self.mean) @ self.axes).tolist()
        topics = torch.cdist(unit, self.centres).argmin(dim=1).tolist() if len(rows) else []
        return [
            {
                "id": snapshot.ids.name(row),
                "x": x,
                "y": y,
                "topic": topic,
                "new": bool(snapshot.new[row]),
                "title": snapshot.item(row).get("title"),
            }
            for row, (x, y), topic in zip(rows.tolist(), places, topics, strict=True)
        ]


def _spread(rows: IntArray, limit: int) -> IntArray:
    """At most ``limit`` of the rows, evenly spaced."""
    if len(rows) <= limit:
        return np.ascontiguousarray(rows)
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
