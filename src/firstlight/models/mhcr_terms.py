"""What MHCR minimises beside its ranking loss, on the tables of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from firstlight.core.errors import InputError
from firstlight.core.logsumexp import score_log_sum_exp
from firstlight.losses.contrastive import info_nce, joint_contrast, pairwise_contrast, rank_contrast
from firstlight.models.base import Batch, Encoded
from firstlight.models.item_graphs import ItemGraphModel, LearnedT
from firstlight.models.layers import drop
from firstlight.models.mhcr_config import MHCRConfig
from firstlight.models.towers import content_input


class Nodes(NamedTuple):
    """Vectors of users and items, and the table that they are the two parts of."""

    users: Tensor
    items: Tensor
    both: Tensor


@dataclass(frozen=True)
class MHCREncoded(Encoded):
    """One forward pass.

    Attributes:
        clicks: Click-graph vectors of users and items.
        side: Content side of users and items.
        views: Per view, item–item graph vectors of users and items (E_m).
        hyper: Per view, hypergraph vectors of users and items (E_m^H).
        hidden: ``(n_items,)`` bool: items treated as cold in this pass.
        if_cold: ``(n_items, dim)`` what every item would be if it were cold, where the cold loss asks for it.
    """

    clicks: tuple[Tensor, Tensor]
    side: tuple[Tensor, Tensor] | None
    views: list[Nodes]
    hyper: list[Nodes]
    hidden: Tensor
    if_cold: Tensor | None = None


class MHCRTerms(ItemGraphModel[LearnedT]):
    """The terms; :class:`firstlight.models.mhcr_forward.MHCRForward` adds the forward pass.

    Attributes:
        appeal: Weights of content in a cold item's bias, or None.
    """

    config: MHCRConfig
    appeal: nn.Parameter | None

    def _check_joint_table(self) -> None:
        """Refuse a table that is no view's."""
        named, known = self.config.joint_table, list(self.view_dims)
        if named not in known and named not in range(-1, len(known)):
            raise InputError(
                f"model.joint_table names {named!r}, which is no view of the items",
                hint=f"their views: {', '.join(known)}",
            )

    @property
    def joint_table(self) -> int:
        """Place of the view whose table holds the negatives of ``joint``."""
        named, known = self.config.joint_table, list(self.view_dims)
        if isinstance(named, int) and named >= 0:
            return named
        named = "text" if named == -1 else named
        return known.index(named) if named in known else len(known) - 1

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The paper's further terms, each under its weight; those of weight zero are not computed."""
        assert isinstance(encoded, MHCREncoded)
        config, terms = self.config, super().extra_losses(encoded, batch)
        users, user_counts = torch.unique(batch.users, return_counts=True)
        items, item_counts = torch.unique(batch.positives, return_counts=True)
        both = (0, users, user_counts), (1, items, item_counts)
        if encoded.if_cold is not None:
            terms["cold"] = config.cold_loss * self._cold_ranking(encoded, batch)
        if config.batch_l2:
            terms["batch-l2"] = config.batch_l2 * self._batch_squares(encoded, batch)
        if config.table_norm and encoded.users is not None and encoded.items is not None:
            norms = torch.linalg.norm(encoded.users) + torch.linalg.norm(encoded.items)
            terms["table-norm"] = config.table_norm * norms / self.n_items
        if config.side_contrast and encoded.side is not None:
            terms["side-contrast"] = config.side_contrast * _total(
                info_nce(
                    encoded.side[kind][rows], encoded.clicks[kind][rows], config.contrast_temperature, counts
                )
                for kind, rows, counts in both
            )
        if config.hyper_contrast_weight and len(encoded.hyper) > 1:
            terms["hyper-contrast"] = config.hyper_contrast_weight * _total(
                self._hyper_contrast(encoded, *side) for side in both
            )
        if config.cross_contrast_weight:
            terms["cross-contrast"] = config.cross_contrast_weight * self._cross_contrast(encoded, both)
        return terms

    def _cold_ranking(self, encoded: MHCREncoded, batch: Batch) -> Tensor:
        """Softmax over all warm items, each as it would be if it were cold; mean over the pairs of the batch."""
        assert encoded.users is not None
        assert encoded.if_cold is not None
        rows, slots, counts = torch.unique(batch.users, return_inverse=True, return_counts=True)
        users, items = self._normalised(encoded.users[rows], encoded.if_cold)
        if not self.config.cold_moves_users:
            users = users.detach()
        users = users / self.config.cold_temperature
        if self.appeal is not None:
            appeal = drop(self.appeal, self.config.cold_bias_dropout, encoded.rng)
            users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
            items = torch.cat([items, (content_input(self.content) @ appeal)[:, None]], dim=1)
        against, _ = score_log_sum_exp(users, items[~self.cold])
        liked = (users[slots] * items[batch.positives]).sum()
        loss: Tensor = ((against * counts).sum() - liked) / len(batch.users)
        return loss

    def _batch_squares(self, encoded: Encoded, batch: Batch) -> Tensor:
        assert encoded.users is not None
        assert encoded.items is not None
        squares = encoded.users[batch.users].square().sum() + encoded.items[batch.positives].square().sum()
        if batch.negatives is not None:
            squares = squares + batch.negative_uses * encoded.items[batch.negatives].square().sum()
        return squares / 2 / len(batch.users)

    def _hyper_contrast(self, encoded: MHCREncoded, kind: int, rows: Tensor, counts: Tensor) -> Tensor:
        config = self.config
        views = [pair[kind][rows] for pair in encoded.hyper]
        if config.hyper_contrast == "pairs":
            return pairwise_contrast(views, config.contrast_temperature, counts)
        return joint_contrast(
            views, encoded.hyper[self.joint_table][kind], config.contrast_temperature, counts
        )

    def _cross_contrast(self, encoded: MHCREncoded, both: tuple[tuple[int, Tensor, Tensor], ...]) -> Tensor:
        total = torch.zeros(())
        for hyper, graph in zip(encoded.hyper, encoded.views, strict=True):
            if self.config.cross_contrast == "ranks":
                order = self._permutation(encoded.rng)
                total = total + rank_contrast(hyper.both, graph.both, order, 0.1)
                continue
            for kind, rows, counts in both:
                total = total + info_nce(
                    hyper[kind][rows], graph[kind][rows], self.config.contrast_temperature, counts
                )
        return total

    def _permutation(self, rng: torch.Generator | None) -> Tensor:
        """Which node is whose negative in the comparison of sorted coordinates."""
        return torch.randperm(self.n_users + self.n_items, generator=rng)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
