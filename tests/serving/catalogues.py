"""Small served catalogues, and an encoder whose answer is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from firstlight.data.catalogue import Catalogue
from firstlight.serving.base import Parts, parts
from firstlight.serving.bundle import Bundle
from worlds import random_log

N_USERS, N_ITEMS, DIM = 12, 30, 5
TESTS = Path(__file__).resolve().parents[1]


def small_parts(seed: int = 0) -> Parts:
    rng = torch.Generator().manual_seed(seed)
    return parts(
        pl.Series([f"u{u}" for u in range(N_USERS)]),
        pl.Series([f"i{i}" for i in range(N_ITEMS)]),
        torch.randn(N_USERS, DIM, generator=rng),
        torch.randn(N_ITEMS, DIM, generator=rng),
        random_log(N_USERS, N_ITEMS, 40, seed),
        pl.DataFrame({"title": [f"title {i}" for i in range(N_ITEMS)]}),
    )


def small_bundle(folder: Path, seed: int = 0) -> Bundle:
    return Bundle.create(folder / "bundle", small_parts(seed))


def rows(n: int, seed: int = 1, dim: int = DIM) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def expected(parts_: Parts, items: dict[str, Tensor], user: int, k: int) -> list[str]:
    """What a user must get: a plain sort over a dictionary of items, in order of arrival."""
    known = parts_.table["item"].to_list()
    seen = {known[i] for i in parts_.seen.row(user)}
    scores = {name: float(vector @ parts_.user_vectors[user]) for name, vector in items.items()}
    ranked = sorted((name for name in items if name not in seen), key=lambda name: -scores[name])
    return ranked[:k]


class TasteEncoder:
    """A vector is the item's first feature as it stands: content speaks the language of the users' vectors."""

    def encode(self, catalogue: Catalogue, folder: Path | None) -> Tensor:
        return torch.from_numpy(np.asarray(catalogue.features["taste"].values))


def run_script(code: str, *words: object) -> str:
    """Run a script in a process of its own; what it printed."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,  # a guard, for machines that are busy with other things
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def vector(bundle: Bundle, item: str) -> torch.Tensor:
    opened = Bundle.open(bundle.folder)
    return opened.item_vectors()[opened.snapshot.row(item)]
