"""What an item of MHCR would get from the hypergraphs if it had sent nothing itself: as if nobody had clicked it.

A clicked item sends its click-graph vector into the hyperedges that it then receives from, and its ID travels to other
senders through the users who clicked both. Both are linear in what is sent, so they are taken away exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from firstlight.graphs.hypergraph import Gathered, HyperNorm, gathered, weights_without_own
from firstlight.graphs.propagation import BipartitePropagation


class Sent(NamedTuple):
    """What items send into the hyperedges of one view.

    Attributes:
        members: ``(n, n_edges)`` memberships; zero for items that send nothing.
        start: ``(n, dim)`` click-graph vectors, which are sent.
        ids: ``(n, dim)`` ID vectors.
        echo: ``(n, n_edges)`` weight of an item's ID in what each hyperedge gathers, its own row's part included.
        returns: ``(n,)`` weight of an item's ID in its own click-graph vector.
    """

    members: Tensor
    start: Tensor
    ids: Tensor
    echo: Tensor
    returns: Tensor

    def rows(self, rows: Tensor) -> Sent:
        """The chosen items."""
        return Sent(*(part[rows] for part in self))

    @property
    def sums(self) -> Gathered:
        """Over all items."""
        return gathered(self.members, self.start)


def sent(
    members: Tensor, start: Tensor, ids: Tensor, hop: BipartitePropagation, layers: int, returns: Tensor
) -> Sent:
    """What all items send into one view's hyperedges.

    Args:
        members: ``(n_items, n_edges)`` memberships of those that send.
        start: ``(n_items, dim)`` click-graph vectors: the mean of layers 0…``layers``.
        ids: ``(n_items, dim)`` what the click graph started from.
        hop: The click graph.
        layers: Its layers.
        returns: ``(n_items,)`` of :func:`own_returns`.
    """
    # Items reach items in every second layer.
    echo = hop.items_by_items(members, layers // 2) / (layers + 1)
    return Sent(members, start, ids, echo, returns.to(members.dtype))


def own_returns(hop: BipartitePropagation, layers: int) -> Tensor:
    """``(n_items,)`` weight of an item's ID in its own click-graph vector of ``layers`` layers."""
    return hop.item_returns(layers // 2) / (layers + 1)


def without_own(receivers: Tensor, own: Sent, sums: Gathered, layers: int, norm: HyperNorm) -> Tensor:
    """Hypergraph vectors of items as if they sent nothing, and as if their IDs were zero.

    Args:
        receivers: ``(n, n_edges)`` memberships of the items as receivers.
        own: What they send.
        sums: Over all that send.
        layers: Layers of the hypergraph.
        norm: Of the hypergraph.

    Returns:
        ``(n, dim)``.
    """
    weights = weights_without_own(receivers, own.members, sums, layers, norm)
    direct = torch.einsum("nk,nk->n", weights, own.members)
    through_others = torch.einsum("nk,nk->n", weights, own.echo) - direct * own.returns
    return weights @ sums.start - direct[:, None] * own.start - through_others[:, None] * own.ids
