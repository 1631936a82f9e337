"""Reads run folders and hands their numbers to :mod:`firstlight.reports.pictures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.reports.pictures import CoverRow, Curve, Temperatures, save_cover_sheet, save_overview
from firstlight.training.checkpoint import load_tensors
from firstlight.training.recommend import recommend
from firstlight.training.run_folder import Run


def picture_runs(path: Path, runs: Mapping[str, Run], *, metric: str = "recall@20") -> None:
    """Draw training curves, popularity groups and temperatures of runs on the same data.

    Args:
        path: The PNG to write.
        runs: Label -> run.
        metric: The metric of the first two plots, ``recall@K`` with a K that the runs report.

    Raises:
        InputError: A run did not measure ``metric``.
        MissingExtraError: matplotlib is not installed.
    """
    curves = [
        curve for label, run in runs.items() if (curve := training_curve(label, run, metric)) is not None
    ]
    groups = {label: group_recall(run, metric) for label, run in runs.items()}
    taus = [found for label, run in runs.items() if (found := user_temperatures(label, run)) is not None]
    save_overview(path, curves, groups, taus, metric=metric)


def training_curve(label: str, run: Run, metric: str) -> Curve | None:
    """The metric on the validation part over the epochs of the search, or None where there was none."""
    points = [
        (record["epoch"], record[metric])
        for record in run.metrics
        if record["phase"] == "search" and metric in record
    ]
    if not points:
        return None
    epochs, values = zip(*points, strict=True)
    return Curve(label, epochs, values)


def group_recall(run: Run, metric: str) -> list[float]:
    """Recall of the test clicks on each popularity group, least popular first; 0 where there are none."""
    table = run.result["groups"].get("popularity", [])
    if not table or metric not in table[0]:
        raise InputError(f"this run has no {metric} by popularity", path=run.path)
    return [float(row[metric] or 0.0) for row in table]


def user_temperatures(label: str, run: Run) -> Temperatures | None:
    """τ of each user at the end of training, or None where users share one."""
    state = run.path / "checkpoint" / "state.safetensors"
    if run.config.temperature.name != "adaptive-user" or not state.exists():
        return None
    inverse = load_tensors(state)["temperature.w_user"].numpy()
    active = run.seen.user_degrees > 0
    return Temperatures(label, 1 / inverse[active].astype(np.float64))


def picture_covers(
    path: Path,
    run: Run,
    dataset: Dataset,
    users: Sequence[int] = (0, 1, 2, 3),
    *,
    watched: int = 5,
    shown: int = 8,
) -> None:
    """Draw what users watched last beside what they are recommended.

    Args:
        path: The PNG to write.
        run: A run on ``dataset``.
        dataset: It must carry covers as bytes.
        users: User rows; those with fewer than ``watched`` training pairs are passed over.
        watched: Covers on the left.
        shown: Covers on the right.

    Raises:
        InputError: The dataset has no covers inside, or none of the users has enough pairs.
        MissingExtraError: matplotlib is not installed.
    """
    items = dataset.catalogue.items
    if items.schema.get("cover") != pl.Binary:
        raise InputError(f"dataset {dataset.name!r} holds no covers", path=dataset.source or None)
    chosen = [user for user in users if len(dataset.train.row(user)) >= watched]
    if not chosen:
        raise InputError("none of these users has enough training pairs for a picture")
    lists = pl.concat(list(recommend(run, [str(run.user_ids[user]) for user in chosen], shown)))
    row_of = {name: row for row, name in enumerate(run.item_ids)}
    rows = []
    for user in chosen:
        name = str(run.user_ids[user])
        best = [row_of[item] for item in lists.filter(pl.col("user") == name)["item"]]
        held_out = set() if dataset.test is None else set(dataset.test.row(user).tolist())
        covers = items["cover"]
        rows.append(
            CoverRow(
                label=name,
                watched=[covers[row] for row in _last_watched(dataset, user, watched)],
                recommended=[covers[row] for row in best],
                hits=[row in held_out for row in best],
            )
        )
    save_cover_sheet(path, rows)


def _last_watched(dataset: Dataset, user: int, count: int) -> list[int]:
    """The user's last training items by time, or the first ones by row where there are no times."""
    log = dataset.train
    own = slice(int(log.indptr[user]), int(log.indptr[user + 1]))
    items = log.items[own]
    order = np.arange(len(items)) if log.times is None else np.argsort(-log.times[own], kind="stable")
    return [int(item) for item in items[order[:count]]]
