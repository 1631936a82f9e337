"""The graph of content neighbours: exact, by inverted lists, and read from the cache.

    python benchmarks/knn_graph.py [--sizes 12500,50000,100000] [--dim 128]

Ten neighbours of every item among all others, by cosine. Generated features lie around n/50 centres whose popularity
falls as 1/rank; ``tiktok`` is the real catalogue, far below the size from which ``auto`` takes inverted lists. Recall
is the share of the exact neighbours that the lists find. *Counted* is the share of the exact ranking's work that
:mod:`firstlight.graphs.ann` counts for the lists, measured is that of its CPU seconds. Reading includes hashing the
features.
"""

from __future__ import annotations

import argparse
import tempfile
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from machine import DATA, publish, timed

from firstlight.graphs.ann import version
from firstlight.graphs.knn import Neighbours, item_neighbours
from firstlight.training.neighbours import NeighbourCache

K = 10


def generated(n: int, dim: int) -> torch.Tensor:
    """``(n, dim)`` rows around n/50 centres of unequal popularity."""
    rng = np.random.default_rng(n)
    groups = max(1, n // 50)
    popularity = 1 / np.arange(1, groups + 1)
    of = rng.choice(groups, n, p=popularity / popularity.sum())
    centres = rng.standard_normal((groups, dim), np.float32)
    return torch.from_numpy(centres[of] + 0.7 * rng.standard_normal((n, dim), np.float32))


def real() -> dict[str, torch.Tensor]:
    """The views of the real micro-videos, centred as training centres them; nothing where they are not."""
    if not (DATA / "tiktok").exists():
        return {}
    from firstlight.data.formats import read_dataset
    from firstlight.views.config import ViewsConfig
    from firstlight.views.viewset import ViewSet

    data = read_dataset(DATA / "tiktok")
    fitted = ViewSet.fit(ViewsConfig(), data.catalogue, data.train.item_degrees > 0, folder=data.source)
    rows = fitted.transform(data.catalogue, data.source)
    return {f"tiktok, {name}": torch.from_numpy(view.values) for name, view in rows.items()}


def recall(exact: Neighbours, near: Neighbours) -> float:
    """Share of the exact neighbours that were found."""
    pairs = zip(exact.ids.numpy(), near.ids.numpy(), strict=True)
    hits = sum(len(np.intersect1d(one[one >= 0], two)) for one, two in pairs)
    return hits / max(1, int((exact.ids >= 0).sum()))


def row(name: str, features: torch.Tensor) -> list[str]:
    """One catalogue, each way once."""
    found: dict[str, Neighbours] = {}

    def find(method: str) -> None:
        found[method] = item_neighbours(features, K, without_self=True, method=method)  # type: ignore[arg-type]

    seconds = {method: timed(lambda method=method: find(method)) for method in ("exact", "faiss")}
    with tempfile.TemporaryDirectory() as folder:
        cache = NeighbourCache(Path(folder), worth=0)
        cache(features, K, without_self=True)
        read, _ = timed(lambda: cache(features, K, without_self=True))
    (exact, exact_cpu), (lists, lists_cpu) = seconds["exact"], seconds["faiss"]
    return [
        name,
        f"{len(features):,}",
        str(features.shape[1]),
        f"{exact:.2f} ({exact_cpu:.2f})",
        f"{lists:.2f} ({lists_cpu:.2f})",
        f"{112 / sqrt(len(features)):.2f}",
        f"{lists_cpu / exact_cpu:.2f}",
        f"{recall(found['exact'], found['faiss']):.4f}",
        f"{read:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="12500,50000,100000")
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(2)
    item_neighbours(generated(2000, 16), K, method="faiss")  # loads the library
    catalogues = list(real().items())
    catalogues += [("generated", generated(n, options.dim)) for n in map(int, options.sizes.split(","))]
    publish(
        "speed",
        "knn_graph",
        "Ten content neighbours of every item",
        [
            "features",
            "items",
            "dim",
            "exact s (CPU)",
            "lists s (CPU)",
            "counted",
            "measured",
            "recall",
            "read s",
        ],
        [row(name, features) for name, features in catalogues],
        f"faiss {version()}, 2 threads. Counted and measured: the lists' work as a share of the exact ranking's.",
    )


if __name__ == "__main__":
    main()
