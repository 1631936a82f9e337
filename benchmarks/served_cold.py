"""Served = offline: cold items come in through the server's door, and its lists are those of the evaluation.

    python benchmarks/served_cold.py [--model mhcr] [--seed 0] [--threads 1] [--publish]

The run is the one behind ``cold_start.py``'s table of MovieLens (small): same split, same settings. Its bundle is made
without the items that test looks for, ``firstlight serve`` serves it in a process of its own, and every one of those
items is uploaded, one after the other: cover, title and the other texts. Then the server is asked for a list for
every user, and Recall@20 of the held-out clicks is taken from these lists:

* in the catalogue of the table (all items but those that the split keeps for validation), beside ``cold_start.py``;
* after a kill -9 and a restart, without another upload;
* in the catalogue of ``firstlight evaluate --protocol cold`` (some items fewer: they are deleted), beside that.

Upload times count from the first byte sent until the answer is here, and until a list that was asked for afterwards
holds the item. The run folder goes to ``runs/served/`` and is used again; ``--publish`` writes both tables to
``results/served/``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cold_start
import httpx
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from machine import ROOT, publish, table
from serve_load import TOKEN, Server, percentile

from firstlight.core.files import read_json
from firstlight.data.dataset import Dataset
from firstlight.evaluation.cold import cold_protocols
from firstlight.evaluation.ranking import evaluate_lists
from firstlight.serving.base import text_columns
from firstlight.serving.bundle import Bundle
from firstlight.serving.export import export_run
from firstlight.training import run as training
from firstlight.training.assess import assess_cold
from firstlight.training.config import build_config
from firstlight.training.run_folder import Run, load_run

RUNS = ROOT / "runs" / "served"
K = 20
#: Users whose lists are asked for together.
BATCH = 64
#: How far a recall may be off, and a second to be in the rankings.
SAME, SECONDS = 1e-6, 1.0
WRITER = {"Authorization": f"Bearer {TOKEN}"}
#: Targets, all among everything that is in the catalogue.
TARGETS = ("cold", "warm", "all")

BoolArray = npt.NDArray[np.bool_]


@dataclass
class Lists:
    """What is ranked first for every user: ``(n_users, K)`` rows of the run's items, and scores."""

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


@dataclass
class Comparison:
    """One catalogue: Recall@K of each kind of target by name, offline and served, and how far lists are apart."""

    what: str
    offline: dict[str, float]
    served: dict[str, float]
    moved: int
    apart: float

    @property
    def same(self) -> bool:
        """Whether all recalls agree."""
        return all(abs(self.served[name] - value) <= SAME for name, value in self.offline.items())

    def row(self) -> list[object]:
        """For the table."""
        recalls = [f"{side[name]:.6f}" for name in TARGETS for side in (self.offline, self.served)]
        return [self.what, *recalls, self.moved, f"{self.apart:.1e}"]


@dataclass
class Uploads:
    """Seconds of each upload."""

    answered: list[float] = field(default_factory=list)
    listed: list[float] = field(default_factory=list)


def train(model: str, data: str, seed: int, threads: int, out: Path) -> tuple[Run, Dataset]:
    """The run that the table's job chose, with the test part in it; an interrupted one is gone on with."""
    dataset, _ = cold_start.load_data(data, "cold-items", seed)
    chosen = cold_start.chosen_settings(data, model, seed) or cold_start.candidates(model, data)[0]
    common = [*cold_start.COMMON, "training.metric=harmonic-recall@20", f"training.threads={threads}"]
    config = build_config(model=model, overrides=[*common, *chosen], seed=seed)
    if not (out / "result.json").exists():
        training.train(dataset, config, out, resume=out.exists())
    return load_run(out), dataset


def export_without(run: Run, dataset: Dataset, absent: BoolArray, out: Path) -> Bundle:
    """The run's bundle, of whose catalogue and files the ``absent`` items are no part."""
    ids = dataset.item_ids.cast(pl.String)
    items = pl.DataFrame([ids.alias("item"), *dataset.catalogue.items.get_columns()])
    bundle = export_run(run, out, items, Path(dataset.source) if dataset.source else None)
    bundle.remove_items(ids.filter(pl.Series(absent)).to_list())
    bundle.compact(prune=True)
    return bundle


def upload(client: httpx.Client, dataset: Dataset, rows: Sequence[int]) -> Uploads:
    """Send items to the server, one after the other.

    Raises:
        SystemExit: One is refused, or not listed afterwards.
    """
    took = Uploads()
    catalogue = dataset.catalogue
    texts = text_columns(catalogue.items)
    covers = catalogue.items["cover"] if "cover" in catalogue.items.columns else None
    for row in rows:
        item = str(dataset.item_ids[row])
        data = {name: text for name, text in texts.row(row, named=True).items() if text}
        features = {
            name: matrix.values[row].tolist()
            for name, matrix in catalogue.features.items()
            if matrix.present[row]
        }
        if features:
            data["features"] = json.dumps(features)
        cover = None if covers is None else covers[row]
        if isinstance(cover, str):
            cover = (Path(dataset.source) / cover).read_bytes()
        started = time.perf_counter()
        answer = client.post(
            "/v1/items", data={"id": item, **data}, files={"cover": cover} if cover else None, headers=WRITER
        )
        took.answered.append(time.perf_counter() - started)
        if answer.status_code != 201:
            raise SystemExit(f"{item}: {answer.status_code} {answer.text}")
        user = answer.json()["audience"][0]["user"]
        found = client.post("/v1/recommend", json={"user": user, "candidates": [item]}).json()["items"]
        took.listed.append(time.perf_counter() - started)
        if [entry["id"] for entry in found] != [item]:
            raise SystemExit(f"{item} was uploaded and is in no list")
    return took


def served_lists(client: httpx.Client, dataset: Dataset) -> Lists:
    """Ask for a list for every user."""
    place = {str(item): row for row, item in enumerate(dataset.item_ids)}
    users = [str(user) for user in dataset.user_ids]
    ids = np.full((len(users), K), -1, np.int64)
    scores = np.full((len(users), K), -np.inf)
    for start in range(0, len(users), BATCH):
        asked = [{"user": user, "k": K} for user in users[start : start + BATCH]]
        answers = client.post("/v1/recommend/batch", json={"requests": asked}).json()["answers"]
        for at, answer in enumerate(answers, start):
            found = answer["items"]
            ids[at, : len(found)] = [place[entry["id"]] for entry in found]
            scores[at, : len(found)] = [entry["score"] for entry in found]
    return Lists(ids, scores)


def offline_lists(run: Run, seen: Any, pool: BoolArray) -> Lists:
    """The same from the run's own vectors: a plain sort."""
    vectors = run.scorer.vectors()
    assert vectors is not None
    scores = (vectors[0] @ vectors[1].T).numpy().astype(np.float64)
    scores[:, ~pool] = -np.inf
    for log in seen:
        scores[log.users, log.items] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    best = np.take_along_axis(scores, ids, axis=1)
    return Lists(np.where(np.isfinite(best), ids, -1), best)


def compare(
    what: str, offline: Mapping[str, float], lists: Lists, run: Run, dataset: Dataset, pool: BoolArray
) -> Comparison:
    """Recall of served lists beside what an evaluation said."""
    assert dataset.test is not None
    cold = run.seen.item_degrees == 0
    kinds = {"cold": cold, "warm": ~cold, "all": np.ones(len(cold), np.bool_)}
    served = {}
    for name, kind in kinds.items():
        wanted = dataset.test.select(kind[dataset.test.items])
        users = np.flatnonzero(wanted.user_degrees)
        served[name] = evaluate_lists(lists.ids[users], users, wanted, (K,)).metrics[f"recall@{K}"]
    mine = offline_lists(run, known(run), pool)
    there = (lists.ids >= 0) & (mine.ids >= 0)
    apart = float(np.abs(lists.scores[there] - mine.scores[there]).max())
    return Comparison(what, dict(offline), served, int((lists.ids != mine.ids).sum()), apart)


def known(run: Run) -> list[Any]:
    """What is not ranked again."""
    valid = run.parts.get("valid")
    return [run.seen] if valid is None else [run.seen, valid]


def evaluated(run: Run) -> dict[str, float]:
    """``firstlight evaluate RUN --protocol cold``."""
    found = assess_cold(run, ks=(K,)).report.protocols
    return {name: found[f"{name}/all"].metrics[f"recall@{K}"] for name in TARGETS}


def evaluated_pool(run: Run) -> BoolArray:
    """What that ranks: everything but items whose only clicks are in validation."""
    valid, test = run.parts["valid"].item_degrees, run.parts["test"].item_degrees
    pool: BoolArray = ~((run.seen.item_degrees == 0) & (valid > 0) & (test == 0))
    return pool


def tabled(run: Run, dataset: Dataset, pool: BoolArray) -> dict[str, float]:
    """The numbers of ``cold_start.py`` for this run: scores as the run has them."""
    assert dataset.test is not None
    cold = run.seen.item_degrees == 0
    found = cold_protocols(run.scorer, dataset.test, known(run), cold, (K,), pool=pool).protocols
    return {name: found[f"{name}/all"].metrics[f"recall@{K}"] for name in TARGETS}


def recorded(model: str, data: str, seed: int) -> str:
    """What the committed table holds for this job, in words: its model may be an older one."""
    path = cold_start.RESULTS / f"{cold_start.job_name(data, 'cold-items', model, seed)}.json"
    if not path.exists():
        return "The table has no such job yet."
    record = read_json(path)
    value = record["raw"]["protocols"]["cold/all"]["metrics"][f"recall@{K}"]
    return f"The table's own run of this job, of commit {record['commit']}, has {value:.6f} for cold in all."


def tabled_pool(dataset: Dataset) -> BoolArray:
    """What the table ranks: everything but the items that the split keeps for validation."""
    roles = dataset.catalogue.items["role"]
    pool: BoolArray = (roles != "cold-valid").to_numpy()
    return pool


def delete(client: httpx.Client, items: Sequence[str]) -> None:
    """Take items out."""
    for item in items:
        client.delete(f"/v1/items/{quote(item, safe='')}", headers=WRITER).raise_for_status()


def through_the_door(
    run: Run, dataset: Dataset, folder: Path, words: Sequence[str] = ()
) -> tuple[list[Comparison], Uploads]:
    """Everything after training.

    Args:
        run: A run with a test part.
        dataset: What it was trained on; has roles of items.
        folder: An empty one for the bundle.
        words: Of ``firstlight serve``.
    """
    test = run.parts["test"]
    new = (run.seen.item_degrees == 0) & (test.item_degrees > 0)
    pools = [tabled_pool(dataset), evaluated_pool(run)]
    bundle = export_without(run, dataset, new | ~pools[0], folder / "bundle")
    assert all(
        bundle.snapshot.row(str(dataset.item_ids[row])) is None for row in np.flatnonzero(new).tolist()
    )
    found = []
    table_says = tabled(run, dataset, pools[0])
    server = Server(bundle.folder, list(words))
    try:
        with httpx.Client(base_url=server.address, timeout=120) as client:
            warm_up(client)
            took = upload(client, dataset, np.flatnonzero(new & pools[0]).tolist())
            lists = served_lists(client, dataset)
            found.append(compare("as the table", table_says, lists, run, dataset, pools[0]))
            server.stop(signal.SIGKILL)
        server = Server(bundle.folder, list(words))
        with httpx.Client(base_url=server.address, timeout=120) as client:
            lists = served_lists(client, dataset)
            found.append(compare("after a kill -9", table_says, lists, run, dataset, pools[0]))
            ids = dataset.item_ids.cast(pl.String)
            delete(client, ids.filter(pl.Series(pools[0] & ~pools[1])).to_list())
            upload(client, dataset, np.flatnonzero(pools[1] & ~pools[0]).tolist())
            lists = served_lists(client, dataset)
            found.append(compare("as `evaluate`", evaluated(run), lists, run, dataset, pools[1]))
    finally:
        server.stop()
    return found, took


def warm_up(client: httpx.Client) -> None:
    """Wait until the process that encodes has read its model: a server has done that long before anybody comes."""
    answer = client.post("/v1/items", data={"id": "warm-up", "title": "the"}, headers=WRITER)
    if answer.status_code == 201:
        delete(client, ["warm-up"])


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mhcr")
    parser.add_argument("--data", default="movielens-small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = RUNS / f"{options.data}-{options.model}-s{options.seed}"
    run, dataset = train(options.model, options.data, options.seed, options.threads, out)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        found, took = through_the_door(run, dataset, Path(folder))
    slowest = max(took.listed)
    recalls = [f"{name} in all, {side}" for name in TARGETS for side in ("offline", "served")]
    header = ["catalogue", *recalls, "places that differ", "scores differ by"]
    note = (
        f"{options.model}, {options.data}, item-cold split, seed {options.seed}: Recall@{K} of the test clicks, "
        f"{len(took.answered)} cold items uploaded one by one, lists for {dataset.n_users} users. *As the table*: the "
        "catalogue and the number of `cold_start.py`; *as `evaluate`*: of `firstlight evaluate --protocol cold`, which "
        f"leaves out more of what only validation clicked. Places: of {dataset.n_users * K} in the lists. "
        f"{recorded(options.model, options.data, options.seed)}"
    )
    rows = [one.row() for one in found]
    times = [
        [
            what,
            len(values),
            *(f"{percentile(values, share):.3f}" for share in (0.5, 0.95, 0.99)),
            f"{max(values):.3f}",
        ]
        for what, values in (("until it is answered", took.answered), ("until a list holds it", took.listed))
    ]
    about = "One client, one upload after the other, cover and texts; the load of the machine at the end was "
    about += f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    speed_header = ["upload", "items", "p50 s", "p95 s", "p99 s", "max s"]
    if options.publish:
        publish(
            "served",
            "cold_lists",
            "New items through the server: recall, offline and served",
            header,
            rows,
            note,
        )
        publish(
            "served", "cold_uploads", "Seconds from an upload to the rankings", speed_header, times, about
        )
    else:
        table("served and offline", header, rows)
        table("uploads", speed_header, times)
        print(f"  {note}\n  {about}")
    same = all(one.same for one in found)
    print("equal" if same else "NOT EQUAL", "in time" if slowest < SECONDS else "TOO LATE")
    return 0 if same and slowest < SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
