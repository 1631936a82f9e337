"""Log-sum-exp over inner products in tiles, with an exact gradient.

``logsumexp(queries @ keys.T)`` is the hot spot of every softmax loss here. Written with stock operations it
keeps three ``(rows, keys)`` matrices for the backward pass; here it keeps one while that fits a tile, and none
beyond (the backward pass recomputes a tile at a time), so a full softmax over a million items needs a few
megabytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Largest number of scores held at once, in float32 elements (64 MB).
TILE_ELEMENTS = 16 * 2**20

#: Scores of a tile where there are several: 2 MB stay in a core's cache between product, exp and sum. Less than half
#: the price of tiles of 64 MB (2,048 rows × 19,738 keys, one thread: .47 against .20 CPU seconds with gradient).
CACHED_ELEMENTS = 2**19


def _tile_scores(
    queries: Tensor, keys: Tensor, offset: Tensor | None, exclude: tuple[Tensor, Tensor] | None, lo: int
) -> Tensor:
    """Scores of one tile of keys that starts at column ``lo``, excluded cells at −inf."""
    scores = queries @ keys.T
    if offset is not None:
        scores += offset
    if exclude is not None:
        rows, columns = exclude
        inside = (columns >= lo) & (columns < lo + keys.shape[0])
        scores[rows[inside], columns[inside] - lo] = -torch.inf
    return scores


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        offset: Tensor | None,
        exclude: tuple[Tensor, Tensor] | None,
        unit: Tensor | None,
        tile: int,
    ) -> tuple[Tensor, Tensor]:
        rows, n_keys = queries.shape[0], keys.shape[0]
        fits = rows * n_keys <= tile
        width = n_keys if fits else max(1, min(n_keys, min(tile, CACHED_ELEMENTS) // max(1, rows)))
        peak = queries.new_full((rows,), -torch.inf)
        total = queries.new_zeros(rows)
        unit_peak, unit_total = peak.clone(), total.clone()
        kept: Tensor | None = None
        for lo in range(0, n_keys, width):
            part = slice(lo, lo + width)
            shift = None if offset is None else offset[part]
            scores = _tile_scores(queries, keys[part], shift, exclude, lo)
            if unit is not None:
                flat = scores if shift is None else scores - shift
                flat = flat * unit[:, None]
                if shift is not None:
                    flat += shift
                unit_peak, unit_total = _accumulate(flat, unit_peak, unit_total)
            peak, total = _accumulate(scores, peak, total)
            kept = scores
        # With a single tile `kept` now holds exp(score - peak): the backward pass starts from it.
        ctx.single = width >= n_keys
        ctx.save_for_backward(queries, keys, offset, peak, total, kept if ctx.single else None)
        ctx.exclude, ctx.width = exclude, width
        unit_lse = unit_peak + unit_total.log()
        ctx.mark_non_differentiable(unit_lse)
        return peak + total.log(), unit_lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, offset, peak, total, kept = ctx.saved_tensors
        # A row whose every key is excluded has total 0 and no gradient.
        weight = torch.where(total > 0, gradients[0] / total, torch.zeros_like(total))[:, None]
        weighted = queries * weight
        if ctx.single:
            return (kept @ keys) * weight, kept.T @ weighted, None, None, None, None
        grad_queries, grad_keys = torch.zeros_like(queries), torch.empty_like(keys)
        finite_peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))[:, None]
        for lo in range(0, keys.shape[0], ctx.width):
            part = slice(lo, lo + ctx.width)
            shift = None if offset is None else offset[part]
            scores = _tile_scores(queries, keys[part], shift, ctx.exclude, lo)
            scores.sub_(finite_peak).exp_()
            grad_queries.addmm_(scores, keys[part])
            torch.mm(scores.T, weighted, out=grad_keys[part])
        return grad_queries.mul_(weight), grad_keys, None, None, None, None


def _accumulate(scores: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Fold one tile into the running (peak, total); ``scores`` is overwritten by exp(score − peak)."""
    new_peak = torch.maximum(peak, scores.amax(dim=1))
    finite = torch.where(new_peak.isfinite(), new_peak, torch.zeros_like(new_peak))
    scores.sub_(finite[:, None]).exp_()
    carried = torch.where(peak.isfinite(), total * (peak - finite).exp(), torch.zeros_like(total))
    return new_peak, carried + scores.sum(dim=1)


def score_log_sum_exp(
    queries: Tensor,
    keys: Tensor,
    *,
    offset: Tensor | None = None,
    exclude: tuple[Tensor, Tensor] | None = None,
    unit: Tensor | None = None,
    tile: int = TILE_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """``log Σ_j exp(q_b · k_j + offset_j)`` for each query row, differentiable in queries and keys.

    Args:
        queries: ``(rows, dim)``; multiply an inverse temperature in beforehand.
        keys: ``(n_keys, dim)``.
        offset: ``(n_keys,)`` added to every score, for example −log q of a sampling correction.
        exclude: Two int64 index tensors (rows, columns) of cells left out of the sum.
        unit: ``(rows,)`` factors; if given, the second output is the log-sum-exp of the scores times this
            factor (offset unscaled), without gradient: with 1/w it is the value at temperature one, which the
            per-user temperatures watch.
        tile: Largest number of scores to hold at once.

    Returns:
        Two ``(rows,)`` tensors: the log-sum-exp, and the one at ``unit`` (−inf where ``unit`` is None). A row
        with every key excluded gives −inf and no gradient.
    """
    result: tuple[Tensor, Tensor] = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        queries, keys, offset, exclude, unit, tile
    )
    lse, unit_lse = result
    return lse, unit_lse
