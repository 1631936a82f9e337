"""From a history to a user, apart from the model: the part of ``encode_users`` that serving keeps.

A user whom training never saw is made of what the clicked items *hand* to them: one row an item, summed over the
history, and a small map behind. The rows and the map are all of a model that this takes. So a bundle answers for new
users without the model, with the very numbers of :meth:`encode_users`, which runs through the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.registry import Registry
from firstlight.data.interactions import Interactions

#: Users that the map of :func:`fold_in` is fitted on, at most.
_FITTED = 10_000

#: Rules by :attr:`HistoryRule.kind`.
RULES = Registry(
    "history rule",
    {
        "fold": "firstlight.models.histories:FoldRule",
        "mhcr": "firstlight.models.mhcr_histories:MHCRRule",
        "solve": "firstlight.models.ials:SolveRule",
        "dropoutnet": "firstlight.models.dropoutnet:DropoutNetRule",
    },
)


class HistoryRule(Protocol):
    """Makes users of histories.

    Attributes:
        kind: Its name in :data:`RULES`.
        reads: What items hand on: their vectors in scoring space, or rows of their own (``handed``).
    """

    kind: ClassVar[str]
    reads: ClassVar[Literal["vectors", "handed"]]

    def users(self, histories: Interactions, handed: Tensor) -> Tensor:
        """``(n, ·)`` vectors in scoring space of ``n`` histories over the rows of ``handed`` ``(n_items, width)``."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings (JSON values) and tensors."""

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Inverse of :meth:`state`."""


class Histories(NamedTuple):
    """A model's own way to new users: its rule, and ``(n_items, width)`` rows that the rule reads."""

    rule: HistoryRule
    handed: Tensor


def received(histories: Interactions, handed: Tensor, power: float) -> Tensor:
    """``(n, width)`` sums of ``handed`` ``(n_items, width)`` over each history, over its length to the ``power``.

    Zero for an empty history.
    """
    rows = torch.from_numpy(histories.items.astype(np.int64))
    starts = torch.from_numpy(histories.indptr[:-1].astype(np.int64))
    total: Tensor = F.embedding_bag(rows, handed.contiguous(), starts, mode="sum")
    lengths = torch.from_numpy(np.maximum(histories.user_degrees, 1)).to(handed.dtype)
    return total / lengths[:, None] ** power


def mean_of_history(items: Tensor, histories: Interactions) -> Tensor:
    """``(n, dim)`` mean over each history of rows of ``items`` ``(n_items, dim)``; zero for an empty history."""
    rows = torch.from_numpy(histories.items.astype(np.int64))
    starts = torch.from_numpy(histories.indptr[:-1].astype(np.int64))
    return F.embedding_bag(rows, items.contiguous(), starts, mode="mean")


def fold_in(items: Tensor, users: Tensor, log: Interactions, histories: Interactions) -> Tensor:
    """Vectors of users that training never saw, in the place where training would have put them.

    The mean of a history's item vectors is where the items are, not where users were pushed to, away from what they did
    not click. A ridge regression from mean (and a constant) to vector, over the training users, learns the difference.

    Args:
        items: ``(n_items, dim)`` item vectors.
        users: ``(n_users, dim)`` vectors of the training users.
        log: Their histories.
        histories: ``(n, n_items)`` of the new users.

    Returns:
        ``(n, dim)``; zero for an empty history.
    """
    return FoldRule(fit_fold(items, users, log)).users(histories, items)


def fit_fold(items: Tensor, users: Tensor, log: Interactions) -> Tensor:
    """The map of :func:`fold_in`, ``(dim + 1, dim)``: from the mean of a history, and a one, to a user vector."""
    known = np.flatnonzero(log.user_degrees)
    if not len(known):
        return items.new_zeros(items.shape[1] + 1, users.shape[1])
    known = known[:: -(-len(known) // _FITTED)]
    chosen = np.zeros(log.n_users, np.bool_)
    chosen[known] = True
    means = mean_of_history(items, log.select(chosen[log.users]))[known]
    inputs = torch.cat([means, means.new_ones(len(means), 1)], dim=1)
    normal = inputs.T @ inputs
    # A hundredth of the mean diagonal: from a tenth to ten times as much made no difference on MovieLens.
    ridge = 0.01 * normal.diagonal().mean() * torch.eye(len(normal))
    weights: Tensor = torch.linalg.solve(normal + ridge, inputs.T @ users[known])
    return weights


def with_one(users: Tensor) -> Tensor:
    """A last coordinate of one: what the offset of cold items is multiplied by."""
    return torch.cat([users, users.new_ones(len(users), 1)], dim=1)


@dataclass(frozen=True, eq=False)
class FoldRule:
    """The mean of a history's item vectors, mapped to where training put users; see :func:`fold_in`.

    Attributes:
        weights: ``(dim + 1, dim)`` of :func:`fit_fold`; None: the mean as it is.
        unit: Whether users have length one.
        constant: Whether the last coordinate of vectors is not learned but the place of the cold items' offset.
    """

    weights: Tensor | None = None
    unit: bool = False
    constant: bool = False

    kind: ClassVar[str] = "fold"
    reads: ClassVar[Literal["vectors", "handed"]] = "vectors"

    def users(self, histories: Interactions, handed: Tensor) -> Tensor:
        """See :class:`HistoryRule`."""
        made = mean_of_history(handed[:, :-1] if self.constant else handed, histories)
        if self.weights is not None:
            made = made @ self.weights[:-1] + self.weights[-1]
            made = made * torch.from_numpy(histories.user_degrees > 0)[:, None]
        if self.unit:
            made = F.normalize(made, dim=1)
        return with_one(made) if self.constant else made

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`HistoryRule`."""
        tensors = {} if self.weights is None else {"weights": self.weights}
        return {"unit": self.unit, "constant": self.constant}, tensors

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """See :class:`HistoryRule`."""
        return cls(tensors.get("weights"), settings["unit"], settings["constant"])
