"""Run the jobs behind RESULTS.md; every one resumes where it was cut.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py gowalla-mf-adap-tau [more jobs] [--seeds 0,1,2] [--threads 2]
    python benchmarks/render_results.py            # writes RESULTS.md from results/

With several seeds, ``--length-of-seed 0`` searches with that seed alone: where its validation chose the end of the
schedule, the others train to the end, which is one training in place of two. ``--no-search`` trains to the end without
looking at any validation part: for long jobs whose sibling on the same schedule was found to be best at its end.

A job is a shipped recipe on a data set, with one search on a validation carve-out and a refit on all training
pairs that also watches the test set, labelled (``selected_on_test``). Run folders go to ``runs/``; the JSON that
is committed goes to ``results/quality/``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import DATA

from firstlight.core.files import read_json, write_json
from firstlight.data.formats import read_dataset
from firstlight.training.config import build_config
from firstlight.training.run import train
from firstlight.training.run_folder import environment

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"gowalla": "gowalla", "movielens": "movielens-adaptau"}
METHODS: dict[str, dict[str, Any]] = {
    # As published by others: inner products, one uniform negative a pair, l2.
    "bpr": {
        "loss": "bpr",
        "temperature": "fixed:1",
        "negatives": "uniform",
        "overrides": [
            "negatives.count=1",
            "model.normalise=none",
            "model.user_dropout=0",
            "model.init=xavier",
            "model.init_norm=null",
            "model.l2=1e-4",
            "training.batch=pairs",
            "training.batch_size=2048",
            "training.epochs=60",
            "training.eval_every=5",
        ],
    },
    "fixed-tau": {"loss": "softmax", "temperature": "fixed"},
    "learned-tau": {"loss": "softmax", "temperature": "learned"},
    "learned-user-tau": {"loss": "softmax", "temperature": "learned-user"},
    "bsl": {"loss": "bsl", "temperature": "fixed"},
    "adap-tau0": {"loss": "adap-tau0"},
    "adap-tau": {"loss": "adap-tau"},
    "best": {},
}

#: What BPR needs beside its settings above: a propagation a step costs what it costs, so an epoch of LightGCN takes
#: larger batches where the others take users, or fewer epochs.
BPR = {
    "gowalla-lightgcn": ["training.epochs=30", "training.eval_every=3"],
    "movielens-lightgcn": ["training.batch_size=8192", "training.epochs=80", "training.eval_every=8"],
}

#: A learned temperature needs the positive among its alternatives (against all items it is there anyway): without it
#: the loss has no lower bound, and τ falls to its least.
BOUNDED = "loss.positive_in_denominator=true"


def jobs() -> dict[str, dict[str, Any]]:
    """Every job by name: which data, which recipe, what is laid over it."""
    table = {}
    for data in FOLDERS:
        for model in ("mf", "lightgcn"):
            for method, parts in METHODS.items():
                recipe = f"{data}-{model}"
                # A method's own settings stand in a recipe of its own where it has one.
                own = ROOT / "src" / "firstlight" / "recipes" / f"{recipe}-{method}.yaml"
                chosen = own.stem if own.exists() else recipe
                if method == "best" and not own.exists():
                    continue
                if method == "bpr" and recipe in BPR:
                    parts = {**parts, "overrides": [*parts["overrides"], *BPR[recipe]]}
                if method == "adap-tau0" and data == "movielens":
                    parts = {**parts, "overrides": ["temperature.form=held-out"]}  # chosen on validation
                if method.startswith("learned") and data == "gowalla":
                    parts = {**parts, "overrides": [BOUNDED]}
                table[f"{recipe}-{method}"] = {
                    "data": data,
                    "recipe": chosen,
                    "parts": {} if own.exists() else parts,
                }
        for model in ("popularity", "item-knn"):
            table[f"{data}-{model}"] = {"data": data, "recipe": None, "parts": {"model": model}}
    return table


def git(*words: str) -> str:
    """What git prints."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def say(name: str, /, **values: Any) -> None:
    """One line an evaluation."""
    if name == "epoch" and "metric_value" in values:
        facts = f"{values['phase']} {values['epoch']}/{values['epochs']} loss {values['loss']:.4f}"
        print(
            f"  {facts} τ {values['tau_mean']:.4f} recall@20 {values['recall@20']:.4f} {values['seconds']:.0f} s"
        )
        sys.stdout.flush()


def known_length(name: str, seed: int) -> list[str]:
    """Settings that train to the end of the schedule, without a search.

    Only where an earlier seed's validation chose that end (an epoch in the last tenth).
    """
    record = read_json(ROOT / "results" / "quality" / f"{name}-s{seed}.json")
    found, allowed = record["result"]["found"]["epochs"], record["result"]["config"]["training"]["epochs"]
    if found < 0.9 * allowed:
        raise SystemExit(f"{name}: seed {seed} found {found} of {allowed} epochs; search every seed instead")
    return ["training.selection=none", f"training.epochs={allowed}"]


def run(name: str, job: dict[str, Any], seed: int, options: argparse.Namespace) -> None:
    """Run or resume one job and write its JSON."""
    length_of, threads = options.length_of_seed, options.threads
    changes = [f"training.threads={threads}", "training.track_test=true", *options.overrides]
    how = ""
    if options.no_search:
        how = " --no-search"
        changes += ["training.selection=none"]
    elif length_of is not None and length_of != seed:
        how = f" --length-of-seed {length_of}"
        changes += known_length(name, length_of)
    parts = {**job["parts"], "overrides": [*job["parts"].get("overrides", []), *changes]}
    config = build_config(recipe=job["recipe"], seed=seed, **parts)
    out = ROOT / "runs" / f"{name}-s{seed}"
    target = ROOT / "results" / "quality" / f"{name}-s{seed}.json"
    if target.exists() and (out / "result.json").exists():
        print(f"{name} seed {seed} is done: {target}")
        return
    started = time.perf_counter()
    resume = out.exists()
    dataset = read_dataset(DATA / FOLDERS[job["data"]])
    result = train(dataset, config, out, resume=resume, emit=say)
    record = {
        "job": name,
        "command": f"python benchmarks/reproduce.py {name} --seeds {seed} --threads {threads}{how}",
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "src")),
        "seed": seed,
        "machine": environment(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "result": result,
    }
    write_json(target, record)
    found, metrics = result["found"], result["metrics"]
    print(
        f"{name} seed {seed}: {metrics['recall@20']:.4f}/{metrics['ndcg@20']:.4f} at epoch {found['epochs']}",
        end="",
    )
    leaky = found.get("selected_on_test", {}).get("metrics")
    print(f"; on test {leaky['recall@20']:.4f}/{leaky['ndcg@20']:.4f}" if leaky else "", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--length-of-seed", type=int, help="train other seeds for what this one's search found"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="train to the end of the schedule, no validation part"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    known = jobs()
    if options.list or not options.jobs:
        print("\n".join(known))
        return
    for name in options.jobs:
        if name not in known:
            parser.error(f"no job {name!r}; --list shows them")
        for seed in options.seeds.split(","):
            run(name, known[name], int(seed), options)


if __name__ == "__main__":
    main()
