"""One YAML file holds a whole run; this is its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from firstlight.core.errors import InputError
from firstlight.losses.ranking import LossConfig
from firstlight.losses.temperature import TemperatureConfig
from firstlight.models import MODELS
from firstlight.models.base import ModelConfig
from firstlight.training.recipes import config_yaml as config_yaml
from firstlight.training.recipes import list_recipes as list_recipes
from firstlight.training.recipes import merge, override, read_recipe, validated
from firstlight.views.config import ViewsConfig


class NegativesConfig(BaseModel):
    """What training contrasts a positive with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["uniform", "shared", "in-batch", "all"] = "shared"
    """``uniform``: ``count`` items drawn for each pair (as released); ``shared``: one uniform sample for the
    whole batch, the same estimate at a hundredth of the cost; ``in-batch``: the other positives of the batch,
    drawn by popularity; ``all``: every item, exact."""

    count: int = Field(1024, ge=1)
    """Items drawn, for ``uniform`` and ``shared`` (paper: M)."""

    logq: bool = False
    """Correct ``in-batch`` for drawing by popularity: subtract log q from the scores (Bengio & Senécal 2008)."""

    mask_positives: bool = False
    """Leave items that the user is known to like out of its negatives (not for ``uniform``)."""


class TrainingConfig(BaseModel):
    """Length, steps, and how the number of epochs is found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(100, ge=1)
    """Most epochs; also the horizon of the schedule."""

    batch: Literal["pairs", "users"] = "pairs"
    """What a step takes: user–item pairs, or users with all their pairs (one row of logits a user)."""

    batch_size: int | None = Field(None, ge=1)
    """Pairs, or users, in a step. None: 2,048 (the paper's), and fewer on small data, so that an epoch has about
    fifty steps."""

    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of Adam (row-lazy where rows are touched sparsely)."""

    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls over ``epochs``."""

    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise at the start."""

    beta2: float = Field(0.999, gt=0, lt=1)
    """Adam's second-moment decay."""

    selection: Literal["valid", "test", "none"] = "valid"
    """How the number of epochs is found. ``valid``: best on the validation part (carved out of training if the
    data brings none), then a refit on train + validation for that many epochs. ``test``: best on the *test*
    part: leaky, what the published tables did, labelled so everywhere. ``none``: all ``epochs``, or
    ``stop_after`` of them."""

    stop_after: int | None = Field(None, ge=1)
    """With ``none``: epochs to train of the ``epochs`` that the schedule spans; what a search found. None: all."""

    cold_scale: float = Field(1.0, gt=0)
    """With ``none``: factor of cold items' scores, as a search fitted it."""

    cold_offset: float = 0.0
    """With ``none``: what is added to cold items' scores, as a search fitted it."""

    valid_share: float = Field(0.1, gt=0, lt=1)
    """Share of a user's training pairs carved out where the data has no validation part."""

    refit: bool = True
    """Train again on train + validation for the found number of epochs; otherwise the best model is kept."""

    track_test: bool = False
    """During the refit also evaluate on test every ``eval_every`` epochs, through all ``epochs``, and report
    the best beside the honest number, labelled as selected on test."""

    metric: str = Field(
        "recall@20",
        pattern=r"^((warm|cold|harmonic)-)?(recall|ndcg|precision|map|map_trec|mrr|hit)@[1-9][0-9]*$",
        examples=["recall@20", "ndcg@10", "cold-recall@20", "harmonic-recall@20"],
    )
    """What selection maximises: a per-user metric at a length, such as ``ndcg@10``. With ``warm-`` or ``cold-``
    before it, only such targets count, ranked among their own kind; ``harmonic-recall@20`` is the harmonic mean
    of the two, for models that must be good at both."""

    eval_every: int = Field(5, ge=1)
    """Epochs between evaluations."""

    patience: int = Field(5, ge=1)
    """Evaluations without improvement after which the search stops."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Inputs of the training step's matrix products; sums stay in float32, and so does everything else,
    evaluation included. ``bfloat16`` needs a processor with bf16 instructions (AVX512-BF16, AMX, ARM bf16);
    elsewhere it changes nothing."""

    threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves PyTorch's choice."""

    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints."""

    @model_validator(mode="after")
    def _found_by_a_search(self) -> Self:
        """What a search finds cannot be given to one that is still to come."""
        found = (self.stop_after, self.cold_scale, self.cold_offset) != (None, 1.0, 0.0)
        if found and self.selection != "none":
            raise ValueError("stop_after, cold_scale and cold_offset go with selection=none")
        if self.stop_after is not None and self.stop_after > self.epochs:
            raise ValueError(f"stop_after is {self.stop_after}, and the schedule has {self.epochs} epochs")
        return self


class EvaluationConfig(BaseModel):
    """What the final evaluation reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[int, ...] = (10, 20, 50)
    """Lengths of the ranked list."""

    @field_validator("ks")
    @classmethod
    def _usable(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
            raise ValueError("the lengths must be different and at least 1")
        return ks


#: Lists of this length are measured however few items there are: the lengths of a benchmark fit small data, too.
USUAL_LENGTH = 1000


def check_lengths(ks: Sequence[int], n_items: int) -> None:
    """Refuse lists far longer than there are items: rankings are laid out at full length, for every user.

    Args:
        ks: Lengths of the ranked list.
        n_items: Items that there are.

    Raises:
        InputError: One is longer than :data:`USUAL_LENGTH` and than the items are many.
    """
    most = max(n_items, USUAL_LENGTH)
    if ks and max(ks) > most:
        raise InputError(
            f"a list of {max(ks):,} items is to be measured, and there are {n_items:,}",
            hint=f"lists may be up to {most:,} long",
        )


class RunConfig(BaseModel):
    """Everything that decides a run, given the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    """Seed of every random stream of the run."""

    model: SerializeAsAny[ModelConfig]
    """The recommender: ``name`` and its own fields."""

    loss: LossConfig = LossConfig()
    """The ranking loss."""

    temperature: TemperatureConfig = TemperatureConfig()
    """The temperature policy."""

    negatives: NegativesConfig = NegativesConfig()
    """What positives are contrasted with."""

    training: TrainingConfig = TrainingConfig()
    """Length, steps and selection."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """What is reported."""

    views: ViewsConfig = ViewsConfig()
    """What of the catalogue becomes content, for models that read it."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        """Refuse combinations that would not mean what they say."""
        loss, negatives = self.loss, self.negatives
        if loss.name == "none" and not MODELS.load(self.model.name).own_loss:
            raise ValueError(
                f"loss 'none' needs a model with an objective of its own, not {self.model.name!r}"
            )
        if self.training.batch == "users":
            if loss.name == "bpr" or (loss.positive_in_denominator and negatives.name != "all"):
                raise ValueError(
                    "training.batch 'users' needs a loss that is linear in the positive: softmax or bsl"
                )
            if loss.positive_in_denominator:
                raise ValueError("with negatives 'all' the positives are in the denominator already")
            if negatives.name == "in-batch":
                raise ValueError(
                    "training.batch 'users' has no single positive per row, so no in-batch negatives"
                )
        if negatives.mask_positives and negatives.name in ("uniform", "all"):
            raise ValueError(f"negatives.mask_positives does not go with negatives {negatives.name!r}")
        if negatives.logq and negatives.name != "in-batch":
            raise ValueError(
                "negatives.logq corrects in-batch negatives; the others are not drawn by popularity"
            )
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _choose_model(cls, value: Any) -> Any:
        """Validate by the config class of the named model."""
        if isinstance(value, Mapping):
            return MODELS.load(str(value.get("name", ""))).Config.model_validate(dict(value))
        return value


#: Loss names that stand for a loss and a temperature together.
SHORTHANDS: dict[str, dict[str, dict[str, Any]]] = {
    "adap-tau": {"loss": {"name": "softmax"}, "temperature": {"name": "adaptive-user"}},
    "adap-tau0": {"loss": {"name": "softmax"}, "temperature": {"name": "adaptive"}},
}


def _temperature(text: str) -> dict[str, Any]:
    """``fixed:0.1`` or ``adaptive-user`` as a mapping."""
    name, _, tau = text.partition(":")
    try:
        return {"name": name, "tau": float(tau)} if tau else {"name": name}
    except ValueError:
        raise InputError(f"--temperature {text!r}: {tau!r} is not a number", hint="e.g. fixed:0.1") from None


def _fill(tree: dict[str, Any]) -> None:
    """Lay what is given over what the model's runs default to."""
    given = tree["model"] if isinstance(tree["model"], Mapping) else {}
    defaults = MODELS.load(str(given.get("name", ""))).run_defaults(given)
    for section, fields in defaults.items():
        base = {section: dict(fields)}
        merge(base, {section: tree.get(section, {})})
        tree[section] = base[section]


def build_config(
    *,
    recipe: str | Path | None = None,
    model: str | None = None,
    loss: str | None = None,
    temperature: str | None = None,
    negatives: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    start: Path | None = None,
) -> RunConfig:
    """A run's config from a recipe, the named parts laid over it, and single fields laid over those.

    Args:
        recipe: Name of a shipped recipe, or a path ending in ``.yaml``.
        model: Registry name; default ``mf``.
        loss: ``bpr``, ``softmax``, ``bsl``, ``adap-tau`` or ``adap-tau0``.
        temperature: A policy name, ``fixed:0.1`` for a fixed τ.
        negatives: ``uniform``, ``shared``, ``in-batch`` or ``all``.
        overrides: ``key.path=value`` texts; values are YAML.
        seed: The run's seed.
        start: Folder of a run to start from; its config stands for the recipe if none is named.

    Raises:
        InputError: A name or value is not valid; the message says which field and what would be.
    """
    if recipe is None and start is not None:
        recipe = start / "config.yaml"
    tree: dict[str, Any] = {} if recipe is None else read_recipe(recipe)
    tree.setdefault("model", {"name": "mf"})
    if model is not None:
        merge(tree, {"model": {"name": model}})
    if loss is not None:
        # A loss named without a temperature is the loss of that name, at a fixed τ; only adap-tau adapts.
        plain = {"loss": {"name": loss}}
        if "temperature" not in tree:
            plain["temperature"] = {"name": "fixed"}
        merge(tree, SHORTHANDS.get(loss, plain))
    if temperature is not None:
        merge(tree, {"temperature": _temperature(temperature)})
    if negatives is not None:
        merge(tree, {"negatives": {"name": negatives}})
    for text in overrides:
        merge(tree, override(text))
    if seed is not None:
        tree["seed"] = seed
    _fill(tree)
    sections = {"model": MODELS.load(str(tree["model"]["name"])).Config}
    return validated(RunConfig, tree, recipe, sections)
