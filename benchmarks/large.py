"""One million users, one million items, one hundred million clicks: MF with Adap-τ in the memory of one machine.

    python benchmarks/large.py [--users 1000000 --items 1000000 --pairs 100000000 --steps 400]

The log is generated block by block (power-law items); ``--steps`` updates are measured and a whole epoch is
estimated from them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from machine import peak_mb, publish, resident_mb

from firstlight.data.interactions import Interactions
from firstlight.training.config import build_config
from firstlight.training.loop import Phase


def generate(n_users: int, n_items: int, n_pairs: int, seed: int = 0) -> Interactions:
    """A random log in rows, without repeats, a block of users at a time."""
    rng = np.random.default_rng(seed)
    degree, block = n_pairs / n_users, 20_000
    # Popularity falls with rank; which row has which rank is shuffled.
    row_of_rank = rng.permutation(n_items).astype(np.int32)
    rows, counts = [], []
    for start in range(0, n_users, block):
        width = min(block, n_users - start)
        drawn = rng.poisson(degree * 1.02, width).clip(1)
        owner = np.repeat(np.arange(width, dtype=np.int64), drawn)
        rank = (n_items * rng.random(len(owner), dtype=np.float32) ** 2).astype(np.int64).clip(0, n_items - 1)
        key = np.unique(owner * n_items + row_of_rank[rank])
        rows.append((key % n_items).astype(np.int32))
        counts.append(np.bincount(key // n_items, minlength=width))
    indptr = np.zeros(n_users + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=indptr[1:])
    return Interactions(indptr, np.concatenate(rows), n_items)


def main() -> None:
    """Generate, train, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--negatives", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(2)
    started = time.perf_counter()
    log = generate(options.users, options.items, options.pairs)
    generated, standing = time.perf_counter() - started, resident_mb()
    config = build_config(
        loss="adap-tau",
        overrides=[
            f"training.batch_size={options.batch}",
            f"negatives.count={options.negatives}",
            "training.precision=bfloat16",
            "temperature.warmup_epochs=0",
        ],
    )
    started = time.perf_counter()
    phase = Phase("train", config, log, epochs=1)
    phase.temperature.start_epoch(0, phase.model.training_space)
    prepared = time.perf_counter() - started
    everything = phase._rows
    phase._rows = everything[: options.batch * 20]
    phase._steps(0)  # warm-up
    phase._rows = everything[: options.batch * options.steps]
    started = time.perf_counter()
    phase._steps(0)
    seconds = time.perf_counter() - started
    speed = options.batch * options.steps / seconds
    rows = [
        ["users × items × pairs", f"{options.users:,} × {options.items:,} × {log.n_pairs:,}"],
        ["generating the log, s", f"{generated:.0f}"],
        ["model, statistics and τ₀, s", f"{prepared:.0f}"],
        ["pairs per second", f"{speed:,.0f}"],
        ["one epoch, estimated, h", f"{log.n_pairs / speed / 3600:.2f}"],
        ["20 epochs, estimated, h", f"{20 * log.n_pairs / speed / 3600:.1f}"],
        ["resident after generating, GB", f"{standing / 1024:.1f}"],
        ["peak, GB", f"{peak_mb() / 1024:.1f}"],
    ]
    publish(
        "speed",
        "large",
        f"A generated log of {log.n_pairs:,} clicks: MF + Adap-τ, dim 64",
        ["", ""],
        rows,
        f"Batch {options.batch}, {options.negatives} shared negatives, two threads, bfloat16 products; "
        f"{options.steps} steps measured, the epoch estimated from them.",
    )


if __name__ == "__main__":
    main()
