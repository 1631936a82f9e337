"""Encoders for covers: trained, refined, used and measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.api.paths import Place, changes, listener, optional
from firstlight.core.files import read_json
from firstlight.core.outputs import check_folder, output
from firstlight.core.shown import Shown
from firstlight.evaluation.encoder_config import ProbeConfig
from firstlight.evaluation.encoder_report import measures
from firstlight.evaluation.encoder_report import probe as measure
from firstlight.training.encoder_config import build_pretrain_config
from firstlight.training.pretrain import pretrain as pretrain_run
from firstlight.training.process import use_threads
from firstlight.training.refine import refine as refine_run
from firstlight.training.refine_config import build_refine_config
from firstlight.views.embed_files import Device, embed_files
from firstlight.vision.encoder_file import Encoder, Precision, Tokens, load_encoder
from firstlight.vision.images import open_images


class TrainedEncoder(Shown, os.PathLike[str]):
    """An encoder that was trained here. Whatever takes an encoder takes this, its path, or a foreign checkpoint.

    Args:
        path: The folder that :func:`firstlight.pretrain` or :func:`firstlight.refine` filled.

    Attributes:
        path: The same.
        result: What training found: what the command prints with ``--json``.
    """

    def __init__(self, path: Place) -> None:
        self.path = Path(path)
        self.result: dict[str, Any] = read_json(self.path / "result.json")

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder itself, on the CPU."""
        return load_encoder(self.path)

    @property
    def history(self) -> pl.DataFrame:
        """One row an epoch of each phase, with all that was logged."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return pl.DataFrame([json.loads(line) for line in lines], infer_schema_length=None)

    @property
    def heading(self) -> str:
        """Where it is, and what it was made from."""
        images = self.result["images"]
        unusable = f", {len(images['unusable']):,} of them unusable" if images["unusable"] else ""
        return f"encoder {self.path}: {self.result['command']} on {images['count']:,} images{unusable}"

    @property
    def table(self) -> pl.DataFrame:
        """``phase``, ``epoch`` and ``loss``."""
        return self.history.select("phase", "epoch", "loss")


class Probed(Shown):
    """What encoders see.

    Args:
        result: What ``firstlight probe --json`` prints.

    Attributes:
        result: The same.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result

    @property
    def heading(self) -> str:
        """What it was measured on."""
        about = self.result["images"]
        return (
            f"{about['queries']['images']:,} queries ({about['queries']['part']}) against a bank of "
            f"{about['bank']['images']:,} ({about['bank']['part']}), {len(about['classes'])} classes, "
            f"chance {self.result['chance']:.1%}"
        )

    @property
    def table(self) -> pl.DataFrame:
        """One row a measure; see :func:`firstlight.evaluation.encoder_report.measures`."""
        return measures(self.result)


def pretrain(
    images: Place,
    *,
    out: Place,
    objective: str | None = None,
    encoder: Place | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    split: str | None = None,
    recipe: Place | None = None,
    set: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainedEncoder:
    """Train an encoder from images alone, without labels.

    Args:
        images: A folder of image files, a Parquet file with image bytes, or a data folder whose items have covers.
        out: Folder of the encoder.
        objective: What is predicted: pixels (``mae``), or features (``i-jepa``).
        encoder: Go on from this encoder, with a new optimiser and schedule.
        image_column: Column of a Parquet file that holds the images.
        id_column: Column of a Parquet file that names them.
        split: Use only rows (or the sub-folder) of this part.
        recipe: Name of a shipped recipe, or a YAML file; all else goes over it.
        set: Any fields of :class:`~firstlight.training.encoder_config.PretrainConfig`.
        epochs: Epochs.
        seed: Seed of every random stream.
        threads: CPU threads.
        resume: Go on where an interrupted run stopped.
        progress: Say on stderr how far it is.

    Raises:
        InputError: A name or value is not valid, the images cannot be trained on, or ``out`` holds something else.
        DivergenceError: The numbers blew up; the last checkpoint is kept.
    """
    found = open_images(Path(images), image_column=image_column, id_column=id_column, split=split)
    start = optional(encoder)
    config = build_pretrain_config(
        found,
        recipe=None if recipe is None else os.fspath(recipe),
        objective=objective,
        overrides=changes(set, training__epochs=epochs, training__seed=seed, training__threads=threads),
        start=None if start is None else load_encoder(start).vit.config,
    )
    check_folder(out)
    with listener(progress) as emit:
        pretrain_run(found, config, Path(out), start=start, resume=resume, emit=emit)
    return TrainedEncoder(out)


def refine(
    images: Place,
    *,
    encoder: Place,
    out: Place,
    image_column: str | None = None,
    id_column: str | None = None,
    split: str | None = None,
    recipe: Place | None = None,
    temperature: float | str | None = None,
    set: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    head_epochs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainedEncoder:
    """Refine a masked-image encoder (MIM-Refiner), without labels: first heads alone, then heads and encoder.

    Args:
        images: As for :func:`pretrain`.
        encoder: The encoder to refine: one of :func:`pretrain`, or a foreign checkpoint.
        out: Folder of the refined encoder.
        image_column: Column of a Parquet file that holds the images.
        id_column: Column of a Parquet file that names them.
        split: Use only rows (or the sub-folder) of this part.
        recipe: Name of a shipped recipe, or a YAML file; all else goes over it.
        temperature: τ; ``auto`` tries five in the head stage.
        set: Any fields of :class:`~firstlight.training.refine_config.RefineConfig`.
        epochs: Epochs.
        head_epochs: Epochs of the head stage.
        seed: Seed of every random stream.
        threads: CPU threads.
        resume: Go on where an interrupted run stopped.
        progress: Say on stderr how far it is.

    Raises:
        InputError: A name or value is not valid, the images cannot be trained on, or ``out`` holds something else.
        DivergenceError: The numbers blew up; the last checkpoint is kept.
    """
    found = open_images(Path(images), image_column=image_column, id_column=id_column, split=split)
    config = build_refine_config(
        recipe=None if recipe is None else os.fspath(recipe),
        overrides=changes(
            set,
            training__epochs=epochs,
            training__seed=seed,
            training__threads=threads,
            heads__epochs=head_epochs,
            refiner__temperature=temperature,
        ),
    )
    check_folder(out)
    with listener(progress) as emit:
        refine_run(found, Path(encoder), config, Path(out), resume=resume, emit=emit)
    return TrainedEncoder(out)


def embed(
    images: Place,
    *,
    encoder: Place,
    out: Place,
    tokens: Tokens | None = None,
    image_size: tuple[int, int] | None = None,
    name: str = "encoder",
    image_column: str | None = None,
    id_column: str | None = None,
    split: str | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Run images through an encoder and keep a row of features for each; an interrupted call goes on.

    Args:
        images: As for :func:`pretrain`.
        encoder: An encoder, or a checkpoint of another project.
        out: A dataset folder, which gets the feature, or a new one with the images as items.
        tokens: What stands for an image: ``class``, ``mean`` or ``patches``; None: as the encoder says.
        image_size: Height and width of the images; the encoder's if None.
        name: Name of the feature.
        image_column: Column of a Parquet file that holds the images.
        id_column: Column of a Parquet file that names them.
        split: Use only rows (or the sub-folder) of this part.
        precision: ``float32`` or ``bfloat16``; None: float32 on a CPU, bfloat16 on a GPU.
        threads: Images at a time on a CPU.
        device: Where the encoder runs; ``auto``: a GPU if there is one.

    Returns:
        What ``firstlight embed --json`` prints: what was written, and what could not be used.

    Raises:
        InputError: Something cannot be read, or ``out`` cannot take the feature.
    """
    from firstlight.cli.embed import EmbedProgress

    check_folder(out)
    return embed_files(
        Path(images),
        Path(encoder),
        Path(out),
        name=name,
        tokens=tokens,
        image_size=image_size,
        image_column=image_column,
        id_column=id_column,
        split=split,
        precision=precision,
        threads=threads,
        device=device,
        emit=EmbedProgress(),
    )


def probe(
    encoders: Place | Sequence[Place],
    images: Place,
    *,
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    k: Iterable[int] | None = None,
    tasks: Sequence[str] = ("knn", "linear", "low-shot", "clusters"),
    finetune: bool = False,
    random_control: bool = False,
    long_tailed: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
    set: Mapping[str, Any] | None = None,
    out: Place | None = None,
    progress: bool = True,
) -> Probed:
    """Measure what encoders see: k-NN at every block, linear probes, few labels, clusters.

    Args:
        encoders: One or several; the others are compared with the first, query by query.
        images: Images with classes: a folder or a Parquet file.
        split: ``BANK/QUERIES``, names of two parts of the images; their own by default, or else a fifth becomes
            queries.
        image_column: Column with the images.
        id_column: Column with their names.
        label_column: Column with their classes.
        k: Numbers of neighbours.
        tasks: What to measure.
        finetune: Also train copies of the encoders with the labels.
        random_control: Also measure an encoder that has learned nothing.
        long_tailed: Thin out the bank: its largest class over its smallest.
        seed: Seed of every draw.
        threads: CPU threads.
        set: Any fields of :class:`~firstlight.evaluation.encoder_config.ProbeConfig`: ``{"linear.epochs": 10}``.
        out: Folder to write ``probe.json`` and the picture ``depth.png`` to.
        progress: Say on stderr how far it is.

    Raises:
        InputError: An encoder or the images cannot be read, or a setting is not one.
    """
    from firstlight.cli.options import nested, validated

    several = [encoders] if isinstance(encoders, str | os.PathLike) else list(encoders)
    short = {"seed": seed, "long_tailed": long_tailed, "knn.k": None if k is None else tuple(sorted({*k}))}
    given = {**(set or {}), **{key: value for key, value in short.items() if value is not None}}
    config = validated(ProbeConfig, nested(given), "set")
    with use_threads(threads), listener(progress) as emit:
        result = measure(
            [Path(encoder) for encoder in several],
            Path(images),
            config,
            tasks=[*tasks, *(["finetune"] if finetune else [])],
            split=split,
            image_column=image_column,
            id_column=id_column,
            label_column=label_column,
            control=random_control,
            emit=emit,
        )
    if out is not None:
        from firstlight.reports.encoder import write_probe

        with output(out):
            write_probe(Path(out), result)
    return Probed(result)
