"""Labelled images in two parts: a bank whose labels may be used, and queries that are classified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.evaluation.encoder_subsets import held_out, long_tailed
from firstlight.vision.image_set import ImageSet
from firstlight.vision.images import open_images

IntArray = npt.NDArray[np.int64]

#: Names of the two parts, as data sets have them.
BANK_NAMES = ("train", "training")
QUERY_NAMES = ("valid", "val", "validation", "test")


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of an image set, with classes.

    Attributes:
        name: What the source calls it.
        images: The image set.
        rows: ``(n,)`` its rows that belong to the part.
        labels: ``(n,)`` class of each.
    """

    name: str
    images: ImageSet
    rows: IntArray
    labels: IntArray

    def take(self, chosen: IntArray) -> Part:
        """The part with only some of its rows, given by position."""
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """What encoders are measured on.

    Attributes:
        bank: Labels may be used.
        queries: Labels only judge.
        classes: Name of each class.
    """

    bank: Part
    queries: Part
    classes: list[str]


def open_labelled(
    path: Path,
    split: str | None = None,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    holdout: float = 0.2,
    ratio: float | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Open images with classes as bank and queries.

    Args:
        path: Any source of images with classes.
        split: ``BANK/QUERIES``: names of two parts of the source; if None, its own (``train`` and ``valid``,
            ``val``, ``validation`` or ``test``), or else a share of every class becomes queries.
        image_column: Column with the images, of a Parquet file.
        id_column: Column with their names.
        label_column: Column with their classes.
        holdout: The share that becomes queries.
        ratio: Thin the bank out to a long tail: largest class over smallest.
        seed: Of both draws.

    Raises:
        InputError: There are no classes, fewer than two, or no such parts.
    """
    columns = {"image_column": image_column, "id_column": id_column, "label_column": label_column}
    names = _parts(path) if split is None else _two_names(split)
    if names is None:
        whole = _part(path, "all", open_images(path, **columns))
        queries, bank = held_out(whole.labels, holdout, seed)
        classes = whole.images.classes or []
        parts = replace(whole.take(bank), name="kept"), replace(whole.take(queries), name="held out")
    else:
        bank_part, query_part = (
            _part(path, name, open_images(path, split=name, **columns)) for name in names
        )
        classes, parts = _same_classes(bank_part, query_part)
    if len(classes) < 2:
        raise InputError(f"{len(classes)} class is too few to tell classes apart", path=path)
    bank_part, query_part = parts
    if ratio is not None:
        bank_part = bank_part.take(long_tailed(bank_part.labels, ratio, seed))
    return LabelledImages(bank_part, query_part, classes)


def _part(path: Path, name: str, images: ImageSet) -> Part:
    if images.labels is None or images.classes is None:
        raise InputError(
            "these images have no classes, and measuring needs them",
            path=path,
            hint="one sub-folder a class, or a Parquet column named with --label-column",
        )
    return Part(name, images, np.arange(len(images)), images.labels)


def _two_names(split: str) -> tuple[str, str]:
    bank, _, queries = split.partition("/")
    if not bank or not queries:
        raise InputError(f"--split {split!r} does not name two parts", hint="for example train/valid")
    return bank, queries


def _parts(path: Path) -> tuple[str, str] | None:
    """The parts that a source has under usual names; None if it has no such pair."""
    there = _part_names(path)
    bank = next((name for name in BANK_NAMES if name in there), None)
    queries = next((name for name in QUERY_NAMES if name in there), None)
    return None if bank is None or queries is None else (bank, queries)


def _part_names(path: Path) -> set[str]:
    tables = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not tables or (path / "dataset.json").exists():
        return {entry.name for entry in path.iterdir() if entry.is_dir()} if path.is_dir() else set()
    try:
        if any("split" not in pl.read_parquet_schema(table) for table in tables):
            return set()
        return set(pl.read_parquet(tables, columns=["split"])["split"].cast(pl.String).drop_nulls())
    except (pl.exceptions.PolarsError, OSError):
        return set()  # opening the images says what is wrong


def _same_classes(bank: Part, queries: Part) -> tuple[list[str], tuple[Part, Part]]:
    """Number the classes of both parts alike, by name."""
    classes = sorted(set(bank.images.classes or []) | set(queries.images.classes or []))
    number = {name: index for index, name in enumerate(classes)}
    renumbered = []
    for part in (bank, queries):
        table = np.array([number[name] for name in part.images.classes or []], np.int64)
        renumbered.append(replace(part, labels=table[part.labels]))
    return classes, (renumbered[0], renumbered[1])
