"""From a pipeline's config to its steps: each is command lines, what they read, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from firstlight.core.errors import InputError
from firstlight.data.cut import KNOWN, NEW
from firstlight.data.simulate import SimulationConfig
from firstlight.models import MODELS
from firstlight.models.content import ContentModel
from firstlight.pipeline.config import PipelineConfig, StageConfig, TrainConfig
from firstlight.training.config import RunConfig, build_config
from firstlight.training.encoder_config import build_pretrain_config
from firstlight.training.recipes import setting_texts
from firstlight.training.refine_config import build_refine_config
from firstlight.vision.image_set import ImageSet

Kind = Literal["dataset", "cut", "encoder", "run", "numbers", "bundle", "table", "page"]
Words = tuple[str, ...]
Made = TypeVar("Made")

#: Commands that go on by themselves where they were cut; all others write their output whole or not at all.
RESUMING = ("train", "pretrain", "refine", "embed")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: ``data``, ``cut``, ``pretrain``, ``refine``, ``embed``, ``split``, ``train:NAME``, ``evaluate:NAME``,
            ``refit``, ``export``, ``arrivals``, ``recommend`` or ``report``.
        commands: What is run, in order: the words after ``firstlight``.
        output: What it leaves.
        kind: What that is. ``numbers`` are what the command prints with ``--json``.
        needs: Names of the steps whose outputs it reads.
        outside: What it reads that no step made.
        facts: What its size and time follow from.
    """

    name: str
    commands: tuple[Words, ...]
    output: Path
    kind: Kind
    needs: tuple[str, ...] = ()
    outside: tuple[Path, ...] = ()
    facts: Mapping[str, Any] | None = None

    @property
    def dataset(self) -> Path:
        """The dataset that later steps work on, of a step that leaves one."""
        return self.output / KNOWN if self.kind == "cut" else self.output


def plan(config: PipelineConfig, out: Path, source: str) -> list[Step]:
    """The steps of a pipeline, in an order in which they can be run.

    Args:
        config: The pipeline.
        out: The folder that it fills.
        source: What errors call the config's file.

    Raises:
        InputError: A step's own settings are wrong; names file, step and field.
    """
    steps = [_data(config, out, source)]
    if config.arrivals is not None:  # what arrives later is kept even from the encoder
        if config.split is not None:
            steps.append(_split(config, out, *_last_dataset(steps)))
        steps.append(_cut(out, *_last_dataset(steps)))
    encoder = _encoder(config, out, steps, source)
    data, last = _last_dataset(steps)
    if config.encoder is not None and encoder is not None and config.encoder.use == "embed":
        steps.append(_embed(config, out, data, last, encoder))
        data, last = _last_dataset(steps)
    if config.split is not None and config.arrivals is None:
        steps.append(_split(config, out, data, last))
        data, last = _last_dataset(steps)
    views = encoder if config.encoder is not None and config.encoder.use == "views" else None
    for name, given in config.train.items():
        steps.append(_train(config, name, given, out, data, last, views, source))
    runs = {name: _find(steps, f"train:{name}") for name in config.train}
    if config.evaluate is not None:
        steps += [_evaluate(config.evaluate.k, name, run, out) for name, run in runs.items()]
    if config.export is not None:
        chosen = runs[config.export.run or list(runs)[-1]]
        steps += _served(config, chosen, out, steps, source)
    if config.report is not None:
        steps.append(_report(config, list(runs.values()), out, data, last))
    return steps


def _last_dataset(steps: list[Step]) -> tuple[Path, str]:
    step = [step for step in steps if step.kind in ("dataset", "cut")][-1]
    return step.dataset, step.name


def _find(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step.name == name)


def _data(config: PipelineConfig, out: Path, source: str) -> Step:
    target = out / "data"
    if config.data.simulate is not None:
        try:
            world = SimulationConfig.model_validate(config.data.simulate)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(["simulate", *map(str, first["loc"])])
            known = ", ".join(SimulationConfig.model_fields)
            raise InputError(
                f"step data, field {field}: {first['msg']} (got {first['input']!r})",
                path=source,
                hint=f"settings of a world: {known}",
            ) from error
        words = ("simulate", str(target), *_settings(config.data.simulate))
        facts = {"users": world.n_users, "items": world.n_items, "pairs": world.n_users * world.mean_clicks}
        return Step("data", (words,), target, "dataset", facts={**facts, "images": world.n_items})
    path = config.data.path
    assert path is not None
    if not path.exists():
        raise InputError(
            f"step data, field path: there is no file or folder {str(path)!r}",
            path=source,
            hint="name it with --set data.path=…",
        )
    words = ("data", "convert", str(path), str(target), *_reading(config))
    return Step("data", (words,), target, "dataset", outside=(path,))


def _reading(config: PipelineConfig) -> list[str]:
    """The reader options as the command line has them."""
    words: list[str] = []
    for name, value in config.data.read.model_dump(exclude_none=True).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{option}", text]
    return words


def _settings(fields: Mapping[str, Any]) -> list[str]:
    """``--set`` words."""
    return [word for text in setting_texts(fields) for word in ("--set", text)]


def _encoder(config: PipelineConfig, out: Path, steps: list[Step], source: str) -> Step | Path | None:
    """Add the steps that make an encoder; the step that makes the last one, or the given encoder."""
    section = config.encoder
    if section is None:
        return None
    if section.given is not None and not section.given.exists():
        raise InputError(
            f"step encoder, field given: there is no file or folder {str(section.given)!r}", path=source
        )
    data, made_by = _last_dataset(steps)
    last: Step | Path | None = section.given
    for command, stage in (("pretrain", section.pretrain), ("refine", section.refine)):
        if stage is None:
            continue
        shape = _check_stage(command, stage, source)
        target = out / "encoders" / command
        words = [command, str(data), "--out", str(target)]
        if last is not None:
            words += ["--encoder", str(last.output if isinstance(last, Step) else last)]
        words += _stage_words(stage)
        needs = (made_by, *([last.name] if isinstance(last, Step) else []))
        outside = (last,) if isinstance(last, Path) else ()
        facts = {**shape, "epochs": stage.epochs or shape.get("epochs")}
        last = Step(command, ((*words, "--resume"),), target, "encoder", needs, outside, facts)
        steps.append(last)
    return last


def _stage_words(stage: StageConfig) -> list[str]:
    words: list[str] = []
    for name in ("recipe", "objective", "temperature", "epochs", "head_epochs", "seed", "threads"):
        value = getattr(stage, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words + _settings(stage.set)


def _check_stage(command: str, stage: StageConfig, source: str) -> dict[str, Any]:
    """Refuse settings of an encoder's training before anything is run; what its time follows from."""
    overrides = _overrides(stage.set, epochs=stage.epochs, seed=stage.seed, threads=stage.threads)
    if command == "refine":
        config = _checked(
            "refine", source, lambda: build_refine_config(recipe=stage.recipe, overrides=overrides)
        )
        return {"epochs": config.training.epochs}
    # Where the images decide the size, any will do to check the rest.
    sized = any(key.startswith(("encoder.image_size", "encoder.patch_size")) for key in stage.set)
    stand_in = [] if sized else ["encoder.image_size=[64, 64]", "encoder.patch_size=8"]
    made = _checked(
        "pretrain",
        source,
        lambda: build_pretrain_config(
            ImageSet([], "", "", []),
            recipe=stage.recipe,
            objective=stage.objective,
            overrides=[*stand_in, *overrides],
        ),
    )
    rows, columns = made.encoder.grid
    return {
        "epochs": made.training.epochs,
        "dim": made.encoder.dim,
        "depth": made.encoder.depth,
        "tokens": rows * columns,
    }


def _checked(step: str, source: str, build: Callable[[], Made]) -> Made:
    try:
        return build()
    except InputError as error:
        problem = error.problem.removeprefix("config ")
        raise InputError(f"step {step}, {problem}", path=source, hint=error.hint) from error


def _overrides(fields: Mapping[str, Any], **training: int | None) -> list[str]:
    return setting_texts(fields) + [
        f"training.{name}={value}" for name, value in training.items() if value is not None
    ]


def _embed(config: PipelineConfig, out: Path, data: Path, made_by: str, encoder: Step | Path) -> Step:
    target, section = out / "embedded", config.encoder
    assert section is not None
    path = encoder.output if isinstance(encoder, Step) else encoder
    words = ["embed", str(data), "--encoder", str(path), "--out", str(target)]
    words += [] if section.tokens is None else ["--tokens", section.tokens]
    words += [] if section.image_size is None else ["--image-size", ",".join(map(str, section.image_size))]
    copy = ("data", "convert", str(data), str(target))
    needs = (made_by, *([encoder.name] if isinstance(encoder, Step) else []))
    outside = (encoder,) if isinstance(encoder, Path) else ()
    return Step("embed", (copy, tuple(words)), target, "dataset", needs, outside)


def _split(config: PipelineConfig, out: Path, data: Path, made_by: str) -> Step:
    assert config.split is not None
    words = ["data", "split", str(data), str(out / "split"), "--by", config.split.by]
    words += ["--seed", str(config.split.seed)]
    for name in ("valid_share", "test_share"):
        value = getattr(config.split, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return Step("split", (tuple(words),), out / "split", "dataset", (made_by,))


def _cut(out: Path, data: Path, made_by: str) -> Step:
    return Step("cut", (("data", "cut", str(data), str(out / "cut")),), out / "cut", "cut", (made_by,))


def _served(config: PipelineConfig, run: Step, out: Path, steps: list[Step], source: str) -> list[Step]:
    """The bundle, with what arrived, and what is asked of it."""
    bundle, (data, last) = out / "bundle", _last_dataset(steps)
    refits = []
    if config.export is not None and config.export.refit:
        run = _refit(run, out, data, last)
        refits = [run]
    commands: list[Words] = [("export", str(run.output), str(bundle), "--items", str(data))]
    # The bundle is served and added to, so what it holds decides nothing: what made it does.
    behind = ("export", run.name, last)
    if config.arrivals is None:
        found = []
    else:
        if not issubclass(MODELS.load((run.facts or {})["model"]), ContentModel):
            raise InputError(
                f"step arrivals: the model of run {run.name.partition(':')[2]!r}, the bundle's, reads no content",
                path=source,
                hint="name another one with export.run",
            )
        whole = steps[steps.index(_find(steps, "cut")) - 1]
        commands.append(("add-items", str(bundle), str(out / "cut" / NEW)))
        words = ["arrivals", str(bundle), str(whole.dataset), "-k", str(config.arrivals.k)]
        words += [] if config.arrivals.label is None else ["--label", config.arrivals.label]
        found = [Step("arrivals", (tuple(words),), out / "arrivals.json", "numbers", (*behind, whole.name))]
    made = [*refits, Step("export", tuple(commands), bundle, "bundle", (run.name, last)), *found]
    if config.recommend is not None:
        target = out / "recommendations.csv"
        asked = ("recommend", str(bundle), "-k", str(config.recommend.k), "--out", str(target))
        made.append(Step("recommend", (asked,), target, "table", behind))
    return made


def _train(
    config: PipelineConfig,
    name: str,
    given: TrainConfig,
    out: Path,
    data: Path,
    made_by: str,
    encoder: Step | Path | None,
    source: str,
) -> Step:
    if given.start is not None and not (given.start / "config.yaml").exists():
        raise InputError(f"step train:{name}, field start: {str(given.start)!r} is not a run", path=source)
    run = _checked(f"train:{name}", source, lambda: _run_config(given))
    words = ["train", str(data), "--out", str(out / "runs" / name)]
    for option in ("recipe", "model", "loss", "temperature", "negatives", "epochs", "seed", "threads"):
        value = getattr(given, option)
        words += [] if value is None else [f"--{option}", str(value)]
    words += _settings(given.set)
    needs, outside = [made_by], []
    if encoder is not None and MODELS.load(run.model.name).needs_views:
        words += _view_words(config, encoder)
        if isinstance(encoder, Step):
            needs.append(encoder.name)
        else:
            outside.append(encoder)
    if given.start is not None:
        words += ["--from", str(given.start)]
        outside.append(given.start)
    facts = {
        "model": run.model.name,
        "trainable": MODELS.load(run.model.name).trainable,
        "epochs": run.training.epochs,
        "negatives": run.negatives.name,
        "dim": getattr(run.model, "dim", 0),
        "batch": run.training.batch,
        "refit": run.training.refit and run.training.selection == "valid",
    }
    target = out / "runs" / name
    commands = ((*words, "--resume"),)
    return Step(f"train:{name}", commands, target, "run", tuple(needs), tuple(outside), facts)


def _refit(run: Step, out: Path, data: Path, made_by: str) -> Step:
    """The model of a run once more, on everything."""
    target = out / "refit"
    words = ("train", str(data), "--refit", str(run.output), "--out", str(target), "--resume")
    return Step(
        "refit", (words,), target, "run", (run.name, made_by), (), {**(run.facts or {}), "refit": False}
    )


def _run_config(given: TrainConfig) -> RunConfig:
    return build_config(
        recipe=given.recipe,
        model=given.model,
        loss=given.loss,
        temperature=given.temperature,
        negatives=given.negatives,
        overrides=_overrides(given.set, epochs=given.epochs, threads=given.threads),
        seed=given.seed,
        start=given.start,
    )


def _view_words(config: PipelineConfig, encoder: Step | Path) -> list[str]:
    section = config.encoder
    assert section is not None
    fields: dict[str, Any] = {
        "views.encoder.path": str(encoder.output if isinstance(encoder, Step) else encoder)
    }
    if section.tokens is not None:
        fields["views.encoder.tokens"] = section.tokens
    if section.image_size is not None:
        fields["views.encoder.image_size"] = list(section.image_size)
    return _settings(fields)


def _evaluate(ks: tuple[int, ...], name: str, run: Step, out: Path) -> Step:
    words = ("evaluate", str(run.output), "--protocol", "cold", "-k", ",".join(map(str, ks)))
    return Step(
        f"evaluate:{name}", (words,), out / "evaluation" / f"{name}.json", "numbers", (run.name,), (),
        run.facts,
    )  # fmt: skip


def _report(config: PipelineConfig, runs: list[Step], out: Path, data: Path, made_by: str) -> Step:
    assert config.report is not None
    users, needs = config.report.users, [*(run.name for run in runs), made_by]
    words = ["report", *(str(run.output) for run in runs), "--data", str(data)]
    words += ["--users", ",".join(users)] if users else []
    if config.arrivals is not None:
        words += ["--arrivals", str(out / "arrivals.json")]
        needs.append("arrivals")
    words += ["--out", str(out / "report.html")]
    return Step("report", (tuple(words),), out / "report.html", "page", tuple(needs))
