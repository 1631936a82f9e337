"""MHCR's parameters, graphs and forward pass: how the three sources make vectors of all users and items at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.graphs.hypergraph import hyperedge_vectors, memberships
from firstlight.graphs.knn import (
    Finder,
    Neighbours,
    Normalisation,
    item_neighbours,
    neighbour_map,
    returned,
    row_weights,
)
from firstlight.graphs.propagation import BipartitePropagation
from firstlight.models.content import ContentRows
from firstlight.models.item_graphs import LearnedT
from firstlight.models.layers import Linear, drop, made_again, xavier
from firstlight.models.mhcr_config import MHCRConfig
from firstlight.models.mhcr_own import Sent, own_returns, sent, without_own
from firstlight.models.mhcr_parts import Attention, Gate, Generator, NormGate, fused, summed
from firstlight.models.mhcr_terms import MHCREncoded, MHCRTerms, Nodes
from firstlight.models.towers import content_input


class MHCRForward(MHCRTerms[LearnedT]):
    """The forward pass; :class:`firstlight.models.mhcr.MHCR` adds what is asked of a trained model."""

    def __init__(
        self,
        config: MHCRConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
        finder: Finder = item_neighbours,
    ) -> None:
        super().__init__(config, train, rng, views, finder)
        assert rng is not None
        self._check_joint_table()
        dims, dim = list(self.view_dims.values()), config.dim
        shared = config.gates == "shared"
        self.projections = nn.ModuleList(Linear(width, dim, rng) for width in dims)
        gate: type[NormGate] | type[Gate] = NormGate if shared else Gate
        self.gates = nn.ModuleList(gate(dim, rng) for _ in range(1 if shared else len(dims)))
        self.specific = None if shared else Gate(dim, rng)
        self.attention = Attention(dim, shared, rng)
        self.edges = nn.ParameterList(xavier(width, config.hyperedges, rng) for width in dims)
        self.generator = Generator(sum(dims), config.content_hidden, dim, rng)
        #: Weights of content in :meth:`content_bias`.
        self.appeal = nn.Parameter(torch.zeros(sum(dims))) if config.cold_bias else None
        self._build_graphs(torch.float32)

    def _build_graphs(self, dtype: torch.dtype) -> None:
        log, config = self.log, self.config
        self.hop = BipartitePropagation(log.indptr, log.items, self.n_items, dtype=dtype)
        power = 1.0 if config.user_memberships == "mean" else 0.0
        self.history = BipartitePropagation(log.indptr, log.items, self.n_items, power, 0.0, dtype)
        self.means = self.history
        if power != 1.0:
            self.means = BipartitePropagation(log.indptr, log.items, self.n_items, 1.0, 0.0, dtype)
        self._click_returns: Tensor | None = None
        self._build_item_graphs()

    def _build_item_graphs(self) -> None:
        self._neighbour_returns: list[Tensor] | None = None
        normalisation: Normalisation = "rows" if self._inductive else "symmetric"
        self.graphs = [
            neighbour_map(near, self.n_items, normalisation=normalisation, dtype=self.item_table.dtype)
            for near in self.neighbour_lists
        ]

    def _found(self, values: Tensor, finder: Finder) -> Neighbours:
        """As the base, but without the item itself; in the reproducing settings with it, and with cold items."""
        k, method = self.config.neighbours, self.config.knn
        if self._inductive:
            return finder(values, k, allowed=~self.cold, without_self=True, method=method)
        return finder(values, k, method=method)

    def double(self) -> Self:
        """The model with all constants in double precision too, for tests."""
        super().double()
        self.content = replace(self.content, values=tuple(v.double() for v in self.content.values))
        for view, values in enumerate(self.content.values):
            self._keep(view, self._found(values, item_neighbours))
        self._build_graphs(torch.float64)
        self._cache = None
        return self

    @property
    def _inductive(self) -> bool:
        """Whether cold items are told from warm ones; the reproducing settings do not."""
        return not self.config.self_neighbour

    def encode(self, step: int, rng: torch.Generator | None) -> MHCREncoded:
        """Everything of one step, on all users and items."""
        hidden, training = self._hidden(rng), rng is not None
        clicks, last = self._clicks()
        shown, last = ((users, items * ~hidden[:, None]) for users, items in (clicks, last))
        cold_too = training and self.config.cold_loss > 0
        views: list[Nodes] = []
        sources: list[Tensor] = []
        side = None
        if self._needs_side(training):
            sources = self._sources(training)
            views = self._item_graphs(sources, hidden if training else None)
            side = self._fuse(views, shown, training)
        hyper: list[Nodes] = []
        alone: list[Tensor] = []
        if self.config.hyper_weight or self.config.hyper_contrast_weight or self.config.cross_contrast_weight:
            hyper, alone = self._hypergraphs(clicks[1], hidden, rng, cold_too)
        added = {"side": side, "last-layer": last, "none": None}[self.config.fusion]
        content = self._generated(self.content, rng)
        tastes = self._tastes(content, self.means.users_from)
        users = self._sum(shown[0], None if added is None else added[0], [pair[0] for pair in hyper], tastes)
        joins = content if content is None or self.config.content_joins else content * hidden[:, None]
        items = self._sum(shown[1], None if added is None else added[1], [pair[1] for pair in hyper], joins)
        if_cold = None
        if cold_too:
            nodes = self._without_returns(views, sources, ~hidden) if self.config.fusion == "side" else []
            if_cold = self._if_cold(nodes, alone, content)
        return MHCREncoded(users, items, rng, clicks, side, views, hyper, hidden, if_cold)

    def _if_cold(self, nodes: list[Tensor], edges: list[Tensor], content: Tensor | None) -> Tensor:
        """Every item's vector by the rule of cold ones; see :meth:`content_vectors`."""
        if not self.config.cold_moves_users:
            nodes, edges = [node.detach() for node in nodes], [edge.detach() for edge in edges]
        zeros = torch.zeros_like(self.item_table)
        side = None
        if self.config.fusion == "side":
            side = self._fused(nodes, zeros, self.content.present, True)
        return self._sum(zeros, side, edges, content)

    def _needs_side(self, training: bool) -> bool:
        """Whether the content side is read: by the score, or by a term of the objective."""
        config = self.config
        contrasted = config.side_contrast > 0 or config.cross_contrast_weight > 0
        return config.fusion == "side" or (training and contrasted)

    def _hidden(self, rng: torch.Generator | None) -> Tensor:
        """Items without an ID in this pass: the log's cold ones, and in training a share of the others."""
        if not self._inductive:
            return torch.zeros_like(self.cold)
        if rng is None or self.config.cold_share == 0:
            return self.cold
        return self.cold | (torch.rand(self.n_items, generator=rng) < self.config.cold_share)

    def _clicks(self, ids: Tensor | None = None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """LightGCN: mean over layers, and the last layer; of the item table, or of ``ids`` in its place."""
        users: Tensor = self.user_table
        items: Tensor = self.item_table if ids is None else ids
        sum_users, sum_items = users, items
        for _ in range(self.config.layers):
            users, items = self.hop(users, items)
            sum_users, sum_items = sum_users + users, sum_items + items
        share = 1 / (self.config.layers + 1)
        return (sum_users * share, sum_items * share), (users, items)

    def _sources(self, training: bool) -> list[Tensor]:
        """Per view, the gated item vectors P_m that neighbours receive."""
        gated = []
        for index, (values, projection) in enumerate(zip(self.content.values, self.projections, strict=True)):
            gate = self.gates[index if len(self.gates) > 1 else 0]
            gated.append(self.item_table * gate(projection(values), training))
        return gated

    def _item_graphs(self, sources: list[Tensor], hidden: Tensor | None) -> list[Nodes]:
        """Per view, propagated item vectors and what users receive of them (E_m)."""
        result = []
        for view, (graph, items) in enumerate(zip(self.graphs, sources, strict=True)):
            for _ in range(self.config.item_layers):
                items = graph(items)
            if hidden is not None and self.config.cold_share:
                items = self._without_return(view, items, sources[view], hidden)
            result.append(self._pair(self.hop.users_from(items), items))
        return result

    def _without_return(self, view: int, items: Tensor, source: Tensor, rows: Tensor) -> Tensor:
        """Propagated items; ``rows`` ``(n_items,)`` bool without what their neighbours hand back to them.

        Within one layer an item, which is not its own neighbour, gets nothing back.
        """
        if self.config.item_layers == 1 or not self._inductive:
            return items
        if self._neighbour_returns is None:
            own = torch.arange(self.n_items)
            lists = [Neighbours(near.ids, row_weights(near)) for near in self.neighbour_lists]
            self._neighbour_returns = [returned(near, near, own, self.config.item_layers) for near in lists]
        return items - (self._neighbour_returns[view] * rows)[:, None] * source

    def _without_returns(self, views: list[Nodes], sources: list[Tensor], rows: Tensor) -> list[Tensor]:
        return [
            self._without_return(view, pair.items, source, rows)
            for view, (pair, source) in enumerate(zip(views, sources, strict=True))
        ]

    def _pair(self, users: Tensor, items: Tensor) -> Nodes:
        """Users and items as the two parts of one table, so that what reads all nodes need not copy them."""
        both = torch.cat([users, items])
        first, second = torch.split(both, [self.n_users, self.n_items])
        return Nodes(first, second, both)

    def _fuse(
        self, views: list[Nodes], clicks: tuple[Tensor, Tensor], training: bool
    ) -> tuple[Tensor, Tensor]:
        """The content side E_side of users and items, in one pass: batch normalisation runs over all nodes."""
        nodes = [pair.both for pair in views]
        # The reproducing settings know no missing views; a user has every view.
        items = self.content.present if self._inductive else torch.ones_like(self.content.present)
        present = torch.cat([items.new_ones(self.n_users, len(views)), items])
        joint = torch.cat(clicks)
        if training and not self._inductive:
            # Batch normalisation and tanh over all nodes would keep a dozen tables, for a term of rows of the batch.
            joined = made_again(
                lambda own, *of_views: self._fused(list(of_views), own, present, True), self, [joint, *nodes]
            )
        else:
            joined = self._fused(nodes, joint, present, training)
        return joined[: self.n_users], joined[self.n_users :]

    def _fused(self, nodes: list[Tensor], clicks: Tensor, present: Tensor, training: bool) -> Tensor:
        """Attention's common part and gated specific parts, over the views that are there."""
        return fused(nodes, clicks, present, self.attention, self._specific, training)

    @property
    def _specific(self) -> Gate | NormGate:
        """The gate of the specific parts."""
        gate = self.gates[0] if self.specific is None else self.specific
        assert isinstance(gate, Gate | NormGate)
        return gate

    def _hypergraphs(
        self, items: Tensor, hidden: Tensor, rng: torch.Generator | None, alone: bool
    ) -> tuple[list[Nodes], list[Tensor]]:
        """Per view, hypergraph vectors of users and items (E_m^H).

        Args:
            items: ``(n_items, dim)`` click-graph vectors.
            hidden: ``(n_items,)`` bool: items that send nothing.
            rng: Random stream of the step, or None.
            alone: Whether to make every item's vector as if it sent nothing, too.

        Returns:
            The vectors; and ``(n_items, dim)`` a view, or an empty list.
        """
        config = self.config
        noise = rng if config.membership_noise else None
        ids: Tensor = self.item_table
        if rng is not None and config.cold_share and self._inductive:
            ids = ids * ~hidden[:, None]
            if config.layers > 1:  # a hidden ID would come back over users who clicked another sender, too
                items = self._clicks(ids)[0][1]
        result, lone = [], []
        for view, (values, edges) in enumerate(zip(self.content.values, self.edges, strict=True)):
            logits = values @ edges
            of_items = memberships(logits, config.membership_temperature, noise)
            of_users = memberships(self.history.users_from(logits), config.membership_temperature, noise)
            of_items = self._shown(of_items, view)
            of_items, of_users = (
                drop(members, config.hyper_dropout, rng) for members in (of_items, of_users)
            )
            senders = of_items * ~hidden[:, None] if self._inductive else of_items
            held = hyperedge_vectors(senders, items, config.hyper_layers, config.hyper_norm)
            result.append(self._pair(of_users @ held, of_items @ held))
            if alone and config.hyper_weight and self._inductive:
                own = self._sent(senders, items, ids)
                lone.append(without_own(of_items, own, own.sums, config.hyper_layers, config.hyper_norm))
        return result, lone if lone or not alone else [pair.items for pair in result]

    def _shown(self, members: Tensor, view: int) -> Tensor:
        """Memberships of the catalogue's items, none without the view; the reproducing settings know no such items."""
        return members * self.content.present[:, view : view + 1] if self._inductive else members

    def _sent(self, members: Tensor, items: Tensor, ids: Tensor) -> Sent:
        """What items send into one view's hyperedges; see :func:`firstlight.models.mhcr_own.sent`."""
        if self._click_returns is None:
            self._click_returns = own_returns(self.hop, self.config.layers)
        return sent(members, items, ids, self.hop, self.config.layers, self._click_returns)

    def _generated(self, rows: ContentRows, rng: torch.Generator | None) -> Tensor | None:
        """What the network makes of content (the ID generator), or None where it is off."""
        if self.config.content_weight == 0:
            return None
        made: Tensor = self.generator(content_input(rows), self.config.content_dropout, rng)
        return made * self.config.content_weight

    def _tastes(self, content: Tensor | None, gather: Callable[[Tensor], Tensor]) -> Tensor | None:
        """What users receive of the content vectors of their items, or None."""
        if content is None or self.config.user_content == 0:
            return None
        return gather(content) * self.config.user_content

    def _sum(
        self, clicks: Tensor, added: Tensor | None, hyper: list[Tensor], content: Tensor | None
    ) -> Tensor:
        """Z: see :func:`firstlight.models.mhcr_parts.summed`."""
        return summed(self.config.hyper_weight, clicks, added, hyper, content)

    def sparse_rows(self) -> list[str]:
        """Propagation touches every row."""
        return []
