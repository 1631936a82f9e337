"""MHCR: multi-view hypergraph contrastive recommendation of micro-videos (Lyu, Zhou & Hu, arXiv 2409.09638).

Three sources make a vector:

* the click graph: LightGCN over users and items;
* an item–item graph per content view: gated item vectors are averaged over content neighbours, and handed on to users;
  attention over views splits the result into a common and a specific part;
* a learned hypergraph per content view: items and, through what they clicked, users join K soft hyperedges.

Three settings share the code. ``released`` and ``paper`` reproduce the authors' code and what the paper draws;
``best`` is ours: content alone can stand for an item that nobody has clicked, because a second softmax ranks all items
as if each of them were cold (:mod:`firstlight.models.mhcr_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.graphs.hypergraph import Gathered, hyperedge_vectors, memberships
from firstlight.graphs.knn import (
    Neighbours,
    nearest_unit,
    returned,
    row_weights,
)
from firstlight.models.base import PUBLISHED_BPR
from firstlight.models.content import ContentRows
from firstlight.models.histories import Histories, with_one
from firstlight.models.mhcr_config import MHCRConfig
from firstlight.models.mhcr_forward import MHCRForward
from firstlight.models.mhcr_histories import MHCRRule, columns
from firstlight.models.mhcr_own import Sent, without_own
from firstlight.models.towers import content_input


@dataclass(frozen=True)
class _Learned:
    """What encoding new rows reads of a trained model; computed once, see :meth:`ItemGraphModel._learned`."""

    units: list[Tensor]
    """Per view, normalised content of the catalogue: the keys of a new item's neighbours. Empty, like the two lists
    below, where no score reads content neighbours."""
    sources: list[Tensor]
    """Per view, what an item hands to its content neighbours."""
    gated: list[Tensor]
    """Per view, what of it is the item's own."""
    held: list[Tensor]
    """Per view, hyperedge vectors; zero where no score reads them."""
    sent: list[tuple[Sent, Gathered]]
    """Per view, what clicked items send into hyperedges, and its sums: what a clicked item has to do without where
    content alone stands for it. Filled when it is first asked for; items from outside never ask."""
    handed: Tensor
    """``(n_items, width)`` what an item hands to users; see :func:`firstlight.models.mhcr_histories.columns`."""


class MHCR(MHCRForward[_Learned]):
    """The recommender; see the module."""

    Config = MHCRConfig
    config: MHCRConfig

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """BPR as published for the reproducing settings; for ``best`` every user against every warm item."""
        if given.get("setting", "best") != "best":
            return {**PUBLISHED_BPR, "training": {"lr": 1e-3, "batch_size": 2048, "schedule": "constant"}}
        return {
            "loss": {"name": "softmax"},
            "temperature": {"name": "fixed", "tau": 0.1},
            "negatives": {"name": "all"},
            "training": {"batch": "users", "epochs": 20, "lr": 4e-3, "eval_every": 2, "patience": 4},
        }

    @torch.no_grad()
    def raw_vectors(self) -> tuple[Tensor, Tensor]:
        """Users and items as training compares them, or before normalisation."""
        encoded = self.encode(0, None)
        assert encoded.users is not None
        assert encoded.items is not None
        if self.config.scoring == "dot":
            return encoded.users, encoded.items
        return self._normalised(encoded.users, encoded.items)

    @torch.no_grad()
    def vectors_for_scoring(self) -> tuple[Tensor, Tensor]:
        """Both sides, ``(·, dim + 1)``; cold items by their content.

        In the reproducing settings by what the forward pass makes of them, as in the authors' code: of the ID that
        training hardly touched, the graphs and the hypergraphs. Content makes only items from outside.
        """
        if self.config.setting == "best":
            return super().vectors_for_scoring()
        users, items = self.raw_vectors()
        cold = self.cold[:, None]
        calibrated = torch.cat([items * self.cold_scale, self.cold_offset.expand(len(items), 1)], dim=1)
        return with_one(users), torch.where(cold, calibrated, F.pad(items, (0, 1)))

    def _learn(self) -> _Learned:
        config = self.config
        clicks, _ = self._clicks()
        logits = []
        held = [clicks[1].new_zeros(config.hyperedges, config.dim) for _ in self.edges]
        for view, (values, edges) in enumerate(zip(self.content.values, self.edges, strict=True)):
            if not config.hyper_weight:  # no score reads them
                break
            logits.append(values @ edges)
            senders = self._senders(logits[view], view)
            held[view] = hyperedge_vectors(senders, clicks[1], config.hyper_layers, config.hyper_norm)
        units: list[Tensor] = []
        gated = sources = nodes = units
        if config.fusion == "side":
            units = [F.normalize(values, dim=1) for values in self.content.values]
            gated = sources = self._sources(False)
            for _ in range(config.item_layers - 1):
                sources = [graph(items) for graph, items in zip(self.graphs, sources, strict=True)]
            nodes = [graph(items) for graph, items in zip(self.graphs, sources, strict=True)]
        # A clicked item without an ID of its own hands on its content alone.
        layers, last = (layer * ~self.cold[:, None] for layer in self._item_layers())
        degrees = torch.from_numpy(np.maximum(self.log.item_degrees, 1)).to(layers.dtype)
        reach = degrees[:, None] ** -0.5
        handed = self._handed(
            layers * reach / (config.layers + 1),
            last * reach,
            [node * reach for node in nodes],
            logits,
            self._generated(self.content, None) if config.user_content else None,
        )
        return _Learned(units, sources, gated, held, [], handed)

    def _senders(self, logits: Tensor, view: int) -> Tensor:
        """``(n_items, hyperedges)`` memberships in evaluation of the items that send."""
        members = self._shown(memberships(logits, self.config.membership_temperature), view)
        return members * ~self.cold[:, None] if self._inductive else members

    def _all_sent(self) -> list[tuple[Sent, Gathered]]:
        """Per view, what clicked items send as training left it; see :class:`_Learned`."""
        known = self._learned().sent
        if not known:
            clicks = self._clicks()[0][1]
            for view, (values, edges) in enumerate(zip(self.content.values, self.edges, strict=True)):
                sends = self._sent(self._senders(values @ edges, view), clicks, self.item_table)
                known.append((sends, sends.sums))
        return known

    def _handed(
        self, clicks: Tensor, last: Tensor, nodes: list[Tensor], logits: list[Tensor], content: Tensor | None
    ) -> Tensor:
        """Parts of handed rows side by side."""
        parts = {"clicks": clicks, "last": last}
        parts |= {f"nodes.{view}": node for view, node in enumerate(nodes)}
        parts |= {f"logits.{view}": of_view for view, of_view in enumerate(logits)}
        if content is not None:
            parts["content"] = content
        return torch.cat([parts[name] for name in columns(self.config, len(self.edges))], dim=1)

    def _item_layers(self) -> tuple[Tensor, Tensor]:
        """Sum of the click graph's item layers 0…L−1, and layer L−1."""
        users: Tensor = self.user_table
        items: Tensor = self.item_table
        total, last = torch.zeros_like(items), torch.zeros_like(items)
        for _ in range(self.config.layers):
            total, last = total + items, items
            users, items = self.hop(users, items)
        return total, last

    @torch.no_grad()
    def content_vectors(self, rows: ContentRows) -> Tensor:
        """Items from content: neighbours among warm items, hyperedges as training left them, the generator.

        What a warm item of the catalogue sent itself is taken away from what it receives; not so in the reproducing
        settings, which do not tell cold items from warm ones.
        """
        return self._from_content(rows)[0]

    @torch.no_grad()
    def content_bias(self, rows: ContentRows) -> Tensor | None:
        """What the cold softmax learned to add to an item's logit, times its temperature."""
        if self.appeal is None or self.config.scoring == "dot":  # the bias was learned beside cosines
            return None
        return content_input(rows) @ self.appeal * self.config.cold_temperature

    @torch.no_grad()
    def handing(self, rows: ContentRows) -> tuple[Tensor, Tensor]:
        """The same, and what such items hand to users: all but what takes an ID."""
        vectors, nodes, logits, content = self._from_content(rows)
        nothing = torch.zeros_like(vectors)
        return vectors, self._handed(nothing, nothing, nodes, logits, content)

    def _from_content(self, rows: ContentRows) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
        """Vectors, and what they are made of: per view nodes and hyperedge logits; the generated vectors.

        What no score reads is not made: an empty list.
        """
        learned, config = self._learned(), self.config
        nodes, hyper, logits = [], [], []
        warm = self._clicked(rows)
        for view, values in enumerate(rows.values):
            if config.fusion == "side":
                nodes.append(self._of_neighbours(view, values, rows.ids))
            if not config.hyper_weight:
                continue
            logits.append(values @ self.edges[view])
            members = (
                memberships(logits[-1], config.membership_temperature) * rows.present[:, view : view + 1]
            )
            hyper.append(members @ learned.held[view])
            if len(warm):
                assert rows.ids is not None
                sends, sums = self._all_sent()[view]
                own = sends.rows(rows.ids[warm])
                hyper[view][warm] = without_own(
                    members[warm], own, sums, config.hyper_layers, config.hyper_norm
                )
        zeros = torch.zeros(len(rows), config.dim, dtype=rows.values[0].dtype)
        side = self._fused(nodes, zeros, rows.present, False) if config.fusion == "side" else None
        content = self._generated(rows, None)
        vectors = self._sum(zeros, side, hyper, content)
        unit_items = config.scoring == "trained" and config.normalise in ("both", "item")
        return F.normalize(vectors, dim=1) if unit_items else vectors, nodes, logits, content

    def _clicked(self, rows: ContentRows) -> Tensor:
        """Which rows are items of the catalogue that send something of their own."""
        if rows.ids is None or not self._inductive:
            return torch.zeros(0, dtype=torch.int64)
        return (~self.cold[rows.ids]).nonzero()[:, 0]

    def _of_neighbours(self, view: int, values: Tensor, ids: Tensor | None) -> Tensor:
        """``(n, dim)`` what content neighbours hand to new rows, or to rows ``ids`` of the catalogue as if new."""
        learned, config = self._learned(), self.config
        unit = F.normalize(values, dim=1)
        found = nearest_unit(unit, learned.units[view], config.neighbours, ~self.cold, ids)
        weights = row_weights(found)
        near = learned.sources[view][found.ids.clamp(min=0)]
        nodes = torch.einsum("nk,nkd->nd", weights, near)
        if ids is None or config.item_layers == 1 or not self._inductive:
            return nodes
        clicked = ~self.cold[ids]  # nobody's list holds the others
        near_items = self.neighbour_lists[view]
        lists = Neighbours(near_items.ids, row_weights(near_items))
        first = Neighbours(found.ids[clicked], weights[clicked])
        back = returned(first, lists, ids[clicked], config.item_layers)
        nodes[clicked] -= back[:, None] * learned.gated[view][ids[clicked]]
        return nodes

    @torch.no_grad()
    def hyperedges(self, rows: ContentRows) -> Tensor | None:
        """Memberships, where the hypergraphs count in the score."""
        if not self.config.hyper_weight:
            return None
        members = [
            memberships(values @ edges, self.config.membership_temperature)
            for values, edges in zip(rows.values, self.edges, strict=True)
        ]
        return torch.stack(members, dim=1) * rows.present[:, :, None]

    @torch.no_grad()
    def histories(self) -> Histories:
        """New users by the rules of the known ones, but without an ID of their own.

        They get what the items that they clicked hand to them in every layer, item graph and hyperedge; a user
        without a click gets zero.
        """
        learned = self._learned()
        return Histories(MHCRRule(self.config, self.attention, self._specific, learned.held), learned.handed)
