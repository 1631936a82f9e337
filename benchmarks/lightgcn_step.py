"""LightGCN on Gowalla, three layers: our propagation against COO propagation, equal losses.

python benchmarks/lightgcn_step.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import DATA, median_ratio, paired, publish

from firstlight.core.seeds import torch_stream
from firstlight.data.formats import read_dataset
from firstlight.data.interactions import Interactions
from firstlight.training.config import build_config
from firstlight.training.loop import Phase


class CooPropagation:
    """One hop with the (n + m)² COO matrix that the reference implementations use."""

    def __init__(self, train: Interactions) -> None:
        n, total = train.n_users, train.n_users + train.n_items
        rows = np.concatenate([train.users, train.items + n]).astype(np.int64)
        columns = np.concatenate([train.items + n, train.users]).astype(np.int64)
        degrees = np.maximum(np.bincount(rows, minlength=total), 1) ** -0.5
        values = torch.from_numpy((degrees[rows] * degrees[columns]).astype(np.float32))
        index = torch.from_numpy(np.stack([rows, columns]))
        self.matrix = torch.sparse_coo_tensor(
            index, values, (total, total), check_invariants=False
        ).coalesce()
        self.n_users = n

    def __call__(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.sparse.mm(self.matrix, torch.cat([users, items]))
        return out[: self.n_users], out[self.n_users :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    train = read_dataset(DATA / "gowalla").train
    config = build_config(
        model="lightgcn",
        loss="adap-tau",
        negatives="in-batch",
        overrides=["training.batch_size=2048", "model.layers=3", "training.epochs=1000"],
    )
    phases = {}
    for name in ("COO", "ours"):
        phase = Phase("train", config, train, epochs=1000)
        phase._rows = phase._rows[: 2048 * options.steps]
        if name == "COO":
            phase.model.hop = CooPropagation(phase.train)
        phases[name] = phase
    # Equal work: the first batch's loss, before any update, must be the same.
    losses = {
        name: phase._compute(phase._rows[:2048], 0, torch_stream(0)).ranking for name, phase in phases.items()
    }
    first, second = losses.values()
    if abs(first - second) > 1e-5 * abs(first):
        raise SystemExit(f"the two forms disagree: {losses}")
    for phase in phases.values():
        phase._steps(0)  # warm-up
    times = paired({name: (lambda p=phase: p._steps(1)) for name, phase in phases.items()}, options.rounds)
    wall = {name: [w / options.steps for w, _ in values] for name, values in times.items()}
    rows = [
        [
            name,
            f"{sorted(w)[len(w) // 2] * 1e3:.0f}",
            f"{median_ratio(wall['COO'], w):.2f}×",
            f"{losses[name]:.6f}",
        ]
        for name, w in wall.items()
    ]
    publish(
        "speed",
        "lightgcn_step",
        "LightGCN step on Gowalla: 3 layers, batch 2,048, in-batch negatives, dim 64, optimiser included",
        ["propagation", "wall ms a step", "times faster", "loss"],
        rows,
        f"Two threads; medians of {options.rounds} rounds, ratios within a round. COO is the (n + m)² matrix of the "
        "reference implementations; everything else of the step is the same.",
    )


if __name__ == "__main__":
    main()
