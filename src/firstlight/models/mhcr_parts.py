"""The small networks of MHCR: gates, attention over views, what makes a vector of content, and how all is joined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.models.layers import BatchNorm, Linear, drop


class Gate(nn.Module):
    """σ(Gz + b): which coordinates of an ID pass, given content."""

    def __init__(self, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.inner = Linear(dim, dim, rng)

    def forward(self, z: Tensor, training: bool) -> Tensor:
        """``(n, dim)`` → as many factors in (0, 1); ``training`` is of no account here."""
        passed: Tensor = self.inner(z).sigmoid()
        return passed


class NormGate(nn.Module):
    """σ(BN(G₂·ReLU(BN(G₁z + b₁)) + b₂)), as released."""

    def __init__(self, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = Linear(dim, dim, rng), Linear(dim, dim, rng)
        self.first_norm, self.second_norm = BatchNorm(dim), BatchNorm(dim)

    def forward(self, z: Tensor, training: bool) -> Tensor:
        """``(n, dim)`` → as many factors in (0, 1)."""
        hidden = self.first_norm(self.first(z), training).relu()
        passed: Tensor = self.second_norm(self.second(hidden), training).sigmoid()
        return passed


class Attention(nn.Module):
    """q·tanh(Cz + c), with batch normalisation inside the tanh as released."""

    def __init__(self, dim: int, normed: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.inner, self.query = Linear(dim, dim, rng), Linear(dim, 1, rng, bias=False)
        self.norm = BatchNorm(dim) if normed else None

    def forward(self, z: Tensor, training: bool) -> Tensor:
        """``(n, dim)`` → ``(n,)`` scores of the rows' attention."""
        inner = self.inner(z)
        if self.norm is not None:
            inner = self.norm(inner, training)
        scores: Tensor = self.query(inner.tanh())[:, 0]
        return scores


class Generator(nn.Module):
    """Two layers from an item's joined content to a vector in the ID's place."""

    def __init__(self, inputs: int, hidden: int, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = Linear(inputs, hidden, rng), Linear(hidden, dim, rng)

    def forward(self, x: Tensor, dropout: float, rng: torch.Generator | None) -> Tensor:
        """``(n, Σ dim_m)`` joined content → ``(n, dim)``."""
        vectors: Tensor = self.second(drop(F.leaky_relu(self.first(x)), dropout, rng))
        return vectors


def fused(
    nodes: list[Tensor],
    clicks: Tensor,
    present: Tensor,
    attention: Attention,
    gate: Gate | NormGate,
    training: bool = False,
) -> Tensor:
    """The content side: attention's common part and gated specific parts, over the views that are there.

    Args:
        nodes: Per view ``(n, dim)``.
        clicks: ``(n, dim)`` what opens the gate.
        present: ``(n, n_views)`` bool.
        attention: Attention over views.
        gate: Gate of the specific parts.
        training: Whether batch normalisation goes by this batch.
    """
    scores = torch.stack([attention(node, training) for node in nodes], dim=1)
    weights = scores.masked_fill(~present, -1e9).softmax(dim=1) * present
    common = sum((weights[:, m : m + 1] * node for m, node in enumerate(nodes)), torch.zeros(()))
    opened = gate(clicks, training)
    # Σ_m g ⊙ (E_m − E_com) over the views that are there, with one product in place of one a view
    shown = sum((node * present[:, m : m + 1] for m, node in enumerate(nodes)), torch.zeros(()))
    count = present.sum(dim=1, keepdim=True)
    joined: Tensor = (opened * (shown - count * common) + common) / (count + 1)
    return joined


def summed(
    hyper_weight: float, clicks: Tensor, added: Tensor | None, hyper: list[Tensor], content: Tensor | None
) -> Tensor:
    """Z: the click-graph vector, what fusion adds, α times the normalised hypergraph sum, and content."""
    total = clicks if added is None else clicks + added
    if hyper_weight and hyper:
        total = total + hyper_weight * F.normalize(sum(hyper[1:], hyper[0]), dim=1)
    return total if content is None else total + content
