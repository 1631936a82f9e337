"""Exact full ranking of all Gowalla users: ours, the bare product it contains, and implicit.

    python benchmarks/evaluation.py [--rounds 9] [--threads 2] [--vectors FILE.safetensors]

All rows of a round run one after the other, so what else the machine does hits them alike; ratios are medians
over rounds. "Bare product" is ``torch.mm`` of every block of users with all items into one reused buffer, 64
users (our block) for each of the threads that torch shares the product out to. "A thread a block" shares out
whole blocks of 64, as ours does: no thread then waits for one that another program has pushed aside. "Ours"
masks the training items, ranks the top 50 exactly, and computes recall, NDCG, precision, MAP (two
conventions), MRR and hit rate at 10, 20 and 50 per user, coverage, Gini index, novelty and two groupings by
popularity (not the bootstrap intervals, which are computed when asked for). implicit ranks the top 50 and
computes precision, MAP, NDCG and AUC at 50, with the BLAS setting that it recommends. Peak memory is taken in
a process of its own, above what stood when vectors and data were loaded.

Random vectors by default; ``--vectors`` takes a file with the matrices ``users`` and ``items``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from machine import DATA, median_ratio, paired, peak_mb, publish, resident_mb
from torch import Tensor

from firstlight.data.dataset import Dataset
from firstlight.data.formats import read_dataset
from firstlight.evaluation.ranking import Evaluation, evaluate_ranking
from firstlight.evaluation.scorer import VectorScorer

DIM, KS, BLOCK = 64, (10, 20, 50), 64


def load(vectors: Path | None) -> tuple[Dataset, Tensor, Tensor]:
    dataset = read_dataset(DATA / "gowalla")
    if vectors is None:
        generator = torch.Generator().manual_seed(0)
        users = torch.randn(dataset.n_users, DIM, generator=generator)
        return dataset, users, torch.randn(dataset.n_items, DIM, generator=generator) / 8
    from safetensors.torch import load_file

    stored = load_file(vectors)
    return dataset, stored["users"].float(), stored["items"].float()


def bare_product(users: Tensor, items: Tensor, block: int) -> None:
    buffer = torch.empty(block, len(items))
    transposed = items.T.contiguous()
    for start in range(0, len(users), block):
        rows = users[start : start + block]
        torch.mm(rows, transposed, out=buffer[: len(rows)])


def threaded_product(users: Tensor, items: Tensor, threads: int) -> None:
    """The same product, shared out by blocks to threads with a buffer each (which is how ours works)."""
    transposed = items.T.contiguous()
    own = threading.local()

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread only
        own.buffer = torch.empty(BLOCK, len(items))

    def product(start: int) -> None:
        rows = users[start : start + BLOCK]
        torch.mm(rows, transposed, out=own.buffer[: len(rows)])

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        list(pool.map(product, range(0, len(users), BLOCK)))
    torch.set_num_threads(threads)


def ours(dataset: Dataset, users: Tensor, items: Tensor) -> Evaluation:
    assert dataset.test is not None
    return evaluate_ranking(
        VectorScorer(users, items),
        dataset.test,
        [dataset.train],
        KS,
        popularity=dataset.train.item_degrees,
    )


def implicit_evaluation(
    dataset: Dataset, users: Tensor, items: Tensor, threads: int
) -> Callable[[], object] | None:
    try:
        from implicit.als import AlternatingLeastSquares
        from implicit.evaluation import ranking_metrics_at_k
    except ImportError:
        return None
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    shape = (dataset.n_users, dataset.n_items)
    train, test = (
        csr_matrix((np.ones(log.n_pairs, np.float32), log.items.copy(), log.indptr.copy()), shape)
        for log in (dataset.train, dataset.test)
        if log is not None
    )
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=users.shape[1], num_threads=threads, use_gpu=False)
    model.user_factors, model.item_factors = users.numpy(), items.numpy()

    def evaluate() -> object:
        with threadpool_limits(1, "blas"):
            return ranking_metrics_at_k(
                model, train, test, K=max(KS), show_progress=False, num_threads=threads
            )

    return evaluate


def memory(vectors: Path | None) -> None:
    """Print what one evaluation takes on top of what is loaded (in a fresh process)."""
    dataset, users, items = load(vectors)
    assert dataset.test is not None
    torch.mm(users[:2], items[:64].T)  # let the libraries set up their own buffers
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of reading the files
    before = resident_mb()
    ours(dataset, users, items)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"{peak - before:.0f} {before:.0f} {peak_mb():.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        memory(chosen.vectors)
        return
    dataset, users, items = load(chosen.vectors)
    candidates: dict[str, Callable[[], object]] = {
        "bare product": lambda: bare_product(users, items, BLOCK * chosen.threads),
        "bare product, a thread a block": lambda: threaded_product(users, items, chosen.threads),
        "ours, top 50, all metrics": lambda: ours(dataset, users, items),
    }
    theirs = implicit_evaluation(dataset, users, items, chosen.threads)
    if theirs is not None:
        candidates["implicit, top 50"] = theirs
    for work in candidates.values():
        work()  # once unmeasured: threads, caches, lazy imports
    times = paired(candidates, chosen.rounds)
    wall = {name: [w for w, _ in runs] for name, runs in times.items()}
    cpu = {name: [c for _, c in runs] for name, runs in times.items()}
    rows = [
        [
            name,
            f"{statistics.median(wall[name]):.2f}",
            f"{median_ratio(wall[name], wall['bare product']):.2f}",
            f"{median_ratio(wall[name], wall['bare product, a thread a block']):.2f}",
            f"{statistics.median(cpu[name]):.2f}",
        ]
        for name in candidates
    ]
    arguments = [sys.executable, __file__, "--memory", "--threads", str(chosen.threads)]
    if chosen.vectors:
        arguments += ["--vectors", str(chosen.vectors)]
    above, before, _ = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    publish(
        "speed",
        "evaluation",
        f"Exact evaluation of all {dataset.n_users:,} Gowalla users, top 50, all metrics",
        ["", "wall s", "× bare product", "× bare product, a thread a block", "CPU s"],
        rows,
        f"{chosen.threads} threads, dim {users.shape[1]}, medians of {chosen.rounds} rounds. Peak "
        f"memory of ours: {above} MB above the {before} MB that stood after loading.",
    )


if __name__ == "__main__":
    main()
