"""Temperature policies: fixed, learned, and Adap-τ (Chen et al., WWW 2023, arXiv 2302.04775).

A policy answers with *inverse* temperatures w = 1/τ, which multiply scores. Training calls ``start_epoch`` once
an epoch, ``for_users`` each step and ``observe`` after it. Policies are modules, so that learned temperatures
are parameters and everything a resumed run needs is in ``state_dict()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firstlight.core.logsumexp import score_log_sum_exp
from firstlight.losses.lambert import lambert_w

#: The gap between the mean cosine of positives and of all pairs that the released code assumes at first.
ASSUMED_GAP = 0.7


class TemperatureConfig(BaseModel):
    """Which temperature policy, and its numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["fixed", "learned", "learned-user", "adaptive", "adaptive-user"] = "adaptive"
    """``fixed``; ``learned`` and ``learned-user`` (the paper's C-τ and Cu-τ: gradient descent on τ);
    ``adaptive`` (Adap-τ₀: one τ from the data; the default) and ``adaptive-user`` (Adap-τ: one per user, the paper's
    final method). On MovieLens a τ per user with the threshold at the .9-quantile gives NDCG@20 .2617 and Recall@20
    .2724, one τ .2589 and .2749; with the mean threshold, at 12 epochs on Gowalla, .1540 against .1579 (RESULTS.md)."""

    tau: float = Field(0.1, gt=0)
    """τ of ``fixed``, and the start of ``learned`` and ``learned-user``."""

    form: Literal["mean", "variance", "mass", "held-out"] = "mean"
    """How τ₀ is found. ``mean`` is w₀ = C/(μ₊ − μ), the paper's final closed form and the released code's;
    ``variance`` is the paper's second-order form before the variances are taken as equal; ``mass`` solves the
    condition behind both, mean over users of the positives' softmax mass = 1/2, on a sample of users;
    ``held-out`` (ours) is ``mean`` with μ₊ measured on pairs that training does not see: memorised positives widen the
    gap, and the closed form then asks for too warm a softmax. It is better where pairs are many a user, and much worse
    where they are few, since a pair kept back is then far from its user: docs/methods/adap-tau.md has the figures."""

    held_out_share: float = Field(0.02, gt=0, lt=0.5)
    """Share of training pairs that ``form: held-out`` keeps back from the loss and the graph; more, up to a tenth,
    where that would be fewer than a thousand pairs."""

    warmup_epochs: int = Field(5, ge=0)
    """Epochs with the assumed gap of .7, since at random initialisation the gap is zero. Released: 100."""

    updates: Literal["every-epoch", "once"] = "every-epoch"
    """Whether τ₀ follows the vectors every epoch after the warm-up (paper), or is set once. The rule chases itself:
    a sharper softmax is content with a smaller gap, which asks for a still sharper one, and the other way round;
    set once, it cannot run away."""

    min_gap: float = Field(0.35, ge=0)
    """A gap smaller than this counts as no answer yet, and the previous τ₀ stays: vectors that are hardly trained,
    or data that can hardly be learned, would ask for an endlessly sharp softmax. Released: 0."""

    tau_min: float = Field(0.02, gt=0)
    """Floor of the global τ₀: a gap that is still almost zero would ask for an endlessly sharp softmax."""

    tau_max: float = Field(5.0, gt=0)
    """Ceiling of the global τ₀."""

    degree_quantile: float = Field(0.2, ge=0, lt=1)
    """Users at or below this quantile of training degree are left out of the statistics (released: .2)."""

    gain: float = Field(1.0, gt=0)
    """Multiplies w₀. The paper has no such factor (1)."""

    threshold: Literal["mean", "quantile"] = "mean"
    """The loss m_u at which a user keeps τ₀: the mean of L(u), or its ``quantile``."""

    quantile: float = Field(0.9, ge=0, le=1)
    """The quantile of ``threshold: quantile``; .9 is the released Gowalla-MF setting."""

    beta2: float = Field(1.0, gt=0)
    """2β of eq. 13 (the released t₂, between .25 and 1.5): large values keep all users at τ₀."""

    positive: Literal["user", "global"] = "global"
    """Which w multiplies the positive: the user's (the paper's formula) or the global w₀ (the released code)."""

    solution: Literal["printed", "stationary"] = "printed"
    """``printed``: W((L−m)/2β) as the paper and the code have it; ``stationary``: W((L−m)/(2βτ₀)), which
    minimises the paper's J as printed (specs §1.5)."""


@dataclass(frozen=True)
class TemperatureStatistics:
    """What the closed form needs of the training log (specs §2.1).

    Attributes:
        n_users: Users in the log.
        users: ``(n_kept,)`` kept users (degree above the quantile).
        pair_users: ``(n_kept_pairs,)`` user of each kept pair.
        pair_items: ``(n_kept_pairs,)`` item of each kept pair.
        constant: C = log(n·m / (2|D|)) over the kept part, m counting all warm items.
        items: ``(m,)`` warm items, those with a training pair: vectors of the others are noise, and an item that is
            held out as cold must not be part of anything fitted. The published data have warm items only.
    """

    n_users: int
    users: Tensor
    pair_users: Tensor
    pair_items: Tensor
    constant: float
    items: Tensor

    @classmethod
    def from_pairs(
        cls, users: Tensor, items: Tensor, n_users: int, n_items: int, degree_quantile: float = 0.2
    ) -> TemperatureStatistics:
        """Count the log.

        Args:
            users: ``(n_pairs,)`` user of each training pair.
            items: ``(n_pairs,)`` item of each training pair.
            n_users: Number of user rows; rows without a pair never count.
            n_items: Number of item rows.
            degree_quantile: See :attr:`TemperatureConfig.degree_quantile`.
        """
        degrees = torch.bincount(users, minlength=n_users)
        active = degrees[degrees > 0].double()
        # torch.quantile refuses more than 16 M values; a sorted lookup with linear interpolation does not.
        position = degree_quantile * (len(active) - 1)
        ranked = active.sort().values
        low, high = ranked[math.floor(position)], ranked[math.ceil(position)]
        threshold = low + (high - low) * (position - math.floor(position))
        kept = degrees > threshold
        if not kept.any():  # every user has the same degree: nobody is sparse
            kept = degrees > 0
        inside = kept[users]
        n_kept, n_pairs = int(kept.sum()), int(inside.sum())
        warm = torch.bincount(items, minlength=n_items).nonzero()[:, 0]
        constant = math.log(0.5) + math.log(n_kept * len(warm)) - math.log(n_pairs)
        return cls(n_users, kept.nonzero()[:, 0], users[inside], items[inside], constant, warm)

    def measured_on(self, users: Tensor, items: Tensor) -> TemperatureStatistics:
        """The same counts, with μ₊ taken over other pairs ``(n,)``, those of kept users."""
        kept = torch.zeros(self.n_users, dtype=torch.bool)
        kept[self.users] = True
        inside = kept[users]
        return replace(self, pair_users=users[inside], pair_items=items[inside])


#: Gives evaluation-mode training-space vectors ``(n_users, dim)`` and ``(n_items, dim)`` on demand.
Vectors = Callable[[], tuple[Tensor, Tensor]]


class Temperature(nn.Module):
    """A fixed temperature, and the base of the others."""

    observes = False
    """Whether the policy wants the losses at temperature one."""

    def __init__(self, config: TemperatureConfig, statistics: TemperatureStatistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.register_buffer("w", torch.tensor(1 / config.tau, dtype=torch.float64))
        self.register_buffer("updates", torch.tensor(0))
        self.w: Tensor
        self.updates: Tensor

    @property
    def updates_made(self) -> int:
        """How often τ₀ has been set from the vectors: 0 says that an adaptive rule had no answer yet."""
        return int(self.updates)

    def start_epoch(self, epoch: int, vectors: Vectors) -> None:
        """Recompute what is fixed within an epoch; ``vectors`` is only called where it is needed."""

    def for_users(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse temperatures on the positive and on the negatives, each ``(rows,)`` float32."""
        w = self.w.to(torch.float32).expand(len(users))
        return w, w

    def observe(self, users: Tensor, losses: Tensor) -> None:
        """Note the losses at temperature one ``(rows,)`` of ``users`` ``(rows,)``."""

    def sparse_rows(self) -> list[str]:
        """Names of parameters whose rows are touched sparsely."""
        return []

    def per_user(self) -> Tensor:
        """``(n_users,)`` or ``(1,)`` float64: the current τ (on negatives), for reports."""
        return (1 / self.w).reshape(1)


class LearnedTemperature(Temperature):
    """C-τ and Cu-τ: log w is a parameter, for all users or for each (paper §5.3 baselines)."""

    def __init__(self, config: TemperatureConfig, statistics: TemperatureStatistics) -> None:
        super().__init__(config, statistics)
        per_user = config.name == "learned-user"
        rows = statistics.n_users if per_user else 1
        self.log_w = nn.Parameter(torch.full((rows, 1), -math.log(config.tau)))

    def for_users(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable inverse temperatures."""
        rows = users if self.config.name == "learned-user" else torch.zeros_like(users)
        # The exponent is clamped where float32 scores would overflow, τ in [1e-3, 1e3].
        log_w = nn.functional.embedding(rows, self.log_w, sparse=bool(self.sparse_rows()))
        w = log_w[:, 0].clamp(-math.log(1e3), math.log(1e3)).exp()
        return w, w

    def sparse_rows(self) -> list[str]:
        """Per-user temperatures are touched a batch at a time."""
        return ["log_w"] if self.config.name == "learned-user" else []

    def per_user(self) -> Tensor:
        """The current τ of every user."""
        return (-self.log_w.detach().double()).exp()[:, 0]


class AdaptiveTemperature(Temperature):
    """Adap-τ₀: one temperature, at which positives should hold half of the softmax mass (paper eq. 10)."""

    def __init__(self, config: TemperatureConfig, statistics: TemperatureStatistics) -> None:
        super().__init__(config, statistics)
        self._set(statistics.constant / ASSUMED_GAP)

    def _set(self, w: float) -> None:
        bounded = min(max(self.config.gain * w, 1 / self.config.tau_max), 1 / self.config.tau_min)
        self.w.fill_(bounded)

    def start_epoch(self, epoch: int, vectors: Vectors) -> None:
        """Set w₀ from the evaluation-mode vectors; the previous w₀ stays where the rule has no answer."""
        warmup = self.config.warmup_epochs
        if epoch < warmup or (self.config.updates == "once" and epoch > warmup):
            return
        users, items = vectors()
        w = global_inverse_temperature(users, items, self.statistics, self.config.form, self.config.min_gap)
        if w is not None:
            self._set(w)
            self.updates += 1


class AdaptiveUserTemperature(AdaptiveTemperature):
    """Adap-τ: each user's temperature grows with its loss at a common temperature (paper eq. 14)."""

    observes = True

    def __init__(self, config: TemperatureConfig, statistics: TemperatureStatistics) -> None:
        super().__init__(config, statistics)
        n = statistics.n_users
        self.register_buffer("loss_sum", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("loss_count", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("w_user", self.w.to(torch.float32).repeat(n))
        self.loss_sum: Tensor
        self.loss_count: Tensor
        self.w_user: Tensor

    def start_epoch(self, epoch: int, vectors: Vectors) -> None:
        """Set w₀, then w_u from the losses observed during the previous epoch."""
        super().start_epoch(epoch, vectors)
        seen = self.loss_count > 0
        self.w_user.fill_(float(self.w))
        if bool(seen.any()):
            losses = self.loss_sum[seen] / self.loss_count[seen]
            self.w_user[seen] = user_inverse_temperature(losses, float(self.w), self.config).to(torch.float32)
        self.loss_sum.zero_()
        self.loss_count.zero_()

    def for_users(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """w₀ or w_u on the positive (:attr:`TemperatureConfig.positive`), w_u on the negatives."""
        w_user = self.w_user[users]
        if self.config.positive == "user":
            return w_user, w_user
        return self.w.to(torch.float32).expand(len(users)), w_user

    def observe(self, users: Tensor, losses: Tensor) -> None:
        """Add to the users' running means."""
        self.loss_sum.index_add_(0, users, losses.double())
        self.loss_count.index_add_(0, users, torch.ones_like(losses, dtype=torch.float64))

    def per_user(self) -> Tensor:
        """The current τ of every user."""
        return 1 / self.w_user.double()


def global_inverse_temperature(
    users: Tensor, items: Tensor, statistics: TemperatureStatistics, form: str = "mean", min_gap: float = 0.0
) -> float | None:
    """w₀ from the gap between positives and all pairs (paper eq. 10 and 11; specs §2.2).

    Args:
        users: ``(n_users, dim)`` normalised.
        items: ``(n_items, dim)`` normalised.
        statistics: Counts of the training log.
        form: See :attr:`TemperatureConfig.form`.
        min_gap: See :attr:`TemperatureConfig.min_gap`.

    Returns:
        w₀, or None where the rule has no answer: no gap yet (μ₊ − μ below ``min_gap``), or nothing finite.
    """
    if len(statistics.pair_users) == 0:
        return None
    kept = users[statistics.users].double()
    warm = items if len(statistics.items) == len(items) else items[statistics.items]
    center = warm.double().mean(dim=0)
    mean = float((kept @ center).mean())
    # Every pair counts up to four million; beyond, an even subset fixes the mean to four digits and more.
    stride = 1 + len(statistics.pair_users) // 4_000_000
    positive = _pair_scores(users, items, statistics.pair_users[::stride], statistics.pair_items[::stride])
    gap = float(positive.mean()) - mean
    if not math.isfinite(gap) or gap <= max(1e-6, min_gap):
        return None
    if form == "mass":
        return _half_mass(users, items, warm, statistics)
    closed = statistics.constant / gap
    if form in ("mean", "held-out"):
        return closed
    # Exact second moment over all kept pairs from the (dim, dim) Gram matrix: mean (u·v)² = mean uᵀGu.
    gram = warm.double().T @ warm.double() / len(warm)
    variance = float(((kept @ gram) * kept).sum(dim=1).mean()) - mean**2
    spread = float(positive.var(correction=0)) - variance
    root = gap**2 + 2 * spread * statistics.constant
    # Nearly equal variances: the closed form is the limit. No real root: no w reaches half the mass.
    if abs(spread) < 1e-9 or root < 0:
        return closed
    return (math.sqrt(root) - gap) / spread


def _pair_scores(users: Tensor, items: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products of listed pairs, ``(n_pairs,)`` float64, gathered in blocks."""
    block = 1 << 16
    parts = [
        (users[rows[lo : lo + block]] * items[columns[lo : lo + block]]).sum(dim=1).double()
        for lo in range(0, len(rows), block)
    ]
    return torch.cat(parts)


def _half_mass(
    users: Tensor, items: Tensor, warm: Tensor, statistics: TemperatureStatistics, sample: int = 256
) -> float:
    """The w at which the positives of the sampled users hold half of their softmax mass on average."""
    step = max(1, len(statistics.users) // sample)
    chosen = statistics.users[::step][:sample]
    slot = torch.full((statistics.n_users,), -1, dtype=torch.int64)
    slot[chosen] = torch.arange(len(chosen))
    inside = slot[statistics.pair_users] >= 0
    rows, columns = slot[statistics.pair_users[inside]], statistics.pair_items[inside]
    held = _pair_scores(users[chosen], items, rows, columns)
    low, high = 1e-2, 1e3
    for _ in range(30):
        w = math.sqrt(low * high)
        share = (w * held - score_log_sum_exp(users[chosen] * w, warm)[0].double()[rows]).exp()
        if float(share.sum()) / len(chosen) < 0.5:
            low = w
        else:
            high = w
    return math.sqrt(low * high)


def user_inverse_temperature(losses: Tensor, w0: float, config: TemperatureConfig) -> Tensor:
    """w_u = w₀·exp(−W(max(−1/e, (L(u) − m)/2β))) (paper eq. 14; specs §2.3).

    Args:
        losses: ``(n,)`` mean loss of each user at temperature one.
        w0: The global inverse temperature.
        config: Threshold, 2β and which solution.

    Returns:
        ``(n,)`` float64, at most e·w₀.
    """
    losses = losses.double()
    if config.threshold == "mean":
        base = losses.mean()
    else:
        ranked = losses.sort().values
        position = config.quantile * (len(ranked) - 1)
        low, high = ranked[math.floor(position)], ranked[math.ceil(position)]
        base = low + (high - low) * (position - math.floor(position))
    y = (losses - base) / config.beta2
    if config.solution == "stationary":
        y = y * w0
    return w0 * torch.exp(-lambert_w(y.clamp(max=1000.0)))


def make_temperature(config: TemperatureConfig, statistics: TemperatureStatistics) -> Temperature:
    """The policy that ``config`` names."""
    kinds: dict[str, type[Temperature]] = {
        "fixed": Temperature,
        "learned": LearnedTemperature,
        "learned-user": LearnedTemperature,
        "adaptive": AdaptiveTemperature,
        "adaptive-user": AdaptiveUserTemperature,
    }
    return kinds[config.name](config, statistics)
