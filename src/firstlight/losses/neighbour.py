"""Nearest-neighbour alignment (MIM-Refiner, ICLR 2025, arXiv 2402.10093; specs: mim-refiner §2.5).

The positive of an image is not its own other crop but the nearest neighbour of that crop among recent images;
the negatives are the other images of the batch, and, unlike in NNCLR, stay what they are.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.distributed import own_slice

#: Which teacher vectors neighbours replace: the positive (the paper), the whole row (NNCLR), none (InfoNCE).
Swap = Literal["positive", "all", "none"]

#: ``paper``: the pairs of the paper. ``released``: those of the authors' code.
PairMode = Literal["paper", "released"]


def view_pairs(teachers: int, students: int, mode: PairMode = "paper") -> Tensor:
    """How often each pair of views counts.

    ``paper``: every teacher view against every student view but itself (22 pairs for 2 global and 10 local crops).
    ``released``: the authors' code reads the student's views from the first one on where it means the first
    *local* one; so each teacher meets itself, the other teacher twice, and never the last local crops.

    Args:
        teachers: Number of global views; they are the first student views too.
        students: Number of all views.
        mode: See above.

    Returns:
        ``(teachers, students)`` float64, sum one.
    """
    counts = torch.zeros(teachers, students, dtype=torch.float64)
    counts[:, :teachers] = 1 - torch.eye(teachers, dtype=torch.float64)
    if mode == "paper":
        counts[:, teachers:] = 1
    else:
        counts[:, : students - teachers] += 1
    return counts / counts.sum()


def neighbour_alignment(
    predictions: Tensor,
    teachers: Tensor,
    neighbours: Tensor,
    temperature: float,
    *,
    swap: Swap = "positive",
    mode: PairMode = "paper",
) -> Tensor:
    """Mean over images and pairs of views of the cross-entropy that picks an image among the batch.

    For teacher view i and student view j, with unit vectors t (teacher), n (its neighbour), p (prediction):
    logit(a, a) = n_a·p_a / τ and logit(a, b) = t_a·p_b / τ for b ≠ a.

    Args:
        predictions: ``(students, n, dim)`` student predictions of all views of all ``n`` images of the batch, those
            of the other ranks included; the first ``teachers`` views are the global ones. Gets the gradient.
        teachers: ``(teachers, b, dim)`` projections of this rank's images; without gradient.
        neighbours: ``(teachers, b, dim)`` their neighbours; without gradient.
        temperature: τ.
        swap: ``positive`` as above; ``all``: n_a in the whole row; ``none``: t_a everywhere.
        mode: Which pairs of views count.

    Returns:
        Scalar; log n where all logits are equal.
    """
    views, n, _ = predictions.shape
    n_teachers, b, _ = teachers.shape
    with torch.autocast(predictions.device.type, enabled=False):
        student = F.normalize(_full(predictions), dim=-1)
        teacher = F.normalize(_full(teachers.detach()), dim=-1)
        neighbour = F.normalize(_full(neighbours.detach()), dim=-1)
        rows = neighbour if swap == "all" else teacher
        logits = (rows.flatten(0, 1) / temperature) @ student.flatten(0, 1).T
        logits = logits.view(n_teachers, b, views, n).transpose(1, 2)
        own = own_slice(n)
        image = torch.arange(b, device=logits.device)
        if swap == "positive":
            positive = torch.einsum("tbd,vbd->tvb", neighbour / temperature, student[:, own])
            logits[:, :, image, own.start + image] = positive
        else:
            positive = logits[:, :, image, own.start + image]
        losses = (logits.logsumexp(dim=-1) - positive).mean(dim=-1)
        weights = view_pairs(n_teachers, views, mode).to(losses)
        return (losses * weights).sum()


def _full(tensor: Tensor) -> Tensor:
    """At least single precision: at τ = .2 half precision would blur cosines by a hundredth of a logit."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
