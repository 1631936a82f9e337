"""Does refinement help on real images, and is it refinement that helps? One MAE a seed, shared by all arms.

    python benchmarks/refined_encoders.py --seed 0 [--arms refined,longer,random] [--threads 2] [--small]
    python benchmarks/refined_encoders.py --seed 0 --measure      # probe what is there, write the table
    python benchmarks/render_results.py

Every arm is a command of the package that resumes where it was cut, in ``runs/encoders/``:

* ``mae``: pre-training;
* ``refined``: MIM-Refiner from it;
* ``longer``: from it, as many further updates of pre-training as refinement makes in both stages;
* ``random``: refinement of an encoder that has learned nothing;
* ``single``: refinement with one head, at the end; ``swap-all``: neighbours in the whole row (NNCLR);
  ``infonce``: no neighbours.

Images are imagenette64 (9,469 to train on, labels unused; 3,925 queries). Accepted only if the best block of ``mae``
beats raw pixels, and the last block of ``refined`` the best of ``mae``; the table says which of these hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import DATA, ROOT, publish

IMAGES = DATA / "imagenette64" / "images.parquet"
#: An encoder of 1.6 M parameters instead of the recipes' 5.4 M, fewer and smaller steps: an hour on one core.
SMALL = {
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
}
ARMS: dict[str, list[str]] = {
    "refined": [],
    "random": ["start=random"],
    "single": ["refiner.heads=1"],
    "swap-all": ["refiner.swap=all"],
    "infonce": ["refiner.swap=none"],
}
#: The k of the table, as the paper's protocol has it.
K = 10


def firstlight(*words: object) -> None:
    """Run one command; it says what it does."""
    command = [str(Path(sys.executable).with_name("firstlight")), *map(str, words)]
    print("$ firstlight", *command[1:], flush=True)
    subprocess.run(command, check=True)


def settings(changes: list[str]) -> list[str]:
    """As options of a command."""
    return [word for change in changes for word in ("--set", change)]


def epochs(changes: list[str], key: str, otherwise: int) -> int:
    """What ``key=…`` among the settings says."""
    return next((int(c.partition("=")[2]) for c in changes if c.startswith(key + "=")), otherwise)


def train(arm: str, folder: Path, options: argparse.Namespace) -> None:
    """Run or resume one arm."""
    out, mae = folder / arm, folder / "mae"
    changes = SMALL if options.small else {"pretrain": [], "refine": []}
    common = [IMAGES, "--split", "train", "--out", out, "--seed", options.seed, "--threads", options.threads]
    if arm == "mae":
        firstlight(
            "pretrain", *common, "--recipe", "pretrain-small", *settings(changes["pretrain"]), "--resume"
        )
    elif arm == "longer":
        extra = epochs(changes["refine"], "heads.epochs", 3) + epochs(changes["refine"], "training.epochs", 8)
        own = [c for c in changes["pretrain"] if not c.startswith(("encoder.", "training.epochs"))]
        # Without the recipe, which names a shape: all else in it is as by default.
        start = ["--encoder", mae, "--epochs", extra]
        firstlight("pretrain", *common, *start, *settings([*own, "training.warmup_epochs=1"]), "--resume")
    else:
        words = ["--encoder", mae, "--recipe", "refine-small"]
        firstlight("refine", *common, *words, *settings([*changes["refine"], *ARMS[arm]]), "--resume")


def percent(accuracy: float, error: float | None = None) -> str:
    """In per cent, with one standard error."""
    return f"{100 * accuracy:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Probe every finished arm beside ``mae`` and publish the table."""
    names = [name for name in ("mae", "longer", *ARMS) if (folder / name / "encoder.json").exists()]
    out = folder / "probe"
    encoders = [folder / name for name in names]
    firstlight(
        *("probe", *encoders, IMAGES, "--split", "train/val", "--random-control"),
        *("--threads", options.threads, "--seed", options.seed, "--out", out),
    )
    found = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    pixels = next(row for row in found["pixels"] if row["k"] == K)
    rows = [["raw pixels", percent(pixels["accuracy"], pixels["standard_error"]), *["–"] * 7]]
    rows += [row(encoder, found) for encoder in found["encoders"]]
    header = [
        *(
            "encoder",
            "k-NN, best block",
            "where",
            "k-NN, last block, class token",
            "against the best of mae, z",
        ),
        *("rises over the last third", "linear probe", "1-shot", "clusters, ACC"),
    ]
    publish(
        "vision",
        f"imagenette64-s{options.seed}",
        f"Refinement on imagenette64, seed {options.seed}",
        header,
        rows,
        f"{verdict(found, pixels['accuracy'])} k-NN in % (k = {K}), ± one binomial standard error, "
        f"{found['images']['queries']['images']:,} queries against {found['images']['bank']['images']:,} images; z is "
        "paired over queries. Linear probe chosen on a tenth of the bank; 1-shot: mean over ten draws, last block, the "
        "better pooling; clusters of the queries' features likewise. `longer`: as many further updates of "
        "pre-training; `random`: refinement of an encoder that has learned nothing.",
    )


def row(encoder: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One encoder's line."""
    by_place = [entry for entry in encoder["knn"] if entry["k"] == K]
    best = max(by_place, key=lambda entry: entry["accuracy"])
    last = next(
        e for e in by_place
        if e["block"] == encoder["depth"] - 1 and not e["after_final_norm"] and e["pooling"] == "class"
    )  # fmt: skip
    tests = [
        test for test in found["paired"]
        if test["k"] == K and test["what"].startswith("last block") and test["after"]["encoder"] == encoder["name"]
        and test["after"]["pooling"] == "class"
    ]  # fmt: skip
    against = f"{100 * tests[0]['difference']:+.1f} points, z {tests[0]['z']:+.1f}" if tests else "–"
    place = f"{best['block']}{' after the norm' if best['after_final_norm'] else ''}, {best['pooling']}"
    one_shot = [e["accuracy"] for e in encoder["low_shot"] if e["labels"] == "1 a class"] or [
        e["accuracy"] for e in encoder["low_shot"][:1]
    ]
    return [
        encoder["name"],
        percent(best["accuracy"], best["standard_error"]),
        place,
        percent(last["accuracy"], last["standard_error"]),
        against,
        {True: "yes", False: "no", None: "–"}[encoder["rises_over_last_third"][str(K)]["class"]],
        percent(encoder["linear"]["accuracy"], encoder["linear"]["standard_error"]),
        percent(max(one_shot)),
        percent(max(entry["accuracy"] for entry in encoder["clusters"])),
    ]


def verdict(found: dict[str, Any], pixels: float) -> str:
    """Which of the acceptance criteria hold."""

    def best(name: str) -> float:
        encoder = next(e for e in found["encoders"] if e["name"] == name)
        return max(float(entry["accuracy"]) for entry in encoder["knn"] if entry["k"] == K)

    parts = [f"The best block of mae {'beats' if best('mae') > pixels else 'does **not** beat'} raw pixels."]
    for test in found["paired"]:
        after = test["after"]
        if (
            test["k"] == K
            and test["what"].startswith("last block")
            and (after["encoder"], after["pooling"]) == ("refined", "class")
        ):
            won = "beats" if test["z"] > 1.96 else "does **not** significantly beat"
            parts.append(f"The last block of refined (class token) {won} the best block of mae.")
    return " ".join(parts)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default="mae,refined,longer,random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a smaller encoder and shorter training")
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    folder = ROOT / "runs" / "encoders" / f"imagenette64-s{options.seed}"
    if options.measure:
        measure(folder, options)
        return
    for arm in options.arms.split(","):
        train(arm, folder, options)


if __name__ == "__main__":
    main()
