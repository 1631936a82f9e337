"""What content towers and sampled objectives are built from: no model here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from firstlight.losses.negatives import BLOCK_ELEMENTS
from firstlight.models.content import ContentRows


def content_input(rows: ContentRows) -> Tensor:
    """Content as a tower reads it: unit views side by side, scaled to a root-mean-square of one per row.

    The scale makes the usual start of a linear layer right whatever the widths, and the same for an item that lacks
    a view as for one that has all of them.

    Returns:
        ``(n, Σ dim_m)``; all-zero rows stay zero.
    """
    joined = torch.cat([F.normalize(view, dim=1) for view in rows.values], dim=1)
    return F.normalize(joined, dim=1) * math.sqrt(joined.shape[1])


def perceptron(
    widths: Sequence[int], activation: Callable[[], nn.Module], rng: torch.Generator
) -> nn.Sequential:
    """Linear layers of ``widths``, ``activation`` between them; Xavier-uniform weights from ``rng``, zero biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        # The stock start draws from the global stream; on no device it draws nothing.
        layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        nn.init.xavier_uniform_(layer.weight, generator=rng)
        nn.init.zeros_(layer.bias)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def dropped(values: Tensor, rate: float, rng: torch.Generator | None) -> Tensor:
    """Dropout from a given stream; ``values`` unchanged where the rate is 0 or ``rng`` None (evaluation)."""
    if rng is None or rate == 0:
        return values
    return values * (torch.rand(values.shape, generator=rng) >= rate) / (1 - rate)


def by_blocks(make: Callable[[Tensor], Tensor], n: int, width: int) -> Tensor:
    """``make(rows)`` for all rows ``0…n-1``, a bounded number at a time.

    Args:
        make: ``(k,)`` rows to ``(k, dim)``.
        n: Number of rows.
        width: Elements that a row occupies on the way.
    """
    height = max(1, BLOCK_ELEMENTS // max(1, width))
    return torch.cat([make(torch.arange(lo, min(n, lo + height))) for lo in range(0, max(1, n), height)])


def candidate_scores(queries: Tensor, keys: Tensor, index: Tensor | None) -> Tensor:
    """Inner products of each query with its candidates; differentiable, never ``(rows, M, dim)`` at once.

    Args:
        queries: ``(rows, dim)``.
        keys: ``(n, dim)``.
        index: ``(rows, M)`` into ``keys``, or None: all keys for everybody.

    Returns:
        ``(rows, M)``, or ``(rows, n)``.
    """
    if index is None:
        return queries @ keys.T
    height = max(1, BLOCK_ELEMENTS // max(1, index.shape[1] * keys.shape[1]))
    parts: list[Tensor] = [
        checkpoint(_gathered, queries[lo : lo + height], keys, index[lo : lo + height], use_reentrant=False)
        for lo in range(0, max(1, len(queries)), height)
    ]
    return torch.cat(parts)


def _gathered(queries: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    return (F.embedding(index, keys) @ queries[:, :, None])[:, :, 0]
