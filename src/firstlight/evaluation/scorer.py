"""What evaluation and serving ask of a model: vectors whose inner product is the score, or score rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.topk import Exclusion, TopK, blocked_top_k, mask_excluded, top_k_rows
from firstlight.data.interactions import Interactions

IntArray = npt.NDArray[np.int64]

_BLOCK_BYTES = 20 << 20


@runtime_checkable
class Scorer(Protocol):
    """Anything that can be ranked.

    A model with vectors returns them from :meth:`vectors`; ``scores`` is then not called. A model without
    (popularity, k-NN) returns None there and answers :meth:`scores`.
    """

    @property
    def n_users(self) -> int:
        """Number of user rows."""

    @property
    def n_items(self) -> int:
        """Number of item rows."""

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """``(n_users, dim)`` and ``(n_items, dim)`` whose inner product is the score, or None."""

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` scores of the user rows ``users`` ``(b,)`` int64."""


class VectorScorer:
    """A scorer over two matrices.

    Args:
        user_vectors: ``(n_users, dim)``.
        item_vectors: ``(n_items, dim)``.

    Raises:
        InputError: The matrices do not fit together.
    """

    def __init__(self, user_vectors: Tensor, item_vectors: Tensor) -> None:
        if user_vectors.ndim != 2 or item_vectors.ndim != 2 or user_vectors.shape[1] != item_vectors.shape[1]:
            raise InputError(
                f"user vectors {tuple(user_vectors.shape)} and item vectors {tuple(item_vectors.shape)} "
                "have no inner product"
            )
        self._users = user_vectors.detach()
        self._items = item_vectors.detach()

    @property
    def n_users(self) -> int:
        """Number of user rows."""
        return self._users.shape[0]

    @property
    def n_items(self) -> int:
        """Number of item rows."""
        return self._items.shape[0]

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The two matrices."""
        return self._users, self._items

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` inner products."""
        return self._users[users] @ self._items.T


class BlendScorer:
    """The weighted sum of several scorers, each user's scores of each brought to the same scale first.

    Models of different kinds err differently, and their scores have nothing in common but the order: the
    z-score of a row, over all items, makes them comparable. What ranks is block by block, as any scorer.

    Args:
        scorers: What is blended, over the same user and item rows; with or without vectors. Standardised
            scores must be finite.
        weights: Weight of each; zero leaves a scorer out.
        standardise: Whether rows become z-scores. A row that is the same for all items becomes zero.

    Raises:
        InputError: There is nothing to blend, a weight is missing or not finite, or shapes differ.
    """

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float], standardise: bool = True) -> None:
        shapes = [(scorer.n_users, scorer.n_items) for scorer in scorers]
        if not scorers or len(scorers) != len(weights) or not np.isfinite(weights).all():
            raise InputError(
                f"a blend needs a finite weight for each scorer, got {list(weights)} for {len(scorers)}"
            )
        if len(set(shapes)) > 1:
            raise InputError(
                "models of different users or items cannot be blended: "
                + ", ".join(f"{users} × {items}" for users, items in shapes),
                hint="blend models that were trained on the same dataset",
            )
        self._parts = [
            (scorer, float(weight)) for scorer, weight in zip(scorers, weights, strict=True) if weight
        ]
        self._standardise = standardise
        self.n_users, self.n_items = shapes[0]

    def vectors(self) -> None:
        """A blend has no vectors."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` float32 weighted sums."""
        total = torch.zeros(len(users), self.n_items, device=users.device)
        for scorer, weight in self._parts:
            rows = _score_rows(scorer, users).detach().to(users.device, torch.float32)
            total.add_(_z_scores(rows) if self._standardise else rows, alpha=weight)
        return total


def _score_rows(scorer: Scorer, users: Tensor) -> Tensor:
    """``(b, n_items)`` scores of a scorer of either kind."""
    vectors = scorer.vectors()
    return scorer.scores(users) if vectors is None else VectorScorer(*vectors).scores(users)


def _z_scores(rows: Tensor) -> Tensor:
    """Rows with mean 0 and standard deviation 1; zero where a row varies by no more than its rounding."""
    variance, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
    constant = variance.sqrt() <= 1e-6 * mean.abs()
    return (rows - mean).mul_(torch.where(constant, 0.0, variance.rsqrt()))


def excluded_items(users: IntArray, seen: Sequence[Interactions]) -> Exclusion | None:
    """The items that the logs in ``seen`` hold for ``users``, as compressed sparse rows over ``users``.

    Args:
        users: ``(b,)`` user rows.
        seen: Logs over the same user and item rows; a pair in several of them may repeat.

    Returns:
        ``indptr`` ``(b + 1,)`` and item rows, or None if ``seen`` is empty.
    """
    if not seen:
        return None
    if len(seen) == 1 and len(users) == seen[0].n_users and bool((users == np.arange(len(users))).all()):
        return seen[0].indptr, seen[0].items
    counts = np.stack([log.user_degrees[users] for log in seen], axis=1)  # (b, logs)
    indptr = np.zeros(len(users) + 1, np.int64)
    np.cumsum(counts.sum(axis=1), out=indptr[1:])
    items = np.empty(int(indptr[-1]), np.int32)
    places = indptr[:-1, None] + np.cumsum(counts, axis=1) - counts  # where each log's share of a row starts
    for i, log in enumerate(seen):
        within = np.arange(int(counts[:, i].sum())) - np.repeat(
            np.cumsum(counts[:, i]) - counts[:, i], counts[:, i]
        )
        sources = np.repeat(log.indptr[users], counts[:, i]) + within
        items[np.repeat(places[:, i], counts[:, i]) + within] = log.items[sources]
    return indptr, items


def rank(
    scorer: Scorer,
    users: IntArray,
    k: int,
    exclude: Sequence[Interactions] = (),
    allowed: npt.NDArray[np.bool_] | None = None,
    *,
    block: int | None = None,
) -> Iterator[tuple[slice, TopK]]:
    """The k best items of each user, block by block; ties go to the smaller item row.

    Args:
        scorer: What scores.
        users: ``(b,)`` user rows.
        k: Length of the lists.
        exclude: Logs whose items are not recommended to their users (train, validation).
        allowed: ``(n_items,)`` bool pool of items to rank; all if None.
        block: Users per block, or None.

    Yields:
        A slice of ``users`` and the lists; a row with fewer than k items left ends in id -1.

    Raises:
        InputError: ``exclude``, ``allowed`` or ``users`` do not fit the scorer.
        FirstlightError: A score is NaN.
    """
    users = np.ascontiguousarray(users, np.int64)
    _check(scorer, users, exclude, allowed)
    excluded = excluded_items(users, exclude)
    pool = None if allowed is None else torch.from_numpy(np.ascontiguousarray(allowed))
    vectors = scorer.vectors()
    if vectors is not None:
        queries, keys = vectors
        if len(users) != len(queries) or bool((users != np.arange(len(users))).any()):
            queries = queries[torch.from_numpy(users).to(queries.device)]
        yield from blocked_top_k(queries, keys, k, exclude=excluded, allowed=pool, block=block)
        return
    chosen = None if pool is None else pool.nonzero().squeeze(1)
    size = block or max(1, min(1024, _BLOCK_BYTES // (4 * max(1, scorer.n_items))))
    for start in range(0, len(users), size):
        rows = slice(start, min(start + size, len(users)))
        scores = scorer.scores(torch.from_numpy(users[rows])).detach().to(torch.float32)
        if excluded is not None:
            scores = scores.clone(memory_format=torch.contiguous_format)  # the scorer may keep or share it
            mask_excluded(scores, excluded, rows)
        if chosen is None:
            yield rows, top_k_rows(scores, k)
            continue
        chosen = chosen.to(scores.device)
        best = top_k_rows(scores[:, chosen], k)
        ids = best.ids
        if len(chosen):
            ids = torch.where(ids >= 0, chosen[ids.clamp(min=0)], ids)
        yield rows, TopK(ids, best.scores)


def _check(
    scorer: Scorer,
    users: IntArray,
    exclude: Sequence[Interactions],
    allowed: npt.NDArray[np.bool_] | None,
) -> None:
    shape = (scorer.n_users, scorer.n_items)
    if len(users) and (users.min() < 0 or users.max() >= scorer.n_users):
        raise InputError(f"a user row is outside the model's {scorer.n_users} users")
    for log in exclude:
        if (log.n_users, log.n_items) != shape:
            raise InputError(
                f"the model scores {shape[0]} users × {shape[1]} items, the excluded log has "
                f"{log.n_users} × {log.n_items}",
                hint="evaluate a model on the dataset that it was trained on",
            )
    if allowed is not None and (allowed.shape != (scorer.n_items,) or allowed.dtype != np.bool_):
        raise InputError(
            f"the pool must be a ({scorer.n_items},) bool mask, got {allowed.shape} {allowed.dtype}"
        )
