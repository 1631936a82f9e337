"""Content hashes of files and arrays (SHA-256, hexadecimal)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_arrays(arrays: Iterable[npt.NDArray[np.generic] | None]) -> str:
    """SHA-256 over dtype, shape and bytes of each array in turn; ``None`` counts as an absent array."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_strings(strings: Iterable[str]) -> str:
    """SHA-256 over a sequence of strings; the boundaries between them count."""
    digest = hashlib.sha256()
    for string in strings:
        encoded = string.encode()
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()
