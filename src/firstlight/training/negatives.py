"""Drawing negatives: which items, and which of them do not count for whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.training.config import NegativesConfig


@dataclass(frozen=True)
class Drawn:
    """Negatives of one step, as item rows.

    Attributes:
        ids: ``(n,)`` items to look up; None means all items, or the positives themselves (``in_batch``).
        index: ``(rows, M)`` into ``ids`` where each row has its own list; None where all share ``ids``.
        in_batch: The positives of the batch are the negatives.
        offset: ``(n,)`` added to the scores, or None.
        exclude: ``(rows, columns)`` of cells that do not count, or None.
    """

    ids: Tensor | None
    index: Tensor | None = None
    in_batch: bool = False
    offset: Tensor | None = None
    exclude: tuple[Tensor, Tensor] | None = None


class NegativeSampler:
    """Draws what ``config`` names against a training log.

    Args:
        config: Which negatives.
        train: The log of known positives; items and popularity come from it alone.
    """

    def __init__(self, config: NegativesConfig, train: Interactions) -> None:
        self.config = config
        self.n_items = train.n_items
        self._indptr = torch.from_numpy(train.indptr.copy())
        self._items = torch.from_numpy(train.items.copy())
        # The items of no training pair are never drawn: a held-out cold item must not be pushed away.
        degrees = torch.from_numpy(train.item_degrees.copy())
        self._warm = None if bool((degrees > 0).all()) else degrees.nonzero()[:, 0]
        share = degrees.clamp(min=1).double() / max(1, train.n_pairs)
        self._log_q = share.log().to(torch.float32)

    def draw(self, users: Tensor, positives: Tensor, rng: torch.Generator) -> Drawn:
        """Negatives for a batch.

        Args:
            users: ``(rows,)`` user rows.
            positives: ``(rows,)`` item rows for pair batches; for user batches the positives of all users.
            rng: The step's random stream.
        """
        name = self.config.name
        if name == "uniform":
            drawn = self._uniform(len(users) * self.config.count, rng)
            ids, index = torch.unique(drawn, return_inverse=True)
            return Drawn(ids, index.view(len(users), self.config.count))
        if name == "shared":
            ids = self._uniform(self.config.count, rng)
            return Drawn(ids, exclude=self._known(users, ids) if self.config.mask_positives else None)
        if name == "in-batch":
            return self._in_batch(users, positives)
        if self._warm is not None:
            return Drawn(self._warm)
        return Drawn(None)

    def _uniform(self, count: int, rng: torch.Generator) -> Tensor:
        if self._warm is None:
            return torch.randint(self.n_items, (count,), generator=rng)
        return self._warm[torch.randint(len(self._warm), (count,), generator=rng)]

    def _in_batch(self, users: Tensor, positives: Tensor) -> Drawn:
        own = torch.arange(len(users))
        exclude = (own, own)
        if self.config.mask_positives:
            rows, columns = self._known(users, positives)
            exclude = (torch.cat([own, rows]), torch.cat([own, columns]))
        offset = -self._log_q[positives] if self.config.logq else None
        return Drawn(None, in_batch=True, offset=offset, exclude=exclude)

    def _known(self, users: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """All (row, column) with ``candidates[column]`` in the history of ``users[row]``."""
        ranked, order = torch.sort(candidates)
        lengths = self._indptr[users + 1] - self._indptr[users]
        rows = torch.repeat_interleave(torch.arange(len(users)), lengths)
        first = torch.cumsum(lengths, 0) - lengths
        within = torch.arange(int(lengths.sum())) - first[rows]
        history = self._items[self._indptr[users][rows] + within].long()
        low = torch.searchsorted(ranked, history)
        count = torch.searchsorted(ranked, history, right=True) - low
        # A candidate drawn twice occupies two columns: expand each hit over its run of equal candidates.
        hits = torch.repeat_interleave(torch.arange(len(rows)), count)
        run = torch.arange(int(count.sum())) - (torch.cumsum(count, 0) - count)[hits]
        return rows[hits], order[low[hits] + run]
