"""Encoders from their files, measured on images from theirs: the whole of ``firstlight probe``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.core.choices import one_of
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.evaluation.encoder_config import ProbeConfig
from firstlight.evaluation.encoder_data import open_labelled
from firstlight.evaluation.encoder_probe import RANDOM, TASKS, probe_encoders, random_control
from firstlight.evaluation.encoder_summary import summarise
from firstlight.vision.encoder_file import Encoder, foreign_notes, load_encoder


def probe(
    encoders: Sequence[Path],
    images: Path,
    config: ProbeConfig,
    *,
    tasks: Sequence[str] = TASKS[:-1],
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    control: bool = False,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Measure what encoders see.

    Args:
        encoders: Folders or checkpoint files; the others are compared with the first.
        images: Images with classes.
        config: The protocols.
        tasks: What to measure, of :data:`~firstlight.evaluation.encoder_probe.TASKS`; all but fine-tuning if not given.
        split: ``BANK/QUERIES``, as :func:`firstlight.evaluation.encoder_data.open_labelled` takes it.
        image_column: Column with the images.
        id_column: Column with their names.
        label_column: Column with their classes.
        control: Also measure an encoder that has learned nothing.
        emit: Receives the events.

    Returns:
        What :func:`firstlight.evaluation.encoder_summary.summarise` gives, and ``tasks``, ``config``,
        ``encoder_files``.

    Raises:
        InputError: An encoder or the images cannot be read, a task is unknown, or none is named.
    """
    for task in tasks:
        one_of(task, TASKS, "task")
    if not tasks:
        raise InputError("there is nothing to measure", hint=f"tasks: {', '.join(TASKS)}")
    loaded = load_encoders(encoders, config.seed if control else None)
    for label, encoder in loaded.items():
        for note in foreign_notes(encoder):
            emit("message", text=f"{label}: {note}")
    labelled = open_labelled(
        images,
        split,
        image_column=image_column,
        id_column=id_column,
        label_column=label_column,
        holdout=config.holdout,
        ratio=config.long_tailed,
        seed=config.seed,
    )
    found = summarise(probe_encoders(loaded, labelled, config, list(tasks), emit), labelled)
    about = {"tasks": list(tasks), "config": config.model_dump(mode="json")}
    return {**found, **about, "encoder_files": [str(path) for path in encoders]}


def load_encoders(paths: Sequence[Path], random_seed: int | None = None) -> dict[str, Encoder]:
    """Encoders by the name of their folder, or by their path where two have the same name.

    Args:
        paths: Folders or checkpoint files.
        random_seed: Adds an encoder of the first one's shape that has learned nothing.

    Raises:
        InputError: One cannot be read, or is given twice.
    """
    short = [path.stem if path.is_file() else path.resolve().name for path in paths]
    labels = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(labels)) < len(labels):
        raise InputError("the same encoder is given twice", path=paths[0])
    found = {label: load_encoder(path) for label, path in zip(labels, paths, strict=True)}
    if random_seed is not None:
        found[RANDOM] = random_control(next(iter(found.values())), random_seed)
    return found


_SCHEMA = {
    "encoder": pl.String,
    "measure": pl.String,
    "block": pl.Int64,
    "after_final_norm": pl.Boolean,
    "pooling": pl.String,
    "value": pl.Float64,
    "error": pl.Float64,
}


def measures(found: dict[str, Any]) -> pl.DataFrame:
    """All that was measured as one table.

    Args:
        found: From :func:`probe`, or read back from ``probe.json``.

    Returns:
        ``encoder``, ``measure`` (such as ``3-NN``, ``linear probe``, ``1-shot``, ``clusters: nmi``), ``block``,
        ``after_final_norm`` and ``pooling`` of the features (null where a measure has no single ones), ``value``, and
        ``error``: the standard error, or for few labels the deviation over draws.
    """
    rows = [row for encoder in found["encoders"] for row in _measures(encoder)]
    return pl.DataFrame(rows, schema=_SCHEMA)


def _measures(encoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    def row(measure: str, value: float, error: float | None, place: dict[str, Any]) -> dict[str, Any]:
        where = {name: place.get(name) for name in ("block", "after_final_norm", "pooling")}
        return {"encoder": encoder["name"], "measure": measure, **where, "value": value, "error": error}

    for entry in encoder.get("knn", []):
        yield row(f"{entry['k']}-NN", entry["accuracy"], entry["standard_error"], entry)
    if "linear" in encoder:
        yield row("linear probe", encoder["linear"]["accuracy"], encoder["linear"]["standard_error"], {})
    for entry in encoder.get("low_shot", []):
        yield row(entry["labels"], entry["accuracy"], entry["deviation"], entry)
    for entry in encoder.get("clusters", []):
        for name in ("accuracy", "nmi", "ami", "ari", "silhouette", "davies_bouldin"):
            yield row(f"clusters: {name}", entry[name], None, entry)
    if "finetuned" in encoder:
        yield row("fine-tuned", encoder["finetuned"]["accuracy"], encoder["finetuned"]["standard_error"], {})
