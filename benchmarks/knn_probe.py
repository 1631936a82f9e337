"""k-NN classification of 10,000 queries against 50,000 bank features: ours and scikit-learn's brute force.

    python benchmarks/knn_probe.py [--rounds 7] [--threads 2] [--bank 50000] [--queries 10000] [--dim 384]

Both get the same unit vectors in float32, hold both matrices in memory beforehand, look for the k = 10 nearest by
cosine, and vote with the same temperature. On unit vectors the order by Euclidean distance is that by cosine, so
scikit-learn runs its fastest way (``algorithm="brute"``, ``metric="euclidean"``, whose blocked reduction shares its
work out to the same number of threads); the class of each query is then voted for from its distances. Ours also
standardises, as the protocol of ``probe`` has it, within the timing. All rows of a round run one after the other, so
what else the machine does hits them alike; ratios are medians over rounds. The product alone is what any exact way has
to do.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from machine import median_ratio, paired, publish
from torch import Tensor

from firstlight.evaluation.encoder_knn import knn_classify

CLASSES, K, TEMPERATURE = 100, 10, 0.07

Labels = npt.NDArray[np.int64]


def drawn(n: int, centres: Tensor, rng: torch.Generator) -> tuple[Tensor, Labels]:
    """Unit vectors around one centre a class, and their classes."""
    labels = torch.randint(0, len(centres), (n,), generator=rng)
    rows = centres[labels] + 2.0 * torch.randn(n, centres.shape[1], generator=rng)
    return F.normalize(rows, dim=1), labels.numpy()


def product(bank: Tensor, queries: Tensor) -> None:
    transposed = bank.T.contiguous()
    buffer = torch.empty(128, len(bank))
    for start in range(0, len(queries), 128):
        rows = queries[start : start + 128]
        torch.mm(rows, transposed, out=buffer[: len(rows)])


def theirs(bank: Tensor, labels: Labels, queries: Tensor, threads: int) -> Labels:
    """scikit-learn's neighbours, and votes of exp(cosine / T)."""
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    def weights(distances: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = np.exp((1 - distances.astype(np.float64) ** 2 / 2) / TEMPERATURE)
        return found

    model = KNeighborsClassifier(K, weights=weights, algorithm="brute", metric="euclidean")
    with threadpool_limits(threads):
        found: Labels = model.fit(bank.numpy(), labels).predict(queries.numpy())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, chosen.dim, generator=rng)
    bank, labels = drawn(chosen.bank, centres, rng)
    queries, truth = drawn(chosen.queries, centres, rng)
    answers: dict[str, Labels] = {}

    def ours() -> None:
        answers["ours"] = knn_classify(bank, labels, queries, CLASSES, [K], TEMPERATURE)[K]

    def sklearn() -> None:
        answers["scikit-learn"] = theirs(bank, labels, queries, chosen.threads)

    candidates: dict[str, Callable[[], object]] = {
        "bare product": lambda: product(bank, queries),
        "ours": ours,
        "scikit-learn, brute force": sklearn,
    }
    for work in candidates.values():
        work()  # once unmeasured: threads, caches, lazy imports
    times = paired(candidates, chosen.rounds)
    wall = {name: [w for w, _ in runs] for name, runs in times.items()}
    rows = [
        [
            name,
            f"{statistics.median(wall[name]):.2f}",
            f"{median_ratio(wall[name], wall['bare product']):.2f}",
            f"{median_ratio(wall[name], wall['ours']):.2f}",
            f"{statistics.median(cpu for _, cpu in times[name]):.2f}",
        ]
        for name in candidates
    ]
    same = float((answers["ours"] == answers["scikit-learn"]).mean())
    right = {name: float((found == truth).mean()) for name, found in answers.items()}
    publish(
        "speed",
        "knn_probe",
        f"k-NN probe: {chosen.queries:,} queries, bank of {chosen.bank:,}, dim {chosen.dim}, k = {K}",
        ["", "wall s", "× bare product", "× ours", "CPU s"],
        rows,
        f"{chosen.threads} threads, unit float32 vectors, medians of {chosen.rounds} rounds. Accuracy "
        f"{right['ours']:.4f} and {right['scikit-learn']:.4f}; {same:.2%} of the answers agree (ours standardises "
        "the features first).",
    )


if __name__ == "__main__":
    main()
