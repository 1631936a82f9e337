"""Pieces that several content models are made of: linear maps, LightGCN's mean of layers, content neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.graphs.knn import Neighbours, Weighting, edge_weights, nearest_unit, neighbour_map
from firstlight.graphs.propagation import BipartitePropagation, SparseMap
from firstlight.models.content import ContentRows
from firstlight.models.layers import Linear


def linear(n_in: int, n_out: int, rng: torch.Generator, *, bias: bool = True) -> Linear:
    """A linear map with the Xavier-normal start that these papers share, and a zero bias."""
    layer = Linear(n_in, n_out, rng, bias)
    nn.init.xavier_normal_(layer.weight, generator=rng)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def light_propagation(
    hop: BipartitePropagation, users: Tensor, items: Tensor, layers: int
) -> tuple[Tensor, Tensor]:
    """LightGCN: the mean of layers 0…``layers`` of ``(n_users, dim)`` and ``(n_items, dim)``."""
    sum_users, sum_items = users, items
    for _ in range(layers):
        users, items = hop(users, items)
        sum_users, sum_items = sum_users + users, sum_items + items
    share = 1 / (layers + 1)
    return sum_users * share, sum_items * share


def item_graphs(lists: list[Neighbours], weighting: Weighting) -> list[SparseMap]:
    """One ``(n_items, n_items)`` graph a view: D^{-½} A D^{-½} with D of row sums, as released (rivals A4, A5).

    Args:
        lists: Per view, the neighbours of all items.
        weighting: ``binary`` or ``cosine``.
    """
    return [
        neighbour_map(near, len(near.ids), weighting=weighting, dtype=near.similarities.dtype)
        for near in lists
    ]


class Handed(NamedTuple):
    """What the items of a catalogue hand to rows that they are content neighbours of, view by view.

    Attributes:
        units: ``(n_items, dim_m)`` normalised content.
        tables: ``(n_items, dim)`` what is handed.
        own: ``(n_items, dim)`` what of it came from the item itself.
    """

    units: list[Tensor]
    tables: list[Tensor]
    own: list[Tensor]


def neighbour_means(
    rows: ContentRows, handed: Handed, warm: Tensor, k: int, weighting: Weighting
) -> tuple[list[Tensor], list[Neighbours]]:
    """Per view, the mean of what the k nearest warm items hand to each new row.

    Args:
        rows: Items from outside, or of the catalogue; no row is its own neighbour.
        handed: By the items that may be neighbours.
        warm: ``(n_items,)`` bool.
        k: Neighbours of a row.
        weighting: ``binary`` or ``cosine``; weights of a row sum to one.

    Returns:
        Per view ``(len(rows), dim)``, zero for a row without the view or without a similar warm item; and the
        neighbours, whose ``similarities`` are those weights.
    """
    means, weighed = [], []
    for queries, keys, table in zip(rows.values, handed.units, handed.tables, strict=True):
        found = nearest_unit(F.normalize(queries, dim=1), keys, k, warm, rows.ids)
        weights = torch.from_numpy(edge_weights(found, weighting, "rows")).to(table.dtype)
        means.append(F.embedding_bag(found.ids.clamp(min=0), table, mode="sum", per_sample_weights=weights))
        weighed.append(Neighbours(found.ids, weights))
    return means, weighed
