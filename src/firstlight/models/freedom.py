"""FREEDOM (Zhou & Shen, ACM MM 2023): a frozen item–item graph beside a pruned click graph."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.core.errors import InputError
from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.graphs.knn import Finder, Neighbours, edge_weights, item_neighbours, returned
from firstlight.graphs.pruning import PrunedGraph
from firstlight.losses.negatives import Negatives, PairNegatives, SharedNegatives
from firstlight.losses.ranking import bpr
from firstlight.models.base import Batch, Encoded, Normalise, TrainsAsPublished
from firstlight.models.content import ContentRows
from firstlight.models.item_graphs import ItemGraphConfig, ItemGraphModel
from firstlight.models.parts import Handed, item_graphs, light_propagation, linear, neighbour_means


class FREEDOMConfig(ItemGraphConfig):
    """Config of :class:`FREEDOM`.

    Other than as released: features are frozen, not trained on; items that nobody clicked are nobody's neighbours, and
    neighbours without a positive cosine are left out; log σ is computed as a softplus; pruning follows the step's
    number, so that a resumed run is the same run.
    """

    name: Literal["freedom"] = "freedom"

    normalise: Normalise = "none"
    """The paper ranks by the inner product."""

    layers: int = Field(2, ge=0)
    """Layers on the click graph."""

    item_layers: int = Field(1, ge=1)
    """Layers on the item–item graph (L_m)."""

    view_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """View → weight in the item–item graph, by default 1 each; an item's weights are divided by their sum over the
    views it has. Released: ``{image: 0.1, text: 0.9}`` (α = .1), for CNN features of Amazon's pictures."""

    prune: float = Field(0.8, ge=0, lt=1)
    """Share of pairs left out of the click graph while training (ρ; published grid: .8, .9)."""

    prune_every: int | None = Field(None, ge=1)
    """Steps between draws of the pruned graph; None: about an epoch, as in the paper."""

    view_loss_weight: float = Field(1e-3, ge=0)
    """λ of the BPR terms of users against projected views (published grid: 0, 1e-5, 1e-4, 1e-3)."""


class FREEDOM(TrainsAsPublished, ItemGraphModel[Handed]):
    """User = LGN_u; item = LGN_i + h_i with h = (Σ_m α_m A_m)^{L_m} e (rivals A4)."""

    Config = FREEDOMConfig
    config: FREEDOMConfig

    def __init__(
        self,
        config: FREEDOMConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
        finder: Finder = item_neighbours,
    ) -> None:
        super().__init__(config, train, rng, views, finder)
        assert rng is not None
        unknown = sorted(set(config.view_weights) - set(self.view_dims))
        if unknown:
            raise InputError(
                f"model.view_weights names {', '.join(unknown)}, which the items do not have",
                hint=f"their views: {', '.join(self.view_dims)}",
            )
        log = train.indptr, train.items, train.n_items
        self.graph = PrunedGraph(*log, config.prune, config.prune_every)
        self.register_buffer("graph_seed", torch.randint(2**62, (), generator=rng))
        self.graph_seed: Tensor
        self.projections = nn.ModuleList(linear(dim, config.dim, rng) for dim in self.view_dims.values())
        self._build_item_graphs()

    def _build_item_graphs(self) -> None:
        self.item_graphs = item_graphs(self.neighbour_lists, "binary")

    def encode(self, step: int, rng: torch.Generator | None) -> Encoded:
        """Both graphs; clicks on the step's pruned graph in training, else on the whole one."""
        hop = self.graph.whole if rng is None else self.graph.at(step, int(self.graph_seed))
        users, items = light_propagation(hop, self.user_table, self.item_table, self.config.layers)
        return Encoded(users, items + self._by_content(self.config.item_layers), rng)

    def _by_content(self, layers: int) -> Tensor:
        """``(n_items, dim)``: item IDs after ``layers`` hops over content neighbours."""
        vectors: Tensor = self.item_table
        for _ in range(layers):
            vectors = self._mixed([graph(vectors) for graph in self.item_graphs], self.content.present)
        return vectors

    def _shares(self, present: Tensor) -> Tensor:
        """``(n, n_views)`` weights of the views that an item has, which sum to one."""
        weights = present * torch.tensor([self.config.view_weights.get(name, 1.0) for name in self.view_dims])
        return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _mixed(self, by_view: list[Tensor], present: Tensor) -> Tensor:
        """The weighted mean over the views that an item has."""
        weights = self._shares(present)
        return torch.stack([weights[:, m, None] * vectors for m, vectors in enumerate(by_view)]).sum(dim=0)

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """BPR of users against each projected view; pairs whose positive lacks the view are left out."""
        terms = super().extra_losses(encoded, batch)
        if self.config.view_loss_weight == 0:
            return terms
        users = self._rows(self.user_table, encoded.users, batch.users)
        liked = self.content[batch.positives]
        others = self.content if batch.negatives is None else self.content[batch.negatives]
        for m, (name, projection) in enumerate(zip(self.view_dims, self.projections, strict=True)):
            present = liked.present[:, m]
            scores = (users * projection(liked.values[m])).sum(dim=1)
            negatives = self._negatives(projection(others.values[m]), others.present[:, m], batch.index)
            losses = bpr(users, scores, negatives) * present
            terms[f"bpr_{name}"] = self.config.view_loss_weight * losses.sum() / present.sum().clamp(min=1)
        return terms

    @staticmethod
    def _negatives(vectors: Tensor, present: Tensor, index: Tensor | None) -> Negatives:
        """Projected negatives that have the view; where each pair drew its own, the others score zero."""
        if index is not None:
            return PairNegatives(vectors * present[:, None], index)
        return SharedNegatives(vectors[present] if bool(present.any()) else vectors * 0)

    @torch.no_grad()
    def content_vectors(self, rows: ContentRows) -> Tensor:
        """The content part h over the k nearest warm items; the click graph has nothing to add.

        What an item of the catalogue gets back of its own ID, over neighbours of neighbours, is taken away.
        """
        learned, config = self._learned(), self.config
        means, first = neighbour_means(rows, learned, ~self.cold, config.neighbours, "binary")
        if rows.ids is not None and config.item_layers > 1:
            clicked = ~self.cold[rows.ids]  # nobody's list holds the others
            ids, lists = rows.ids[clicked], self._mixed_lists()
            for mean, near, own in zip(means, first, learned.own, strict=True):
                paths = Neighbours(near.ids[clicked], near.similarities[clicked])
                mean[clicked] -= returned(paths, lists, ids, config.item_layers)[:, None] * own[ids]
        vectors = self._mixed(means, rows.present)
        return self._normalised(vectors, vectors)[1]

    def _learn(self) -> Handed:
        table = self._by_content(self.config.item_layers - 1)
        views = len(self.view_dims)
        units = [F.normalize(values, dim=1) for values in self.content.values]
        return Handed(units, [table] * views, [self.item_table] * views)

    def _mixed_lists(self) -> Neighbours:
        """``(n_items, n_views · k)`` neighbours over all views, weighed as a hop of :meth:`_by_content` weighs them."""
        weights = self._shares(self.content.present)
        by_view = [
            torch.from_numpy(edge_weights(near, "binary", "symmetric")).float() * weights[:, m, None]
            for m, near in enumerate(self.neighbour_lists)
        ]
        ids = torch.cat([near.ids for near in self.neighbour_lists], dim=1)
        return Neighbours(ids, torch.cat(by_view, dim=1))

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []
