"""What earns its place in MHCR: one part changed at a time, on movielens-small with cold items.

    python benchmarks/mhcr_ablation.py [--seeds 0,1] [--threads 1] [--only "best;no hypergraph"] [--list] [--done]

Each variant is trained once per seed with the budget of the cold-start tables and no search of its own; the length of
training is found on validation. The first number is on validation, and the one to choose a setting by: the harmonic
mean of Recall@20 of warm targets among warm items and of cold targets among cold items; beside it stands the mean
difference to ``best`` over the splits that both have. The others are on test: those two recalls, the harmonic mean in
the whole pool under the offset that validation asks for, and the mean cosine between the vectors of two random items
(1: all alike, which is what over-smoothing would leave), of the vectors that rank and of the hypergraph's alone. A
variant that is done is not trained again (``runs/ablation``). What is printed while it runs is validation alone.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import cold_start
import tables
import torch
import torch.nn.functional as F
from machine import publish
from torch import Tensor

from firstlight.core.files import read_json, write_json
from firstlight.core.seeds import torch_stream
from firstlight.models.mhcr import MHCR
from firstlight.training import run as training
from firstlight.training.run_folder import Run

_BPR = [
    *("loss.name=bpr", "temperature.name=fixed", "negatives.name=uniform", "negatives.count=1"),
    *("training.batch=pairs", "training.batch_size=2048"),
]
_APART = ["model.content_joins=false", "model.layers=2"]
#: Variant → settings over the defaults of ``best``.
VARIANTS: dict[str, list[str]] = {
    "best": [],
    "text only": ["views.use=[text]"],
    "cover only": ["views.use=[cover]"],
    "no item graph": ["model.fusion=none"],
    "with the hypergraph, .1": ["model.hyper_weight=0.1"],
    "with the hypergraph, no item graph": ["model.hyper_weight=0.1", "model.fusion=none"],
    "no content network": ["model.content_weight=0"],
    "content for cold items only": ["model.content_joins=false"],
    "users with content": ["model.user_content=1"],
    "no cold loss": ["model.cold_loss=0"],
    "hidden IDs in place of the cold loss": ["model.cold_loss=0", "model.cold_share=0.5"],
    "cold loss that leaves users alone": ["model.cold_moves_users=false"],
    "no bias from content": ["model.cold_bias=false"],
    "random start": ["model.init=xavier", "model.init_norm=null"],
    "side contrast .01": ["model.side_contrast=0.01"],
    "hypergraph, its contrast .01": ["model.hyper_weight=0.1", "model.hyper_contrast_weight=0.01"],
    "hypergraph, cross contrast .01": ["model.hyper_weight=0.1", "model.cross_contrast_weight=0.01"],
    "L = 0": ["model.layers=0"],
    "L = 2": ["model.layers=2"],
    "L = 4": ["model.layers=4"],
    "L = 7": ["model.layers=7"],
    "hypergraph, L_h = 2": ["model.hyper_weight=0.1", "model.hyper_layers=2"],
    "hypergraph, L_h = 4": ["model.hyper_weight=0.1", "model.hyper_layers=4"],
    "hypergraph, L_h = 4, not normalised": [
        *("model.hyper_weight=0.1", "model.hyper_layers=4", "model.hyper_norm=none"),
    ],
    "one gate with batch norm": ["model.gates=shared"],
    "BPR": [*_BPR, "temperature.tau=0.1"],
    "Adap-τ₀": ["temperature.name=adaptive"],
    "Adap-τ": ["temperature.name=adaptive-user"],
    "content for cold items only, L = 2": _APART,
    "content for cold items only, L = 2, Adap-τ": [*_APART, "temperature.name=adaptive-user"],
    "content for cold items only, L = 2, side contrast .01": [*_APART, "model.side_contrast=0.01"],
    "content for cold items only, L = 2, one gate": [*_APART, "model.gates=shared"],
    "side contrast .01, Adap-τ": ["model.side_contrast=0.01", "temperature.name=adaptive-user"],
    "side contrast .01, one gate": ["model.side_contrast=0.01", "model.gates=shared"],
    "one gate, Adap-τ": ["model.gates=shared", "temperature.name=adaptive-user"],
    "no dropout of users": ["model.user_dropout=0"],
    "vectors of any length": ["model.normalise=none", "temperature.tau=1"],
    "hypergraph, sums of memberships": ["model.hyper_weight=0.1", "model.user_memberships=sum"],
    "hypergraph, noise and dropout": [
        *("model.hyper_weight=0.1", "model.membership_noise=true", "model.hyper_dropout=0.3"),
    ],
    "hypergraph, joint contrast .01": [
        *("model.hyper_weight=0.1", "model.hyper_contrast=joint", "model.hyper_contrast_weight=0.01"),
    ],
    "hypergraph, contrast of ranks .01": [
        *("model.hyper_weight=0.1", "model.cross_contrast=ranks", "model.cross_contrast_weight=0.01"),
    ],
    "penalties of lengths": ["model.batch_l2=1e-4", "model.table_norm=0.1"],
    "L_i = 2": ["model.item_layers=2"],
    "an item its own neighbour": ["model.self_neighbour=true"],
    "the last layer in place of the content side": ["model.fusion=last-layer"],
    "paper": ["model.setting=paper", *_BPR, "temperature.tau=1", "training.lr=1e-3"],
    "released": ["model.setting=released", *_BPR, "temperature.tau=1", "training.lr=1e-3"],
}
#: They learn next to nothing in this budget, and take the longest over it.
FIRST_SEED_ALONE = ("paper", "released")
AUTHORS = (
    " For `paper` and `released` these are some six hundred steps of BPR from a random start, where their authors "
    "train for up to 1,000 epochs."
)


def spread(run: Run, items: Tensor) -> float:
    """Mean cosine between the vectors of 20,000 random pairs of warm items."""
    warm = torch.from_numpy(run.seen.item_degrees > 0).nonzero()[:, 0]
    pairs = warm[torch.randint(len(warm), (2, 20_000), generator=torch_stream(0, "pairs"))]
    pairs = pairs[:, pairs[0] != pairs[1]]
    items = F.normalize(items, dim=1)
    return float((items[pairs[0]] * items[pairs[1]]).sum(dim=1).mean())


@torch.no_grad()
def spreads(run: Run) -> dict[str, float | None]:
    """:func:`spread` of the vectors that rank, and of the hypergraphs' (mean over views) where there are some."""
    vectors, model = run.scorer.vectors(), run.model
    assert vectors is not None
    assert isinstance(model, MHCR)
    hyper = [spread(run, pair.items) for pair in model.encode(0, None).hyper]
    return {
        "cosine": spread(run, vectors[1][:, :-1]),
        "hyper_cosine": statistics.mean(hyper) if hyper else None,
    }


def numbers_of(name: str, seed: int) -> Path:
    """Where the numbers of one variant are."""
    folder = f"{name.replace(' ', '-').replace('=', '')}-s{seed}"
    return cold_start.ROOT / "runs" / "ablation" / folder / "numbers.json"


def measure(name: str, seed: int, threads: int) -> dict[str, Any]:
    """Train and judge one variant, unless it is done."""
    target = numbers_of(name, seed)
    folder = target.parent
    if target.exists():
        done: dict[str, Any] = read_json(target)
        return done
    dataset, _ = cold_start.load_data("movielens-small", "cold-items", seed)
    run = cold_start.train_candidate(
        dataset, "mhcr", ["training.batch_size=64", *VARIANTS[name]], seed, folder, threads, []
    )
    outcome, _ = cold_start.judge_test(run, dataset)
    rows = outcome["calibrated"]["protocols"]
    numbers = {
        "valid": run.result["found"]["best_valid"],
        "warm": rows["warm/warm"]["metrics"]["recall@20"],
        "cold": rows["cold/cold"]["metrics"]["recall@20"],
        "harmonic": outcome["calibrated"]["harmonic"]["metrics"]["recall@20"],
        **spreads(run),
        "epochs": run.result["found"]["epochs"],
        "seconds": run.result["found"]["train_seconds"],
    }
    write_json(target, numbers)
    print(f"{name}, seed {seed}: validation {numbers['valid']:.4f}, {numbers['seconds']:.0f} s", flush=True)
    return numbers


def paired(numbers: dict[int, dict[str, Any]], best: dict[int, dict[str, Any]]) -> str:
    """Mean difference on validation to ``best`` over the splits of both, and on how many it is ahead."""
    gaps = [numbers[seed]["valid"] - best[seed]["valid"] for seed in numbers if seed in best]
    if not gaps:
        return "–"
    return f"{statistics.mean(gaps):+.4f}, {sum(gap > 0 for gap in gaps)} of {len(gaps)}"


def main() -> None:
    """Parse, run, publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="some variants, separated by semicolons")
    parser.add_argument("--done", action="store_true", help="train nothing; the table of what is done")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(VARIANTS))
        return
    training.fit_content = cold_start.fit_content_once
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = options.only.split(";") if options.only else list(VARIANTS)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in chosen}
    for seed in seeds:  # views of one split stay in memory
        for name in chosen:
            wanted = name not in FIRST_SEED_ALONE or seed == seeds[0]
            if wanted and (not options.done or numbers_of(name, seed).exists()):
                found[name][seed] = measure(name, seed, options.threads)
    rows = []
    for name, by_seed in found.items():
        numbers = list(by_seed.values())
        if not numbers:
            continue
        mean = {
            key: statistics.mean(entry[key] for entry in numbers) for key in ("cosine", "epochs", "seconds")
        }
        hyper = [entry["hyper_cosine"] for entry in numbers if entry.get("hyper_cosine") is not None]
        rows.append(
            [
                name,
                tables.spread([entry["valid"] for entry in numbers]),
                paired(by_seed, found.get("best", {})) if name != "best" else "–",
                *(tables.spread([entry[key] for entry in numbers]) for key in ("warm", "cold", "harmonic")),
                f"{mean['cosine']:.3f}",
                f"{statistics.mean(hyper):.3f}" if hyper else "–",
                *(f"{mean[key]:.0f}" for key in ("epochs", "seconds")),
                str(len(numbers)),
            ]
        )
    publish(
        "ablation",
        "mhcr",
        "MHCR on movielens-small, a fifth of the items cold",
        [
            "variant",
            "validation",
            "against best, same splits",
            "warm R@20",
            "cold R@20",
            "harmonic, whole pool",
            "mean cosine",
            "of hypergraph vectors",
            "epochs",
            "seconds",
            "seeds",
        ],
        rows,
        "Mean ± standard deviation over seeds, each with a split of its own; no search per variant. All "
        f"have at most 16 epochs.{AUTHORS if any(found.get(name) for name in FIRST_SEED_ALONE) else ''} Seconds of "
        "training, with other jobs beside it.",
    )


if __name__ == "__main__":
    main()
