"""Random streams named by what they are for.

Every stream is derived from the run's seed and a path of names such as ``("negatives", epoch)``. So
adding a consumer never shifts another one's numbers, and a resumed run re-creates the streams of the
epoch it stands in instead of having to store generator states.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

#: SplitMix64: the step between its states, and the shifts and factors that mix a state.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def derive(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a run seed and a path of names."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream ``names`` of run ``seed``."""
    return np.random.default_rng(derive(seed, *names))


def uniforms(
    seed: int, *names: str | int, rows: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers that each row draws for itself, for many rows at once.

    A row's numbers depend on the seed, the names, the row and ``count`` alone, not on which rows stand beside it. They
    are places ``row · count`` to ``row · count + count - 1`` of one SplitMix64 sequence (Steele et al., OOPSLA 2014),
    whose every place is computed on its own: a generator object a row costs seven times as much
    (two hundred numbers a row).

    Args:
        seed: The run's seed.
        *names: What the numbers are for.
        rows: ``(n,)`` int64, not negative.
        count: Numbers a row.

    Returns:
        ``(n, count)`` float64 in [0, 1).
    """
    place = np.multiply(rows.astype(np.uint64)[:, None], np.uint64(count), dtype=np.uint64)
    mixed: npt.NDArray[np.uint64] = (place + np.arange(1, count + 1, dtype=np.uint64)) * _GOLDEN
    mixed += np.uint64(derive(seed, *names))
    for shift, factor in _MIXING:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream ``names`` of run ``seed``."""
    import torch  # deferred: data/ uses this module's numpy half without torch

    generator = torch.Generator()
    generator.manual_seed(derive(seed, *names))
    return generator
