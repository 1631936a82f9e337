"""The whole way on a generated world: inspect, split, train, compare; then add what nobody has clicked, and recommend.

The world is looked at twice. Split by chance, it tells models of clicks apart. Cut in time, it is what the project is
for: a model of clicks and content is trained on what was there at the cut, and the items that arrived afterwards join
it by their content alone.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import write_json
from firstlight.data.folder import write_dataset
from firstlight.data.formats import read_dataset
from firstlight.data.inspect import inspect_path
from firstlight.data.simulate import Simulation, SimulationConfig, simulate, write_simulation
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.evaluation.compare import compare
from firstlight.pipeline.arrivals import Added, ArrivalReport, add_arrivals, cut_world, measure_arrivals
from firstlight.serving.bundle import Bundle
from firstlight.serving.export import export_run
from firstlight.serving.lists import recommend_all
from firstlight.training.assess import run_result
from firstlight.training.config import build_config
from firstlight.training.recommend import write_lists
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
#: The model of clicks and content, trained on what was there at the cut. Chosen on validation, where clicks on items
#: that arrived after the training part count as much as clicks on older ones (harmonic mean).
COLD: dict[str, Any] = {
    "model": "mhcr",
    "loss": "softmax",
    "temperature": "fixed:0.2",
    "negatives": "all",
    "overrides": (
        "training.batch=users",
        "training.batch_size=256",
        "training.lr=0.005",
        "training.threads=1",
        "training.metric=harmonic-recall@20",
        "training.epochs=8",
        "training.eval_every=2",
        # Fewer than two thousand items: what tells them apart must not be learned by heart.
        "views.text.dim=32",
        "views.cover.grid=1",
        "views.features.reduce=16",
        "model.content_dropout=0.5",
        "model.batch_l2=0.03",
        # Content speaks louder than ids, since it is all that a new item has.
        "model.layers=2",
        "model.cold_loss=0",
        "model.cold_share=0.5",
        "model.content_weight=0.5",
        "model.user_content=6",
        # Where "best" was settled on larger data, and this world does better otherwise.
        "model.user_dropout=0",
        "model.init=xavier",
        "model.init_norm=null",
        "model.hyper_weight=0.2",
    ),
}
COLD_LABEL = "MHCR"
MARKER = "demo.json"
_OURS = (
    "world",
    "data",
    "before",
    "new-items",
    "runs",
    "bundle",
    "recommendations.csv",
    "report.html",
    "report-pictures",
    "overview.png",
    "covers.png",
    "new-items.png",
    MARKER,
)
_STEPS = 8


@dataclass(frozen=True)
class DemoReport:
    """What the demo made.

    Attributes:
        out: Its folder.
        world: The generated world as it came, split by time.
        data: The same clicks, split at random.
        before: What was there at the cut: no later item, no click on one.
        new_items: The items that arrived later, without clicks.
        runs: Label -> run folder, of the models of clicks on ``data``.
        cold_run: The run on ``before`` that the new items were added to.
        bundle: The run with the new items, to be served.
        recommendations: The lists of all users, new items included.
        rows: One row a run: label, metrics, seconds.
        comparison: Differences from popularity.
        arrivals: What became of the new items.
        adding: How many items were added, and the seconds that it took.
        share_of_new: Share of new items in the lists of :attr:`recommendations`.
        seconds: Wall time of all steps.
    """

    out: Path
    world: Path
    data: Path
    before: Path
    new_items: Path
    runs: dict[str, Path]
    cold_run: Path
    bundle: Path
    recommendations: Path
    rows: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    arrivals: ArrivalReport
    adding: dict[str, float]
    share_of_new: float
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
    simulation = simulate(world)
    write_simulation(simulation, out / "world")
    found = inspect_path(out / "world")
    _say(emit, f"{found.n_users:,} users, {found.n_items:,} items, {_pairs(found.parts):,} clicks")
    runs = _train_on_clicks(out, emit)
    loaded = {label: load_run(path) for label, path in runs.items()}
    rows = [_row(label, run.result) for label, run in loaded.items()]
    comparison = compare([run_result(run) for run in loaded.values()]).to_dicts()
    cold_run = _train_at_the_cut(out, simulation, emit)
    added = _add(cold_run, out / "new-items", emit)
    _step(emit, 8, f"ranking all {found.n_items:,} items for every user: do people find what arrived?")
    arrivals = measure_arrivals(COLD_LABEL, load_run(cold_run), added, simulation)
    lists = out / "recommendations.csv"
    share = _write_lists(added.bundle, lists, 10)
    known = read_dataset(out / "before")
    titled = known.catalogue.items.with_columns(item=known.item_ids)
    export_run(load_run(cold_run), out / "bundle", titled)
    adding = {"items": len(added.items.ids), "seconds": round(added.seconds, 3)}
    seconds = time.perf_counter() - started
    report = DemoReport(
        out=out,
        world=out / "world",
        data=out / "data",
        before=out / "before",
        new_items=out / "new-items",
        runs=runs,
        cold_run=cold_run,
        bundle=out / "bundle",
        recommendations=lists,
        rows=rows,
        comparison=comparison,
        arrivals=arrivals,
        adding=adding,
        share_of_new=share,
        seconds=seconds,
    )
    write_json(out / MARKER, _kept(report))
    return report


def _train_on_clicks(out: Path, emit: Emit) -> dict[str, Path]:
    """Steps 2 to 5: split by chance, and train models that know items by their clicks."""
    _step(emit, 2, "splitting: of each user's clicks 70 % to learn from, 10 % to choose by, 20 % to test on")
    dataset = split_dataset(read_dataset(out / "world"), SplitOptions(by="random"))
    write_dataset(dataset, out / "data")
    dataset = read_dataset(out / "data")
    runs = {}
    for number, (label, arguments) in enumerate(RUNS.items(), 3):
        _step(emit, number, f"training {label}")
        runs[label] = out / "runs" / str(arguments["model"])
        train(dataset, build_config(**arguments), runs[label], emit=emit)
    return runs


def _train_at_the_cut(out: Path, simulation: Simulation, emit: Emit) -> Path:
    """Step 6: cut the world in time, and train on clicks and content of what was there."""
    world = read_dataset(out / "world")
    known, new = cut_world(world, simulation.truth.arrived > simulation.truth.cut)
    _step(
        emit,
        6,
        f"back in time, before {new.n_items:,} of the items arrived: training {COLD_LABEL} on clicks and content",
    )
    write_dataset(known, out / "before")
    write_dataset(new, out / "new-items")
    run = out / "runs" / str(COLD["model"])
    train(read_dataset(out / "before"), build_config(**COLD), run, emit=emit)
    return run


def _add(run: Path, new_items: Path, emit: Emit) -> Added:
    """Step 7: the items arrive."""
    _step(emit, 7, "the items arrive: adding them by title, cover and clip; no click, no training")
    added = add_arrivals(load_run(run), new_items)
    count = len(added.items.ids)
    _say(emit, f"{count:,} items in {added.seconds:.2f} s ({1000 * added.seconds / count:.1f} ms each)")
    return added


def _write_lists(bundle: Bundle, path: Path, k: int) -> float:
    """Write the k best items of every user; the share of added items in them."""
    table = pl.concat(recommend_all(bundle, None, k))
    write_lists(iter([table]), path)
    new = bundle.item_ids()[len(bundle.snapshot.base.table) :]
    return float(table["item"].is_in(new.implode()).mean() or 0.0)  # type: ignore[arg-type]


def _kept(report: DemoReport) -> dict[str, Any]:
    """The numbers of a demo, for its folder."""
    return {
        "rows": report.rows,
        "comparison": report.comparison,
        "arrivals": asdict(report.arrivals),
        "adding": report.adding,
        "share_of_new": report.share_of_new,
        "seconds": round(report.seconds, 1),
    }


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
    emit("message", text=f"[{number}/{_STEPS}] {text}")


def _say(emit: Emit, text: str) -> None:
    emit("message", text=f"      {text}")


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
