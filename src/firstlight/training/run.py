"""A whole run: search for the number of epochs, refit, evaluate, write the run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import alone, read_json, write_json, writing
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import ItemViews
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import carve_validation
from firstlight.evaluation.ranking import Evaluation, evaluate_ranking
from firstlight.graphs.knn import Finder
from firstlight.models import MODELS
from firstlight.models.base import Recommender, build_model
from firstlight.models.content import ContentModel
from firstlight.training.checkpoint import (
    AGAIN,
    Checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from firstlight.training.config import RunConfig, check_lengths
from firstlight.training.content import Content, check_content, fit_content, save_content
from firstlight.training.loop import Judge, Phase, Progress
from firstlight.training.neighbours import remembering_finder
from firstlight.training.process import peak_memory_mb, use_threads
from firstlight.training.run_folder import ModelScorer, Run, run_hash, save_model, start_run, write_metrics
from firstlight.training.selection import calibration, make_judge, validation_pool
from firstlight.training.warm_start import WarmStart

#: What each selection protocol means, in every result.
PROTOCOLS = {
    "valid": "epochs chosen on validation, final model trained on train + validation; test chose nothing",
    "test": "LEAKY: epochs chosen on the test set; only for comparison with tables made the same way",
    "none": "fixed number of epochs, no selection",
}
#: The same of a run on validation that keeps its best model instead of training it again.
WITHOUT_REFIT = (
    "epochs chosen on validation, and the best model kept: trained on train alone; test chose nothing"
)


@dataclass
class _Context:
    """What the phases of one run share."""

    config: RunConfig
    dataset: Dataset
    out: Path
    hash: str
    emit: Emit
    resumed: Checkpoint[Progress] | None
    carried: dict[str, Any]
    earlier: list[dict[str, Any]]
    finder: Finder
    start: WarmStart | None = None
    #: Views of the phase that ran last, for models that read content.
    content: Content | None = None
    #: What was said of the content; the phases of a run would say the same.
    told: set[str] = field(default_factory=set)


def train(
    dataset: Dataset,
    config: RunConfig,
    out: Path | str,
    *,
    start: Run | None = None,
    resume: bool = False,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Train, evaluate and write a run folder.

    Args:
        dataset: What to learn from and test on.
        config: Everything that decides the run.
        out: The run folder; must be empty or absent unless ``resume``.
        start: A finished run of the same model, whose vectors and weights training starts from.
        resume: Continue where the last checkpoint stands; a finished run is returned as it is.
        emit: Receives events for progress displays.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: The folder holds another run, or the data cannot be trained on.
        DivergenceError: The numbers blew up; the last good checkpoint is kept.
    """
    out = Path(out)
    if dataset.train.n_pairs == 0:
        raise InputError("there is no training interaction", path=dataset.source or None)
    parts = _parts(dataset, config)
    warm = None if start is None else WarmStart(start, config, dataset)
    digest = run_hash(config, dataset, None if warm is None else warm.digest)
    finished = _finished(out, digest, resume)
    if finished is not None:
        return finished
    check_content(config, dataset)
    check_lengths(config.evaluation.ks, dataset.n_items)
    if config.training.selection == "valid" and MODELS.load(config.model.name).trainable:
        make_judge(config, parts["valid"], parts["train"])  # refused here, before there is a folder
    try:
        with alone(out, "training"), use_threads(config.training.threads):
            resumed = _resumed(out, digest) if resume else None
            if resumed is None:
                start_run(out, config, dataset, parts)
            finder = remembering_finder(emit)
            context = _Context(config, dataset, out, digest, emit, resumed, {}, [], finder, warm)
            emit("run", **_facts(dataset, config, parts))
            for note in dataset.notes:
                emit("message", text=f"data: {note}")
            result = _run(context, dataset, parts)
    except OSError as error:  # the small files beside the checkpoints; those have their own message
        raise FirstlightError(
            f"{error.filename or out}: {error.strerror or error}; the last checkpoint is kept\n"
            "  → make room or make the folder writable, then go on with --resume"
        ) from error
    emit("done", result=result)
    return result


def _run(context: _Context, dataset: Dataset, parts: dict[str, Interactions]) -> dict[str, Any]:
    """Fit, save, evaluate, in this order: an evaluation that fails must not cost the training."""
    started = time.perf_counter()
    model, seen, found = _fit(context, parts)
    save_model(context.out, model, seen)
    if context.content is not None:
        save_content(context.out, context.content)
    result = _finish(context, dataset, parts, model, seen, found)
    result["seconds"]["total"] = round(time.perf_counter() - started, 2)
    write_json(context.out / "result.json", result)
    return result


def _parts(dataset: Dataset, config: RunConfig) -> dict[str, Interactions]:
    """The parts of the run; validation is carved out of training where selection wants it and none is given."""
    parts = dict(dataset.parts)
    trainable = MODELS.load(config.model.name).trainable
    if config.training.selection == "valid" and trainable and dataset.valid is None:
        share, seed = config.training.valid_share, config.seed
        rest, valid = carve_validation(dataset.train, share, seed)
        parts = {"train": rest, "valid": valid} | {k: v for k, v in parts.items() if k == "test"}
    if config.training.selection == "test" and dataset.test is None:
        raise InputError("selection 'test' needs a test part", path=dataset.source or None)
    return parts


def _finished(out: Path, digest: str, resume: bool) -> dict[str, Any] | None:
    """The result of a run that is finished; None if there is something to do, and the folder may be written."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                "the output folder is not empty",
                path=out,
                hint="choose another --out, or continue it with --resume",
            )
        return None
    if (out / "result.json").exists():
        finished: dict[str, Any] = read_json(out / "result.json")
        if finished["run_hash"] != digest:
            raise _other(out)
        return finished
    if out.exists() and any(out.iterdir()) and not (out / "config.yaml").exists():
        raise InputError(
            "this folder holds something that is not a run", path=out, hint="choose another --out"
        )
    return None


def _resumed(out: Path, digest: str) -> Checkpoint[Progress] | None:
    """The checkpoint to go on from, if the run got so far."""
    state = out / "checkpoint" / "state.safetensors"
    for torn in out.rglob(".*.partial*"):  # a killed process left its unfinished file
        torn.unlink(missing_ok=True)
    if not state.exists():
        return None
    checkpoint = load_checkpoint(state, Progress)
    if checkpoint.run_hash != digest:
        raise _other(out)
    return checkpoint


def _other(out: Path) -> InputError:
    return InputError(
        "this folder holds a run with another config or other data",
        path=out,
        hint="resume with the same options and files (config.yaml and dataset.json there), or choose another --out",
    )


def _facts(dataset: Dataset, config: RunConfig, parts: dict[str, Interactions]) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "n_users": dataset.n_users,
        "n_items": dataset.n_items,
        "n_pairs": parts["train"].n_pairs,
        "model": config.model.name,
        "loss": config.loss.name,
        "temperature": config.temperature.name,
        "negatives": config.negatives.name,
        "epochs": config.training.epochs,
        "selection": config.training.selection,
        "seed": config.seed,
    }


def _fit(
    context: _Context, parts: dict[str, Interactions]
) -> tuple[Recommender, Interactions, dict[str, Any]]:
    """Train by the configured protocol; the model, the log it knows, and what was found on the way."""
    config, train = context.config, parts["train"]
    known = train.union(parts["valid"]) if "valid" in parts else train
    model_class = MODELS.load(config.model.name)
    if not model_class.trainable:
        model = build_model(config.model, known, torch_stream(config.seed, "init"), _views(context, known))
        return model, known, {"epochs": 0}
    epochs, selection = config.training.epochs, config.training.selection
    if selection == "none":
        epochs = config.training.stop_after or epochs
        phase = _phase(context, "train", known, epochs, None)
        if isinstance(phase.model, ContentModel):
            phase.model.calibrate(config.training.cold_scale, config.training.cold_offset)
        return phase.model, known, {"epochs": epochs, "train_seconds": phase.progress.seconds}
    if selection == "test":
        judge = make_judge(config, parts["test"], known)
        phase = _phase(context, "train", known, epochs, judge, stop_early=True)
        return _best_model(context, phase), known, _found("test", phase.progress)
    found, searched = _search(context, parts)
    if not config.training.refit:
        assert searched is not None  # without a refit the last checkpoint is the search's own
        return _calibrated(_best_model(context, searched), found), train, found
    model, seen, found = _refit(context, parts, known, found)
    return _calibrated(model, found), seen, found


def _calibrated(model: Recommender, found: dict[str, Any]) -> Recommender:
    """``model`` with the calibration that validation gave, if it gave one."""
    if isinstance(model, ContentModel) and found.get("calibration", {}).get("fitted"):
        model.calibrate(found["calibration"]["scale"], found["calibration"]["offset"])
    return model


def _search(context: _Context, parts: dict[str, Interactions]) -> tuple[dict[str, Any], Phase | None]:
    """Find the number of epochs on validation; no phase where a resumed run has it behind it."""
    resumed = context.resumed
    if resumed is not None and resumed.phase != "search":
        context.carried, context.earlier = resumed.carried, list(resumed.carried["history"])
        return resumed.carried["found"], None
    config = context.config
    judge = make_judge(config, parts["valid"], parts["train"], validation_pool(context.dataset))
    phase = _phase(context, "search", parts["train"], config.training.epochs, judge, stop_early=True)
    found = _found("valid", phase.progress)
    if isinstance(phase.model, ContentModel):
        best = _best_model(context, phase)
        found |= calibration(config, best, parts["valid"], parts["train"], validation_pool(context.dataset))
    context.earlier = phase.progress.history
    context.carried = {"found": found, "history": phase.progress.history}
    return found, phase


def _found(part: str, progress: Progress) -> dict[str, Any]:
    return {
        "epochs": progress.best_epoch,
        f"best_{part}": progress.best,
        "epochs_run": progress.epoch,
        "train_seconds": round(progress.seconds, 2),
    }


def _refit(
    context: _Context, parts: dict[str, Interactions], known: Interactions, found: dict[str, Any]
) -> tuple[Recommender, Interactions, dict[str, Any]]:
    """Train on everything but test for the found number of epochs; optionally watch test, labelled."""
    config = context.config
    tracked = config.training.track_test and "test" in parts
    epochs = config.training.epochs if tracked else found["epochs"]
    judge = make_judge(config, parts["test"], known) if tracked else None
    phase = _phase(context, "refit", known, epochs, judge, keep=found["epochs"] if tracked else None)
    found = {**found, "refit_seconds": round(phase.progress.seconds, 2)}
    if not tracked:
        return phase.model, known, found
    by_epoch = {record["epoch"]: record for record in phase.progress.history}
    best = by_epoch[phase.progress.best_epoch]
    leaky = {name: value for name, value in best.items() if "@" in name}
    found["selected_on_test"] = {"protocol": PROTOCOLS["test"], "epochs": best["epoch"], "metrics": leaky}
    return _best_model(context, phase), known, found


def _views(context: _Context, log: Interactions) -> ItemViews | None:
    """Views fitted on what ``log`` knows; they are remembered, since the last ones are saved with the run."""
    context.content = fit_content(context.config, context.dataset, log)
    for problem in [] if context.content is None else context.content.view_set.problems:
        if problem not in context.told:
            context.told.add(problem)
            context.emit("message", text=f"content: {problem}")
    return None if context.content is None else context.content.views


def _phase(
    context: _Context,
    name: str,
    log: Interactions,
    epochs: int,
    judge: Judge | None,
    *,
    stop_early: bool = False,
    keep: int | None = None,
) -> Phase:
    """Run one phase from its start or its checkpoint, writing checkpoints.

    ``keep`` names the epoch whose model is kept as the best; by default it is each improvement's.
    """
    phase = Phase(
        name,
        context.config,
        log,
        epochs=epochs,
        judge=judge,
        stop_early=stop_early,
        emit=context.emit,
        views=_views(context, log),
        finder=context.finder,
        start=None if context.start is None else context.start.apply,
    )
    if context.resumed is not None and context.resumed.phase == name:
        context.emit("message", text=f"continuing phase {name} after epoch {context.resumed.progress.epoch}")
        phase.load_state(context.resumed.tensors, context.resumed.progress)
        context.resumed = None
    folder = context.out / "checkpoint"

    def after_epoch(now: Phase, improved: bool) -> None:
        done = now.progress.epoch
        if (improved and keep is None) or done == keep:
            save_tensors(folder / f"best-{name}.safetensors", now.model.state_dict())
        if done % context.config.training.checkpoint_every == 0 or done == epochs:
            write_metrics(context.out, [*context.earlier, *now.progress.history])
            checkpoint = Checkpoint(name, context.hash, now.progress, context.carried, now.state())
            save_checkpoint(folder / "state.safetensors", checkpoint)

    phase.run(after_epoch)
    write_metrics(
        context.out, [*context.earlier, *phase.progress.history]
    )  # patience may end between two checkpoints
    return phase


def _best_model(context: _Context, phase: Phase) -> Recommender:
    """The phase's model with the tensors of the kept epoch; each phase keeps its own, so a resumed search finds it."""
    model: Recommender = phase.model
    model.load_state_dict(load_tensors(context.out / "checkpoint" / f"best-{phase.name}.safetensors"))
    return model


def _finish(
    context: _Context,
    dataset: Dataset,
    parts: dict[str, Interactions],
    model: Recommender,
    seen: Interactions,
    found: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate on test, write the per-user table, and put the result together."""
    config = context.config
    started = time.perf_counter()
    evaluation: Evaluation | None = None
    if "test" in parts and parts["test"].n_pairs:
        popularity = seen.item_degrees
        known = [seen, *([parts["valid"]] if "valid" in parts else [])]
        evaluation = evaluate_ranking(
            ModelScorer(model),
            parts["test"],
            known,
            config.evaluation.ks,
            popularity=popularity,
            seed=config.seed,
        )
        with writing(context.out / "per_user.parquet", AGAIN) as temporary:
            raw = dataset.user_ids.gather(evaluation.per_user["user"]).alias("user_id")
            evaluation.per_user.insert_column(0, raw).write_parquet(temporary)
        context.emit("evaluated", metrics=evaluation.metrics)
    selection = config.training.selection if MODELS.load(config.model.name).trainable else "none"
    kept = selection == "valid" and not config.training.refit
    return {
        "format": 1,
        "protocol": {"selection": selection, "meaning": WITHOUT_REFIT if kept else PROTOCOLS[selection]},
        "dataset": {
            "name": dataset.name,
            "content_hash": dataset.content_hash,
            "split": None if dataset.split is None else vars(dataset.split),
            "users": dataset.n_users,
            "items": dataset.n_items,
            **{name: part.n_pairs for name, part in parts.items()},
            "dropped": dict(dataset.dropped),
        },
        "config": config.model_dump(mode="json"),
        "run_hash": context.hash,
        "seed": config.seed,
        "start": None if context.start is None else context.start.about,
        "found": found,
        "kept_back_pairs": 0 if "train" not in parts else max(0, seen.n_pairs - model.log.n_pairs),
        "metrics": {} if evaluation is None else evaluation.metrics,
        "intervals": {} if evaluation is None else {k: list(v) for k, v in evaluation.intervals.items()},
        "groups": {} if evaluation is None else {k: v.to_dicts() for k, v in evaluation.groups.items()},
        "unreachable_targets": 0 if evaluation is None else evaluation.unreachable,
        "seconds": {"evaluation": round(time.perf_counter() - started, 2)},
        "peak_memory_mb": peak_memory_mb(),
    }
