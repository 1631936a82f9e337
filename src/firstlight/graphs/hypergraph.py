"""Learned hypergraphs: soft memberships of items and users in K hyperedges, and propagation through them.

A hyperedge gathers its members' vectors and hands the result back to them. Several layers need not walk through
the n rows each time: with M⁽ˡ⁾ = HᵀY⁽ˡ⁻¹⁾ and Y⁽ˡ⁾ = HM⁽ˡ⁾ follows M⁽ᴸ⁾ = (HᵀH)ᴸ⁻¹HᵀY⁽⁰⁾, one K × K Gram matrix and
two thin products.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

HyperNorm = Literal["none", "edges"]

#: A hyperedge of which one member holds all but this share is empty without that member: what is left is rounding.
_LEAST_REST = 1e-4


class Gathered(NamedTuple):
    """Sums over all that send, of which each one's own part can be taken away again.

    Attributes:
        totals: ``(n_edges,)`` total membership.
        gram: ``(n_edges, n_edges)`` HᵀH.
        start: ``(n_edges, dim)`` HᵀY⁽⁰⁾.
    """

    totals: Tensor
    gram: Tensor
    start: Tensor


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


def gathered(members: Tensor, start: Tensor) -> Gathered:
    """The sums of :class:`Gathered`.

    Args:
        members: ``(n, n_edges)`` memberships of the rows that send.
        start: ``(n, dim)`` their vectors.
    """
    return Gathered(members.sum(dim=0), members.T @ members, members.T @ start)


def weights_without_own(
    receivers: Tensor, senders: Tensor, sums: Gathered, layers: int, norm: HyperNorm = "none"
) -> Tensor:
    """How much each row receives of what every hyperedge gathers, as if the row itself sent nothing.

    Row r's vector is then Σ over the others j of (w_r · h_j) y_j = w_r @ ``sums.start`` − (w_r · h_r) y_r. Taking a row
    out changes every layer's sums by a rank of one, so all rows cost the products of one more propagation.

    Args:
        receivers: ``(n, n_edges)`` memberships of the rows as receivers.
        senders: ``(n, n_edges)`` the same rows h as senders; zero for those that send nothing.
        sums: Over all senders.
        layers: L ≥ 1.
        norm: As in :func:`hyperedge_vectors`.

    Returns:
        ``(n, n_edges)``.
    """
    rest = sums.totals - senders
    alone = rest <= _LEAST_REST * sums.totals
    rest = rest.masked_fill(alone, 1.0)

    def averaged(weights: Tensor) -> Tensor:
        return weights if norm == "none" else weights.masked_fill(alone, 0.0) / rest

    weights = averaged(receivers)
    for _ in range(layers - 1):
        own = (weights * senders).sum(dim=1, keepdim=True)
        weights = averaged(weights @ sums.gram - own * senders)
    return weights
