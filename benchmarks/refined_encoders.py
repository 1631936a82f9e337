"""Does refinement help on real images, and is it refinement that helps? One MAE a seed, shared by all arms.

    python benchmarks/refined_encoders.py --size small --seed 0 [--arms refined,longer,random] [--threads 2]
    python benchmarks/refined_encoders.py --size small --seed 0 --measure    # probe what is there, write the table
    python benchmarks/refined_encoders.py --size small --summary             # over the seeds that were measured
    python benchmarks/refined_encoders.py --size small --picture depth.png --arms mae,refined   # of what was measured
    python benchmarks/render_results.py

Sizes: ``small`` (1.6 M parameters, an hour on one core), ``recipe`` (the shipped recipes as they are), ``long`` (their
encoder of 5.4 M parameters; 300 epochs of pre-training on a GPU, a short refinement that a core does in half an hour),
``wide`` (ViT-S, 21 M parameters, both long, for a GPU) and ``cifar10`` (.9 M parameters, an hour on one core).

Every arm is a command of the package that resumes where it was cut, in ``runs/encoders/``:

* ``mae``: pre-training;
* ``refined``: MIM-Refiner from it; ``refined-mean``: with heads that read the mean of the patches;
  ``refined-mean-12``: the same over twelve epochs; ``refined-mean-twice``: that one refined once more in
  the same way, with new heads;
* ``longer``: from it, as many further updates of pre-training as refinement makes in both stages; ``longer-12``: as
  many as ``refined-mean-12`` makes. Where the pre-training's checkpoint is not at hand, the decoder learns
  anew: for as many epochs before, on an encoder that stands still;
* ``random``: refinement of an encoder that has learned nothing;
* ``single``: refinement with one head, at the end; ``swap-all``: neighbours in the whole row (NNCLR);
  ``infonce``: no neighbours; ``…-mean``: each of these with heads that read the mean of the patches.

Images are imagenette64 (9,469 to train on, labels unused; 3,925 queries) or, at the size of that name, cifar10 (50,000;
10,000). Accepted only if the best block of ``mae``
beats raw pixels, and the last block of ``refined`` the best of ``mae``; the table says which of these hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from machine import DATA, ROOT, publish

from firstlight.reports.encoder import save_depth

_GPU = ["training.precision=bfloat16", "training.checkpoint_every=50"]
#: What each size lays over the recipes.
SIZES: dict[str, dict[str, list[str]]] = {
    "small": {
        "pretrain": [
            *(
                "encoder.dim=128",
                "encoder.depth=8",
                "encoder.heads=4",
                "mae.decoder_dim=64",
                "mae.decoder_heads=4",
            ),
            *("training.precision=bfloat16", "training.epochs=80"),
        ],
        "refine": [
            *("crops.n_local=2", "refiner.freeze_blocks=3", "heads.epochs=2", "training.epochs=4"),
            "training.precision=bfloat16",
        ],
    },
    "recipe": {"pretrain": [], "refine": []},
    "long": {
        "pretrain": ["training.epochs=300", "training.warmup_epochs=20", "training.batch_size=512", *_GPU],
        "refine": [
            *("crops.n_local=2", "refiner.freeze_blocks=6", "heads.epochs=2", "training.epochs=4"),
            "training.precision=bfloat16",
        ],
    },
}
# An hour of each on one core: the smallest size that the method's reference knows for real images.
SIZES["cifar10"] = {
    "pretrain": [
        *("encoder.dim=96", "encoder.depth=8", "encoder.heads=3", "encoder.patch_size=4"),
        *("mae.decoder_dim=64", "mae.decoder_depth=1", "mae.decoder_heads=2"),
        *("training.precision=bfloat16", "training.epochs=40", "training.warmup_epochs=4"),
    ],
    "refine": [
        *("crops.n_local=2", "refiner.freeze_blocks=3", "heads.epochs=1", "training.epochs=2"),
        *("heads.warmup_epochs=.2", "training.warmup_epochs=.4", "training.precision=bfloat16"),
    ],
}
SIZES["wide"] = {
    "pretrain": ["encoder.dim=384", "encoder.heads=6", "mae.decoder_dim=192", *SIZES["long"]["pretrain"]],
    "refine": ["heads.epochs=8", "training.epochs=24", "training.batch_size=256", *_GPU],
}
_MEAN = ["refiner.pooling=mean"]
ARMS: dict[str, list[str]] = {
    "refined": [],
    "refined-mean": _MEAN,
    "refined-mean-12": [*_MEAN, "training.epochs=12"],
    "random": ["start=random"],
    "single": ["refiner.heads=1"],
    "swap-all": ["refiner.swap=all"],
    "infonce": ["refiner.swap=none"],
}
ARMS["refined-mean-twice"] = ARMS["refined-mean-12"]
ARMS |= {f"{arm}-mean": [*ARMS[arm], *_MEAN] for arm in ("random", "single", "swap-all", "infonce")}
#: Further pre-training, and the refinement whose number of updates it has.
LONGER = {"longer": "refined", "longer-12": "refined-mean-12"}
#: Refinements that do not start at the MAE.
STARTS = {"refined-mean-twice": "refined-mean-12"}
#: The k of the table, as the paper's protocol has it.
K = 10


def firstlight(*words: object) -> None:
    """Run one command; it says what it does."""
    command = [sys.executable, "-m", "firstlight", *map(str, words)]
    print("$ firstlight", *command[1:], flush=True)
    subprocess.run(command, check=True)


def settings(changes: list[str]) -> list[str]:
    """As options of a command."""
    return [word for change in changes for word in ("--set", change)]


def corpus(size: str) -> tuple[str, str]:
    """The folder of a size's images, and the parts of bank and queries."""
    return ("cifar10", "train/test") if size == "cifar10" else ("imagenette64", "train/val")


def images(size: str) -> Path:
    """The file of a size's images."""
    return DATA / corpus(size)[0] / "images.parquet"


def name(size: str) -> str:
    """Of folders and results."""
    return {"small": "imagenette64", "cifar10": "cifar10"}.get(size, f"imagenette64-{size}")


def title(size: str) -> str:
    """The head of tables."""
    return f"Refinement on {corpus(size)[0]}" + ("" if size == "cifar10" else f", size {size}")


def epochs(changes: list[str], key: str, otherwise: int) -> int:
    """What the first ``key=…`` among the settings says, a whole number."""
    return next((int(c.partition("=")[2]) for c in changes if c.startswith(key + "=")), otherwise)


def train(arm: str, folder: Path, options: argparse.Namespace) -> None:
    """Run or resume one arm."""
    out, mae = folder / arm, folder / "mae"
    changes = SIZES[options.size]
    common = [
        images(options.size),
        "--split",
        "train",
        "--out",
        out,
        "--seed",
        options.seed,
        "--threads",
        options.threads,
    ]
    if arm == "mae":
        firstlight(
            "pretrain", *common, "--recipe", "pretrain-small", *settings(changes["pretrain"]), "--resume"
        )
    elif arm in LONGER:
        refined = [*changes["refine"], *ARMS[LONGER[arm]]][::-1]
        extra = epochs(refined, "heads.epochs", 3) + epochs(refined, "training.epochs", 6)
        batch = epochs(refined, "training.batch_size", 128)
        taken = ("encoder.", "training.epochs", "training.warmup_epochs", "training.batch_size")
        own = [c for c in changes["pretrain"] if not c.startswith(taken)]
        # Without the recipe, which names a shape: all else in it is as by default.
        start = ["--encoder", mae, "--epochs", extra]
        own += ["training.warmup_epochs=1", f"training.batch_size={batch}"]
        if not (mae / "checkpoint" / "state.safetensors").exists():
            own.append(f"predictor_epochs={extra}")
        firstlight("pretrain", *common, *start, *settings(own), "--resume")
    else:
        words = ["--encoder", folder / STARTS.get(arm, "mae"), "--recipe", "refine-small"]
        firstlight("refine", *common, *words, *settings([*changes["refine"], *ARMS[arm]]), "--resume")


def percent(accuracy: float, error: float | None = None) -> str:
    """In per cent, with one standard error."""
    return f"{100 * accuracy:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Probe every finished arm beside ``mae`` and publish the table."""
    found = probed(folder)
    known = {encoder["name"] for encoder in found["encoders"]} if found else set()
    there = [arm for arm in (*LONGER, *ARMS) if (folder / arm / "encoder.json").exists()]
    new = [arm for arm in there if arm not in known]
    if new or not found:
        # ``mae`` once more each time: tests are paired with it, query by query.
        words = [*(folder / arm for arm in ("mae", *new)), images(options.size)]
        words += ["--split", corpus(options.size)[1], "--out", folder / f"probe{len(known) or ''}"]
        words += [] if known else ["--random-control"]
        firstlight("probe", *words, "--threads", options.threads, "--seed", options.seed)
        found = probed(folder)
    pixels = next(row for row in found["pixels"] if row["k"] == K)
    numbers = [figures(encoder, found) for encoder in found["encoders"]]
    rows = [["raw pixels", percent(pixels["accuracy"], pixels["standard_error"]), *["–"] * (len(HEADER) - 2)]]
    publish(
        "vision",
        f"{name(options.size)}-s{options.seed}",
        f"{title(options.size)}, seed {options.seed}",
        HEADER,
        [*rows, *map(row, numbers)],
        f"{verdict(found, pixels['accuracy'])} k-NN in % (k = {K}), ± one binomial standard error, "
        f"{found['images']['queries']['images']:,} queries against {found['images']['bank']['images']:,} images; z is "
        f"paired over queries. {trained_on(folder / 'mae')}{lengths(options.size)}{KEY}",
        numbers=numbers,
        mae_trained_on=trained_on(folder / "mae"),
        pixels=pixels["accuracy"],
    )


def lengths(size: str) -> str:
    """A sentence about the epochs of a refinement."""
    changes = SIZES[size]["refine"]
    heads, whole = epochs(changes, "heads.epochs", 3), epochs(changes, "training.epochs", 6)
    return f"Refinement takes {heads} epochs of the heads and, where nothing else is said, {whole} of all. "


def trained_on(mae: Path) -> str:
    """A sentence about the machine of the pre-training, where it was a GPU."""
    about = json.loads((mae / "environment.json").read_text(encoding="utf-8"))
    if "gpu" not in about:
        return ""
    return f"`mae` was trained on one {about['gpu']}, all else on the machine below. "


def probed(folder: Path) -> dict[str, Any]:
    """What all probes of a seed found, together; empty before the first."""
    merged: dict[str, Any] = {}
    for path in sorted(folder.glob("probe*/probe.json"), key=lambda path: path.stat().st_mtime):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not merged:
            merged = found
            continue
        have = {encoder["name"] for encoder in merged["encoders"]}
        merged["encoders"] += [encoder for encoder in found["encoders"] if encoder["name"] not in have]
        merged["paired"] += [test for test in found["paired"] if test["after"]["encoder"] not in have]
    if merged:
        order = ["mae", *LONGER, *ARMS]
        merged["encoders"].sort(key=lambda e: order.index(e["name"]) if e["name"] in order else len(order))
    return merged


HEADER = [
    *("encoder", "k-NN, best block", "where", "last block, class token", "last block, mean of patches"),
    *(
        "against the best of mae, z",
        "rises over the last third",
        "linear probe",
        "1-shot",
        "5-shot",
        "clusters, ACC",
    ),
]
#: Arms of which the mean of the patches counts: their heads read it, or the encoder they go on from is best there.
READ = {arm: "mean" for arm in ARMS if "-mean" in arm} | {"longer-12": "mean"}
KEY = (
    "The gain is that of the last block, in the pooling that the heads read (`…-mean…` and `longer-12`: the mean of "
    "the patches; the others: the class token), over the best block and pooling of `mae`; so is the rise. Linear "
    "probe chosen on a tenth of the bank; 1-shot and 5-shot: mean over ten draws, last block, the better pooling; "
    "clusters of the queries' features likewise. Raw pixels: averages of the image down to 32 px where it is larger. "
    "`refined-mean-12`: over twelve epochs; `refined-mean-twice`: that one refined once more likewise. "
    "`longer`: as many further updates of pre-training, `longer-12` as many as `refined-mean-12` makes (with a decoder "
    "that learned anew on the encoder as it stood, the pre-training's own not being at hand); `random`: refinement of "
    "an encoder that has learned nothing; `single`: one head, at the end; `swap-all`: neighbours in the whole row; "
    "`infonce`: no neighbours; "
    "`random start`: nothing learned at all."
)


def figures(encoder: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What the tables need of one encoder."""
    by_place = [entry for entry in encoder["knn"] if entry["k"] == K]
    best = max(by_place, key=lambda entry: entry["accuracy"])
    read = READ.get(encoder["name"], "class")
    last = {
        e["pooling"]: e for e in by_place if e["block"] == encoder["depth"] - 1 and not e["after_final_norm"]
    }
    tests = [
        test for test in found["paired"]
        if test["k"] == K and test["what"].startswith("last block") and test["after"]["encoder"] == encoder["name"]
        and test["after"]["pooling"] == read
    ]  # fmt: skip
    shots = {n: max(e["accuracy"] for e in encoder["low_shot"] if e["labels"] == f"{n}-shot") for n in (1, 5)}
    return {
        "encoder": encoder["name"],
        "best": best["accuracy"],
        "best_error": best["standard_error"],
        "where": f"{best['block']}{' after the norm' if best['after_final_norm'] else ''}, {best['pooling']}",
        "last": last["class"]["accuracy"],
        "last_mean": last["mean"]["accuracy"],
        "last_error": last["class"]["standard_error"],
        "gain": tests[0]["difference"] if tests else None,
        "z": tests[0]["z"] if tests else None,
        "rises": encoder["rises_over_last_third"][str(K)][read],
        "linear": encoder["linear"]["accuracy"],
        "linear_error": encoder["linear"]["standard_error"],
        "one_shot": shots[1],
        "five_shot": shots[5],
        "clusters": max(entry["accuracy"] for entry in encoder["clusters"]),
    }


def row(one: dict[str, Any]) -> list[str]:
    """One encoder's line."""
    return [
        one["encoder"],
        percent(one["best"], one["best_error"]),
        one["where"],
        percent(one["last"], one["last_error"]),
        percent(one["last_mean"]),
        "–" if one["z"] is None else f"{100 * one['gain']:+.1f} points, z {one['z']:+.1f}",
        {True: "yes", False: "no", None: "–"}[one["rises"]],
        percent(one["linear"], one["linear_error"]),
        percent(one["one_shot"]),
        percent(one["five_shot"]),
        percent(one["clusters"]),
    ]


def summarise(size: str) -> None:
    """Mean and spread over the seeds that were measured; seeds whose tables hold no figures are left out."""
    seeds = [json.loads(path.read_text(encoding="utf-8"))
             for path in sorted((ROOT / "results" / "vision").glob(f"{name(size)}-s*.json"))]  # fmt: skip
    seeds = [seed for seed in seeds if "numbers" in seed]
    rows = [["raw pixels", spread([seed["pixels"] for seed in seeds]), *["–"] * 8, str(len(seeds))]]
    for arm in dict.fromkeys(one["encoder"] for seed in seeds for one in seed["numbers"]):
        found = [one for seed in seeds for one in seed["numbers"] if one["encoder"] == arm]
        tested = [one for one in found if one["z"] is not None]
        rows.append(
            [
                arm,
                *(spread([one[key] for one in found]) for key in ("best", "last", "last_mean")),
                gains(tested),
                f"{sum(bool(one['rises']) for one in found)} of {len(found)}",
                *(
                    spread([one[key] for one in found])
                    for key in ("linear", "one_shot", "five_shot", "clusters")
                ),
                str(len(found)),
            ]
        )
    header = [
        *("encoder", "k-NN, best block", "last block, class token", "last block, mean of patches"),
        *(
            "against the best of mae",
            "rises over the last third",
            "linear probe",
            "1-shot",
            "5-shot",
            "clusters, ACC",
            "seeds",
        ),
    ]
    publish(
        "vision",
        f"{name(size)}-summary",
        f"{title(size)}, over seeds",
        header,
        rows,
        f"Mean ± standard deviation over training seeds, in %; k-NN with k = {K}. The MAE of a seed is shared by all "
        f"its arms. {' '.join(dict.fromkeys(seed['mae_trained_on'] for seed in seeds))}{lengths(size)}{KEY}",
    )


def gains(tested: list[dict[str, Any]]) -> str:
    """Points over the best block of ``mae``, and the z of each seed."""
    if not tested:
        return "–"
    each = ", ".join(f"{one['z']:+.1f}" for one in tested)
    return f"{spread([one['gain'] for one in tested], sign='+')} points, z {each}"


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± standard deviation in per cent."""
    text = f"{100 * mean(values):{sign}.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * stdev(values):.1f}"


def verdict(found: dict[str, Any], pixels: float) -> str:
    """Which of the acceptance criteria hold."""

    def best(arm: str) -> float:
        encoder = next(e for e in found["encoders"] if e["name"] == arm)
        return max(float(entry["accuracy"]) for entry in encoder["knn"] if entry["k"] == K)

    parts = [f"The best block of mae {'beats' if best('mae') > pixels else 'does **not** beat'} raw pixels."]
    for encoder in found["encoders"]:
        if encoder["name"].startswith("refined"):
            one = figures(encoder, found)
            won = "beats" if one["z"] > 1.96 else "does **not** significantly beat"
            parts.append(f"The last block of {one['encoder']} {won} the best block of mae.")
    return " ".join(parts)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default="mae,refined,longer,random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--picture", type=Path, help="draw the arms by block, from what was measured")
    options = parser.parse_args()
    folder = ROOT / "runs" / "encoders" / f"{name(options.size)}-s{options.seed}"
    if options.summary:
        summarise(options.size)
        return
    if options.picture:
        found, arms = probed(folder), options.arms.split(",")
        shown = sorted(
            (e for e in found["encoders"] if e["name"] in arms), key=lambda e: arms.index(e["name"])
        )
        save_depth(options.picture, {**found, "encoders": shown}, K)
        return
    if options.measure:
        measure(folder, options)
        return
    for arm in options.arms.split(","):
        train(arm, folder, options)


if __name__ == "__main__":
    main()
