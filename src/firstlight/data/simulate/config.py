"""The settings of the generated world."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from firstlight.data.simulate.covers import MOST_TOPICS


class SimulationConfig(BaseModel):
    """How large the world is, how strong its habits are, and how much its content tells.

    Symbols in parentheses are those of :mod:`firstlight.data.simulate`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_users: int = Field(2000, ge=1)
    """Number of users."""
    n_items: int = Field(1500, ge=10)
    """Number of items (micro-videos), those that arrive late included."""
    n_topics: int = Field(12, ge=2, le=MOST_TOPICS)
    """Number of topics (K); each has its own pair of shape and texture on covers."""
    n_styles: int = Field(4, ge=0)
    """Number of style factors: content within a topic that only the clip feature shows."""
    n_hidden: int = Field(4, ge=0)
    """Number of hidden factors: taste that no cover, title or clip feature shows."""

    mean_clicks: float = Field(20.0, gt=0)
    """Mean number of clicks of a user over the whole time, in pairs."""
    min_clicks: int = Field(5, ge=1)
    """Fewest clicks of a user, in pairs; at most half of the items can be clicked by one user."""
    noise_share: float = Field(0.1, ge=0, le=1)
    """Probability (ε) that a click is on an item drawn without regard to taste and popularity."""
    popularity_exponent: float = Field(0.7, ge=0)
    """Exponent (γ) of the power law of item popularity: the item of rank r has weight r^-γ."""

    taste_concentration: float = Field(0.15, gt=0)
    """Dirichlet concentration per topic of users' tastes; small values make users like few topics."""
    mixture_share: float = Field(0.2, ge=0, lt=0.5)
    """Share of an item's topic mixture that is not its main topic; the cover shows the main topic only."""
    topic_strength: float = Field(5.0, ge=0)
    """Weight (α) of the topics in the log-preference, in nats per unit of taste · mixture."""
    style_strength: float = Field(0.8, ge=0)
    """Standard deviation (β) of the style term of the log-preference, in nats."""
    hidden_strength: float = Field(0.8, ge=0)
    """Standard deviation (δ) of the hidden term of the log-preference, in nats."""

    start: int = 1_704_067_200
    """First second of the log, in seconds since the epoch (default: 1 January 2024, UTC)."""
    horizon_days: float = Field(60.0, ge=1)
    """Length of the log (T), in days."""
    valid_from: float = Field(0.7, gt=0, lt=1)
    """Where training ends and validation begins, as a fraction of the horizon."""
    test_from: float = Field(0.8, gt=0, le=0.99)
    """The cut: where validation ends and test begins, as a fraction of the horizon."""
    lifetime_days: float = Field(20.0, gt=0)
    """Mean lifetime of an item's appeal (λ), in days: its click rate falls as exp(-age / λ)."""
    arriving_share: float = Field(0.15, ge=0, le=0.9)
    """Share of items that arrive after the cut, so that training and validation never see them."""

    cover_size: int = Field(64, ge=16)
    """Width and height of a cover, in pixels."""
    cover_quality: int = Field(90, ge=1, le=95)
    """JPEG quality of covers."""
    title_words: tuple[int, int] = (4, 7)
    """Fewest and most words of a title."""
    title_truth: float = Field(0.7, ge=0, le=1)
    """Probability that a topical word comes from the item's own topic and not from a random other one."""
    generic_share: float = Field(0.3, ge=0, le=1)
    """Probability that a word of a title belongs to no topic."""
    clip_dim: int = Field(64, ge=1)
    """Dimension of the clip feature."""
    clip_noise: float = Field(0.3, ge=0)
    """Standard deviation of the noise on each number of the clip feature (the signal's is about 1)."""
    clip_missing: float = Field(0.1, ge=0, le=1)
    """Probability that an item has no clip feature."""

    seed: int = 0
    """Seed of every draw; the same settings give the same bytes."""

    @model_validator(mode="after")
    def _consistent(self) -> SimulationConfig:
        if self.valid_from >= self.test_from:
            raise ValueError("valid_from must lie before test_from")
        if not 1 <= self.title_words[0] <= self.title_words[1]:
            raise ValueError("title_words must be (fewest, most) with 1 <= fewest <= most")
        if self.mean_clicks < self.min_clicks:
            raise ValueError("mean_clicks must not be below min_clicks")
        if self.min_clicks > self.n_items // 2:
            raise ValueError("min_clicks must not be above half of n_items")
        return self
