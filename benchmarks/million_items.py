"""One million items whose vectors are trained: lists through faiss beside exact ones.

    python benchmarks/million_items.py [--users 200000 --items 1000000 --pairs 20000000] [--publish]

A log with low-rank tastes is generated, MF (dim 64) is trained on it, its vectors become a bundle, and indexes are
built and asked as ``firstlight serve`` does, with what a user has seen left out. Each kind of index is measured in a
process of its own, so that its memory is its own. Users that are asked had no part in finding the effort of a search.
Recall is counted against the exact lists, and against clicks that were held out of training: what an approximate list
loses of these is what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import cpu_seconds, publish, resident_mb, table, timed

from firstlight.data.interactions import Interactions

#: Width of the true tastes, items of a topic, and items that a click is chosen from.
RANK, PER_TOPIC, CHOICE = 24, 500, 4
#: How much tastes decide: logits have this standard deviation.
SHARPNESS = 2.5
DIM, K, HELD_OUT = 64, 20, 5
KINDS = ("exact", "hnsw", "ivf")
#: Queries that are asked together → how many such batches are timed.
BATCHES = {1: 600, 8: 150, 32: 60}
#: Exact lists take so much longer that fewer are timed.
FEWER = 3


def generate(n_users: int, n_items: int, n_pairs: int, seed: int = 0) -> Interactions:
    """A log of users who click what is near to their taste, without repeats, a block of users at a time.

    A click falls on a topic by the user's taste, on some of its items by their popularity, and on one of these by taste
    again; items of one topic differ, so that there is something to learn about each.
    """
    rng = np.random.default_rng(seed)
    n_topics = max(8, n_items // PER_TOPIC)
    topics = rng.standard_normal((n_topics, RANK), np.float32)
    of_item = np.sort(rng.integers(n_topics, size=n_items))
    bounds = np.searchsorted(of_item, np.arange(n_topics + 1))
    tastes = 0.8 * topics[of_item] + 0.6 * rng.standard_normal((n_items, RANK), np.float32)
    row = rng.permutation(n_items)  # what is near in taste is not near in the table
    scale = np.float32(SHARPNESS / np.sqrt(RANK))
    items, counts, block = [], [], 2000
    for start in range(0, n_users, block):
        width = min(block, n_users - start)
        users = rng.standard_normal((width, RANK), np.float32) * scale
        owner = np.repeat(np.arange(width), rng.poisson(n_pairs / n_users * 1.03, width).clip(1))
        weights = np.exp((users @ topics.T).astype(np.float64))
        chances = np.cumsum(weights, axis=1)
        chances = chances / chances[:, -1:] + np.arange(width)[:, None]  # one ascending row for all users
        drawn = np.searchsorted(chances.reshape(-1), owner + rng.random(len(owner)), side="right")
        topic = np.minimum(drawn - owner * n_topics, n_topics - 1)
        first, size = bounds[topic], np.maximum(1, bounds[topic + 1] - bounds[topic])
        place = (size[:, None] * rng.random((len(owner), CHOICE), np.float32) ** 2).astype(np.int64)
        some = np.minimum(first[:, None] + place, n_items - 1)
        logits = np.einsum("nr,ncr->nc", users[owner], tastes[some])
        best = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        key = np.unique(owner * n_items + row[some[np.arange(len(owner)), best]])
        items.append((key % n_items).astype(np.int32))
        counts.append(np.bincount(key // n_items, minlength=width))
    indptr = np.zeros(n_users + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=indptr[1:])
    return Interactions(indptr, np.concatenate(items), n_items)


def held_out(log: Interactions, users: npt.NDArray[np.int64]) -> tuple[Interactions, Interactions]:
    """The log without some clicks of ``users``, and these clicks."""
    rng = np.random.default_rng(1)
    apart = np.zeros(log.n_pairs, np.bool_)
    for user in users:
        start, stop = log.indptr[user], log.indptr[user + 1]
        apart[start + rng.permutation(stop - start)[: min(HELD_OUT, (stop - start) // 2)]] = True
    return log.select(~apart), log.select(apart)


def asked_users(n_users: int, count: int) -> npt.NDArray[np.int64]:
    """Users that are asked: none of those by whom :mod:`firstlight.serving.approximate` finds its effort."""
    from firstlight.serving import approximate

    tuned = np.arange(0, n_users, max(1, n_users // approximate._SAMPLE))[: approximate._SAMPLE]
    others = np.setdiff1d(np.arange(n_users), tuned)
    return np.sort(np.random.default_rng(2).choice(others, min(count, len(others)), replace=False))


def trained(log: Interactions, options: argparse.Namespace) -> tuple[Any, tuple[float, float]]:
    """User and item vectors of MF, and the seconds of training, wall and CPU."""
    from firstlight.training.config import build_config
    from firstlight.training.loop import Phase

    def tell(event: str, /, **values: Any) -> None:
        if event == "epoch":
            print(
                f"  epoch {values['epoch']}: loss {values['loss']:.3f}, {values['seconds']:.0f} s", flush=True
            )

    config = build_config(
        model="mf",
        loss="softmax",
        temperature="fixed:0.15",
        negatives="shared",
        overrides=[
            f"model.dim={DIM}",
            "model.init=spectral",
            "model.init_norm=0.5",
            "negatives.count=2048",
            "training.batch=users",
            f"training.batch_size={options.batch}",
            f"training.epochs={options.epochs}",
            "training.lr=0.01",
            "training.precision=bfloat16",
        ],
    )
    started, cpu = time.perf_counter(), cpu_seconds()
    phase = Phase("train", config, log, epochs=options.epochs, emit=tell)
    phase.run()
    return phase.model.vectors_for_scoring(), (time.perf_counter() - started, cpu_seconds() - cpu)


def bundle(path: Path, vectors: Any, log: Interactions) -> None:
    """The vectors as a bundle."""
    import polars as pl

    from firstlight.serving.base import parts
    from firstlight.serving.bundle import Bundle

    ids = [pl.Series([f"{kind}{n}" for n in range(len(of))]) for kind, of in zip("ui", vectors, strict=True)]
    Bundle.create(path, parts(*ids, *vectors, log))


def measure(path: Path, kind: str, users: npt.NDArray[np.int64], out: Path) -> dict[str, Any]:
    """Lists of one kind of index: how fast, how large; the lists of ``users`` are written to ``out``."""
    import torch

    from firstlight.serving.approximate import ApproximateIndex, folder_of, open_index
    from firstlight.serving.bundle import Bundle
    from firstlight.serving.index import Query

    torch.set_num_threads(1)
    empty = resident_mb()
    snapshot = Bundle.open(path).snapshot
    built = timed(lambda: open_index(snapshot.base, kind))  # as serving does: made if it is not there
    found: dict[str, Any] = {"kind": kind, "build": built}
    index = open_index(snapshot.base, kind)
    if isinstance(index, ApproximateIndex):
        found["about"] = index.about
        found["file_mb"] = (folder_of(snapshot.base) / "index.faiss").stat().st_size / 2**20
    elif kind != "exact":
        about = json.loads((folder_of(snapshot.base) / "index.json").read_text())
        return found | {"about": about}  # it missed the mark, and serving would not use it
    seen, vectors = snapshot.seen(), snapshot.base.user_vectors
    queries = [Query(vectors[user], K, seen.row(int(user)).astype(np.int64)) for user in users]
    lists = [index.search(snapshot, queries[at : at + 32]) for at in range(0, len(queries), 32)]
    rows = [found.rows for batch in lists for found in batch]
    np.save(out, np.stack([np.pad(row, (0, K - len(row)), constant_values=-1) for row in rows]))
    for size, count in BATCHES.items():
        times = []
        for number in range(count // (FEWER if kind == "exact" else 1)):
            some = [queries[(number * size + at) % len(queries)] for at in range(size)]
            times.append(timed(partial(index.search, snapshot, some)))
        found[f"ms_{size}"] = [
            1e3 * np.percentile(of, share) for of in zip(*times, strict=True) for share in (50, 99)
        ]
    return found | {"resident": resident_mb(), "empty": empty}


def apart(path: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """:func:`measure` in two processes of its own: one builds, the other only opens what was built."""
    words = [sys.executable, __file__, "--measure", str(path), "--kind", kind]
    words += ["--users", str(options.users), "--asked", str(options.asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answers = []
    for _ in range(1 if kind == "exact" else 2):
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        answers.append(json.loads(done.stdout))
    return answers[-1] | {"build": answers[0]["build"]}


def hits(lists: npt.NDArray[np.int64], targets: Interactions, users: npt.NDArray[np.int64]) -> float:
    """Mean share of a user's held-out clicks that are in the list."""
    shares = [np.isin(targets.row(int(u)), row).mean() for u, row in zip(users, lists, strict=True)]
    return float(np.mean(shares))


def popular(log: Interactions, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lists of what is clicked most and not seen yet."""
    best = np.argsort(-log.item_degrees, kind="stable")[: K + int(log.user_degrees.max())]
    return np.stack([best[~np.isin(best, log.row(int(user)))][:K] for user in users])


def cells(found: dict[str, Any], near: float, clicks: float) -> list[object]:
    """One row of the table."""
    about = found.get("about", {})
    times = []
    for size in BATCHES:
        wall, high, cpu, cpu_high = found[f"ms_{size}"]
        times.append(f"{wall:.2f} / {high:.2f} ({cpu:.2f} / {cpu_high:.2f})")
    return [
        found["kind"],
        about.get("effort", "–"),
        f"{near:.4f}",
        f"{clicks:.4f}",
        *times,
        f"{found['build'][0]:.0f} ({found['build'][1]:.0f})" if about else "–",
        f"{found['file_mb']:.0f}" if about else "–",
        f"{found['resident'] - found['empty']:.0f}",
    ]


def main() -> None:
    """Generate, train, index, ask."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=20_000_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--asked", type=int, default=2000)
    parser.add_argument("--note", default="", help="what the machine did beside, for the published note")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    users = asked_users(options.users, options.asked)
    if options.measure is not None:
        lists = options.measure.parent / f"{options.kind}.npy"
        print(json.dumps(measure(options.measure, options.kind, users, lists)))
        return
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    log = generate(options.users, options.items, options.pairs)
    known, targets = held_out(log, users)
    print(f"  {log.n_pairs:,} clicks in {time.perf_counter() - started:.0f} s", flush=True)
    vectors, training = trained(known, options)
    rows, missed = [], []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        path = Path(folder) / "bundle"
        bundle(path, vectors, known)
        del vectors
        exact = None
        for kind in KINDS:
            found = apart(path, kind, options)
            if "resident" not in found:
                missed.append(
                    f"{kind} reached {found['about'][f'recall@{K}']:.4f} only, and would not be used."
                )
                continue
            lists = np.load(Path(folder) / f"{kind}.npy")
            exact = lists if exact is None else exact
            near = np.mean([np.isin(row, right).sum() / K for row, right in zip(lists, exact, strict=True)])
            rows.append(cells(found, float(near), hits(lists, targets, users)))
            print(f"  {kind}: {rows[-1]}", flush=True)
    by_popularity = hits(popular(known, users), targets, users)
    note = (
        f"{options.users:,} users, {options.items:,} items, {known.n_pairs:,} clicks; MF, dim {DIM}, {options.epochs} "
        f"epochs in {training[0] / 60:.1f} min ({training[1] / 60:.1f} of CPU). Held-out clicks: {HELD_OUT} each of "
        f"{len(users):,} users who had no part in finding the effort; by popularity {by_popularity:.4f} of them are "
        f"found. Lists leave out what a user has seen. Build and resident memory (above that of an empty process with "
        f"the libraries; mapped vectors, ids and log included) are those of processes of their own, one thread. "
        f"{' '.join([*missed, options.note])}"
    ).strip()
    title = f"Serving: {options.items:,} items, approximate lists beside exact ones"
    header = [
        "index", "effort", f"recall@{K} of the exact list", "of held-out clicks", *(
            f"{'a query' if size == 1 else f'{size} together'}, p50 / p99 ms (CPU)" for size in BATCHES
        ), "build, s (CPU)", "file, MB", "resident, MB",
    ]  # fmt: skip
    if options.publish:
        publish("speed", "million_items", title, header, rows, note)
    else:
        table(title, header, rows)
        print(f"  {note}")


if __name__ == "__main__":
    main()
