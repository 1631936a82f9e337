"""Time to quality of a training that starts from yesterday's run (``train --from``), against one from nothing.

    python benchmarks/warm_start.py [--seeds 0,1,2] [--models mf,lightgcn,mhcr] [--publish]

MovieLens (small) with titles and plots. *Tomorrow* is all of it, split by cold items; *today* is what of tomorrow's
training part was there at a moment in time (85 % of the ratings), with the users and films that had ratings by then. So
today knows nothing of tomorrow's validation and test pairs, and later users and films are new to it. Today's run is
trained as ``firstlight train`` does, validation and refit included; then tomorrow is trained twice.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import DATA, publish, table

from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.formats import read_dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.training.config import RunConfig, build_config
from firstlight.training.run import train
from firstlight.training.run_folder import load_run

#: Share of the ratings that are there today.
TODAY = 0.85
COMMON = ["training.threads=1", "training.batch=users", "training.batch_size=64", "training.eval_every=1"]
SOFTMAX: dict[str, Any] = {"loss": "softmax", "temperature": "fixed:0.15", "negatives": "all"}
MODELS: dict[str, dict[str, Any]] = {
    "mf": {
        "model": "mf",
        **SOFTMAX,
        "overrides": [*COMMON, "training.epochs=30", "training.lr=0.01", "training.metric=warm-recall@20"],
    },
    "lightgcn": {
        "model": "lightgcn",
        **SOFTMAX,
        "overrides": [*COMMON, "training.epochs=20", "training.lr=0.01", "training.metric=warm-recall@20"],
    },
    "mhcr": {"recipe": "mhcr", "overrides": [*COMMON, "training.epochs=10", "temperature.tau=0.15"]},
}
#: Share of the best of a training from nothing that counts as being there.
NEAR = 0.97


def films() -> Dataset:
    """The films without their posters: a day's content is read in seconds."""
    found = read_dataset(DATA / "movielens-small")
    items = found.catalogue.items
    return replace(found, catalogue=Catalogue(items.drop("cover", strict=False), found.catalogue.features))


def days(whole: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Today and tomorrow; see the module."""
    tomorrow = split_dataset(whole, SplitOptions(by="cold-items", seed=seed))
    times = tomorrow.train.times
    assert times is not None
    early = tomorrow.train.select(times < np.quantile(times, TODAY))
    users, items = np.flatnonzero(early.user_degrees), np.flatnonzero(early.item_degrees)
    places = []
    for rows, n in ((users, whole.n_users), (items, whole.n_items)):
        place = np.full(n, -1)
        place[rows] = np.arange(len(rows))
        places.append(place)
    at = places[0][early.users], places[1][early.items]
    log = Interactions.from_pairs(*at, len(users), len(items), early.times)
    known = tomorrow.catalogue
    content = Catalogue(
        known.items[items].drop("role"),
        {
            name: FeatureMatrix(matrix.values[items], matrix.present[items], matrix.extractor)
            for name, matrix in known.features.items()
        },
    )
    ids = whole.user_ids.gather(users), whole.item_ids.gather(items)
    today = Dataset("today", *ids, log, catalogue=content)
    return split_dataset(today, SplitOptions(by="cold-items", seed=seed, test_share=0.0)), tomorrow


def changed(config: RunConfig, **training: Any) -> RunConfig:
    """The config with other fields of its training."""
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def courses(name: str, seed: int, whole: Dataset, folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """What became of both trainings of tomorrow, and the sizes in words."""
    today, tomorrow = days(whole, seed)
    config = build_config(**MODELS[name], seed=seed)
    train(today, changed(config, patience=3), folder / "today")
    start = load_run(folder / "today")
    whole_way = changed(config, refit=False, patience=config.training.epochs)
    found = {}
    for label, given in (("nothing", None), ("today", start)):
        result = train(tomorrow, whole_way, folder / label.replace("today", "from"), start=given)
        history = load_run(folder / label.replace("today", "from")).metrics
        metric = config.training.metric
        found[label] = {
            "values": [record[metric] for record in history],
            "seconds": [record["seconds"] for record in history],
            "test": result["metrics"]["recall@20"],
        }
    said = (
        f"{today.n_users} of {tomorrow.n_users} users, {today.n_items:,} of {tomorrow.n_items:,} films, "
        f"{today.train.n_pairs + (today.valid.n_pairs if today.valid else 0):,} of {tomorrow.train.n_pairs:,} pairs"
    )
    return found, said


def reached(course: dict[str, Any], level: float) -> int | None:
    """First epoch with that value."""
    return next((epoch for epoch, value in enumerate(course["values"], 1) if value >= level), None)


def row(name: str, label: str, runs: list[dict[str, dict[str, Any]]]) -> list[object]:
    """Means over seeds."""

    def mean(values: list[float], digits: int = 4) -> str:
        return f"{statistics.mean(values):.{digits}f}"

    def until(share: float) -> str:
        """Of the seeds that get there."""
        marks = [reached(run[label], share * max(run["nothing"]["values"])) for run in runs]
        there = [mark for mark in marks if mark is not None]
        if not there:
            return "never"
        of = "" if len(there) == len(runs) else f" ({len(there)} of {len(runs)} seeds)"
        return f"{mean(list(map(float, there)), 1)}{of}"

    own = [run[label] for run in runs]
    epoch = min(course["seconds"][-1] / len(course["seconds"]) for run in runs for course in run.values())
    return [
        name,
        label,
        mean([course["values"][0] for course in own]),
        mean([max(course["values"]) for course in own]),
        mean([float(np.argmax(course["values"])) + 1 for course in own], 1),
        until(NEAR),
        until(1.0),
        f"{epoch:.2f}",
        mean([course["test"] for course in own]),
    ]


def main() -> None:
    """Train, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--note", default="", help="what the machine did beside, for the published note")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    whole, rows, said = films(), [], ""
    for name in options.models.split(","):
        runs = []
        for seed in map(int, options.seeds.split(",")):
            with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
                found, said = courses(name, seed, whole, Path(folder))
            runs.append(found)
            print(f"  {name}, seed {seed}: {found}", flush=True)
        rows += [row(name, label, runs) for label in ("nothing", "today")]
    title = "Tomorrow's training from nothing, and from today's run (train --from)"
    header = [
        "model", "start", "after one epoch", "best", "at epoch", f"epochs to {NEAR:.0%} of the best from nothing",
        "epochs to the best from nothing", "s an epoch", "test recall@20",
    ]  # fmt: skip
    note = (
        f"MovieLens (small) with texts; today knows {said}. Validation: warm-recall@20 for MF and LightGCN, "
        f"harmonic-recall@20 for MHCR, looked at after every epoch; means over splits and seeds {options.seeds}. An "
        f"epoch costs the same from either start: one thread, the fastest training of the model, without evaluation. "
        f"{options.note}"
    ).strip()
    if options.publish:
        publish("speed", "warm_start", title, header, rows, note)
    else:
        table(title, header, rows)
        print(f"  {note}")


if __name__ == "__main__":
    main()
