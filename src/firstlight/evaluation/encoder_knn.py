"""k-NN classification of images by an encoder's features (specs/mim-refiner.md §4.1), exact and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.topk import blocked_top_k

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_EPSILON = 1e-6


def standardised(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Give every dimension of the bank mean 0 and deviation 1, and shift and scale the queries alike.

    A dimension in which the whole bank agrees tells no two of its rows apart; it becomes 0 in both, where
    dividing by the reference's 1e-6 would let one odd query value drown all others.

    Args:
        bank: ``(n, dim)`` float32.
        queries: ``(m, dim)`` float32.

    Returns:
        Both, standardised (unbiased deviation + 1e-6).
    """
    deviation, mean = torch.std_mean(bank, dim=0, correction=min(1, len(bank) - 1))
    scale = torch.where(deviation <= _EPSILON * mean.abs(), 0.0, 1 / (deviation + _EPSILON))
    return (bank - mean).mul_(scale), (queries - mean).mul_(scale)


def knn_classify(
    bank: Tensor,
    labels: IntArray,
    queries: Tensor,
    n_classes: int,
    ks: Sequence[int],
    temperature: float = 0.07,
    *,
    block: int | None = None,
) -> dict[int, IntArray]:
    """The class of every query by its nearest bank rows.

    Features are standardised with the bank's statistics and scaled to length one; a neighbour of cosine s
    votes for its class with exp(s / T). Among equal cosines the smaller bank row is nearer, among equally
    voted classes the smaller class wins.

    Args:
        bank: ``(n, dim)`` float32 features of labelled images.
        labels: ``(n,)`` their classes.
        queries: ``(m, dim)`` float32.
        n_classes: Number of classes.
        ks: How many neighbours vote; each k gives a result of its own. Those above n are left out.
        temperature: T; ``math.inf`` counts heads.
        block: Queries ranked at once; chosen by the size of the bank if None. It does not change the answer.

    Returns:
        k → ``(m,)`` predicted classes.
    """
    cuts = sorted({k for k in ks if k <= len(bank)})
    found = {k: np.empty(len(queries), np.int64) for k in cuts}
    if not cuts:
        return found
    bank, queries = standardised(bank, queries)
    for part in (bank, queries):
        F.normalize(part, dim=1, out=part)
    classes = torch.from_numpy(labels).to(bank.device)
    for rows, best in blocked_top_k(queries, bank, cuts[-1], block=block):
        votes = _votes(best.scores, temperature)
        voted = classes[best.ids]
        tally = votes.new_zeros(len(votes), n_classes)
        done = 0
        for k in cuts:
            tally.scatter_add_(1, voted[:, done:k], votes[:, done:k])
            found[k][rows] = tally.cpu().numpy().argmax(axis=1)
            done = k
    return found


def _votes(cosines: Tensor, temperature: float) -> Tensor:
    """``(m, k)`` float64 votes relative to that of the nearest, so that a small temperature overflows nothing."""
    if math.isinf(temperature):
        return torch.ones_like(cosines, dtype=torch.float64)
    exact = cosines.double()
    return ((exact - exact[:, :1]) / temperature).exp()


def standard_error(accuracy: float, n: int) -> float:
    """Binomial standard error of a share of ``n`` queries."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def paired_z(before: BoolArray, after: BoolArray) -> float:
    """How many standard errors two classifiers lie apart on the same queries (§8.1).

    (gained − lost) / √(gained + lost), where a query is gained if only ``after`` has it right. It covers the
    draw of the queries, not that of the training seed.

    Args:
        before: ``(n,)`` whether each query was right.
        after: ``(n,)`` the same for the other.

    Returns:
        z, positive if ``after`` is better; 0 if they agree everywhere.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return (gained - lost) / math.sqrt(gained + lost) if gained + lost else 0.0
