"""Implicit alternating least squares (Hu et al. 2008; weights and regularisation of Rendle et al. 2022).

Each half-sweep solves every row exactly. Rows are solved in blocks of similar degree, so that padding is small and
memory a block, whatever the log.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.models.base import ModelConfig, Recommender
from firstlight.models.histories import Histories

#: Elements of gathered factors, or of normal matrices, that are held at once: 32 MB.
_BLOCK = 8 * 2**20


class FactorOptions(BaseModel):
    """The objective Σ_S (ŷ − 1)² + α₀ Σ_all ŷ² + λ [Σ_u (d_u + α₀ n_i)^ν ‖p_u‖² + items alike] and its solver."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unobserved: float = Field(0.1, gt=0)
    """Weight of all cells, clicked or not (paper: α₀)."""

    regularisation: float = Field(0.01, gt=0)
    """Weight of the squared norms (paper: λ)."""

    exponent: float = Field(1.0, ge=0)
    """How the regularisation grows with a row's degree (paper: ν); 1 as in the paper, 0 the same for all rows."""

    sweeps: int = Field(16, ge=1)
    """Times that users and then items are solved."""


class IALSConfig(ModelConfig, FactorOptions):
    """Config of :class:`IALS`."""

    name: Literal["ials"] = "ials"

    dim: int = Field(64, ge=1)
    """Width of the factors (paper: d)."""


class Everybody(NamedTuple):
    """The cells that every user has.

    Attributes:
        gram: ``(dim, dim)`` α₀ QᵀQ.
        n_items: Their number.
    """

    gram: Tensor
    n_items: int

    @classmethod
    def of(cls, factors: Tensor, options: FactorOptions) -> Everybody:
        """Of all item factors ``(n_items, dim)``."""
        return cls(options.unobserved * factors.T @ factors, len(factors))


def solve_rows(
    log: Interactions, factors: Tensor, options: FactorOptions, everybody: Everybody | None = None
) -> Tensor:
    """The exact minimiser of each user's row, the item factors being fixed.

    Args:
        log: ``n`` histories over ``n_items`` items.
        factors: ``(n_items, dim)``.
        options: The objective.
        everybody: What the unobserved cells weigh; that of ``factors`` if None.

    Returns:
        ``(n, dim)``; zero for an empty history.
    """
    dim = factors.shape[1]
    degrees = torch.from_numpy(log.user_degrees.copy())
    starts, columns = torch.from_numpy(log.indptr[:-1].copy()), torch.from_numpy(log.items.astype(np.int64))
    everybody = everybody or Everybody.of(factors, options)
    ridge = (degrees.to(factors.dtype) + options.unobserved * everybody.n_items) ** options.exponent
    ridge = ridge * options.regularisation
    order = torch.argsort(degrees, descending=True, stable=True)
    order = order[degrees[order] > 0]
    solved = factors.new_zeros(len(degrees), dim)
    lo = 0
    while lo < len(order):
        longest = int(degrees[order[lo]])
        rows = order[lo : lo + max(1, _BLOCK // (max(longest, dim) * dim))]
        lo += len(rows)
        within = torch.arange(longest)
        kept = within < degrees[rows, None]
        slots = torch.where(kept, starts[rows, None] + within, 0)
        gathered = factors[columns[slots]] * kept[:, :, None]
        normal = (
            gathered.mT @ gathered
            + everybody.gram
            + ridge[rows, None, None] * torch.eye(dim, dtype=factors.dtype)
        )
        root = torch.linalg.cholesky(normal)
        solved[rows] = torch.cholesky_solve(gathered.sum(dim=1)[:, :, None], root)[:, :, 0]
    return solved


def factorise(
    log: Interactions, dim: int, options: FactorOptions, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """User and item factors ``(n_users, dim)`` and ``(n_items, dim)``; zero for rows without a pair.

    Args:
        log: The training log.
        dim: Width.
        options: Objective and number of sweeps.
        rng: Draws the start of the items, N(0, .1/√dim).
    """
    items = torch.randn(log.n_items, dim, generator=rng) * (0.1 / dim**0.5)
    across = Interactions.from_pairs(log.items, log.users, log.n_items, log.n_users)
    users = torch.zeros(log.n_users, dim)
    for _ in range(options.sweeps):
        users = solve_rows(log, items, options)
        items = solve_rows(across, users, options)
    return users, items


class IALS(Recommender):
    """p_u · q_i with factors in closed form: no learning rate, no sampling; a user that comes later is one solve."""

    Config = IALSConfig
    trainable = False
    fits_when_built = True

    def __init__(
        self,
        config: IALSConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        *,
        fit: bool = True,
    ) -> None:
        super().__init__(config, train)
        self.config = config
        self.register_buffer("user_factors", torch.zeros(train.n_users, config.dim))
        self.register_buffer("item_factors", torch.zeros(train.n_items, config.dim))
        self.user_factors: Tensor
        self.item_factors: Tensor
        if fit:
            users, items = factorise(train, config.dim, config, rng or torch.Generator())
            self.user_factors.copy_(users)
            self.item_factors.copy_(items)

    def user_vectors(self) -> Tensor:
        """``(n_users, dim)`` factors p_u."""
        return self.user_factors

    def item_vectors(self) -> Tensor:
        """``(n_items, dim)`` factors q_i; zero for an item without a pair."""
        return self.item_factors

    def encode_users(self, histories: Interactions) -> Tensor:
        """``(n, dim)`` factors of users that the fit never saw: one solve each, exact for the fixed items."""
        rule, handed = self.histories()
        return rule.users(histories, handed)

    def histories(self) -> Histories:
        """How users are made of histories: one solve each."""
        options = FactorOptions(**{name: getattr(self.config, name) for name in FactorOptions.model_fields})
        rule = SolveRule(options, Everybody.of(self.item_factors, options))
        return Histories(rule, self.item_factors)


class SolveRule:
    """A user is the minimiser of the objective with the items fixed.

    Args:
        options: The objective.
        everybody: What the cells of all items weigh.
    """

    kind: ClassVar[str] = "solve"
    reads: ClassVar[Literal["vectors", "handed"]] = "vectors"

    def __init__(self, options: FactorOptions, everybody: Everybody) -> None:
        self._options, self._everybody = options, everybody

    def users(self, histories: Interactions, handed: Tensor) -> Tensor:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        return solve_rows(histories, handed, self._options, self._everybody)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        settings = {"options": self._options.model_dump(mode="json"), "n_items": self._everybody.n_items}
        return settings, {"gram": self._everybody.gram}

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """See :class:`firstlight.models.histories.HistoryRule`."""
        options = FactorOptions.model_validate(settings["options"])
        return cls(options, Everybody(tensors["gram"], settings["n_items"]))
