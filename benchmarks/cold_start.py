"""Run the jobs behind the cold-start tables; every one resumes where it was cut.

    python benchmarks/cold_start.py --list
    python benchmarks/cold_start.py [--models mhcr,tower+sentence] [--data tiktok]
                                    [--protocols cold-items,given,new-users] [--seeds 0,1,2] [--threads 2]
                                    [--set training.epochs=5]
    python benchmarks/render_results.py

A job is (data, protocol, model, seed). Each candidate of the model's grid is trained on the training part with its
length found on validation; the best candidate *on validation* is then judged on test, once. The test part is not even
handed to training. Every model has the same budget: at most BUDGET candidates of at most EPOCHS epochs (on
tiktok, LONGER). What a candidate is chosen by:

* ``cold-items``: a fifth of the items has no training click (half of those validates, half tests); models that read
  content by the harmonic mean of Recall@20 on warm targets among warm items and on cold targets among cold items (no
  offset between the two plays a part), others by the former alone. So is the number of epochs.
* ``given``: the split that came with the data; Recall@20 of all targets among all items.
* ``new-users``: as ``cold-items``, with a tenth of the users unknown to training; candidate and settings are those
  that the job of ``cold-items`` chose.

``MODEL+sentence`` reads texts with a sentence encoder, too, whose folder is ``runs/sentence-encoder`` (measured with
all-MiniLM-L6-v2). In the whole pool one additive offset on cold scores is fitted on validation, for every model alike;
numbers without it stand beside (``raw``). Run folders go to ``runs/cold/``; the JSON that is committed goes to
``results/cold/``.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cold_grids
import numpy as np
import numpy.typing as npt
import torch
from cold_grids import BUDGET, EPOCHS, LONGER, bare, candidates
from machine import DATA

from firstlight.cli.output import plain
from firstlight.core.errors import DivergenceError, InputError
from firstlight.core.files import read_json, write_json
from firstlight.core.hashing import hash_strings
from firstlight.core.seeds import numpy_stream
from firstlight.data.dataset import Dataset
from firstlight.data.formats import read_dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.evaluation.cold import (
    CalibratedScorer,
    ColdReport,
    cold_protocols,
    fit_offset,
    harmonic_mean,
    known_clicks_protocol,
    offset_curve,
    oracle_offset,
)
from firstlight.models import MODELS
from firstlight.training import run as training
from firstlight.training.config import RunConfig, build_config
from firstlight.training.content import Content, fit_content
from firstlight.training.run_folder import Run, environment, load_run

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "cold", ROOT / "results" / "cold"

FOLDERS = {"movielens-small": "movielens-small", "movielens-1m": "movielens-1m", "tiktok": "tiktok"}
PROTOCOLS = {"cold-items": tuple(FOLDERS), "given": ("tiktok",), "new-users": tuple(FOLDERS)}
KS = (10, 20, 50)
K = 20
#: Protocols that are compared user by user, beside the raw ranking of everything.
PAIRED = ("warm/warm", "warm/all", "cold/cold", "cold/all")
COUNTS = (1, 2, 5, 10)

COMMON = [
    f"training.epochs={EPOCHS}",
    "training.selection=valid",
    "training.refit=false",
    "training.eval_every=2",
    "training.patience=3",
]


def job_name(data: str, protocol: str, model: str, seed: int) -> str:
    """Stem of the job's JSON and name of its folder."""
    middle = "" if protocol == "cold-items" else f"-{protocol}"
    return f"{data}{middle}-{model}-s{seed}"


@cache
def _whole(data: str) -> Dataset:
    return read_dataset(DATA / FOLDERS[data])


_fitted: dict[str, Content | None] = {}


def fit_content_once(config: RunConfig, dataset: Dataset, log: Interactions) -> Content | None:
    """``fit_content``, kept for the next candidate and model that want the same views of the same items."""
    warm = log.item_degrees > 0
    parts = [config.views.model_dump_json(), str(config.seed), dataset.source, str(dataset.n_items)]
    reads = MODELS.load(config.model.name).needs_views
    key = hash_strings([*parts, str(reads), np.packbits(warm).tobytes().hex()])
    if key not in _fitted:
        while len(_fitted) > 4:  # a few settings of one data set; no more than that in memory
            _fitted.pop(next(iter(_fitted)))
        _fitted[key] = fit_content(config, dataset, log)
    return _fitted[key]


def load_data(data: str, protocol: str, seed: int) -> tuple[Dataset, Interactions | None]:
    """The split dataset, and for ``new-users`` the training clicks of users that training does not see."""
    dataset = _whole(data)
    if protocol == "given":
        return dataset, None
    dataset = split_dataset(
        dataset, SplitOptions(by="cold-items", seed=seed, valid_share=0.1, test_share=0.1)
    )
    return _without_users(dataset, seed) if protocol == "new-users" else (dataset, None)


def _without_users(dataset: Dataset, seed: int) -> tuple[Dataset, Interactions]:
    """Take every click of a tenth of the users with enough training clicks; they keep their rows."""
    able = np.flatnonzero(dataset.train.user_degrees > max(COUNTS))
    if len(able) < 10:
        raise InputError(f"only {len(able)} users have more than {max(COUNTS)} training clicks")
    drawn = np.zeros(dataset.n_users, np.bool_)
    drawn[numpy_stream(seed, "new-users").choice(able, max(1, len(able) // 10), replace=False)] = True
    kept = {name: part.select(~drawn[part.users]) for name, part in dataset.parts.items()}
    return replace(dataset, **kept), dataset.train.select(drawn[dataset.train.users])


def _existing(dataset: Dataset, without: str) -> npt.NDArray[np.bool_]:
    """``(n_items,)``: every item but those that are cold for the other part's sake."""
    items = dataset.catalogue.items
    if "role" not in items.columns:
        return np.ones(dataset.n_items, np.bool_)
    return (items["role"] != without).to_numpy()


def train_candidate(
    dataset: Dataset,
    model: str,
    settings: list[str],
    seed: int,
    folder: Path,
    threads: int,
    changes: list[str],
) -> Run:
    """Train, or go on with, one candidate; the test part stays out of reach."""
    metric = "recall@20"
    if dataset.split is not None and dataset.split.name == "cold-items":
        metric = "harmonic-recall@20" if MODELS.load(bare(model)).needs_views else "warm-recall@20"
    overrides = [*COMMON, f"training.metric={metric}", *settings, f"training.threads={threads}", *changes]
    config = build_config(model=bare(model), overrides=overrides, seed=seed)
    trainable = MODELS.load(bare(model)).trainable
    # A model without training would take validation for its log, and be judged on what it knows.
    known = replace(dataset, test=None) if trainable else replace(dataset, valid=None, test=None)
    out = folder / hash_strings([*settings, *changes])[:10]
    training.train(known, config, out, resume=out.exists())
    return load_run(out)


def judge_candidate(run: Run, dataset: Dataset, protocol: str) -> dict[str, float]:
    """Validation numbers of one candidate, with ``score``: what it is chosen by."""
    assert dataset.valid is not None
    cold = dataset.train.item_degrees == 0
    pool = _existing(dataset, "cold-test")
    report = cold_protocols(run.scorer, dataset.valid, [dataset.train], cold, (K,), pool=pool)
    values = {name: found.metrics[f"recall@{K}"] for name, found in report.protocols.items()}
    warm, alone = values.get("warm/warm", 0.0), values.get("cold/cold", 0.0)
    reads = MODELS.load(run.config.model.name).needs_views
    score = values["all/all"] if protocol == "given" else float(harmonic_mean(warm, alone)) if reads else warm
    return {"score": score, **values}


def tune(
    dataset: Dataset, protocol: str, model: str, settings: list[list[str]], seed: int, folder: Path,
    threads: int, changes: list[str],
) -> tuple[list[dict[str, Any]], int, Run]:  # fmt: skip
    """Train every candidate; what each reached, the place of the best on validation, and its run."""
    trials: list[dict[str, Any]] = []
    best: tuple[float, int, Run] | None = None
    for place, chosen in enumerate(settings):
        started = time.perf_counter()
        trial: dict[str, Any] = {"settings": chosen}
        try:
            run = train_candidate(dataset, model, chosen, seed, folder, threads, changes)
        except DivergenceError as error:
            trials.append({**trial, "diverged": str(error).splitlines()[0]})
            continue
        valid = judge_candidate(run, dataset, protocol)
        found = run.result["found"]
        seconds = round(max(time.perf_counter() - started, run.result["seconds"]["total"]), 1)
        trials.append({**trial, "epochs": found.get("epochs"), "valid": valid, "seconds": seconds})
        print(
            f"  {place + 1}/{len(settings)} {valid['score']:.4f} {' '.join(chosen)} {seconds:.0f} s",
            flush=True,
        )
        if best is None or valid["score"] > best[0]:
            best = valid["score"], place, run
    if best is None:
        raise DivergenceError(f"every candidate of {model} blew up")
    return trials, best[1], best[2]


def judge_test(run: Run, dataset: Dataset) -> tuple[dict[str, Any], ColdReport]:
    """Test numbers with and without the offset that validation asks for, the offset's curve, and the oracle.

    Also the report without the offset.
    """
    train_log, valid, test = dataset.train, dataset.valid, dataset.test
    assert valid is not None
    assert test is not None
    degrees = train_log.item_degrees
    cold, pool, seen = degrees == 0, _existing(dataset, "cold-valid"), [train_log, valid]
    fitted = fit_offset(run.scorer, valid, [train_log], cold, K, pool=_existing(dataset, "cold-test"))
    scorer = CalibratedScorer(run.scorer, cold, fitted.scale, fitted.offset)
    raw, calibrated = (
        cold_protocols(s, test, seen, cold, KS, popularity=degrees, pool=pool) for s in (run.scorer, scorer)
    )
    oracle = oracle_offset(scorer, test, seen, cold, K, pool=pool)
    curve = offset_curve(scorer, test, seen, cold, None, K, pool=pool)
    reached = calibrated.harmonic.get(f"recall@{K}")
    return {
        "items": {"warm": raw.n_warm, "cold": raw.n_cold},
        "calibration": vars(fitted),
        "raw": summary(raw),
        "calibrated": summary(calibrated),
        "oracle": {
            **vars(oracle),
            "share": reached / oracle.harmonic if reached and oracle.harmonic > 0 else None,
        },
        "curve": {
            name: np.round(getattr(curve, name)[::4], 6).tolist()
            for name in ("offsets", "warm", "cold", "harmonic")
        },
        # Reachable without the offset: one ranking as the model made it. The rest is what tests pair over.
        "hits": {"all/all": hits(raw)["all/all"]}
        | {name: hits(calibrated)[name] for name in PAIRED if name in raw.pairs},
    }, raw


def summary(report: ColdReport) -> dict[str, Any]:
    """Means and intervals of recall and NDCG, and the groups."""
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in KS]
    rows = {
        protocol: {
            "users": found.n_users,
            "pairs": report.pairs[protocol],
            "metrics": {name: round(found.metrics[name], 6) for name in names},
            "intervals": {name: np.round(found.intervals[name], 6).tolist() for name in names},
        }
        for protocol, found in report.protocols.items()
    }
    groups = [] if report.groups is None else report.groups.to_dicts()
    harmonic = {"metrics": report.harmonic, "intervals": report.harmonic_intervals}
    return {"protocols": rows, "harmonic": harmonic, "groups": groups}


def hits(report: ColdReport) -> dict[str, str]:
    """Protocol → targets among the first K of each user, one base-36 digit each: short, and exact."""
    out = {}
    for protocol, found in report.protocols.items():
        table = found.per_user
        counts = np.rint(table[f"recall@{K}"].to_numpy() * table["n_targets"].to_numpy()).astype(int)
        out[protocol] = "".join(np.base_repr(count, 36) for count in counts)
    return out


def test_users(report: ColdReport) -> dict[str, dict[str, str]]:
    """Protocol → rows of its users and their numbers of targets, the same for every model."""
    return {
        protocol: {
            "users": " ".join(map(str, found.per_user["user"])),
            "targets": " ".join(map(str, found.per_user["n_targets"])),
        }
        for protocol, found in report.protocols.items()
    }


def users_name(data: str, protocol: str, seed: int) -> str:
    """Stem of the file of test users."""
    return f"{data}-{protocol}-s{seed}"


def judge_new_users(run: Run, histories: Interactions, seed: int) -> dict[str, Any] | None:
    """Recall by number of known clicks among warm items; None for a model that cannot encode new users."""
    active = np.flatnonzero(histories.user_degrees)
    pairs = np.searchsorted(active, histories.users), histories.items
    log = Interactions.from_pairs(*pairs, len(active), histories.n_items)
    model = run.model
    vectors = run.scorer.vectors()
    if run.config.model.name == "popularity":
        items = torch.from_numpy(run.seen.item_degrees.astype(np.float32))[:, None]
        encode = lambda known: torch.ones(known.n_users, 1)  # noqa: E731
    elif hasattr(model, "encode_users") and vectors is not None:
        items, encode = vectors[1], model.encode_users
    else:
        return None
    pool = run.seen.item_degrees > 0
    found = known_clicks_protocol(encode, items, log, KS, COUNTS, pool=pool, seed=seed)
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in KS]
    return {
        str(count): {
            "users": evaluation.n_users,
            "metrics": {name: round(evaluation.metrics[name], 6) for name in names},
            "intervals": {name: np.round(evaluation.intervals[name], 6).tolist() for name in names},
        }
        for count, evaluation in found.items()
    }


def run_job(data: str, protocol: str, model: str, seed: int, threads: int, changes: list[str]) -> None:
    """Run or resume one job and write its JSON."""
    name = job_name(data, protocol, model, seed)
    target, folder = RESULTS / f"{name}.json", RUNS / name
    if target.exists():
        print(f"{name} is done: {target}")
        return
    print(name, flush=True)
    started = time.perf_counter()
    dataset, histories = load_data(data, protocol, seed)
    settings = candidates(model, data, protocol)
    if protocol == "new-users":
        settings = [chosen_settings(data, model, seed) or settings[0]]
    trials, chosen, run = tune(dataset, protocol, model, settings, seed, folder, threads, changes)
    outcome: dict[str, Any] = {}
    if histories is None:
        outcome, raw = judge_test(run, dataset)
        write_json(RESULTS / "users" / f"{users_name(data, protocol, seed)}.json", test_users(raw))
    else:
        outcome["known_clicks"] = judge_new_users(run, histories, seed)
    words = [
        "--models",
        model,
        "--data",
        data,
        "--protocols",
        protocol,
        "--seeds",
        seed,
        "--threads",
        threads,
    ]
    words += [word for change in changes for word in ("--set", change)]
    record = {
        "job": name,
        **{"data": data, "protocol": protocol, "model": model, "seed": seed},
        "command": " ".join(map(str, ["python benchmarks/cold_start.py", *words])),
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "src")),
        "machine": environment(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "budget": {"candidates": BUDGET, "epochs": LONGER.get(data, EPOCHS), "common": COMMON},
        "split": vars(dataset.split) if dataset.split else None,
        "trials": trials,
        "chosen": chosen,
        "config": run.config.model_dump(mode="json"),
        **outcome,
    }
    write_json(target, plain(record))
    for other in folder.iterdir():  # the losers' tensors are not needed again
        if other != run.path:
            shutil.rmtree(other)
    say(record)


def chosen_settings(data: str, model: str, seed: int) -> list[str] | None:
    """The settings that the job of ``cold-items`` chose, if it is done."""
    path = RESULTS / f"{job_name(data, 'cold-items', model, seed)}.json"
    if not path.exists():
        return None
    record = read_json(path)
    settings: list[str] = record["trials"][record["chosen"]]["settings"]
    return settings


def say(record: dict[str, Any]) -> None:
    """The job's numbers in one line."""
    if "calibrated" not in record:
        found = record["known_clicks"]
        values = found and {count: row["metrics"][f"recall@{K}"] for count, row in found.items()}
    else:
        rows = record["raw" if record["protocol"] == "given" else "calibrated"]["protocols"]
        values = {name: row["metrics"][f"recall@{K}"] for name, row in rows.items()}
        values |= {"harmonic": record["calibrated"]["harmonic"]["metrics"].get(f"recall@{K}")}
        values |= {"of the oracle": record["oracle"]["share"]}
    text = ", ".join(f"{key} {value:.4f}" for key, value in (values or {}).items() if value is not None)
    print(f"  {record['job']}: {text or 'nothing to report'} ({record['wall_seconds']:.0f} s)", flush=True)


def git(*words: str) -> str:
    """What git prints."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [name for name in cold_grids.GRIDS if "@" not in name]
    read = [name for name in models if MODELS.load(name).needs_views]
    parser.add_argument("--list", action="store_true", help="print the jobs and how many candidates each has")
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--data", default=",".join(FOLDERS))
    parser.add_argument("--protocols", default="cold-items,given")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], help="laid over every candidate"
    )
    options = parser.parse_args(arguments)
    wanted = {name: getattr(options, name).split(",") for name in ("models", "data", "protocols")}
    variants = [*models, *(f"{name}+sentence" for name in read)]
    for kind, known in (("models", variants), ("data", FOLDERS), ("protocols", PROTOCOLS)):
        for name in wanted[kind]:
            if name not in known:
                parser.error(f"--{kind}: {name!r} is not one of {', '.join(known)}")
    training.fit_content = fit_content_once  # type: ignore[attr-defined]
    # Seeds outermost: a first table of everything is there after a third of the time.
    for seed in map(int, options.seeds.split(",")):
        for protocol, data, model in itertools.product(
            *(wanted[key] for key in ("protocols", "data", "models"))
        ):
            if data not in PROTOCOLS[protocol]:
                continue
            if options.list:
                done = (
                    " (done)" if (RESULTS / f"{job_name(data, protocol, model, seed)}.json").exists() else ""
                )
                print(
                    f"{job_name(data, protocol, model, seed)}: "
                    f"{len(candidates(model, data, protocol))} candidates{done}"
                )
                continue
            try:
                run_job(data, protocol, model, seed, options.threads, options.changes)
            except InputError as error:
                print(f"  skipped: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
