"""MGCN (Yu et al., ACM MM 2023): content gates the item IDs before they travel over content neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.graphs.knn import Finder, Neighbours, edge_weights, item_neighbours, returned
from firstlight.graphs.propagation import BipartitePropagation
from firstlight.losses.contrastive import info_nce
from firstlight.models.base import Batch, Encoded, Normalise, TrainsAsPublished
from firstlight.models.content import ContentRows
from firstlight.models.item_graphs import ItemGraphConfig, ItemGraphModel
from firstlight.models.parts import Handed, item_graphs, light_propagation, linear, neighbour_means


class MGCNConfig(ItemGraphConfig):
    """Config of :class:`MGCN`; the contrast's weight is the authors' advice (their repository, issue 4).

    Other than as released: features are frozen, not trained on; items that nobody clicked are nobody's neighbours, and
    neighbours without a positive cosine are left out; absent views get no attention. The released learning rate of 1e-3
    falls by .96^(epoch/50): ``training.schedule`` decides here.
    """

    name: Literal["mgcn"] = "mgcn"

    normalise: Normalise = "none"
    """The paper ranks by the inner product."""

    l2: float = Field(1e-4, ge=0)
    """Weight of ½(‖Z_u‖² + ‖Z_p‖² + ‖Z_n‖²)/batch over the final vectors (released: 1e-4)."""

    layers: int = Field(2, ge=0)
    """Layers on the click graph."""

    item_layers: int = Field(1, ge=1)
    """Layers on the item–item graphs."""

    contrast_weight: float = Field(0.01, ge=0)
    """Weight of the InfoNCE between content side and click side (λ_c; published grid: 1e-3, .01, .1)."""

    contrast_temperature: float = Field(0.2, gt=0)
    """Its temperature (released: .2)."""


@dataclass(frozen=True)
class MGCNEncoded(Encoded):
    """One forward pass.

    Attributes:
        clicks: Click-graph vectors of users and items (E_ui).
        side: Content side of users and items (E_side).
    """

    clicks: tuple[Tensor, Tensor]
    side: tuple[Tensor, Tensor]


class MGCN(TrainsAsPublished, ItemGraphModel[Handed]):
    """Z = E_ui + E_side (rivals A5).

    P_m = e ⊙ σ(G_m(T_m x_m)), Q_m = A_m P_m, E_m = [R̂ Q_m; Q_m]; attention over views gives E_com, and
    E_side = (Σ_m σ(G'_m E_ui) ⊙ (E_m − E_com) + E_com)/(M + 1).
    """

    Config = MGCNConfig
    config: MGCNConfig

    def __init__(
        self,
        config: MGCNConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
        finder: Finder = item_neighbours,
    ) -> None:
        super().__init__(config, train, rng, views, finder)
        assert rng is not None
        dim, dims = config.dim, self.view_dims.values()
        self.projections = nn.ModuleList(linear(width, dim, rng) for width in dims)
        self.gates = nn.ModuleList(linear(dim, dim, rng) for _ in dims)
        self.preferences = nn.ModuleList(linear(dim, dim, rng) for _ in dims)
        self.attention = nn.Sequential(linear(dim, dim, rng), nn.Tanh(), linear(dim, 1, rng, bias=False))
        self.hop = BipartitePropagation(train.indptr, train.items, train.n_items)
        self._build_item_graphs()

    def _build_item_graphs(self) -> None:
        self.item_graphs = item_graphs(self.neighbour_lists, "cosine")

    def encode(self, step: int, rng: torch.Generator | None) -> MGCNEncoded:
        """Click side and content side of all users and items."""
        users, items = light_propagation(self.hop, self.user_table, self.item_table, self.config.layers)
        by_view = self._by_view(self.config.item_layers)
        everything = torch.ones(self.n_users, len(by_view), dtype=torch.bool)
        user_side = self._side([self.hop.users_from(vectors) for vectors in by_view], users, everything)
        item_side = self._side(by_view, items, self.content.present)
        return MGCNEncoded(
            users + user_side, items + item_side, rng, clicks=(users, items), side=(user_side, item_side)
        )

    def _by_view(self, layers: int) -> list[Tensor]:
        """Per view, ``(n_items, dim)`` gated IDs after ``layers`` hops over content neighbours: P_m, then Q_m."""
        result = []
        for values, projection, gate, graph in zip(
            self.content.values, self.projections, self.gates, self.item_graphs, strict=True
        ):
            vectors = self.item_table * gate(projection(values)).sigmoid()
            for _ in range(layers):
                vectors = graph(vectors)
            result.append(vectors)
        return result

    def _side(self, by_view: list[Tensor], clicks: Tensor, present: Tensor) -> Tensor:
        """E_side of some nodes.

        Args:
            by_view: Per view ``(n, dim)`` (E_m).
            clicks: ``(n, dim)`` (E_ui).
            present: ``(n, n_views)`` bool.
        """
        scores = torch.cat([self.attention(vectors) for vectors in by_view], dim=1)
        # A finite floor: a node without any view weighs zero vectors equally instead of dividing by zero.
        weights = scores.masked_fill(~present, -1e9).softmax(dim=1)
        common = torch.stack([weights[:, m, None] * v for m, v in enumerate(by_view)]).sum(dim=0)
        side = common
        for m, (vectors, preference) in enumerate(zip(by_view, self.preferences, strict=True)):
            side = side + preference(clicks).sigmoid() * (vectors - common) * present[:, m, None]
        return side / (present.sum(dim=1, keepdim=True) + 1)

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE between the two sides of the batch's users and positives, beside the L2 term."""
        terms = super().extra_losses(encoded, batch)
        assert isinstance(encoded, MGCNEncoded)
        if self.config.contrast_weight == 0:
            return terms
        total = torch.zeros(())
        for rows, side, clicks in zip(
            (batch.users, batch.positives), encoded.side, encoded.clicks, strict=True
        ):
            nodes, counts = torch.unique(rows, return_counts=True)
            total = total + info_nce(
                F.embedding(nodes, side), F.embedding(nodes, clicks), self.config.contrast_temperature, counts
            )
        return terms | {"contrast": self.config.contrast_weight * total}

    @torch.no_grad()
    def content_vectors(self, rows: ContentRows) -> Tensor:
        """E_side from the k nearest warm items' gated IDs, with E_ui = 0.

        The rows' weights sum to one: the symmetric form would need the degree that each neighbour has with them. What
        an item of the catalogue gets back of its own ID, over neighbours of neighbours, is taken away.
        """
        learned, config = self._learned(), self.config
        by_view, first = neighbour_means(rows, learned, ~self.cold, config.neighbours, "cosine")
        if rows.ids is not None and config.item_layers > 1:
            clicked = ~self.cold[rows.ids]  # nobody's list holds the others
            ids = rows.ids[clicked]
            for m, (near, weights, own) in enumerate(
                zip(self.neighbour_lists, first, learned.own, strict=True)
            ):
                hop = torch.from_numpy(edge_weights(near, "cosine", "symmetric")).float()
                paths = Neighbours(weights.ids[clicked], weights.similarities[clicked])
                back = returned(paths, Neighbours(near.ids, hop), ids, config.item_layers)
                by_view[m][clicked] -= back[:, None] * own[ids]
        vectors = self._side(by_view, torch.zeros(len(rows), self.config.dim), rows.present)
        return self._normalised(vectors, vectors)[1]

    def _learn(self) -> Handed:
        units = [F.normalize(values, dim=1) for values in self.content.values]
        return Handed(units, self._by_view(self.config.item_layers - 1), self._by_view(0))

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []
