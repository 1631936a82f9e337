"""The form of a pipeline's YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from firstlight.core.errors import InputError
from firstlight.core.refusals import did_you_mean
from firstlight.training.recipes import merge, override

SplitName = Literal["random", "time", "leave-last", "cold-items"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadConfig(_Section):
    """What counts as an interaction, as the reader options of every command have it."""

    user: str | None = None
    """Column of user ids."""

    item: str | None = None
    """Column of item ids."""

    time: str | None = None
    """Column of times."""

    value: str | None = None
    """Column of ratings or strengths."""

    min_value: float | None = None
    """Pairs with a smaller value are dropped."""

    k_core: tuple[int, int] | None = None
    """Fewest pairs of a user and of an item."""

    duplicates: Literal["first", "last", "sum"] | None = None
    """Which of several equal pairs counts."""

    on_bad_rows: Literal["error", "skip"] | None = None
    """Stop at a row that cannot be read, or skip and count it."""

    header: bool | None = None
    """Whether a table's first line holds names; without, columns are numbered from 1."""

    catalogue_item: str | None = None
    """Column of item ids in the table of items, if it is another one."""


class DataConfig(_Section):
    """Where catalogue and log come from: one of the two."""

    path: Path | None = None
    """A folder or file in any supported format, relative to the current folder."""

    simulate: dict[str, Any] | None = None
    """Settings of a generated world."""

    read: ReadConfig = ReadConfig()
    """How ``path`` is read."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.simulate is None):
            raise ValueError("give either path or simulate")
        return self


class StageConfig(_Section):
    """One training of an encoder: the options of ``pretrain`` or ``refine``."""

    recipe: str | None = None
    """Name of a shipped recipe, or a YAML file."""

    objective: str | None = None
    """What is predicted (``pretrain`` only)."""

    epochs: int | None = Field(None, ge=1)
    """Epochs."""

    head_epochs: int | None = Field(None, ge=1)
    """Epochs of the head stage (``refine`` only)."""

    temperature: float | Literal["auto"] | None = None
    """τ (``refine`` only)."""

    seed: int | None = None
    """Seed of every random stream."""

    threads: int | None = Field(None, ge=1)
    """CPU threads."""

    set: dict[str, Any] = {}
    """Any field of the config: ``training.batch_size: 128``."""


class EncoderSection(_Section):
    """The encoder of the covers: a given one, or one made here; and how models read it."""

    given: Path | None = None
    """An encoder that is there: a folder, or a checkpoint of another project. ``refine`` starts from it."""

    pretrain: StageConfig | None = None
    """Pre-training on the catalogue's covers, from ``given`` if there is one."""

    refine: StageConfig | None = None
    """Refinement of what is there."""

    use: Literal["views", "embed"] = "views"
    """``views``: the encoder is part of the run, and reads the covers of items that come later; ``embed``: covers
    become a ready-made feature once, and later items have to bring theirs."""

    tokens: Literal["class", "mean"] | None = None
    """What stands for a cover. None: as the encoder says."""

    image_size: tuple[int, int] | None = None
    """Height and width that covers are brought to. None: the encoder's own."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.given is None and self.pretrain is None:
            raise ValueError("give an encoder (given) or make one (pretrain)")
        for name in ("head_epochs", "temperature"):
            if self.pretrain is not None and getattr(self.pretrain, name) is not None:
                raise ValueError(f"pretrain has no {name}; refine has")
        if self.refine is not None and self.refine.objective is not None:
            raise ValueError("refine has no objective; pretrain has")
        return self


class SplitConfig(_Section):
    """The options of ``data split``."""

    by: SplitName = "cold-items"
    """How to choose what is held out."""

    seed: int = 0
    """Seed of the splits that draw at random."""

    valid_share: float | None = Field(None, ge=0, lt=1)
    """Share held out for choosing."""

    test_share: float | None = Field(None, ge=0, lt=1)
    """Share held out for final numbers."""


class TrainConfig(_Section):
    """One run: the options of ``train``."""

    recipe: str | None = None
    """Name of a shipped recipe, or a YAML file."""

    model: str | None = None
    """The recommender."""

    loss: str | None = None
    """The training loss."""

    temperature: str | None = None
    """The temperature's policy, such as ``fixed:0.1``."""

    negatives: str | None = None
    """What a positive is contrasted with."""

    epochs: int | None = Field(None, ge=1)
    """Most epochs."""

    seed: int | None = None
    """Seed of every random stream of the run."""

    threads: int | None = Field(None, ge=1)
    """CPU threads."""

    start: Path | None = None
    """A run of yesterday to start from (``train --from``)."""

    set: dict[str, Any] = {}
    """Any field of the config: ``model.dim: 128``."""


class EvaluateConfig(_Section):
    """The options of ``evaluate --protocol cold``."""

    k: tuple[int, ...] = (10, 20, 50)
    """Lengths of the list."""

    @field_validator("k")
    @classmethod
    def _usable(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if not k or min(k) < 1:
            raise ValueError("the lengths must be at least 1")
        return k


class ExportConfig(_Section):
    """The options of ``export``."""

    run: str | None = None
    """Which run becomes the bundle; None: the last one."""

    refit: bool = False
    """Train its model again on all parts of the data, as long as its search found, and export that: what the test part
    holds is known to the bundle, and is not recommended again. Not with ``arrivals``, which are looked for in what
    followed."""


class ArrivalsConfig(_Section):
    """Items that only the test part knows: kept out of everything, then added to the bundle, and looked for."""

    k: int = Field(20, ge=1)
    """Length of the lists in which they are looked for."""

    label: str | None = None
    """What the bundle is called beside the controls; the name of its model if not given."""


class RecommendConfig(_Section):
    """The lists of all users, as ``recommend --out`` writes them."""

    k: int = Field(10, ge=1)
    """Length of the lists."""


class ReportConfig(_Section):
    """The options of ``report``."""

    users: tuple[str, ...] = ()
    """Raw ids of users whose recommendations are shown; some with many clicks if none is named."""


class PipelineConfig(_Section):
    """A whole pipeline."""

    name: str = Field("pipeline", pattern=r"^[\w.-]+$")
    """What the pipeline is called; its default folder is ``NAME-out``."""

    data: DataConfig
    """Catalogue and log."""

    encoder: EncoderSection | None = None
    """The encoder of the covers; None: covers are read by colours and edges."""

    split: SplitConfig | None = SplitConfig()
    """How parts are held out; null: the data brings its own parts."""

    train: dict[str, TrainConfig] = Field(min_length=1)
    """Runs by name; the first is what the others are compared with."""

    evaluate: EvaluateConfig | None = EvaluateConfig()
    """Warm and cold numbers of every run; null: none."""

    export: ExportConfig | None = ExportConfig()
    """The bundle; null: none."""

    arrivals: ArrivalsConfig | None = None
    """What is done about items that arrive after training; null: they stay in the catalogue like all others."""

    recommend: RecommendConfig | None = None
    """Lists of all users, from the bundle; null: none."""

    report: ReportConfig | None = ReportConfig()
    """The report; null: none."""

    @field_validator("train")
    @classmethod
    def _names(cls, train: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
        for name in train:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ValueError(f"run name {name!r} is not made of letters, digits, dots and dashes")
        return train

    @model_validator(mode="after")
    def _known_run(self) -> Self:
        if self.export is not None and self.export.run is not None and self.export.run not in self.train:
            raise ValueError(f"export.run {self.export.run!r} is none of the runs: {', '.join(self.train)}")
        for name in ("arrivals", "recommend"):
            if getattr(self, name) is not None and self.export is None:
                raise ValueError(f"{name} needs the bundle that export makes")
        if self.arrivals is not None and self.export is not None and self.export.refit:
            raise ValueError(
                "arrivals are looked for among the clicks that export.refit would learn: leave one out"
            )
        if self.arrivals is not None and self.encoder is not None and self.encoder.use == "embed":
            raise ValueError("arrivals are read by the encoder of the bundle: it needs encoder.use: views")
        return self


def list_pipelines() -> list[str]:
    """Names of the pipelines that come with the package."""
    folder = resources.files("firstlight") / "pipelines"
    return sorted(Path(str(entry)).stem for entry in folder.iterdir() if str(entry).endswith(".yaml"))


def read_pipeline(config: str | Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, str]:
    """Read and check a pipeline's file.

    Args:
        config: A path ending in ``.yaml`` or ``.yml``, or the name of a shipped pipeline.
        overrides: ``key.path=value`` texts laid over it, such as ``data.path=ml-latest-small``.

    Returns:
        The config, and what errors call its file.

    Raises:
        InputError: The file cannot be read, or a field is wrong; names file, step and field.
    """
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        known = list_pipelines()
        if str(config) not in known:
            guess = did_you_mean(str(config), known)
            raise InputError(
                f"there is no pipeline {str(config)!r}",
                hint=f"{guess}known: {', '.join(known)}; or give a .yaml file",
            )
        path = Path(str(resources.files("firstlight") / "pipelines" / f"{config}.yaml"))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the pipeline cannot be read: {error}", path=path) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise InputError(
            f"the pipeline is not YAML: {getattr(error, 'problem', error)}", path=path, line=line
        ) from error
    if not isinstance(tree, dict):
        raise InputError("the pipeline does not hold a mapping", path=path, hint=_KEYS)
    tree.setdefault("name", path.stem)
    for text in overrides:
        merge(tree, override(text))
    try:
        return PipelineConfig.model_validate(tree), str(path)
    except ValidationError as error:
        raise _refusal(error, tree, path) from error


_KEYS = f"its keys are {', '.join(PipelineConfig.model_fields)}"


def _refusal(error: ValidationError, tree: dict[str, Any], path: Path) -> InputError:
    """The first thing that is wrong, by step and field."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if not location:
        return InputError(first["msg"].removeprefix("Value error, "), path=path)
    step, rest = location[0], location[1:]
    if step == "train" and rest:
        step, rest = f"train:{rest[0]}", rest[1:]
    elif step == "encoder" and rest and rest[0] in ("pretrain", "refine"):
        step, rest = rest[0], rest[1:]
    if step not in PipelineConfig.model_fields and len(location) == 1:
        guess = did_you_mean(step, list(PipelineConfig.model_fields))
        return InputError(f"there is no step {step!r}", path=path, hint=guess + _KEYS)
    if first["type"] == "missing" and not rest:
        return InputError(f"step {step} is missing", path=path, hint=_KEYS)
    where = f"step {step}" + (f", field {'.'.join(rest)}" if rest else "")
    known = _fields_at(location)
    hint = None
    if first["type"] == "extra_forbidden" and known:
        hint = f"{did_you_mean(location[-1], known)}known: {', '.join(known)}"
        return InputError(f"{where}: there is no such field", path=path, hint=hint)
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":  # a regular expression helps nobody
        said = "only letters, digits, dots and dashes make a name"
    got = f" (got {first['input']!r})" if rest and not isinstance(first["input"], dict) else ""
    return InputError(f"{where}: {said}{got}", path=path, hint=hint)


def _fields_at(location: Sequence[str]) -> list[str]:
    """Names of the fields beside the one at ``location``."""
    sections: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "encoder": EncoderSection,
        "split": SplitConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "export": ExportConfig,
        "arrivals": ArrivalsConfig,
        "recommend": RecommendConfig,
        "report": ReportConfig,
    }
    if len(location) < 2 or location[0] not in sections:
        return list(PipelineConfig.model_fields)
    section = sections[location[0]]
    if location[0] == "encoder" and location[1] in ("pretrain", "refine"):
        section = StageConfig
    elif location[0] == "data" and location[1] == "read" and len(location) > 2:
        section = ReadConfig
    return list(section.model_fields)
