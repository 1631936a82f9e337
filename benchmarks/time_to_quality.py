"""How long until a quality is reached: training seconds on Gowalla, two threads.

    python benchmarks/time_to_quality.py mf --recipe gowalla-mf-bsl --goals .18,.1838
    python benchmarks/time_to_quality.py lightgcn --recipe gowalla-lightgcn --goals .1884,.1901

Test is watched every epoch, as the published runs that set these marks did; this measures speed, not quality
(RESULTS.md has the honest numbers). Training seconds leave out loading and evaluation, and say so.
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import DATA, peak_mb, publish, resident_mb

from firstlight.data.formats import read_dataset
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.training.config import build_config
from firstlight.training.loop import Phase
from firstlight.training.run_folder import ModelScorer


def main() -> None:
    """Train, watch, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--goals", required=True, help="Recall@20 marks, ascending")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=2, help="epochs between looks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read_dataset(DATA / "gowalla")
    standing = resident_mb()
    goals = [float(goal) for goal in options.goals.split(",")]
    reached: dict[float, tuple[int, float, float]] = {}
    best = (0.0, 0.0, 0)
    evaluation = 0.0
    config = build_config(recipe=options.recipe, overrides=[*options.overrides, "training.selection=none"])

    def look(phase: Phase, _: bool) -> None:
        nonlocal best, evaluation
        if phase.progress.epoch % options.every and phase.progress.epoch != config.training.epochs:
            return
        started = time.perf_counter()
        found = evaluate_ranking(ModelScorer(phase.model), data.test, [data.train], ks=(20,)).metrics
        evaluation += time.perf_counter() - started
        recall, ndcg = found["recall@20"], found["ndcg@20"]
        best = max(best, (recall, ndcg, phase.progress.epoch))
        for goal in goals:
            if recall >= goal and goal not in reached:
                reached[goal] = (phase.progress.epoch, phase.progress.seconds, ndcg)
        print(
            f"  epoch {phase.progress.epoch} {recall:.4f}/{ndcg:.4f} {phase.progress.seconds:.0f} s",
            flush=True,
        )

    wall = time.perf_counter()
    phase = Phase("train", config, data.train, epochs=config.training.epochs)
    start = time.perf_counter() - wall
    phase.run(look)
    rows = [
        [f"Recall@20 ≥ {goal:g}", *(f"{reached[goal][1] / 60:.1f} min", reached[goal][0])]
        if goal in reached
        else [f"Recall@20 ≥ {goal:g}", "not reached", "–"]
        for goal in goals
    ]
    rows.append(
        [
            f"best on test: {best[0]:.4f} / {best[1]:.4f}",
            f"{phase.progress.seconds / 60:.1f} min in all",
            best[2],
        ]
    )
    publish(
        "speed",
        f"time_to_quality_{options.name}",
        f"Time to quality on Gowalla: {options.recipe}",
        ["mark", "training time", "epoch"],
        rows,
        f"{options.threads} threads. Start (spectral vectors, graph) {start:.1f} s and evaluation {evaluation:.0f} s "
        f"are not in the training time. Peak memory {peak_mb() - standing:.0f} MB above the loaded data.",
    )


if __name__ == "__main__":
    main()
