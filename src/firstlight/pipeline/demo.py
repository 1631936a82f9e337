"""The whole way on a generated world: inspect, split, train, evaluate, compare, recommend."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import write_json
from firstlight.data.folder import write_dataset
from firstlight.data.formats import read_dataset
from firstlight.data.inspect import inspect_path
from firstlight.data.simulate import SimulationConfig, simulate, write_simulation
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.evaluation.compare import compare
from firstlight.pipeline.assess import run_result
from firstlight.training.config import build_config
from firstlight.training.recommend import recommend, write_lists
from firstlight.training.run import train
from firstlight.training.run_folder import load_run

#: Large enough that the methods differ, small enough for a coffee break on two cores.
WORLD = SimulationConfig(n_users=4000, n_items=2000, mean_clicks=30.0)

_COMMON = (
    # Every user with all of their clicks against all items: exact, and fast for a catalogue of this size.
    "training.batch=users",
    "training.batch_size=256",
    "training.lr=0.01",
    # Matrices this small gain little from a second thread and lose much where the machine is busy.
    "training.threads=1",
    "model.user_dropout=0.3",
    # In this world the paper's closed form with half its w₀ does best (docs/methods/adap-tau.md).
    "temperature.form=mean",
    "temperature.gain=0.5",
)
#: Label -> arguments of :func:`firstlight.training.config.build_config`.
RUNS: dict[str, dict[str, Any]] = {
    "popularity": {"model": "popularity"},
    "MF + Adap-τ": {
        "model": "mf",
        "loss": "adap-tau",
        "negatives": "all",
        "overrides": (*_COMMON, "training.epochs=45", "training.eval_every=3"),
    },
    "LightGCN + Adap-τ": {
        "model": "lightgcn",
        "loss": "adap-tau",
        "negatives": "all",
        "overrides": (*_COMMON, "training.epochs=20", "training.eval_every=2", "model.layers=2"),
    },
}
MARKER = "demo.json"
_OURS = ("world", "data", "runs", "recommendations.csv", "overview.png", "covers.png", MARKER)


@dataclass(frozen=True)
class DemoReport:
    """What the demo made.

    Attributes:
        out: Its folder.
        world: The generated world as it came, split by time.
        data: The same clicks, split at random.
        runs: Label -> run folder.
        recommendations: The lists of all users.
        rows: One row a run: label, metrics, seconds.
        comparison: Differences from popularity.
        seconds: Wall time of all steps.
    """

    out: Path
    world: Path
    data: Path
    runs: dict[str, Path]
    recommendations: Path
    rows: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    seconds: float


def run_demo(out: Path, *, world: SimulationConfig = WORLD, emit: Emit = silent) -> DemoReport:
    """Go the whole way.

    Args:
        out: Folder to fill; that of an earlier demo is made anew.
        world: The world to generate.
        emit: Receives the events of training, and a message a step.

    Returns:
        What was made and found.

    Raises:
        InputError: ``out`` holds something that no demo made.
    """
    started = time.perf_counter()
    _clear(out)
    _step(emit, 1, "generating a micro-video world (clicks, titles, covers, clip features)")
    write_simulation(simulate(world), out / "world")
    found = inspect_path(out / "world")
    emit(
        "message",
        text=f"     {found.n_users:,} users, {found.n_items:,} items, {_pairs(found.parts):,} clicks",
    )
    _step(emit, 2, "splitting: of each user's clicks 70 % to learn from, 10 % to choose by, 20 % to test on")
    dataset = split_dataset(read_dataset(out / "world"), SplitOptions(by="random"))
    write_dataset(dataset, out / "data")
    dataset = read_dataset(out / "data")
    runs = {}
    for number, (label, arguments) in enumerate(RUNS.items(), 3):
        _step(emit, number, f"training {label}")
        runs[label] = out / "runs" / str(arguments["model"])
        train(dataset, build_config(**arguments), runs[label], emit=emit)
    _step(emit, 6, "recommending ten items to every user")
    loaded = {label: load_run(path) for label, path in runs.items()}
    rows = [_row(label, run.result) for label, run in loaded.items()]
    comparison = compare([run_result(run) for run in loaded.values()]).to_dicts()
    best = max(rows, key=lambda row: row["recall@20"])["label"]
    lists = out / "recommendations.csv"
    write_lists(recommend(loaded[best], None, 10), lists)
    seconds = time.perf_counter() - started
    write_json(out / MARKER, {"rows": rows, "comparison": comparison, "seconds": round(seconds, 1)})
    return DemoReport(out, out / "world", out / "data", runs, lists, rows, comparison, seconds)


def _clear(out: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise InputError("this folder holds something else", path=out, hint="choose another one with --out")
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    # Written first, so that an interrupted demo is known as one.
    write_json(out / MARKER, {})


def _step(emit: Emit, number: int, text: str) -> None:
    emit("message", text=f"[{number}/6] {text}")


def _pairs(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _row(label: str, result: dict[str, Any]) -> dict[str, Any]:
    names = ("recall@20", "ndcg@20", "coverage@20")
    found = result["found"]
    return {
        "label": label,
        "epochs": found["epochs"] or None,
        **{name: result["metrics"][name] for name in names},
        "seconds": result["seconds"]["total"],
    }
