"""Do covers through an encoder help the recommender? Colour statistics, a random ViT, an MAE, and the MAE refined.

    python benchmarks/cover_views.py --encoders [--threads 2]     # pre-train on the posters, refine; long, resumable
    python benchmarks/cover_views.py --embed [--data movielens-small,movielens-1m]
    python benchmarks/cover_views.py [--data movielens-small] [--models content-knn,tower,mhcr] [--seeds 0,1,2]
    python benchmarks/cover_views.py --table
    python benchmarks/render_results.py

The encoders see the 9,517 posters of movielens-small (64 × 96 px) and nothing else: no label, no click; one beside them
has seen the photographs of imagenette64 in their place (``refined-mean-12`` of ``refined_encoders.py``). Both data sets
use the same encoders. Then the item-cold protocol of ``cold_start.py`` with the same splits, each view of the covers
alone and beside the text (title, genres, plot, tags), and the text alone: content k-NN, which shows the bare view, and
the tower and MHCR, which learn what to make of it. Every view gets the same settings; epochs are found on validation.
The JSON of each job goes to ``results/covers/``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import cold_start
from cold_grids import GRIDS
from machine import DATA, ROOT, provenance, publish
from refined_encoders import SIZES, firstlight, settings
from render_cold import difference, recall
from tables import load, spread

from firstlight.cli.output import plain
from firstlight.core.files import write_json
from firstlight.core.seeds import torch_stream
from firstlight.data.folder import write_dataset
from firstlight.data.formats import read_dataset
from firstlight.training import run as training
from firstlight.vision.encoder_file import load_encoder, save_encoder
from firstlight.vision.vit import ViT

POSTERS = DATA / "movielens-small" / "items.parquet"
ENCODERS = ROOT / "runs" / "encoders" / "posters"
COLUMNS = ("--image-column", "poster_jpeg", "--id-column", "movieId")
RESULTS = ROOT / "results" / "covers"
#: Views of the covers by what the table calls them: ``cover`` is the core's view, the others are features.
COVERS = {
    "colour statistics": "cover",
    "random ViT": "random-mean",
    "MAE": "mae-mean",
    "MAE refined": "refined-mean",
    "MAE of imagenette64, refined": "imagenette-mean",
}
#: Encoders by the first part of a feature's name.
FOLDERS = {name: ENCODERS / name for name in ("random", "mae", "refined")}
FOLDERS["imagenette"] = ROOT / "runs" / "encoders" / "imagenette64-long-s0" / "refined-mean-12"
#: Settings of each model, the same for every view.
MODELS: dict[str, list[str]] = {
    "content-knn": [],
    "tower": [*GRIDS["tower"][0], "temperature.tau=0.2"],
    "mhcr": [*GRIDS["mhcr"][0], "model.content_joins=false", "model.layers=2"],
}


def train_encoders(threads: int) -> None:
    """Pre-train on the posters and refine; both go on where they were cut. Beside them, one that learned nothing."""
    changes = SIZES["long"]
    common = [POSTERS, *COLUMNS, "--threads", threads, "--resume"]
    mae, refined = ENCODERS / "mae", ENCODERS / "refined"
    firstlight(
        "pretrain", *common, "--out", mae, "--recipe", "pretrain-small", *settings(changes["pretrain"])
    )
    known = load_encoder(mae)
    start = ViT(known.vit.config, torch_stream(0, "encoder"))
    save_encoder(ENCODERS / "random", replace(known, vit=start, history=[]))
    firstlight(
        "refine", *common, "--out", refined, "--encoder", mae, "--recipe", "refine-small",
        *settings([*changes["refine"], "refiner.pooling=mean"])
    )  # fmt: skip


def folder_of(data: str) -> Path:
    """The data set as a folder that takes features."""
    return ROOT / "runs" / "covers" / data


def embed(data: str, threads: int) -> None:
    """Run the covers through each encoder there is."""
    folder = folder_of(data)
    if not folder.exists():
        write_dataset(read_dataset(DATA / data), folder)
    height, width = load_encoder(ENCODERS / "mae").vit.config.image_size
    for name, tokens in itertools.product(FOLDERS, ("class", "mean")):
        view = name if tokens == "class" else f"{name}-mean"
        if view not in COVERS.values() or not (FOLDERS[name] / "encoder.json").exists():
            continue
        words = ["--encoder", FOLDERS[name], "--out", folder, "--name", view, "--tokens", tokens]
        words += ["--image-size", f"{height},{width}"]
        firstlight("embed", folder, *words, "--threads", threads)


def views_of(label: str, beside_text: bool) -> list[str]:
    """Names of the views; an empty label is the text alone."""
    return [*([COVERS[label]] if label else []), *(["text"] if beside_text or not label else [])]


def run_job(data: str, model: str, label: str, beside_text: bool, seed: int, threads: int) -> None:
    """Run one job and write its JSON."""
    views = views_of(label, beside_text)
    name = f"{data}-{model}-{'+'.join(views)}-s{seed}"
    target = RESULTS / f"{name}.json"
    folder = folder_of(data)
    if target.exists():
        return
    dataset = cold_start.split_dataset(
        read_dataset(folder),
        cold_start.SplitOptions(by="cold-items", seed=seed, valid_share=0.1, test_share=0.1),
    )
    if not set(views) <= {"text", "cover", *dataset.catalogue.features}:
        print(f"{name}: no such feature yet")
        return
    started = time.perf_counter()
    chosen = [*MODELS[model], f"views.use=[{','.join(views)}]"]
    trials, _, run = cold_start.tune(
        dataset, "cold-items", model, [chosen], seed, ROOT / "runs" / "covers" / "runs" / name, threads, []
    )
    outcome, raw = cold_start.judge_test(run, dataset)
    users = cold_start.RESULTS / "users" / f"{cold_start.users_name(data, 'cold-items', seed)}.json"
    if not users.exists():
        write_json(users, cold_start.test_users(raw))
    record = {
        "job": name,
        **{"data": data, "protocol": "cold-items", "model": model, "seed": seed},
        **{"label": label, "beside_text": beside_text, "views": views},
        **provenance(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "trials": trials,
        **{key: outcome[key] for key in ("items", "calibrated", "hits")},
    }
    write_json(target, plain(record))
    print(f"{name}: cold in cold {recall(record, 'cold/cold'):.4f} ({record['wall_seconds']} s)", flush=True)


def tables() -> None:
    """One table a data set and model."""
    groups: dict[tuple[str, str], dict[tuple[str, bool], dict[int, Any]]] = {}
    for record in load("covers"):
        found = groups.setdefault((record["data"], record["model"]), {})
        found.setdefault((record["label"], record["beside_text"]), {})[record["seed"]] = record
    for (data, model), found in groups.items():
        rows = []
        for label, beside in itertools.product(["", *COVERS], (False, True)):
            records = found.get((label, beside))
            if not records:
                continue
            against = found.get(("colour statistics", beside)) if label else None
            rows.append(
                [
                    label or "none",
                    "text alone" if not label else "beside the text" if beside else "alone",
                    *(
                        spread([recall(r, protocol) for r in records.values()])
                        for protocol in ("cold/cold", "cold/all", "warm/warm")
                    ),
                    compared(against, records) if label and label != "colour statistics" else "–",
                    compared(found.get(("", False)), records) if beside and label else "–",
                    compared(found.get(("MAE", beside)), records) if "refined" in label else "–",
                    str(len(records)),
                ]
            )
        publish(
            "vision",
            f"covers-{data}-{model}",
            f"Covers in {model}, {data}, items without clicks",
            [
                *("view of the covers", "how", "cold in cold", "cold in all", "warm in warm"),
                *("against colour statistics", "against the text alone", "against the MAE", "seeds"),
            ],
            rows,
            "Recall@20 on test, mean ± standard deviation over seeds, each with a split of its own. Differences of "
            "cold in cold with 95 % intervals, paired over users (a user's values are averaged over seeds), and p, not "
            "corrected for the number of comparisons. One training of each encoder; they saw the posters alone, but "
            "for the one whose name says otherwise.",
        )


def compared(before: Mapping[int, Any] | None, after: Mapping[int, Any]) -> str:
    """Difference, interval and p, over the seeds that both have."""
    shared = set(before or {}) & set(after)
    if before is None or not shared:
        return "–"
    test = difference(
        {seed: before[seed] for seed in shared}, {seed: after[seed] for seed in shared}, "cold/cold"
    )
    low, high = test.interval
    share = mean(recall(after[s], "cold/cold") for s in shared) / mean(
        recall(before[s], "cold/cold") for s in shared
    )
    return f"{test.difference:+.4f} [{low:+.4f}, {high:+.4f}], {share - 1:+.0%}, p {max(test.p, 1e-99):.1g}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", action="store_true")
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data", default="movielens-small,movielens-1m")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument(
        "--views", default=";".join(COVERS), help="labels of the table, a semicolon between two"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    names = options.data.split(",")
    if options.encoders:
        train_encoders(options.threads)
    elif options.embed:
        for data in names:
            embed(data, options.threads)
    elif options.table:
        tables()
    else:
        training.fit_content = cold_start.fit_content_once  # type: ignore[attr-defined]
        labels = [label for label in COVERS if label in options.views.split(";")]
        for seed, data, model in itertools.product(
            map(int, options.seeds.split(",")), names, options.models.split(",")
        ):
            run_job(data, model, "", False, seed, options.threads)
            for label, beside in itertools.product(labels, (False, True)):
                run_job(data, model, label, beside, seed, options.threads)


if __name__ == "__main__":
    main()
