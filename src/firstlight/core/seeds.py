"""Random streams named by what they are for.

Every stream is derived from the run's seed and a path of names such as ``("negatives", epoch)``. So
adding a consumer never shifts another one's numbers, and a resumed run re-creates the streams of the
epoch it stands in instead of having to store generator states.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a run seed and a path of names."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream ``names`` of run ``seed``."""
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream ``names`` of run ``seed``."""
    import torch  # deferred: data/ uses this module's numpy half without torch

    generator = torch.Generator()
    generator.manual_seed(derive(seed, *names))
    return generator
