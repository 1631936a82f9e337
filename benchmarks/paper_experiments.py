"""The Adap-τ paper's own experiments, and the ablations that its specification asks for.

    python benchmarks/paper_experiments.py norms normalisation noise asymmetry tau0 kept_back [--threads 1]

Nothing here is selected on test: every run has a fixed number of epochs, and where a number has to be chosen (the
temperature of an un-normalised model) it is chosen on a validation carve-out. Each experiment writes one JSON
under results/paper/, which ``render_results.py`` turns into a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import DATA, publish

from firstlight.core.seeds import numpy_stream, torch_stream
from firstlight.data.dataset import Dataset
from firstlight.data.formats import read_dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import carve_validation
from firstlight.evaluation.groups import popularity_groups
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.losses.temperature import AdaptiveUserTemperature
from firstlight.training.config import build_config
from firstlight.training.loop import Phase
from firstlight.training.run_folder import ModelScorer

FAST = [
    "training.precision=bfloat16",
    "training.lr=3e-3",
    "training.batch_size=2048",
    "model.user_dropout=0.1",
]

#: All pairs of 64 users a step against all items: exact, and cheap where items are few.
BY_USERS = ["negatives.name=all", "training.batch=users", "training.batch_size=64"]
#: The personal temperatures that did best on validation (recipe movielens-mf-adap-tau).
PERSONAL = ["temperature.threshold=quantile", "temperature.quantile=0.9"]

Watch = Callable[[Phase], None]


def fit(
    log: Interactions, epochs: int, changes: list[str], watch: Watch | None = None, **parts: Any
) -> Phase:
    """Train for a fixed number of epochs."""
    config = build_config(overrides=[*FAST, f"training.epochs={epochs}", *changes], **parts)
    phase = Phase("train", config, log, epochs=epochs)
    phase.run(None if watch is None else lambda now, _: watch(now))
    return phase


def score(phase: Phase, targets: Interactions, seen: list[Interactions]) -> tuple[float, float]:
    """Recall@20 and NDCG@20."""
    found = evaluate_ranking(ModelScorer(phase.model), targets, seen, ks=(20,)).metrics
    return found["recall@20"], found["ndcg@20"]


def both(values: tuple[float, float]) -> str:
    """As the tables print them."""
    return f"{values[0]:.4f} / {values[1]:.4f}"


def movielens() -> Dataset:
    """The paper's MovieLens file."""
    return read_dataset(DATA / "movielens-adaptau")


def gowalla() -> Dataset:
    """The LightGCN split of Gowalla."""
    return read_dataset(DATA / "gowalla")


def norms() -> dict[str, Any]:
    """Figure 1 and lemma 1: norms, positive scores and recall by popularity, with and without normalisation."""
    data, epochs = movielens(), 10
    groups = popularity_groups(data.train.item_degrees)
    members = [torch.from_numpy(np.flatnonzero(groups.of_item == g)) for g in range(10)]
    users, items = (torch.from_numpy(x.astype("int64")) for x in (data.train.users, data.train.items))
    rows = []

    def watch(label: str, phase: Phase) -> None:
        if phase.progress.epoch not in (1, 2, 5, 10):
            return
        squares = phase.model.item_table.detach().square().sum(1)
        first, second = phase.model.training_space()
        positive = float((first[users[::7]] * second[items[::7]]).sum(1).mean())
        found = evaluate_ranking(
            ModelScorer(phase.model), data.test, [data.train], ks=(20,), popularity=data.train.item_degrees
        )
        share = found.groups["popularity"]["share_of_recall@20"].to_list()
        norm = [float(squares[m].mean()) for m in members]
        rows.append(
            [label, phase.progress.epoch, f"{norm[0]:.2f}", f"{norm[4]:.2f}", f"{norm[9]:.2f}", f"{positive:.2f}",
             f"{share[0] + share[1]:.4f}", f"{share[8] + share[9]:.4f}", f"{found.metrics['recall@20']:.4f}"]
        )  # fmt: skip

    for label, changes, tau in (("none, τ = 1", ["model.normalise=none"], 1.0), ("both, τ = .16", [], 0.16)):
        fit(data.train, epochs, changes, lambda p, n=label: watch(n, p), temperature=f"fixed:{tau}")
    header = ["normalised", "epoch", "‖v‖² rarest tenth", "5th tenth", "most popular tenth", "mean positive score",
              "recall from 2 rarest tenths", "recall from 2 most popular", "Recall@20"]  # fmt: skip
    note = (
        "MovieLens, MF, softmax with 1,024 shared negatives. Groups are tenths of the items by training degree; the "
        "recall of all tenths adds up to Recall@20. Norms and positive scores of the un-normalised model keep growing. "
        "Under row-lazy Adam the vectors of the rarest items grow longest, not those of popular ones as lemma 1 has it "
        "for plain gradient descent. The recall gained by normalising comes from the popular tenths here."
    )
    return {
        "title": "Norms, scores and recall by popularity over epochs",
        "header": header,
        "rows": rows,
        "note": note,
    }


def normalisation() -> dict[str, Any]:
    """The paper's table 4: which side is normalised. τ per mode is chosen on validation."""
    data, epochs, rows = movielens(), 60, []
    rest, valid = carve_validation(data.train, 0.1, 0)
    for mode in ("none", "user", "item", "both"):
        taus = (0.08, 0.12, 0.16, 0.24) if mode == "both" else (0.15, 0.3, 0.6, 1.0)
        tried = {}
        for tau in taus:
            phase = fit(rest, epochs, [*BY_USERS, f"model.normalise={mode}"], temperature=f"fixed:{tau}")
            tried[tau] = score(phase, valid, [rest])[0]
        best = max(tried, key=lambda tau: tried[tau])
        final = fit(data.train, epochs, [*BY_USERS, f"model.normalise={mode}"], temperature=f"fixed:{best}")
        rows.append([mode, best, f"{tried[best]:.4f}", both(score(final, data.test, [data.train]))])
    header = ["normalised", "τ chosen", "Recall@20 on validation", "test Recall@20 / NDCG@20"]
    note = (
        f"MovieLens, MF, softmax over all items, {epochs} epochs by users; τ from four values, on validation."
    )
    return {"title": "Which side is normalised", "header": header, "rows": rows, "note": note}


def noise() -> dict[str, Any]:
    """The paper's noise experiment: false positives added to training at ratio r."""
    data, epochs, rows = movielens(), 60, []
    for ratio in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        rng = numpy_stream(0, "noise", int(ratio * 10))
        count = int(ratio * data.train.n_pairs)
        users = np.concatenate([data.train.users, rng.choice(data.train.users, count)])
        items = np.concatenate([data.train.items, rng.integers(data.n_items, size=count)])
        key = users.astype(np.int64) * data.n_items + items
        held = data.test.users.astype(np.int64) * data.n_items + data.test.items
        keep = ~np.isin(key, held)  # a false positive must not be a test pair
        log = Interactions.from_pairs(users[keep], items[keep], data.n_users, data.n_items)
        row: list[Any] = [f"{ratio:.1f}"]
        for label in ("fixed:0.16", "adaptive", "adaptive-user"):
            personal = PERSONAL if label == "adaptive-user" else []
            rule = [] if label.startswith("fixed") else ["temperature.form=held-out"]
            phase = fit(log, epochs, [*BY_USERS, *rule, *personal], temperature=label)
            # Only real clicks are masked: a model that recommends noise must pay for it with its own slots.
            row += [
                both(score(phase, data.test, [data.train])),
                f"{float(phase.temperature.per_user().mean()):.3f}",
            ]
        rows.append(row)
    header = ["noise ratio", "fixed τ = .16", "τ", "Adap-τ₀", "mean τ", "Adap-τ", "mean τ"]
    note = (
        f"MovieLens, MF, softmax over all items, {epochs} epochs by users, Adap-τ with the threshold at "
        "the .9-quantile; test Recall@20 / NDCG@20."
    )
    return {"title": "False positives in training", "header": header, "rows": rows, "note": note}


class ShuffledUsers(AdaptiveUserTemperature):
    """Adap-τ whose temperatures go to the wrong users: same values, no personalisation."""

    def start_epoch(self, epoch: int, vectors: Any) -> None:
        """As Adap-τ, then permute."""
        super().start_epoch(epoch, vectors)
        order = torch.randperm(len(self.w_user), generator=torch_stream(0, "shuffle", epoch))
        self.w_user.copy_(self.w_user[order])


class MeanUser(AdaptiveUserTemperature):
    """Adap-τ's mean w on every user's negatives: its asymmetry without its personalisation."""

    def start_epoch(self, epoch: int, vectors: Any) -> None:
        """As Adap-τ, then average."""
        super().start_epoch(epoch, vectors)
        self.w_user.fill_(float(self.w_user.mean()))


def asymmetry() -> dict[str, Any]:
    """Is the gain from personalised τ, or from negatives that weigh more than positives?"""
    data, epochs, rows = gowalla(), 12, []
    quantile = ["temperature.threshold=quantile", "temperature.quantile=0.9", "temperature.beta2=0.25"]
    user = ["temperature.positive=user"]
    variants: list[tuple[str, dict[str, Any], list[str], type | None]] = [
        ("one τ₀ for all, symmetric", {"temperature": "adaptive"}, [], None),
        ("Adap-τ, mean threshold", {"temperature": "adaptive-user"}, ["temperature.beta2=0.25"], None),
        ("Adap-τ, .9-quantile, w₀ on the positive (released)", {"temperature": "adaptive-user"}, quantile, None),
        ("… w_u on the positive too (paper's formula: no asymmetry)", {"temperature": "adaptive-user"},
         [*quantile, *user], None),
        ("… the same w_u given to the wrong users", {"temperature": "adaptive-user"}, quantile, ShuffledUsers),
        ("… mean of w_u for every user (asymmetry alone)", {"temperature": "adaptive-user"}, quantile, MeanUser),
        ("τ₀ and log-sum weighted 1.22 (BSL on τ₀)", {"temperature": "adaptive", "loss": "bsl"}, [], None),
    ]  # fmt: skip
    for label, parts, changes, replaced in variants:
        # τ₀ stays at C/.7 in every variant, so that only what is asked differs.
        held = ["temperature.warmup_epochs=1000", "model.init=spectral"]
        overrides = [*FAST, *held, f"training.epochs={epochs}", *changes]
        config = build_config(overrides=overrides, **{"loss": "softmax", **parts})
        phase = Phase("train", config, data.train, epochs=epochs)
        if replaced is not None:
            phase.temperature = replaced(config.temperature, phase.temperature.statistics)
            phase.computer.temperature = phase.temperature
        phase.run()
        tau = phase.temperature.per_user()
        rows.append([label, f"{float(1 / phase.temperature.w):.4f}", f"{float(tau.min()):.4f} … {float(tau.max()):.4f}",
                     both(score(phase, data.test, [data.train]))])  # fmt: skip
    header = ["variant", "τ₀", "τ_u on negatives", "test Recall@20 / NDCG@20"]
    note = f"Gowalla, MF, spectral start, {epochs} epochs, 1,024 shared negatives, one seed; no selection."
    return {"title": "Personalisation or asymmetry?", "header": header, "rows": rows, "note": note}


def tau0() -> dict[str, Any]:
    """Where each rule for τ₀ settles on MovieLens, against fixed temperatures."""
    data, epochs, rows = movielens(), 14, []
    variants: list[tuple[str, str, list[str]]] = [
        *((f"fixed τ = {tau}", f"fixed:{tau}", []) for tau in (0.12, 0.16, 0.2, 0.24)),
        ("C/(μ₊ − μ) (paper's closed form)", "adaptive", []),
        ("the same, set once after the warm-up", "adaptive", ["temperature.updates=once"]),
        ("second-order form with variances", "adaptive", ["temperature.form=variance"]),
        ("exact half mass", "adaptive", ["temperature.form=mass"]),
        ("C/gap on held-out pairs (ours)", "adaptive", ["temperature.form=held-out"]),
    ]
    for label, temperature, changes in variants:
        path: list[float] = []
        phase = fit(
            data.train, epochs, changes, lambda p, path=path: path.append(float(1 / p.temperature.w)),
            temperature=temperature,
        )  # fmt: skip
        rows.append(
            [
                label,
                f"{path[0]:.3f}",
                f"{path[6]:.3f}",
                f"{path[-1]:.3f}",
                both(score(phase, data.test, [data.train])),
            ]
        )
    header = ["rule", "τ₀, epoch 1", "epoch 7", f"epoch {epochs}", "test Recall@20 / NDCG@20"]
    note = f"MovieLens, MF, {epochs} epochs, 1,024 shared negatives, no selection."
    return {"title": "Rules for the global temperature", "header": header, "rows": rows, "note": note}


def kept_back() -> dict[str, Any]:
    """The gap on training pairs, or on pairs that training does not see: where users have many pairs, and where few."""
    rows = []
    rules: list[tuple[str, dict[str, str], list[str]]] = [
        ("best fixed τ", {}, []),
        ("C/gap on training pairs", {"loss": "adap-tau0"}, ["temperature.form=mean"]),
        ("C/gap on pairs kept back", {"loss": "adap-tau0"}, ["temperature.form=held-out"]),
    ]
    for data, recipe, epochs in ((movielens(), "movielens-mf", 100), (gowalla(), "gowalla-mf", 15)):
        rest, valid = carve_validation(data.train, 0.1, 0)
        for label, parts, changes in rules:
            changes = [*changes, f"training.epochs={epochs}", f"training.threads={torch.get_num_threads()}"]
            config = build_config(recipe=recipe, overrides=changes, **parts)
            phase = Phase("train", config, rest, epochs=epochs)
            phase.run(None)
            tau = f"{float(1 / phase.temperature.w):.3f}"
            pairs = f"{data.train.n_pairs / data.n_users:.0f}"
            rows.append([recipe, pairs, epochs, label, tau, both(score(phase, valid, [rest]))])
    header = ["recipe", "pairs a user", "epochs", "rule", "τ₀ at the end", "validation Recall@20 / NDCG@20"]
    note = "The shipped recipes over a shorter schedule, on a validation carve-out of training; one seed."
    return {"title": "Which pairs the gap is measured on", "header": header, "rows": rows, "note": note}


EXPERIMENTS = {f.__name__: f for f in (norms, normalisation, noise, asymmetry, tau0, kept_back)}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.experiments:
        found = EXPERIMENTS[name]()
        publish("paper", name, found["title"], found["header"], found["rows"], found["note"])


if __name__ == "__main__":
    main()
