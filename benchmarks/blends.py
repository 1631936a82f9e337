"""Blends of the models behind the table of tiktok's given split, beside the published records.

    python benchmarks/cold_start.py --data tiktok --protocols given      # the models; their runs stay in runs/cold
    python benchmarks/blends.py [--seeds 0,1,2] [--threads 1] [--refit mf,lightgcn,mhcr]

A blend is the weighted sum of the z-scores of each user's rows. Two are made: all trained models with equal weights;
and a selection that adds, again and again, the model with which validation Recall@20 is best, and stops where it was
best of all (Caruana et al., ICML 2004). A model that is added twice weighs twice. Neither rule reads test, but other
blends of these models had been seen on test before the rules were written.

With ``--refit`` the named models, and those that the selection chose, are also trained again on train *and*
validation, as long as their search found (``runs/refit``): the protocol of this project's other tables, which the
published numbers do not follow. The selection's weights stay those that validation gave before. What such numbers are
worth on this split, the rows of mere counts say.
"""

from __future__ import annotations

import argparse
from collections import Counter

import cold_start
import numpy as np
import torch
from machine import publish
from records import Held, blend, evaluated, score
from render_cold import PUBLISHED
from tables import spread

from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.ranking import Evaluation
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.training import run as training
from firstlight.training.refit import refit_config
from firstlight.training.run_folder import load_run

#: What is blended: every trained model of the table.
MODELS = (
    "mf", "lightgcn", "vbpr", "layergcn", "bm3", "freedom", "mgcn", "dropoutnet", "clcrec", "tower", "mhcr",
)  # fmt: skip
#: Most steps of the selection.
STEPS = 12
RECORDS = ("DiffMM", "GenRec-V1")
NOTE = (
    "The given split, all items ranked, known pairs masked; every user has one target. The models are those of the "
    "table of the given split, chosen on validation; so is the selection. Other blends of these models, and the "
    "models' grids, had been seen on test before, so neither row is a priori. Published numbers: three views, epoch "
    "chosen on test, trained on train alone. **Validation is closer to test than training is to either**: a mere count "
    "of its 3,051 clicks finds more than any model does, so what is trained on them, too, says how much of this split "
    "is drift, and nothing about models; it does not stand beside the published rows. ± is the standard deviation over "
    "seeds, brackets the 95 % bootstrap interval over users of the first."
)


def trained(seed: int) -> dict[str, Held]:
    """The runs of one seed by model.

    Raises:
        InputError: One is not there.
    """
    found = {}
    for model in MODELS:
        folder = cold_start.RUNS / cold_start.job_name("tiktok", "given", model, seed)
        done = sorted(folder.glob("*/result.json"))
        if len(done) != 1:
            raise InputError(f"{len(done)} runs of {model}, not one", path=folder)
        found[model] = Held(load_run(done[0].parent).scorer)
    return found


def refitted(name: str, seed: int, threads: int) -> Held:
    """A model trained again on train and validation, as its search found; its run is kept."""
    [done] = sorted(
        (cold_start.RUNS / cold_start.job_name("tiktok", "given", name, seed)).glob("*/result.json")
    )
    data, _ = cold_start.load_data("tiktok", "given", 0)
    out = cold_start.ROOT / "runs" / "refit" / f"tiktok-given-{name}-s{seed}"
    print(f"seed {seed}: {name} on train and validation", flush=True)
    training.train(data, refit_config(load_run(done.parent), threads), out, resume=out.exists())
    return Held(load_run(out).scorer)


def counts_of(log: Interactions) -> Scorer:
    """Every item by its number of clicks, the same for everybody."""
    return VectorScorer(
        torch.ones(log.n_users, 1), torch.from_numpy(log.item_degrees.astype(np.float32))[:, None]
    )


def equal(parts: dict[str, Held]) -> Scorer:
    """All of them alike."""
    return blend(list(parts.values()), [1.0] * len(parts))


def select(parts: dict[str, Held], data: Dataset) -> Counter[str]:
    """Model → how often it was added."""
    assert data.valid is not None
    chosen: list[str] = []
    best = (-1.0, 0)
    for _ in range(STEPS):
        tried: dict[str, Scorer] = {}
        for name in parts:
            counts = Counter([*chosen, name])
            tried[name] = blend([parts[other] for other in counts], list(map(float, counts.values())))
        reached = {
            name: score(found)[0] for name, found in evaluated(tried, data.valid, [data.train]).items()
        }
        chosen.append(max(reached, key=lambda name: reached[name]))
        best = max(best, (reached[chosen[-1]], -len(chosen)))
    return Counter(chosen[: -best[1]])


def cells(found: list[Evaluation]) -> list[str]:
    """Recall and NDCG with spread and interval."""
    texts = []
    for place, metric in enumerate(("recall@20", "ndcg@20")):
        low, high = found[0].intervals[metric]
        texts.append(f"{spread([score(one)[place] for one in found])} [{low:.4f}, {high:.4f}]")
    return texts


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--refit", default="", help="models to train again on train and validation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training.fit_content = cold_start.fit_content_once  # type: ignore[attr-defined]
    again = [name for name in options.refit.split(",") if name]
    refits: dict[str, list[Evaluation]] = {name: [] for name in again}
    refits_selected: list[Evaluation] = []
    data, _ = cold_start.load_data("tiktok", "given", 0)
    assert data.valid is not None
    assert data.test is not None
    everything: list[Evaluation] = []
    selected: list[Evaluation] = []
    recipes = []
    for seed in map(int, options.seeds.split(",")):
        parts = trained(seed)
        counts = select(parts, data)
        few = blend([parts[name] for name in counts], list(map(float, counts.values())))
        found = evaluated({"all": equal(parts), "few": few}, data.test, [data.train, data.valid])
        everything.append(found["all"])
        selected.append(found["few"])
        recipes.append(" + ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items()))
        print(f"seed {seed}: {recipes[-1]}: {score(found['few'])}; all {score(found['all'])}", flush=True)
        if again:
            held = {name: refitted(name, seed, options.threads) for name in dict.fromkeys([*again, *counts])}
            blended = blend([held[name] for name in counts], list(map(float, counts.values())))
            tried: dict[str, Scorer] = {name: held[name] for name in again}
            found = evaluated({**tried, "few": blended}, data.test, [data.train, data.valid])
            refits_selected.append(found.pop("few"))
            for name, one in found.items():
                refits[name].append(one)
    rows = [[name, "published", f"{PUBLISHED[name][0]:.4f}", f"{PUBLISHED[name][1]:.4f}"] for name in RECORDS]
    rows.append(["all trained models", "equal weights", *cells(everything)])
    chosen = "; ".join(f"seed {seed}: {text}" for seed, text in enumerate(recipes))
    rows.append(["a selection", f"on validation ({chosen})", *cells(selected)])
    how = "on validation, then trained again on train and validation"
    rows += [[name, how, *cells(found)] for name, found in refits.items()]
    if refits_selected:
        rows.append(["the selection, of such models", "its weights as above", *cells(refits_selected)])
    counted = {
        "train": data.train,
        "train and validation": data.train.union(data.valid),
        "validation": data.valid,
    }
    found = evaluated(
        {name: counts_of(log) for name, log in counted.items()}, data.test, [data.train, data.valid]
    )
    rows += [["clicks, counted", f"those of {name}", *cells([one])] for name, one in found.items()]
    header = ["", "how it was chosen", "Recall@20", "NDCG@20"]
    publish("records", "tiktok", "TikTok, the given split, beside the records", header, rows, NOTE)


if __name__ == "__main__":
    main()
