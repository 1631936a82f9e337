"""MHCR on the schedule of its released code: the same formulas as ``setting: released``, computed the long way.

The yardstick of ``mhcr_step.py``, written from the method's specification (2, 3, 7 and 8): one (n + m)² adjacency in
coordinate form; LightGCN four times a forward pass, each with all its layers stacked; the gate of the specific parts
once a view; the hypergraph layer by layer; raw features that are trained; the large contrast as dense matrices; and a
forward pass for every batch of users that an evaluation ranks. Parameters, neighbours and random draws are those of
our model, so that losses can be compared.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.data.interactions import Interactions
from firstlight.models.base import Batch
from firstlight.models.mhcr import MHCR

Nodes = dict[str, Tensor | list[Tensor]]


class ReleasedMHCR:
    """The released schedule, on the parameters of one of our models (which it shares, and trains in place).

    Args:
        model: Setting ``released`` or ``paper``.
    """

    def __init__(self, model: MHCR) -> None:
        self.config, self.n_users, self.n_items = model.config, model.n_users, model.n_items
        self.joint_table = model.joint_table
        self.features = [nn.Parameter(values.clone()) for values in model.content.values]
        self.own = {k: v for k, v in model.named_parameters() if not k.startswith("generator.")}
        dtype = self.features[0].dtype
        log = model.log
        self.adjacency = adjacency(log, dtype)
        weight = (log.user_degrees[log.users] * log.item_degrees[log.items].astype(float)) ** -0.5
        self.reach = coordinates(log.users, log.items, weight, (self.n_users, self.n_items), dtype)
        self.clicks = coordinates(
            log.users, log.items, np.ones(log.n_pairs), (self.n_users, self.n_items), dtype
        )
        self.graphs = []
        for graph in model.graphs:
            indptr, columns, values = (part.numpy() for part in graph.matrix)
            rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
            self.graphs.append(coordinates(rows, columns, values, (self.n_items, self.n_items), dtype))
        # Running statistics are kept up as the released layers do; training does not read them.
        self.running = {
            name: (torch.zeros(model.config.dim, dtype=dtype), torch.ones(model.config.dim, dtype=dtype))
            for name in ("gates.0.first_norm", "gates.0.second_norm", "attention.norm")
        }

    def parameters(self) -> list[Tensor]:
        """All that the released code trains: our parameters, and the raw features."""
        return [*self.own.values(), *self.features]

    # -- modules (2) ------------------------------------------------------------------------------------------

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.own[f"{name}.weight"], self.own.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor, training: bool) -> Tensor:
        scale, shift = self.own[f"{name}.weight"], self.own[f"{name}.bias"]
        return F.batch_norm(x, *self.running[name], scale, shift, training, 0.1, 1e-5)

    def _gate(self, z: Tensor, training: bool) -> Tensor:
        hidden = self._norm("gates.0.first_norm", self._linear("gates.0.first", z), training).relu()
        return self._norm("gates.0.second_norm", self._linear("gates.0.second", hidden), training).sigmoid()

    def _attention(self, z: Tensor, training: bool) -> Tensor:
        inner = self._norm("attention.norm", self._linear("attention.inner", z), training)
        return self._linear("attention.query", inner.tanh())

    def _light_gcn(self) -> tuple[Tensor, Tensor]:
        """Mean over the stacked layers, and the last layer."""
        nodes = torch.cat([self.own["user_table"], self.own["item_table"]])
        layers = [nodes]
        for _ in range(self.config.layers):
            nodes = torch.sparse.mm(self.adjacency, nodes)
            layers.append(nodes)
        return torch.stack(layers, dim=1).mean(dim=1), nodes

    def _item_view(self, view: int, training: bool) -> Tensor:
        projected = self._linear(f"projections.{view}", self.features[view])
        items = self.own["item_table"] * self._gate(projected, training)
        for _ in range(self.config.item_layers):
            items = torch.sparse.mm(self.graphs[view], items)
        return torch.cat([torch.sparse.mm(self.reach, items), items])

    def _members(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Gumbel softmax; the released code draws the noise in evaluation too."""
        if self.config.membership_noise:
            uniform = torch.rand(logits.shape, generator=rng, dtype=logits.dtype).clamp_(1e-10, 1 - 1e-7)
            logits = logits - torch.log(-torch.log(uniform))
        return F.softmax(logits / self.config.membership_temperature, dim=1)

    def _dropped(self, members: Tensor, rng: torch.Generator, training: bool) -> Tensor:
        rate = self.config.hyper_dropout
        if not training or rate == 0:
            return members
        return members * (torch.rand(members.shape, generator=rng) >= rate) / (1 - rate)

    def _hyper_view(self, view: int, rng: torch.Generator, training: bool) -> Tensor:
        clicks, _ = self._light_gcn()  # again for each view
        logits = self.features[view] @ self.own[f"edges.{view}"]
        of_items = self._members(logits, rng)
        of_users = self._members(torch.sparse.mm(self.clicks, logits), rng)
        of_items, of_users = (self._dropped(h, rng, training) for h in (of_items, of_users))
        items = clicks[self.n_users :]
        users = clicks[: self.n_users]
        for _ in range(self.config.hyper_layers):
            edges = of_items.T @ items
            items, users = of_items @ edges, of_users @ edges
        return torch.cat([users, items])

    def forward(self, rng: torch.Generator, training: bool = True) -> Nodes:
        """All nodes' vectors: ``z``, ``clicks``, ``side``, and ``views`` and ``hyper`` per view."""
        n_views = len(self.features)
        clicks, last = self._light_gcn()
        views = [self._item_view(view, training) for view in range(n_views)]
        weights = torch.cat([self._attention(view, training) for view in views], dim=1).softmax(dim=1)
        common = sum(weights[:, m : m + 1] * view for m, view in enumerate(views))
        specific = [
            self._gate(clicks, training) * (view - common) for view in views
        ]  # the same gate each time
        side = (sum(specific) + common) / (n_views + 1)
        hyper = [self._hyper_view(view, rng, training) for view in range(n_views)]
        added = last if self.config.fusion == "last-layer" else side
        z = clicks + added + self.config.hyper_weight * F.normalize(sum(hyper), dim=1)
        return {"z": z, "clicks": clicks, "side": side, "views": views, "hyper": hyper}

    # -- losses (3) -------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The whole objective of one batch with one negative a row."""
        config, nodes = self.config, self.forward(rng)
        users, items = nodes["z"].split([self.n_users, self.n_items])
        u, p, n = users[batch.users], items[batch.positives], items[batch.negatives]
        total = -F.logsigmoid((u * p).sum(dim=1) - (u * n).sum(dim=1)).mean()
        squares = u.square().sum() + p.square().sum() + n.square().sum()
        total = total + config.batch_l2 * squares / 2 / len(u)
        norms = torch.linalg.norm(users) + torch.linalg.norm(items)
        total = total + config.table_norm * norms / self.n_items
        rows = batch.users, self.n_users + batch.positives
        both = [self._info_nce(nodes["side"][r], nodes["clicks"][r]) for r in rows]
        total = total + config.side_contrast * sum(both)
        table = nodes["hyper"][self.joint_table]
        halves = table[: self.n_users], table[self.n_users :]
        joint = [
            self._triple([h[r] for h in nodes["hyper"]], half) for r, half in zip(rows, halves, strict=True)
        ]
        total = total + config.hyper_contrast_weight * sum(joint)
        ranks = [self._ranks(h, v, rng) for h, v in zip(nodes["hyper"], nodes["views"], strict=True)]
        return total + config.cross_contrast_weight * sum(ranks)

    def _info_nce(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        t = self.config.contrast_temperature
        positive = torch.exp((a * b).sum(dim=1) / t)
        return -torch.log(positive / torch.exp(a @ b.T / t).sum(dim=1)).mean()

    def _triple(self, views: list[Tensor], table: Tensor) -> Tensor:
        """L_hc, with every logit of the batch against the whole table in memory."""
        t = self.config.contrast_temperature
        units, keys = [F.normalize(view, dim=1) for view in views], F.normalize(table, dim=1)
        positive = sum(torch.exp((a * b).sum(dim=1) / t) for a, b in combinations(units, 2))
        against = sum(torch.exp(unit @ keys.T / t).sum(dim=1) for unit in units)
        return -torch.log(positive / against).sum()

    def _ranks(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        x, y = (F.normalize(torch.sort(rows, dim=1).values, dim=1) for rows in (x, y))
        order = self._permutation(rng)
        return F.softplus(((x * y[order]).sum(dim=1) - (x * y).sum(dim=1)) / 0.1).mean()

    def _permutation(self, rng: torch.Generator) -> Tensor:
        return torch.randperm(self.n_users + self.n_items, generator=rng)

    # -- evaluation (4) ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def top_k(self, users: Tensor, seen: Interactions, k: int, rng: torch.Generator) -> Tensor:
        """``(rows, k)`` best unseen items of a batch of users, after a forward pass of its own."""
        vectors, items = self.forward(rng, training=False)["z"].split([self.n_users, self.n_items])
        return self.ranked(vectors[users], items, users, seen, k)

    @staticmethod
    def ranked(vectors: Tensor, items: Tensor, users: Tensor, seen: Interactions, k: int) -> Tensor:
        """Scores of all items, those of training masked, the k best."""
        scores = vectors @ items.T
        chosen = users.numpy()
        rows = np.repeat(np.arange(len(chosen)), seen.user_degrees[chosen])
        columns = np.concatenate([seen.items[seen.indptr[u] : seen.indptr[u + 1]] for u in chosen])
        scores[torch.from_numpy(rows), torch.from_numpy(columns).long()] = -1e10
        return scores.topk(k, dim=1).indices


def coordinates(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """A sparse matrix in coordinate form."""
    index = torch.from_numpy(np.stack([rows, columns]).astype(np.int64))
    entries = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return torch.sparse_coo_tensor(index, entries, shape, check_invariants=False).coalesce()


def adjacency(log: Interactions, dtype: torch.dtype) -> Tensor:
    """D^{-½}[[0, R], [Rᵀ, 0]]D^{-½} over users and items together."""
    n, total = log.n_users, log.n_users + log.n_items
    rows = np.concatenate([log.users, log.items.astype(np.int64) + n])
    columns = np.concatenate([log.items.astype(np.int64) + n, log.users])
    degrees = np.maximum(np.bincount(rows, minlength=total), 1) ** -0.5
    return coordinates(rows, columns, degrees[rows] * degrees[columns], (total, total), dtype)
