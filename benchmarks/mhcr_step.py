"""MHCR at the paper's size: our schedule against the released one of the same formulas, and ``best`` beside it.

    python benchmarks/mhcr_step.py [--scale 0.1] [--rounds 5]

The world is generated with the sizes and degrees of the paper's MicroLens-100K: 100,000 users, 19,738 items, 719,405
clicks (5 to 218 a user), split as released; views 768, 384 and 1,024 wide with the norms of its features. Every
candidate lives in a process of its own; they take turns, one step each a round, so that what else the machine does
hits them alike. A step is forward, backward and optimiser; drawing the batch is not in it. Memory is the peak of a
process above what stood after data, model and graphs were loaded; gradients and optimiser are above that line.
Finding content neighbours is not measured: all use the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import median_ratio, publish, resident_mb, timed
from mhcr_released import ReleasedMHCR
from mhcr_world import BATCH, World, generate
from torch import Tensor

from firstlight.core.seeds import torch_stream
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import VectorScorer
from firstlight.losses.negatives import PairNegatives
from firstlight.losses.ranking import LossConfig, ranking_loss
from firstlight.models import mhcr
from firstlight.models.base import Batch
from firstlight.training.config import build_config
from firstlight.training.loop import Phase
from firstlight.training.optimisers import RowAdam

KS, LR = (5, 10, 20, 50), 1e-3
YARDSTICK, OURS, ROUNDED, BEST = (
    "released schedule",
    "ours, released",
    "ours, released, bfloat16",
    "ours, best",
)

#: For every process alike: a thread that waits sleeps (spinning would count as CPU seconds), and freed tables go back
#: to the system at once (the peak is then what was held, not what the allocator kept for later).
ALIKE = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}


# -- the candidates -------------------------------------------------------------------------------------------


class Released:
    """The yardstick."""

    def __init__(self, world: World) -> None:
        self.world, self.yardstick = world, ReleasedMHCR(reproducing_model(world))

    def prepare(self) -> None:
        self.optimiser = torch.optim.Adam(self.yardstick.parameters(), lr=LR)

    def step(self, step: int, batch: Batch) -> float:
        loss = self.yardstick.loss(batch, torch_stream(0, "step", step))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def forward(self) -> None:
        with torch.no_grad():
            self.yardstick.forward(torch_stream(0, "evaluation"), training=False)

    def evaluate(self) -> None:
        """One batch of users; metrics are left out."""
        first = torch.from_numpy(np.flatnonzero(self.world.test.user_degrees)[:BATCH])
        self.yardstick.top_k(first, self.world.train, max(KS), torch_stream(0, "evaluation"))

    def passes(self) -> int:
        """How many batches of users, and so forward passes, an evaluation has."""
        return -(-int((self.world.test.user_degrees > 0).sum()) // BATCH)


class Ours:
    """Our schedule of the released formulas."""

    def __init__(self, world: World) -> None:
        self.world, self.model = world, reproducing_model(world)

    def prepare(self) -> None:
        self.optimiser = RowAdam(self.model.named_parameters(), LR)

    def step(self, step: int, batch: Batch) -> float:
        loss = self._loss(step, batch)  # of the forward pass only what the gradient needs is left
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _loss(self, step: int, batch: Batch) -> Tensor:
        model, rows = self.model, len(batch.users)
        encoded = model.encode(step, torch_stream(0, "step", step))
        users, items = model.vectors(encoded, batch.users, torch.cat([batch.positives, batch.negatives]))
        negatives = PairNegatives(items[rows:], torch.arange(rows)[:, None])
        scores = (users * items[:rows]).sum(dim=1)
        ones = torch.ones(rows)
        ranking = ranking_loss(LossConfig(name="bpr"), users, scores, negatives, ones, ones).per_row.mean()
        return ranking + sum(model.extra_losses(encoded, batch).values())

    def forward(self) -> None:
        self.model.raw_vectors()

    def evaluate(self) -> None:
        """All users, with all metrics."""
        vectors = self.model.vectors_for_scoring()
        evaluate_ranking(VectorScorer(*vectors), self.world.test, [self.world.train], KS)

    def passes(self) -> int:
        """One forward pass an evaluation."""
        return 1


class Best(Ours):
    """Setting ``best`` by its own defaults, those of the quality tables: users with all their clicks, float32."""

    def __init__(self, world: World) -> None:
        config = build_config(model="mhcr", overrides=[f"training.batch_size={BATCH}"])
        assert config.training.batch == "users"
        self.world = world
        views = world.views(standardised=True)
        self.phase = Phase("train", config, world.train, epochs=1, views=views, finder=world.finder)
        self.model = self.phase.model

    def prepare(self) -> None:
        self.optimiser = RowAdam(self.model.named_parameters(), LR)

    def step(self, step: int, batch: Batch) -> float:
        """As the base, with as many users as the others have pairs."""
        rng = torch_stream(0, "step", step)
        users = self.world.users(step)
        loss: Tensor = self.phase.computer.users(users, step, rng).total
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def reproducing_model(world: World) -> mhcr.MHCR:
    config = mhcr.MHCRConfig(setting="released", joint_table="text")
    views = world.views(standardised=False)
    return mhcr.MHCR(config, world.train, torch_stream(0, "init"), views, world.finder)


CANDIDATES: dict[str, Callable[[World], Released | Ours]] = {
    YARDSTICK: Released,
    OURS: Ours,
    ROUNDED: Ours,
    BEST: Best,
}


def work(name: str, folder: Path) -> None:
    """A candidate's process: reads commands, answers each with a line of JSON."""
    torch.set_num_threads(2)
    world = World(folder)
    candidate = CANDIDATES[name](world)
    rounded = name == ROUNDED
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading
    before = resident_mb()
    candidate.prepare()
    print("ready", flush=True)
    losses: list[float] = []
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        answer: dict[str, float] = {}
        if command == "step":
            batch = world.batch(int(argument))
            torch.set_float32_matmul_precision("medium" if rounded else "highest")
            wall, cpu = timed(lambda b=batch, n=int(argument): losses.append(candidate.step(n, b)))
            torch.set_float32_matmul_precision("highest")
            answer = {"wall": wall, "cpu": cpu, "loss": losses[-1]}
        elif command == "forward":
            wall, cpu = timed(candidate.forward)
            answer = {"wall": wall, "cpu": cpu}
        elif command == "evaluate":
            wall, cpu = timed(candidate.evaluate)
            answer = {"wall": wall, "cpu": cpu, "times": candidate.passes()}
        elif command == "memory":
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = next(int(row.split()[1]) / 1024 for row in status.splitlines() if row.startswith("VmHWM"))
            answer = {"above": peak - before, "before": before}
        print(json.dumps(answer), flush=True)


class Process:
    """The other end of a candidate's process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--work", name, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ALIKE},
        )
        self._line()

    def _line(self) -> str:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit("a candidate's process ended early")
        return line

    def ask(self, command: str) -> dict[str, float]:
        assert self.child.stdin is not None
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()
        answer: dict[str, float] = json.loads(self._line())
        return answer

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait()


# -- the tables -----------------------------------------------------------------------------------------------


def measure(folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """All answers of all candidates."""
    processes = {name: Process(name, folder) for name in CANDIDATES}
    found: dict[str, dict[str, Any]] = {name: {"steps": []} for name in processes}
    for name, process in processes.items():  # unmeasured, but for the loss before any update and the peak
        found[name]["first"] = process.ask("step 0")
    for number in range(1, rounds + 1):
        for name, process in processes.items():
            found[name]["steps"].append(process.ask(f"step {number}"))
    for name, process in processes.items():
        found[name]["memory"] = process.ask("memory")
    for name in (YARDSTICK, OURS, BEST):
        found[name]["forward"], found[name]["evaluation"] = [], []
    for _ in range(rounds):
        for name in (YARDSTICK, OURS, BEST):
            found[name]["forward"].append(processes[name].ask("forward"))
    for number in range(rounds):
        found[YARDSTICK]["evaluation"].append(processes[YARDSTICK].ask("evaluate"))
        if number < 3:  # whole evaluations, not batches of one
            for name in (OURS, BEST):
                found[name]["evaluation"].append(processes[name].ask("evaluate"))
    for process in processes.values():
        process.close()
    return found


def middle(answers: list[dict[str, float]], key: str) -> float:
    return sorted(answer[key] for answer in answers)[len(answers) // 2]


def steps_table(found: dict[str, dict[str, Any]], world: World) -> list[list[str]]:
    reference = found[YARDSTICK]
    rows = []
    for name, values in found.items():
        steps = world.steps(by_users=name == BEST)
        fewer = world.steps(by_users=False) / steps
        ratios = [
            fewer * median_ratio([s[key] for s in reference["steps"]], [s[key] for s in values["steps"]])
            for key in ("cpu", "wall")
        ]
        cpu, above = middle(values["steps"], "cpu"), values["memory"]["above"]
        rows.append(
            [
                name,
                "–" if name == BEST else f"{values['first']['loss']:.7f}",
                f"{cpu:.2f}",
                str(steps),
                f"{cpu * steps / 60:.1f}",
                f"{ratios[0]:.1f}×",
                f"{ratios[1]:.1f}×",
                f"{above:,.0f}",
                f"{reference['memory']['above'] / above:.2f}×",
            ]
        )
    return rows


def evaluation_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    batches = found[YARDSTICK]["evaluation"][0]["times"]
    totals = {}
    for name in (YARDSTICK, OURS, BEST):
        values = found[name]
        times = batches if name == YARDSTICK else 1
        totals[name] = (
            times,
            times * middle(values["forward"], "cpu"),
            times * middle(values["evaluation"], "cpu"),
            times * middle(values["evaluation"], "wall"),
        )
    reference = totals[YARDSTICK]
    return [
        [
            name,
            f"{times}",
            f"{forward:.2f}",
            f"{reference[1] / forward:.0f}×",
            f"{cpu:.1f}",
            f"{reference[2] / cpu:.1f}×",
            f"{reference[3] / wall:.1f}×",
        ]
        for name, (times, forward, cpu, wall) in totals.items()
    ]


def report(found: dict[str, dict[str, Any]], world: World, rounds: int, published: bool) -> None:
    theirs, ours = found[YARDSTICK]["first"]["loss"], found[OURS]["first"]["loss"]
    if abs(theirs - ours) > 1e-4 * abs(theirs):
        raise SystemExit(f"the two schedules disagree: {theirs} and {ours}")
    size = f"{world.train.n_users:,} users, {world.train.n_items:,} items, {world.train.n_pairs:,} training clicks"
    write = publish if published else show
    write(
        "speed",
        "mhcr_step",
        f"MHCR step: {size}, views of 768, 384 and 1,024, batch {BATCH:,}, optimiser included",
        [
            "schedule", "loss, first step", "CPU s a step", "steps an epoch", "CPU min an epoch, extrapolated",
            "times less CPU an epoch", "times less wall an epoch", "peak MB above loaded", "times less memory",
        ],
        steps_table(found, world),
        f"Two threads, a process each, {rounds} measured steps each in turn after one unmeasured; medians, ratios "
        "within a round. The released schedule trains the raw features, as the released code does; ours keeps them as "
        "they are, so losses are compared before the first update. Best is another objective: a softmax over all "
        f"items for {BATCH:,} users a step with all their clicks, and one with every item as if cold, in float32. "
        "In all processes waiting threads sleep and freed tables go back to the system at once.",
    )  # fmt: skip
    write(
        "speed",
        "mhcr_evaluation",
        f"MHCR evaluation: {size}, all items ranked for every user, top {max(KS)}",
        [
            "schedule", "forward passes", "their CPU s", "times less CPU", "whole evaluation, CPU s",
            "times less CPU", "times less wall",
        ],
        evaluation_table(found),
        f"Two threads. The released schedule makes a forward pass for every batch of {BATCH:,} users: {rounds} batches "
        "measured, the rest extrapolated, its metrics not counted. Ours: whole evaluations, metrics counted.",
    )  # fmt: skip


def show(_folder: str, _name: str, title: str, header: list[str], rows: list[list[str]], note: str) -> None:
    """Print, for trials at another size."""
    from machine import table

    table(title, header, rows)
    print(f"  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of users, items and clicks; 1 is published")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(options.scale, folder)
        found = measure(folder, options.rounds)
        report(found, World(folder), options.rounds, published=options.scale == 1)


if __name__ == "__main__":
    main()
