"""Ranking losses: BPR, softmax, and the bilateral softmax.

All take *scores of positives* and :class:`~firstlight.losses.negatives.Negatives` and give one loss per row; a
row is a user–item pair, or a user with all its pairs (then ``positive`` is the mean score of its positives:
these losses are linear in it as long as the positive stays out of the denominator).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from firstlight.losses.negatives import Negatives


class LossConfig(BaseModel):
    """Which ranking loss, and its shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["bpr", "softmax", "bsl", "none"] = "softmax"
    """``bpr`` (Rendle 2009), ``softmax`` (sampled or full), ``bsl`` (bilateral softmax: asymmetric weight);
    ``none`` for models whose own terms are the whole objective (BM3, DropoutNet, CLCRec)."""

    negative_weight: float = Field(1.22, gt=0)
    """Weight of the log-sum over negatives in ``bsl`` (its t₂; 1 is the plain softmax). Uniform negatives want
    more than one, popularity-drawn in-batch negatives less (BSL's released Gowalla settings: 1.22 and .84)."""

    positive_in_denominator: bool = False
    """Whether the positive counts among its own negatives. The textbook softmax says yes; the released Adap-τ
    and BSL say no, which keeps the pull on the positive from saturating (specs §3, departure b)."""


class RankingLoss(NamedTuple):
    """What a loss gives back.

    Attributes:
        per_row: ``(rows,)`` differentiable losses.
        at_tau_one: ``(rows,)`` the softmax loss at temperature one, detached, where asked for: what per-user
            temperatures watch (paper eq. 13: L(u)); −inf for a row without any negative.
    """

    per_row: Tensor
    at_tau_one: Tensor | None


def bpr(users: Tensor, positive: Tensor, negatives: Negatives) -> Tensor:
    """Bayesian personalised ranking: ``mean_j softplus(s_j − s_i)``.

    Args:
        users: ``(rows, dim)``.
        positive: ``(rows,)`` score of the positive.
        negatives: What to contrast with.

    Returns:
        ``(rows,)`` losses.
    """
    return negatives.mean_softplus(users, positive)


def ranking_loss(
    config: LossConfig,
    users: Tensor,
    positive: Tensor,
    negatives: Negatives,
    w_positive: Tensor,
    w_negative: Tensor,
    *,
    observe: bool = False,
) -> RankingLoss:
    """The configured loss of each row.

    The softmax family is ``−w₊ f₊ + c·log Σ_j exp(w₋ f_j)``. With w₊ = w₋ and c = 1 it is the sampled softmax;
    with c ≠ 1 the bilateral one; with w₊ global and w₋ per user the released Adap-τ.

    Args:
        config: Name and shape of the loss.
        users: ``(rows, dim)`` user vectors in training space.
        positive: ``(rows,)`` cosine (or inner product) with the positive.
        negatives: What to contrast with.
        w_positive: ``(rows,)`` inverse temperature on the positive.
        w_negative: ``(rows,)`` inverse temperature on the negatives.
        observe: Also give the loss at temperature one.

    Returns:
        Losses per row. BPR has no temperature; it scales scores by ``w_negative``, so that normalised vectors
        can be trained with it, and observes nothing.
    """
    if config.name == "bpr":
        return RankingLoss(bpr(users * w_negative[:, None], positive * w_negative, negatives), None)
    lse, at_one = negatives.log_sum_exp(users, w_negative, observe=observe)
    attraction = w_positive * positive
    if config.positive_in_denominator:
        lse = torch.logaddexp(lse, w_negative * positive)
    weight = config.negative_weight if config.name == "bsl" else 1.0
    watched = None if at_one is None else at_one - positive.detach()
    # A row without any negative (the only pair of a batch, a user who knows all candidates) has nothing to learn.
    contrasted = lse > -torch.inf
    return RankingLoss(torch.where(contrasted, weight * lse - attraction, 0.0), watched)
