"""What a step will have to do and how long that takes, before it is run.

Rough on purpose: rates of two cores of a recent server, from which another machine is a factor away. What a step took
when it was last run here is a better answer, and goes before these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.pipeline.config import PipelineConfig
from firstlight.pipeline.plan import Step
from firstlight.pipeline.run import last_seconds, states

#: Products of an MAE step on one image of 64 tokens at width 192 and depth 12, of which two cores make 240 a second.
_IMAGES_A_SECOND, _REFERENCE = 240.0, 12 * 192**2 * 64
#: Work of an image in a refinement step (two whole crops, and local ones), and in one look at it; MAE's step is one.
_REFINING, _LOOKING = 10.0, 1.2
#: Multiply-adds a second of two cores in a recommender's training step and in ranking.
_TRAINING, _RANKING = 8e9, 2e10


@dataclass(frozen=True)
class Sizes:
    """What a pipeline works on.

    Attributes:
        users: Users.
        items: Items.
        pairs: Pairs of all parts.
        images: Items with a cover.
    """

    users: int
    items: int
    pairs: int
    images: int


@dataclass(frozen=True)
class Estimate:
    """One step before it is run.

    Attributes:
        size: What it works on, in words.
        seconds: How long that may take.
        measured: Whether the seconds are those of the last time, here.
    """

    size: str
    seconds: float
    measured: bool


def sizes_of(config: PipelineConfig, steps: Sequence[Step], out: Path) -> Sizes:
    """Sizes from what the data's step left, if that is up to date, else from the world's settings or the data.

    Raises:
        InputError: The data cannot be read.
    """
    facts = steps[0].facts
    if facts is not None:
        return Sizes(int(facts["users"]), int(facts["items"]), int(facts["pairs"]), int(facts["images"]))
    path = config.data.path
    assert path is not None
    # What was read the last time says nothing of data that have changed since.
    made = states(steps[:1], out)[steps[0].name] == "done"
    options = ReadOptions(**config.data.read.model_dump(exclude_none=True))
    dataset = read_dataset(steps[0].output if made else path, options)
    items = dataset.catalogue.items
    images = len(items) - items["cover"].null_count() if "cover" in items.columns else 0
    pairs = sum(part.n_pairs for part in dataset.parts.values())
    return Sizes(dataset.n_users, dataset.n_items, pairs, images)


def expected_seconds(config: PipelineConfig, steps: Sequence[Step], out: Path) -> dict[str, float]:
    """Seconds that steps may take, as far as that can be told without reading the data."""
    if steps[0].facts is None:
        known = {step.name: last_seconds(step, out) for step in steps}
        return {name: seconds for name, seconds in known.items() if seconds is not None}
    sizes = sizes_of(config, steps, out)
    return {step.name: estimate(step, steps, sizes, out).seconds for step in steps}


def estimate(step: Step, steps: Sequence[Step], sizes: Sizes, out: Path) -> Estimate:
    """Size and time of one step.

    Args:
        step: The step.
        steps: All steps of the pipeline.
        sizes: From :func:`sizes_of`.
        out: The pipeline's folder.
    """
    command = step.name.partition(":")[0]
    said = f"{sizes.users:,} users, {sizes.items:,} items, {sizes.pairs:,} pairs"
    if command in ("data", "split", "cut"):
        found = Estimate(said, 1 + 2e-6 * sizes.pairs + 1e-3 * sizes.images, False)
    elif command in ("pretrain", "refine", "embed"):
        found = _vision(command, step, steps, sizes)
    elif command == "train":
        found = _training(step, sizes)
    elif command in ("evaluate", "arrivals", "recommend"):
        dim = (step.facts or {}).get("dim") or 64
        times, what = {
            "evaluate": (5, ", five protocols"),
            "arrivals": (15, ", four rankings"),
            "recommend": (1, ""),
        }[command]
        found = Estimate(
            f"{sizes.users:,} × {sizes.items:,} scores{what}",
            1 + times * sizes.users * sizes.items * max(dim, 64) / _RANKING, False,
        )  # fmt: skip
    elif command == "export":
        found = Estimate(
            f"{sizes.users:,} + {sizes.items:,} vectors", 1 + 5e-6 * (sizes.users + sizes.items), False
        )
    else:
        runs = sum(other.kind == "run" for other in steps)
        found = Estimate(f"{runs} runs", 8.0 + 2.0 * runs, False)
    took = last_seconds(step, out)
    return found if took is None else replace(found, seconds=took, measured=True)


def _vision(command: str, step: Step, steps: Sequence[Step], sizes: Sizes) -> Estimate:
    shape: Mapping[str, float] = next(
        (other.facts for other in steps if other.name == "pretrain" and other.facts), {}
    )
    work = shape.get("depth", 12) * shape.get("dim", 192) ** 2 * shape.get("tokens", 64) / _REFERENCE
    if command == "embed":
        return Estimate(
            f"{sizes.images:,} covers", 2 + sizes.images * work * _LOOKING / _IMAGES_A_SECOND, False
        )
    epochs = (step.facts or {}).get("epochs") or 1
    factor = _REFINING if command == "refine" else 1.0
    seconds = 2 + epochs * sizes.images * work * factor / _IMAGES_A_SECOND
    return Estimate(f"{sizes.images:,} covers × {epochs} epochs", seconds, False)


def _training(step: Step, sizes: Sizes) -> Estimate:
    facts = step.facts or {}
    if not facts["trainable"]:
        return Estimate(f"{sizes.pairs:,} pairs", 2 + 1e-6 * sizes.pairs, False)
    dim, rows = facts["dim"], sizes.users if facts["batch"] == "users" else sizes.pairs
    against = sizes.items if facts["negatives"] == "all" else 1024
    work = 6 * rows * min(against, sizes.items) * dim + 400 * sizes.pairs * dim
    times = facts["epochs"] * (1.8 if facts["refit"] else 1.0)
    factor = 3.0 if facts["model"] not in ("mf", "lightgcn", "layergcn") else 1.0
    return Estimate(
        f"{sizes.pairs:,} pairs × up to {facts['epochs']} epochs",
        3 + times * factor * work / _TRAINING,
        False,
    )
