"""The click graph with a share of its pairs left out, another share every few steps.

LayerGCN and FREEDOM draw a new graph every epoch: popular pairs are left out more often, what stays is normalised on
the degrees that are left, and evaluation uses the whole graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firstlight.core.seeds import numpy_stream
from firstlight.graphs.propagation import BipartitePropagation


def steps_of_an_epoch(n_pairs: int) -> int:
    """How many steps an epoch has at the default batch size: 2,048 pairs, or a fiftieth of a small log."""
    batch = min(2048, max(32, n_pairs // 50))
    return max(1, -(-n_pairs // batch))


def prune(
    indptr: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
    n_items: int,
    share: float,
    rng: np.random.Generator,
    *,
    by_degree: bool = True,
) -> BipartitePropagation:
    """The graph on ⌊(1 − share)·n_pairs⌋ pairs (at least one) drawn without replacement.

    Args:
        indptr: ``(n_users + 1,)`` of the click log in CSR.
        items: ``(n_pairs,)`` item rows.
        n_items: Number of items.
        share: ρ, the share of pairs to leave out.
        rng: Random stream.
        by_degree: Keep a pair with probability ∝ 1/√(d_u·d_i), one draw after the other; else uniformly.

    Returns:
        D_u^{-½} A' D_i^{-½} of the kept pairs, normalised on their own degrees.
    """
    degrees = np.diff(indptr)
    users = np.repeat(np.arange(len(degrees)), degrees)
    # The smallest of exponential clocks with these rates are draws without replacement (Efraimidis & Spirakis 2006).
    clocks = rng.standard_exponential(len(items))
    if by_degree:
        popularity = np.bincount(items, minlength=n_items)
        clocks *= np.sqrt(degrees[users] * popularity[items].astype(np.float64))
    keep = min(len(items), max(1, int((1 - share) * len(items))))
    kept = np.sort(np.argsort(clocks, kind="stable")[:keep])
    left = np.zeros(len(indptr), np.int64)
    np.cumsum(np.bincount(users[kept], minlength=len(degrees)), out=left[1:])
    return BipartitePropagation(left, items[kept], n_items)


class PrunedGraph:
    """A pruned graph for each step of training, the same one for a stretch of steps.

    Which graph belongs to a step follows from the seed and the step's number alone, so that a resumed run sees the
    graphs that an uninterrupted one does.

    Args:
        indptr: ``(n_users + 1,)`` of the click log in CSR.
        items: ``(n_pairs,)`` item rows.
        n_items: Number of items.
        share: ρ, the share of pairs to leave out; 0 keeps the whole graph.
        every: Steps between draws; None: an epoch at the default batch size.
        alternate: Draw by degree and uniformly in turns (LayerGCN) instead of always by degree (FREEDOM).
    """

    def __init__(
        self,
        indptr: npt.NDArray[np.int64],
        items: npt.NDArray[np.int32],
        n_items: int,
        share: float,
        every: int | None = None,
        *,
        alternate: bool = False,
    ) -> None:
        self.share, self.alternate = share, alternate
        self.every = every or steps_of_an_epoch(len(items))
        self.whole = BipartitePropagation(indptr, items, n_items)
        self._log = indptr, items, n_items
        self._held: tuple[tuple[int, int], BipartitePropagation] | None = None

    def at(self, step: int, seed: int) -> BipartitePropagation:
        """The graph of a training step.

        Args:
            step: 0-based number of the step.
            seed: Of the model; names the draws.
        """
        if self.share == 0:
            return self.whole
        key = (seed, step // self.every)
        if self._held is None or self._held[0] != key:
            rng = numpy_stream(seed, "prune", key[1])
            by_degree = not self.alternate or key[1] % 2 == 0
            self._held = (key, prune(*self._log, self.share, rng, by_degree=by_degree))
        return self._held[1]
