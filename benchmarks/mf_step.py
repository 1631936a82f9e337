"""MF with 1,024 negatives on Gowalla: our step against the released form of it, optimiser included.

    python benchmarks/mf_step.py

The yardstick draws negatives per pair, gathers them to (batch, M, dim), normalises and multiplies them row by
row, and updates both tables with dense Adam, as the released Adap-τ does (specs: adap-tau §3 and §7). Ours shares
one sample of the same size, and visits touched rows only. The third row is our own parity setting: per-pair
negatives, gathered in blocks.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from machine import DATA, median_ratio, paired, peak_mb, publish, resident_mb

from firstlight.data.formats import read_dataset
from firstlight.data.interactions import Interactions
from firstlight.training.config import build_config
from firstlight.training.loop import Phase

BATCH, NEGATIVES, DIM, W = 2048, 1024, 64, 10.0


class ReleasedForm:
    """The step as released, written from its description."""

    def __init__(self, train: Interactions) -> None:
        generator = torch.Generator().manual_seed(0)
        self.users = torch.nn.Parameter(
            torch.empty(train.n_users, DIM).uniform_(-0.01, 0.01, generator=generator)
        )
        self.items = torch.nn.Parameter(
            torch.empty(train.n_items, DIM).uniform_(-0.01, 0.01, generator=generator)
        )
        self.optimiser = torch.optim.Adam([self.users, self.items], lr=1e-4)
        self.pair_users = torch.from_numpy(train.users.astype("int64"))
        self.pair_items = torch.from_numpy(train.items.astype("int64"))
        self.order = torch.randperm(train.n_pairs, generator=generator)
        self.n_items, self.at = train.n_items, 0

    def step(self) -> None:
        rows = self.order[self.at : self.at + BATCH]
        self.at = (self.at + BATCH) % (len(self.order) - BATCH)
        drawn = torch.ones(BATCH, self.n_items).multinomial(NEGATIVES, replacement=True)
        users = F.normalize(F.dropout(self.users[self.pair_users[rows]], 0.1), dim=1)
        candidates = torch.cat([self.pair_items[rows][:, None], drawn], dim=1)
        items = F.normalize(self.items[candidates], dim=2)
        scores = torch.bmm(items, users[:, :, None])[:, :, 0]
        loss = (-W * scores[:, 0] + (W * scores[:, 1:]).exp().sum(dim=1).log()).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def our_phase(train: Interactions, negatives: str, steps: int) -> Phase:
    """An Adap-τ phase cut to ``steps`` updates an epoch."""
    config = build_config(
        loss="adap-tau",
        negatives=negatives,
        overrides=[
            f"negatives.count={NEGATIVES}",
            f"training.batch_size={BATCH}",
            "model.user_dropout=0.1",
            "training.epochs=1000",
        ],
    )
    phase = Phase("train", config, train, epochs=1000)
    phase._rows = phase._rows[: BATCH * steps]
    return phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="steps of ours a round")
    parser.add_argument("--released-steps", type=int, default=2, help="steps of the released form a round")
    options = parser.parse_args()
    torch.set_num_threads(2)
    train = read_dataset(DATA / "gowalla").train
    per_epoch = -(-train.n_pairs // BATCH)
    ours = our_phase(train, "shared", options.steps)
    pairs = our_phase(train, "uniform", options.released_steps)
    released = ReleasedForm(train)
    # Memory first: the peak of the process is still ours alone.
    standing = resident_mb()
    our_phase(train, "shared", per_epoch)._steps(0)
    memory = peak_mb()
    ours._steps(0), pairs._steps(0), released.step()  # warm-up
    work = {
        "released form": lambda: [released.step() for _ in range(options.released_steps)],
        "ours, per-pair negatives": lambda: pairs._steps(1),
        "ours, shared negatives": lambda: ours._steps(1),
    }
    counts = {
        "released form": options.released_steps,
        "ours, per-pair negatives": options.released_steps,
        "ours, shared negatives": options.steps,
    }
    times = paired(work, options.rounds)
    cpu = {name: [c / counts[name] for _, c in values] for name, values in times.items()}
    wall = {name: [w / counts[name] for w, _ in values] for name, values in times.items()}
    rows = []
    for name in work:
        middle = sorted(cpu[name])[len(cpu[name]) // 2]
        ratio = median_ratio(cpu["released form"], cpu[name])
        wall_ratio = median_ratio(wall["released form"], wall[name])
        rows.append(
            [name, f"{middle * 1e3:.1f}", f"{middle * per_epoch:.1f}", f"{ratio:.1f}×", f"{wall_ratio:.1f}×"]
        )
    publish(
        "speed",
        "mf_step",
        f"MF step on Gowalla: batch {BATCH}, {NEGATIVES} negatives, dim {DIM}, optimiser included",
        [
            "step",
            "CPU ms a step",
            f"CPU s an epoch of {per_epoch} steps",
            "times less CPU",
            "times less wall",
        ],
        rows,
        f"Two threads; medians of {options.rounds} rounds, ratios within a round. The released form gathers "
        f"(batch, M, dim) and updates densely. One epoch of ours adds {max(0.0, memory - standing):.0f} MB at its "
        "peak to what stood before it.",
    )


if __name__ == "__main__":
    main()
