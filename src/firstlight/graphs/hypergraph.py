"""Learned hypergraphs: soft memberships of items and users in K hyperedges, and propagation through them.

A hyperedge gathers its members' vectors and hands the result back to them. Several layers need not walk through
the n rows each time: with M⁽ˡ⁾ = HᵀY⁽ˡ⁻¹⁾ and Y⁽ˡ⁾ = HM⁽ˡ⁾ follows M⁽ᴸ⁾ = (HᵀH)ᴸ⁻¹HᵀY⁽⁰⁾, one K × K Gram matrix and
two thin products.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

HyperNorm = Literal["none", "edges"]


def memberships(logits: Tensor, temperature: float, rng: torch.Generator | None = None) -> Tensor:
    """Soft memberships, each row summing to one: softmax((logits + Gumbel noise)/τ).

    Args:
        logits: ``(n, n_edges)``.
        temperature: τ > 0; towards zero a row joins one hyperedge.
        rng: Draws the noise; None for none.
    """
    if rng is not None:
        uniform = torch.rand(logits.shape, generator=rng, dtype=logits.dtype).clamp_(1e-10, 1 - 1e-7)
        logits = logits - (-uniform.log()).log()
    return (logits / temperature).softmax(dim=1)


def hyperedge_vectors(members: Tensor, start: Tensor, layers: int, norm: HyperNorm = "none") -> Tensor:
    """What the hyperedges hold after ``layers`` layers, by the closed form.

    Args:
        members: ``(n, n_edges)`` memberships H of the rows that send (a zero row sends nothing).
        start: ``(n, dim)`` vectors Y⁽⁰⁾.
        layers: L ≥ 1.
        norm: ``none`` sums over members, as released: the top eigenvalue of HHᵀ is at least n/K, so a few layers
            leave one direction only. ``edges`` averages: each gathering is divided by the hyperedge's total
            membership (B⁻¹ of hypergraph convolution), which keeps every layer an average.

    Returns:
        ``(n_edges, dim)`` vectors M⁽ᴸ⁾; a receiver with memberships h gets h @ M⁽ᴸ⁾.
    """
    gather = members.T
    if norm == "edges":
        gather = gather / members.sum(dim=0).clamp(min=1e-12)[:, None]
    held = gather @ start
    if layers > 1:
        gram = gather @ members
        for _ in range(layers - 1):
            held = gram @ held
    return held
