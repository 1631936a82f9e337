"""The queue of recent projections that neighbours are looked up in (specs: mim-refiner §2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.core.distributed import gather, own_slice, world


@dataclass(frozen=True)
class Neighbours:
    """What a look-up found.

    Attributes:
        vectors: ``(views, b, dim)`` stored vectors, as they were pushed.
        similarity: ``(views, b)`` cosines with the queries.
        ages: ``(views, b)`` int64, images pushed since.
        best: ``(views, b)`` int64, the place of the nearest entry, whichever was drawn.
    """

    vectors: Tensor
    similarity: Tensor
    ages: Tensor
    best: Tensor


class NeighbourQueue(nn.Module):
    """First in, first out; every rank holds the same queue. All state is in buffers, so checkpoints carry it.

    Shapes: ``vectors`` ``(Q, dim)`` float32, ``rows`` and ``ages`` ``(Q,)`` int64, ``pointer`` ``()`` int64.

    Args:
        size: Entries Q; at least the global batch, at most a third of the images, or neighbours become rare.
        dim: Length of a vector.
        rng: Draws the first entries from N(0, 1).
    """

    vectors: Tensor
    rows: Tensor
    ages: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(size, dim, generator=rng))
        self.register_buffer("rows", torch.full((size,), -1))
        self.register_buffer("ages", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def lookup(self, queries: Tensor, rows: Tensor, k: int, rng: torch.Generator) -> Neighbours:
        """One of the ``k`` nearest entries of each query, drawn uniformly for each row and view on its own.

        In training, entries of the query's own image are never found (in the authors' code: last of all): around the
        border of an epoch the queue still holds the image's projection of the epoch before.

        Args:
            queries: ``(views, b, dim)``; only directions matter.
            rows: ``(b,)`` int64, the images' rows in the data.
            k: How many of the nearest are drawn from.
            rng: CPU generator; takes the same draws on every rank and for any number of ranks.

        Returns:
            What was found; cosines in the queue's own precision, under autocast too.
        """
        views, b, _ = queries.shape
        # Half precision has some hundred different cosines: among the nearest of thousands nearly all would tie.
        with torch.autocast(queries.device.type, enabled=False):
            keys = F.normalize(self.vectors, dim=1)
            similarity = F.normalize(queries.flatten(0, 1).to(keys), dim=1) @ keys.T
        if self.training:
            own = rows.repeat(views)[:, None] == self.rows
            similarity.masked_fill_(own, -torch.inf)
        values, places = similarity.topk(k, dim=1)
        draws = torch.randint(k, (views, b * world()), generator=rng)[:, own_slice(b * world())]
        chosen = draws.reshape(-1, 1).to(places.device)
        found = places.gather(1, chosen).view(views, b)
        return Neighbours(
            vectors=self.vectors[found],
            similarity=values.gather(1, chosen).view(views, b),
            ages=self.ages[found],
            best=places[:, 0].view(views, b),
        )

    @torch.no_grad()
    def push(self, vectors: Tensor, rows: Tensor) -> None:
        """Overwrite the oldest entries with a batch, that of all ranks in rank order; nothing outside training.

        Args:
            vectors: ``(b, dim)`` projections of this rank's images, one view of each.
            rows: ``(b,)`` int64, the images' rows in the data.

        Raises:
            ValueError: The batch of all ranks is larger than the queue.
        """
        if not self.training:
            return
        vectors, rows = gather(vectors), gather(rows)
        n, size = len(vectors), len(self.vectors)
        if n > size:
            raise ValueError(f"a batch of {n} images does not fit a queue of {size}")
        places = (self.pointer + torch.arange(n, device=self.pointer.device)) % size
        self.vectors[places] = vectors.to(self.vectors)
        self.rows[places] = rows.to(self.rows)
        self.ages[places] = 0
        self.ages += n
        self.pointer.copy_((self.pointer + n) % size)
