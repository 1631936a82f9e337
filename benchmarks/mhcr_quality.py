"""MHCR as released and as ``best`` on TikTok: validation recall by training time.

    python benchmarks/mhcr_quality.py [--epochs 60] [--threads 1]
    python benchmarks/render_results.py

The split that came with the data: training sees its training part, validation is looked at, test is not. ``released``
takes its authors' loss and learning rate (BPR, 1e-3, 2,048 pairs), ``best`` the settings of the table of that split
(``cold_grids.py``): clicked items by clicks alone, content for the others. Both train for as many epochs; a run that is
there is not trained again (``runs/mhcr-quality``).
"""

from __future__ import annotations

import argparse
from typing import Any

import polars as pl
from cold_grids import GRIDS
from machine import DATA, ROOT, publish

from firstlight.data.formats import read_dataset
from firstlight.training import run as training
from firstlight.training.config import build_config
from firstlight.training.run_folder import load_run

SETTINGS = {"released": ["model.setting=released"], "best": GRIDS["mhcr@tiktok-given"][0]}
METRIC = "recall@20"


def history(setting: str, epochs: int, threads: int) -> pl.DataFrame:
    """``epoch``, training ``seconds`` and validation recall, wherever it was looked at."""
    overrides = [
        *("training.selection=valid", "training.refit=false", f"training.metric={METRIC}"),
        *(f"training.epochs={epochs}", f"training.patience={epochs}", "training.eval_every=2"),
        *(f"training.threads={threads}", *SETTINGS[setting]),
    ]
    config = build_config(model="mhcr", overrides=overrides)
    out = ROOT / "runs" / "mhcr-quality" / f"{setting}-{epochs}"
    data = read_dataset(DATA / "tiktok")
    training.train(data, config, out, resume=out.exists(), emit=told)
    rows = [row for row in load_run(out).metrics if row.get(METRIC) is not None]
    return pl.DataFrame(rows, infer_schema_length=None).select("epoch", "seconds", METRIC)


def told(name: str, **facts: Any) -> None:
    """One line an epoch that was judged."""
    if name == "epoch" and facts.get(METRIC) is not None:
        print(f"  epoch {facts['epoch']} {facts[METRIC]:.4f} {facts['seconds']:.0f} s", flush=True)


def main() -> None:
    """Train both, publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = {name: history(name, options.epochs, options.threads) for name in SETTINGS}
    mark = found["released"][METRIC].max()
    rows = []
    for name, table in found.items():
        top = table.sort(METRIC, descending=True, maintain_order=True).row(0, named=True)
        there = table.filter(pl.col(METRIC) >= mark)
        rows.append(
            [
                name,
                f"{table['seconds'].max() / table['epoch'].max():.2f}",
                f"{top[METRIC]:.4f}",
                f"{top['epoch']}, {top['seconds']:.0f} s",
                f"{there['epoch'][0]}, {there['seconds'][0]:.0f} s" if len(there) else "never",
            ]
        )
    publish(
        "speed",
        "mhcr_quality",
        "MHCR on TikTok, the given split: validation Recall@20 by training time",
        [
            "setting",
            "s an epoch",
            "best on validation",
            "at epoch, after",
            "the best of released, at epoch, after",
        ],
        rows,
        f"{options.epochs} epochs of both (the authors train for up to 1,000). Training seconds leave out evaluation. "
        "Of best, clicked items are ranked by two LightGCN layers and others by content.",
    )


if __name__ == "__main__":
    main()
