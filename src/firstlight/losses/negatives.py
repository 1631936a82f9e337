"""What a loss contrasts a positive with: vectors, and which of them count for which row.

Two shapes cover every sampler. *Shared* negatives are one list for the whole batch (a uniform sample, the
other positives of the batch, or all items): scores are one matrix product. *Pair* negatives are drawn for each
pair, as in the released Adap-τ; their scores are gathered in blocks, never as a ``(batch, M, dim)`` tensor.
Which items are drawn is decided in ``training/negatives.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from firstlight.core.logsumexp import score_log_sum_exp

#: Scores computed at once where a loss needs each of them (BPR): 16 MB of float32.
BLOCK_ELEMENTS = 4 * 2**20


class Negatives(Protocol):
    """The two reductions over negatives that losses are made of."""

    def log_sum_exp(self, users: Tensor, w: Tensor, *, observe: bool = False) -> tuple[Tensor, Tensor | None]:
        """``log Σ_j exp(w_b u_b·n_j)`` per row, and on request the same at temperature one."""
        ...

    def mean_softplus(self, users: Tensor, positive: Tensor) -> Tensor:
        """``mean_j softplus(u_b·n_j − positive_b)`` per row: the BPR loss."""
        ...


@dataclass(frozen=True)
class SharedNegatives:
    """One list of negatives for all rows of the batch.

    Attributes:
        vectors: ``(n_negatives, dim)`` in training space.
        offset: ``(n_negatives,)`` added to each scaled score (−log q of the sampling correction), or None.
        exclude: int64 ``(rows, columns)`` of cells that do not count, or None.
    """

    vectors: Tensor
    offset: Tensor | None = None
    exclude: tuple[Tensor, Tensor] | None = None

    def log_sum_exp(self, users: Tensor, w: Tensor, *, observe: bool = False) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Negatives.log_sum_exp`; one matrix product, exact gradient, bounded memory."""
        unit = 1 / w.detach() if observe else None
        lse, at_one = score_log_sum_exp(
            users * w[:, None], self.vectors, offset=self.offset, exclude=self.exclude, unit=unit
        )
        return lse, at_one if observe else None

    def mean_softplus(self, users: Tensor, positive: Tensor) -> Tensor:
        """See :meth:`Negatives.mean_softplus`; blocks of rows, recomputed in the backward pass."""
        height = max(1, BLOCK_ELEMENTS // max(1, len(self.vectors)))
        parts = [
            checkpoint(
                self._block, users[lo : lo + height], positive[lo : lo + height], lo, use_reentrant=False
            )
            for lo in range(0, len(users), height)
        ]
        return torch.cat(parts)

    def _block(self, users: Tensor, positive: Tensor, lo: int) -> Tensor:
        losses = F.softplus(users @ self.vectors.T - positive[:, None])
        if self.exclude is None:
            return losses.mean(dim=1)
        rows, columns = self.exclude
        inside = (rows >= lo) & (rows < lo + len(users))
        counts = torch.ones_like(losses)
        counts[rows[inside] - lo, columns[inside]] = 0
        return (losses * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)


class _PairScores(torch.autograd.Function):
    """Inner products of each row with its own list of negatives, gathered in blocks."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(users, vectors, index)
        scores = users.new_empty(index.shape)
        for rows in _row_blocks(index, users.shape[1]):
            torch.bmm(vectors[index[rows]], users[rows, :, None], out=scores[rows, :, None])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        users, vectors, index = ctx.saved_tensors
        grad_users, grad_vectors = torch.empty_like(users), torch.zeros_like(vectors)
        for rows in _row_blocks(index, users.shape[1]):
            gathered = vectors[index[rows]]
            grad_users[rows] = torch.bmm(gradient[rows, None, :], gathered)[:, 0]
            torch.mul(gradient[rows, :, None], users[rows, None, :], out=gathered)
            grad_vectors.index_add_(0, index[rows].reshape(-1), gathered.view(-1, users.shape[1]))
        return grad_users, grad_vectors, None


def _row_blocks(index: Tensor, dim: int) -> list[slice]:
    height = max(1, BLOCK_ELEMENTS // max(1, index.shape[1] * dim))
    return [slice(lo, lo + height) for lo in range(0, index.shape[0], height)]


@dataclass(frozen=True)
class PairNegatives:
    """A list of negatives for each row.

    Attributes:
        vectors: ``(n_vectors, dim)`` the distinct negatives, in training space.
        index: ``(rows, M)`` int64 into ``vectors``.
    """

    vectors: Tensor
    index: Tensor

    def log_sum_exp(self, users: Tensor, w: Tensor, *, observe: bool = False) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Negatives.log_sum_exp`."""
        scores: Tensor = _PairScores.apply(  # type: ignore[no-untyped-call]
            users, self.vectors, self.index
        )
        at_one = torch.logsumexp(scores.detach(), dim=1) if observe else None
        return torch.logsumexp(scores * w[:, None], dim=1), at_one

    def mean_softplus(self, users: Tensor, positive: Tensor) -> Tensor:
        """See :meth:`Negatives.mean_softplus`."""
        scores: Tensor = _PairScores.apply(  # type: ignore[no-untyped-call]
            users, self.vectors, self.index
        )
        return F.softplus(scores - positive[:, None]).mean(dim=1)
