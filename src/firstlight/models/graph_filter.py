"""Graph filters: a user's clicks, smoothed over the click graph. Nothing is trained.

GF-CF (Shen et al., CIKM 2021) adds a smooth filter and an ideal low-pass one. BSPM (Choi et al., SIGIR 2023) blurs by
the same two and then sharpens, by a few coarse steps of a differential equation.

With R the 0/1 clicks, R̃ = D_u^{-½} R D_i^{-½}, P = R̃ᵀR̃ and V its leading eigenvectors:

    blur   b = R P
    ideal  q = R D_i^{-½} V Vᵀ D_i^{½}
    GF-CF  b + β q
    BSPM   g(P) (b + β q), or g(P) b + β q; g is the polynomial of the solver for dr/dt = −r P

P would be ``n_items²`` numbers; here it is two sparse products on a block of users. Users and items without clicks
score exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.graphs.propagation import BipartitePropagation
from firstlight.models.base import ModelConfig, Recommender

#: Users filtered at once. Measured on Gowalla, one thread, milliseconds a user for one product with P: 0.20 at 64
#: columns, 0.25 at 128, 0.51 at 512, where neither side fits in the caches. ``embedding_bag`` beats torch's CSR
#: product by a third and scipy's by half at every width.
_COLUMNS = 64
#: Columns of the longer side at once where the other has few rows: a million rows of them are 64 MB.
_FEW_COLUMNS = 8
#: Eigenvalues below this share of the largest are rounding.
_ROUNDING = 1e-13
#: Growth of the strongest direction within one round: float64 then still carries the weakest to six digits.
_GROWTH = 1e10
#: The unwanted part of the spectrum is taken to end here at least; a filter for [0, 0] does not exist.
_FLOOR = 1e-4
#: Change of the wanted eigenvalues (the largest is 1) at which a round is the last, and most rounds.
_TOLERANCE = 1e-7
_ROUNDS = 20

#: What a kind was published with for Gowalla; the fields below fill in from here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gf-cf": {"rank": 256, "beta": 0.3},
    "bspm": {"rank": 448, "beta": 0.2},
}


class GraphFilterConfig(ModelConfig):
    """Config of :class:`GraphFilter`.

    The defaults are the published values for Gowalla. The others:

    - ``gf-cf``: Yelp2018 as Gowalla; Amazon-Book ``beta: 0``.
    - ``bspm``: Yelp2018 ``rank: 384, beta: 0.3, time: 1.2, solver: euler, output: mean``; Amazon-Book ``beta: 0,
      time: 2.2, steps: 2, merge: lm``.

    Their authors chose them on the test sets.
    """

    name: Literal["graph-filter"] = "graph-filter"

    kind: Literal["gf-cf", "bspm"] = "gf-cf"
    """Which filter; the fields from ``time`` on are read by ``bspm`` alone."""

    rank: int = Field(256, ge=1)
    """Singular vectors of the ideal low-pass filter; 448 unless given for ``bspm``."""

    beta: float = Field(0.3, ge=0)
    """Weight of the ideal low-pass filter; .2 unless given for ``bspm``. Zero leaves it out, and its cost."""

    time: float = Field(2.5, ge=0)
    """How long is sharpened (paper: T_s)."""

    solver: Literal["euler", "rk4"] = "rk4"
    """How dr/dt = −r P is solved. Coarse steps are part of the method: the exact exponential is another filter."""

    steps: int = Field(1, ge=1)
    """Steps of the solver in ``time`` (paper: K_s)."""

    merge: Literal["em", "lm"] = "em"
    """Whether the ideal part is added before sharpening (early) or after (late)."""

    output: Literal["last", "mean"] = "last"
    """The last state of the solver, or the mean over the blurred clicks and the state after each step."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Fill what is not given from what the kind was published with."""
        if isinstance(values, Mapping):
            return {**PUBLISHED.get(str(values.get("kind", "gf-cf")), {}), **values}
        return values


class GraphFilter(Recommender):
    """Scores are filtered click rows; only the singular vectors are computed, once, and saved."""

    Config = GraphFilterConfig
    trainable = False
    fits_when_built = True

    def __init__(
        self,
        config: GraphFilterConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        *,
        fit: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, train)
        self.config = config
        rank = min(config.rank, train.n_users, train.n_items) if config.beta else 0
        self.register_buffer("singular", torch.zeros(train.n_items, rank, dtype=dtype))
        self.singular: Tensor
        if fit and rank:
            self.singular.copy_(right_singular_vectors(train, rank, rng or torch.Generator()))
        self.hop = BipartitePropagation(train.indptr, train.items, train.n_items, dtype=dtype)
        self.item_root = torch.from_numpy(np.sqrt(train.item_degrees)).to(dtype)

    def vectors_for_scoring(self) -> None:
        """A filter has no vectors of a useful width."""
        return None

    @torch.no_grad()
    def scores(self, users: Tensor) -> Tensor:
        """``(len(users), n_items)`` filtered click rows, a few users at a time."""
        scores = self.singular.new_empty(len(users), self.n_items)
        for lo in range(0, len(users), _COLUMNS):
            part = slice(lo, lo + _COLUMNS)
            scores[part] = self._filtered(users[part].tolist()).T
        return scores

    def _filtered(self, users: list[int]) -> Tensor:
        """``(n_items, len(users))`` scores."""
        config = self.config
        rows = [self.log.row(user) for user in users]
        lengths = [len(row) for row in rows]
        items = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        clicks = self.singular.new_zeros(self.n_items, len(rows))
        clicks[items, torch.from_numpy(np.repeat(np.arange(len(rows)), lengths))] = 1
        blurred = self._smoothed(clicks)
        ideal = self._ideal(items, torch.from_numpy(np.r_[0, np.cumsum(lengths)]))
        if config.kind == "gf-cf":
            return blurred + ideal
        states = self._states(blurred + ideal if config.merge == "em" else blurred)
        if config.output == "mean":
            found = (blurred + sum(states)) / (1 + config.steps)
        else:
            *_, found = states
        return found if config.merge == "em" else found + ideal

    def _smoothed(self, columns: Tensor) -> Tensor:
        """P times ``(n_items, b)``."""
        return self.hop.to_items.times(self.hop.to_users.times(columns))

    def _ideal(self, items: Tensor, offsets: Tensor) -> Tensor:
        """``(n_items, b)``: β q of histories in compressed rows; one zero where the term is off."""
        if not self.singular.shape[1]:
            return self.singular.new_zeros(())
        # An item of a history has a click, so nothing is divided by zero.
        pooled = F.embedding_bag(
            items,
            self.singular,
            offsets,
            mode="sum",
            per_sample_weights=1 / self.item_root[items],
            include_last_offset=True,
        )
        return (self.singular @ pooled.T).mul_(self.config.beta * self.item_root[:, None])

    def _states(self, state: Tensor) -> Iterator[Tensor]:
        """The state after each step of dr/dt = −r P; for a linear equation every rk4 is the same polynomial."""
        width = self.config.time / self.config.steps
        order = {"euler": 1, "rk4": 4}[self.config.solver]
        for _ in range(self.config.steps):
            term = state
            for n in range(1, order + 1):
                term = self._smoothed(term).mul_(-width / n)
                state = state + term
            yield state


def right_singular_vectors(log: Interactions, rank: int, rng: torch.Generator) -> Tensor:
    """The leading right singular vectors of D_u^{-½} R D_i^{-½}, by randomised subspace iteration.

    Each round multiplies a block, some columns wider than needed, by a Chebyshev polynomial of P: small on the
    part of the spectrum that the block does not reach, and growing as fast as a polynomial can above it (Zhou et
    al. 2006). A log with no more rows on one side than the block has columns is decomposed by that side's products.

    Args:
        log: The clicks.
        rank: Number of vectors, at most the smaller side of the log.
        rng: Draws the start.

    Returns:
        ``(n_items, rank)`` float64, orthonormal; zero columns where the log has fewer directions.
    """
    width = rank + max(16, rank // 8)
    hop = BipartitePropagation(log.indptr, log.items, log.n_items, dtype=torch.float64)
    if width >= min(log.n_users, log.n_items):
        return _of_the_small_side(hop, rank)

    def by_parts(work: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        starts = range(0, width, _COLUMNS)
        return torch.cat([work(block[:, lo : lo + _COLUMNS].contiguous()) for lo in starts], dim=1)

    def smoothed(columns: Tensor) -> Tensor:
        return hop.to_items.times(hop.to_users.times(columns))

    basis: Tensor = torch.randn(log.n_items, width, generator=rng, dtype=torch.float64)
    before, work = torch.zeros(rank, dtype=torch.float64), smoothed
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(by_parts(work, basis)).Q
        values, rotation = torch.linalg.eigh(basis.T @ by_parts(smoothed, basis))  # ascending
        leading = values[-rank:]
        # The error of an eigenvalue is the square of its vector's.
        if bool(((leading - before).abs() <= _TOLERANCE).all()):
            break
        before, cut = leading, min(max(float(values[0]), _FLOOR), 0.99)
        power = int(min(12, max(2, math.log(2 * _GROWTH) / math.acosh(2 / cut - 1))))
        work = partial(_amplified, smoothed, cut=cut, power=power)
    found: Tensor = basis @ rotation[:, -rank:].flip(1)
    return found


def _of_the_small_side(hop: BipartitePropagation, rank: int) -> Tensor:
    """:func:`right_singular_vectors` from R̃R̃ᵀ or R̃ᵀR̃, whichever is smaller; a matrix of users × items never exists."""
    to_users, to_items = hop.to_users, hop.to_items
    n_users, n_items = len(to_users.indptr) - 1, len(to_items.indptr) - 1
    small = min(n_users, n_items)
    there, back = (to_users, to_items) if n_items == small else (to_items, to_users)
    identity = torch.eye(small, dtype=torch.float64)
    gram = torch.empty(small, small, dtype=torch.float64)
    for lo in range(0, small, _FEW_COLUMNS):
        part = slice(lo, lo + _FEW_COLUMNS)
        gram[:, part] = back.times(there.times(identity[:, part].contiguous()))
    values, rotation = torch.linalg.eigh(gram)  # ascending
    values, vectors = values[-rank:].flip(0), rotation[:, -rank:].flip(1)
    if n_items == small:
        own: Tensor = vectors
        return own
    # v = R̃ᵀu/σ. A direction that only rounding gave is left out: users have no part in it, so no score has.
    real = values > _ROUNDING * values[0]
    scale = torch.where(real, values.clamp(min=1e-300) ** -0.5, 0.0)
    found = torch.empty(n_items, rank, dtype=torch.float64)
    for lo in range(0, rank, _FEW_COLUMNS):
        part = slice(lo, lo + _FEW_COLUMNS)
        found[:, part] = to_items.times((vectors[:, part] * scale[part]).contiguous())
    return found


def _amplified(product: Callable[[Tensor], Tensor], columns: Tensor, *, cut: float, power: int) -> Tensor:
    """Columns times the Chebyshev polynomial of degree ``power`` whose quiet part is [0, ``cut``]."""
    older, columns = columns, product(columns).mul_(2 / cut).sub_(columns)
    for _ in range(power - 1):
        older, columns = columns, product(columns).mul_(4 / cut).sub_(columns, alpha=2).sub_(older)
    return columns
