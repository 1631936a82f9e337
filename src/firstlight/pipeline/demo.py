"""The demo: a shipped pipeline over the generated world, and what it found, put together.

The world is stopped on a day on which 300 of its items have not arrived. What was there trains an encoder of covers and
models of clicks and content; then the items join the bundle by their content alone, and are looked for among later
clicks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.core.errors import FirstlightError
from firstlight.core.events import Emit, silent
from firstlight.core.files import write_json
from firstlight.core.values import plain
from firstlight.data.cut import KNOWN, NEW
from firstlight.evaluation.compare import compare
from firstlight.pipeline.arrivals import ArrivalReport
from firstlight.pipeline.outline import Outcome, carry_out
from firstlight.pipeline.run import Execute
from firstlight.training.assess import run_result
from firstlight.training.run_folder import load_run

#: The pipeline behind it.
PIPELINE = "demo"
#: Runs of the pipeline → what they are called.
LABELS = {
    "popularity": "popularity",
    "mf": "MF + Adap-τ",
    "lightgcn": "LightGCN + Adap-τ",
    "mhcr": "MHCR",
}


@dataclass(frozen=True)
class DemoReport:
    """What the demo made.

    Attributes:
        outcome: What the pipeline did.
        runs: Label → run folder.
        rows: One row a run: label, metrics, seconds.
        comparison: Differences from popularity.
        arrivals: What became of the new items.
        adding: How many items were added, and the seconds that it took.
        seconds: Wall time, which is short where everything was there.
    """

    outcome: Outcome
    runs: dict[str, Path]
    rows: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    arrivals: ArrivalReport
    adding: dict[str, float]
    seconds: float

    @property
    def out(self) -> Path:
        """Its folder."""
        return self.outcome.out

    @property
    def world(self) -> Path:
        """The generated world, split by time."""
        return self.out / "data"

    @property
    def known(self) -> Path:
        """What was there at the cut: no later item, no click on one."""
        return self.out / "cut" / KNOWN

    @property
    def new_items(self) -> Path:
        """The items that arrived later, without clicks."""
        return self.out / "cut" / NEW

    @property
    def bundle(self) -> Path:
        """To be served: the run of clicks and content with the new items."""
        return self.out / "bundle"

    @property
    def recommendations(self) -> Path:
        """The lists of all users, new items included."""
        return self.out / "recommendations.csv"

    @property
    def page(self) -> Path | None:
        """The report, if there is one."""
        return self.outcome.places.get("page")

    def to_dict(self) -> dict[str, Any]:
        """What ``firstlight demo --json`` prints."""
        return {
            "out": self.out,
            "results": self.rows,
            "comparison": self.comparison,
            "new_items": self.arrivals.to_dict() | {"adding": self.adding},
            "world": self.world,
            "known": self.known,
            "arrived": self.new_items,
            "runs": self.runs,
            "bundle": self.bundle,
            "recommendations": self.recommendations,
            "report": self.page,
            "steps": self.outcome.to_dict()["steps"],
            "seconds": round(self.seconds, 1),
        }


def run_demo(
    out: Path,
    execute: Execute,
    *,
    changes: Sequence[str] = (),
    emit: Emit = silent,
) -> DemoReport:
    """Go the whole way; what is there already is not made again.

    Args:
        out: Folder to fill.
        execute: Runs a command line (the words after ``firstlight``).
        changes: ``key=value`` texts that go over the fields of the pipeline, such as ``data.simulate.n_users=500``.
        emit: Receives a message a step.

    Returns:
        What was made and found; its numbers are in ``demo.json``, too.

    Raises:
        InputError: Something that no pipeline made is in the way.
        FirstlightError: A step failed.
    """
    started = time.perf_counter()
    outcome = carry_out(PIPELINE, execute, out, changes, emit=emit)
    runs = {label: out / "runs" / name for name, label in LABELS.items()}
    loaded = {label: load_run(path) for label, path in runs.items()}
    answers = {result.step.name: result.answer for result in outcome.results}
    if outcome.arrivals is None:
        raise FirstlightError("the pipeline of the demo came to its end without arrivals")
    report = DemoReport(
        outcome=outcome,
        runs=runs,
        rows=[_row(label, run.result) for label, run in loaded.items()],
        comparison=compare([run_result(run) for run in loaded.values()]).to_dicts(),
        arrivals=ArrivalReport.from_dict(outcome.arrivals),
        adding={"items": answers["export"]["added"], "seconds": answers["export"]["seconds"]},
        seconds=time.perf_counter() - started,
    )
    write_json(out / "demo.json", plain(report.to_dict()))
    return report


def _row(label: str, result: dict[str, Any]) -> dict[str, Any]:
    names = ("recall@20", "ndcg@20", "coverage@20")
    found = result["found"]
    return {
        "label": label,
        "epochs": found["epochs"] or None,
        **{name: result["metrics"][name] for name in names},
        "seconds": result["seconds"]["total"],
    }
