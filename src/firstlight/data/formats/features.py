"""Ready-made feature matrices as ``.npy`` files, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firstlight.core.errors import InputError
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.formats.base import Problems


def read_feature(path: Path, name: str, problems: Problems) -> FeatureMatrix:
    """Read a feature matrix and mark the rows that say nothing.

    Rows that hold NaN or infinity, or only zeros (the usual filler), are absent; they become zero and
    are counted.

    Args:
        path: An ``.npy`` file of numbers, ``(n_items, dim)``.
        name: The feature's name, for the counts.
        problems: Gets the counts.

    Returns:
        The matrix and its mask.

    Raises:
        InputError: The file is torn, holds Python objects, or is not a matrix of numbers.
    """
    try:
        raw = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot be read as an .npy matrix ({error})",
            path=path,
            hint="pickled objects are refused; save with numpy.save(path, array.astype('float32'))",
        ) from error
    if not isinstance(raw, np.ndarray) or raw.ndim != 2 or not np.issubdtype(raw.dtype, np.number):
        shape = getattr(raw, "shape", None)
        raise InputError(f"expected a matrix of numbers (items, dim), found shape {shape}", path=path)
    # float64 beyond float32's range becomes infinite, and so absent
    with np.errstate(over="ignore"):
        values = np.array(raw, np.float32)
    finite = np.logical_and.reduce(np.isfinite(values), axis=1)
    zero = finite & ~values.any(axis=1)
    values[~finite] = 0
    for kind, rows in (("NaN or infinite", ~finite), ("all-zero", zero)):
        count = int(rows.sum())
        if count:
            first = int(np.flatnonzero(rows)[0])
            problems.note(f"feature {name}: {kind} row", path, f"first at row {first}", count)
            problems.dropped[f"feature {name}: {kind} row"] += count
    return FeatureMatrix(values, finite & ~zero, path.name)
