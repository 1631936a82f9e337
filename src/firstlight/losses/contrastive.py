"""Contrastive losses between views of the same users or items.

All take rows that belong together and contrast them with the other rows, or with a table. Rows are normalised here, so
each loss is unchanged by positive rescaling of a row. Nothing of ``rows × table`` is kept: values and gradients come
from tiled log-sum-exps (:mod:`firstlight.core.logsumexp`) in memory proportional to the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.logsumexp import CACHED_ELEMENTS, score_log_sum_exp

#: Rows that are sorted at once.
_BLOCK = 2**13


def info_nce(anchors: Tensor, partners: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """InfoNCE in a batch: mean_r −log( e^{a_r·b_r/t} / Σ_s e^{a_r·b_s/t} ) over normalised rows.

    Args:
        anchors: ``(rows, dim)``.
        partners: ``(rows, dim)``; row r is the positive of anchor r, the other rows are its negatives.
        temperature: t.
        counts: ``(rows,)`` how often each row stands for a row of the batch, where repeated rows were merged: value
            and gradient are then those of the batch with repetitions. None: once each.

    Returns:
        Scalar between 0 and log(rows) + 2/t.
    """
    a, b = F.normalize(anchors, dim=1), F.normalize(partners, dim=1)
    offset = None if counts is None else counts.to(a.dtype).log()
    lse, _ = score_log_sum_exp(a / temperature, b, offset=offset)
    losses = lse - (a * b).sum(dim=1) / temperature
    if counts is None:
        return losses.mean()
    return (losses * counts).sum() / counts.sum()


def joint_contrast(
    views: Sequence[Tensor], table: Tensor, temperature: float, counts: Tensor | None = None
) -> Tensor:
    """All views of a row against all rows of one table, in one logarithm per row (MHCR's L_hc as released).

    value = Σ_r −log( Σ_{m<m'} e^{m_r·m'_r/t} / Σ_{n∈table} Σ_m e^{m_r·n/t} ).

    Args:
        views: Two or more ``(rows, dim)`` matrices, row r of each belonging together.
        table: ``(n, dim)`` negatives (and positives: the released table holds the rows themselves).
        temperature: t.
        counts: ``(rows,)`` multiplicities of merged rows, or None.

    Returns:
        Scalar; a sum over rows, not a mean.
    """
    units = [F.normalize(view, dim=1) for view in views]
    keys = F.normalize(table, dim=1)
    against = torch.stack(
        [score_log_sum_exp(unit / temperature, keys, tile=CACHED_ELEMENTS)[0] for unit in units]
    )
    positives = torch.stack([(a * b).sum(dim=1) / temperature for a, b in combinations(units, 2)])
    losses = against.logsumexp(dim=0) - positives.logsumexp(dim=0)
    return losses.sum() if counts is None else (losses * counts).sum()


def pairwise_contrast(views: Sequence[Tensor], temperature: float, counts: Tensor | None = None) -> Tensor:
    """Mean of :func:`info_nce` over all pairs of views, both ways: no view is special, and no batch size enters.

    Args:
        views: Two or more ``(rows, dim)`` matrices.
        temperature: t.
        counts: ``(rows,)`` multiplicities of merged rows, or None.
    """
    terms = [
        info_nce(x, y, temperature, counts) for a, b in combinations(views, 2) for x, y in ((a, b), (b, a))
    ]
    return torch.stack(terms).mean()


def rank_contrast(first: Tensor, second: Tensor, permutation: Tensor, temperature: float) -> Tensor:
    """Contrast of sorted coordinates (MHCR's L_ghc as released): mean_n softplus((neg_n − pos_n)/t).

    The coordinates of each row are sorted first, so the loss compares distributions of values, which hardly differ
    between rows; it is here for parity (specs: mhcr §7, defect 6).

    Args:
        first: ``(n, dim)``.
        second: ``(n, dim)``.
        permutation: ``(n,)`` row of ``second`` that is the negative of each row; each row once.
        temperature: t.

    Returns:
        Scalar; ln 2 exactly under the identity permutation.
    """
    loss: Tensor = _RankContrast.apply(  # type: ignore[no-untyped-call]
        first, second, permutation, temperature
    )
    return loss


class _RankContrast(torch.autograd.Function):
    """Keeps of the sorted rows only their order, a byte a coordinate; stock operations keep ten tables."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, permutation: Tensor, temperature: float) -> Tensor:
        (x_order, _), (y_order, y) = _sorted(first, False), _sorted(second, True)
        ctx.save_for_backward(first, second, x_order, y_order, permutation)
        ctx.temperature = temperature
        total = first.new_zeros(())
        for rows in _blocks(first):
            x, _ = _unit(first[rows], x_order[rows])
            gap = _gap(x, y[rows], y[permutation[rows]])
            total += F.softplus(gap / temperature).sum()
        return total / len(first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, second, x_order, y_order, permutation = ctx.saved_tensors
        scale = gradients[0] / (ctx.temperature * len(first))
        y, of_x, of_y = torch.empty_like(second), torch.empty_like(first), torch.zeros_like(second)
        for rows in _blocks(second):
            y[rows] = _unit(second[rows], y_order[rows])[0]
        for rows in _blocks(first):
            x, norms = _unit(first[rows], x_order[rows])
            other = y[permutation[rows]]
            slope = (_gap(x, y[rows], other) / ctx.temperature).sigmoid_()[:, None] * scale
            of_x[rows] = _through(other.sub_(y[rows]).mul_(slope), x, norms, x_order[rows])
            x *= slope
            of_y[rows] -= x
            of_y.index_add_(0, permutation[rows], x)
        for rows in _blocks(second):
            norms = second[rows].norm(dim=1, keepdim=True).clamp_(min=1e-12)
            of_y[rows] = _through(of_y[rows], y[rows], norms, y_order[rows])
        return of_x, of_y, None, None


def _blocks(rows: Tensor) -> list[slice]:
    return [slice(lo, lo + _BLOCK) for lo in range(0, len(rows), _BLOCK)]


def _sorted(rows: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Order of each row's coordinates in the smallest integer type; and the sorted, normalised rows, if kept."""
    order = rows.new_empty(rows.shape, dtype=torch.uint8 if rows.shape[1] <= 256 else torch.int64)
    units = torch.empty_like(rows) if keep else rows
    for block in _blocks(rows):
        values, at = rows[block].sort(dim=1)
        order[block] = at
        if keep:
            units[block] = F.normalize(values, dim=1)
    return order, units


def _gap(x: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Cosine with the negative, minus cosine with the own row."""
    return (x * other).sum(dim=1) - (x * own).sum(dim=1)


def _unit(rows: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted and normalised rows, and what they were divided by."""
    values = rows.gather(1, order.long())
    norms = values.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    return values.div_(norms), norms


def _through(gradient: Tensor, units: Tensor, norms: Tensor, order: Tensor) -> Tensor:
    """Gradient with respect to the rows, from that of their sorted, normalised form; overwrites ``gradient``."""
    along = (gradient * units).sum(dim=1, keepdim=True) * (norms > 1e-12)  # a clamped norm is constant
    gradient.addcmul_(units, along, value=-1).div_(norms)
    return torch.empty_like(gradient).scatter_(1, order.long(), gradient)
