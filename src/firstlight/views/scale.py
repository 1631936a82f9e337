"""Columns and rows of a view on a common scale, by statistics of warm items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from firstlight.data.catalogue import FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError
from firstlight.views.config import ScaleConfig

DoubleArray = npt.NDArray[np.float64]
RowArray = npt.NDArray[np.int64]

#: Elements that are held in float64 at once (32 MB).
_BLOCK = 1 << 22
#: A spread below this share of the mean is rounding, not variation (float32 keeps about 6e-8).
_ROUNDING = 1e-6


def _blocks(rows: RowArray, dim: int) -> Iterator[RowArray]:
    step = max(1, _BLOCK // max(dim, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def usable_rows(values: npt.NDArray[Any], present: npt.NDArray[np.bool_]) -> RowArray:
    """Rows that say something: marked present, finite as float32, and not all zero.

    Args:
        values: ``(n, dim)`` numbers.
        present: ``(n,)``.

    Returns:
        Ascending row numbers.
    """
    kept = [np.zeros(0, np.int64)]
    for rows in _blocks(np.flatnonzero(present), values.shape[1]):
        with np.errstate(over="ignore"):  # beyond float32's range is as good as infinite
            block = values[rows].astype(np.float32)
        kept.append(rows[np.isfinite(block).all(axis=1) & block.any(axis=1)])
    return np.concatenate(kept)


@dataclass(frozen=True, eq=False)
class Scaler:
    """``(x − mean) · factor``, clipped, projected, and divided by its length, each step as configured.

    Attributes:
        mean: ``(dim,)`` float64, subtracted.
        factor: ``(dim,)`` float64; zero for columns that are constant among warm items.
        axes: ``(dim, k)`` float64 principal axes, or None.
        clip: Limit before the projection, or None.
        unit_rows: Whether rows get length one.
    """

    mean: DoubleArray
    factor: DoubleArray
    axes: DoubleArray | None
    clip: float | None
    unit_rows: bool

    @property
    def dim(self) -> int:
        """Width of the result."""
        return len(self.mean) if self.axes is None else self.axes.shape[1]

    @classmethod
    def fit(
        cls, config: ScaleConfig, values: npt.NDArray[Any], rows: RowArray, reduce: int | None = None
    ) -> Self:
        """Statistics of the chosen rows; a single row cannot be compared with anything and is left unscaled.

        Args:
            config: Which steps.
            values: ``(n, dim)`` numbers.
            rows: Usable warm rows.
            reduce: Principal components to keep, or None.

        Raises:
            NothingToFitError: There are no rows, or they are all alike.
        """
        dim = values.shape[1]
        if not len(rows):
            raise NothingToFitError("no warm item has it")
        mean, factor = np.zeros(dim), np.ones(dim)
        clip = None
        if config.scaling != "none" and len(rows) > 1:
            mean, spread = _moments(values, rows)
            varies = spread > _ROUNDING * np.abs(mean)
            if not varies.any():
                raise NothingToFitError("it is the same for all warm items")
            power = {"column": 1.0, "root": 0.5, "centre": 0.0}[config.scaling]
            factor = np.divide(1.0, spread**power, out=np.zeros(dim), where=varies)
            clip = config.clip if config.scaling == "column" else None
        scaler = cls(mean, factor, None, clip, config.unit_rows)
        if reduce is None or reduce >= dim:
            return scaler
        return cls(mean, factor, scaler._principal_axes(values, rows, reduce), clip, config.unit_rows)

    def _scaled(self, values: npt.NDArray[Any], rows: RowArray) -> DoubleArray:
        block = (values[rows].astype(np.float64) - self.mean) * self.factor
        return block if self.clip is None else np.clip(block, -self.clip, self.clip)

    def _principal_axes(self, values: npt.NDArray[Any], rows: RowArray, k: int) -> DoubleArray:
        """``(dim, ≤ k)`` leading eigenvectors of the scaled rows' second moments, signs fixed."""
        dim = len(self.mean)
        moments = np.zeros((dim, dim))
        for part in _blocks(rows, dim):
            block = self._scaled(values, part)
            moments += block.T @ block
        strength, axes = np.linalg.eigh(moments)
        order = np.argsort(-strength, kind="stable")[:k]
        order = order[strength[order] > 1e-10 * strength.max()]  # the rest is rounding
        axes = axes[:, order]
        largest = axes[np.abs(axes).argmax(axis=0), np.arange(len(order))]
        return np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0))

    def apply(
        self, values: npt.NDArray[Any], present: npt.NDArray[np.bool_], extractor: str
    ) -> FeatureMatrix:
        """Scale all usable rows; the others, and rows of which nothing is left, are zero and absent."""
        n, dim = values.shape
        out, kept = np.zeros((n, self.dim), np.float32), np.zeros(n, np.bool_)
        for rows in _blocks(usable_rows(values, present), dim):
            block = self._scaled(values, rows)
            if self.axes is not None:
                # One product a row: with one product a block, the bits of a row would hang on the block's size.
                block = np.matmul(block[:, None, :], self.axes)[:, 0, :]
            if self.unit_rows:
                length = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
                block = np.divide(block, length, out=np.zeros_like(block), where=length > 0)
            out[rows] = block
            kept[rows] = out[rows].any(axis=1)
        return FeatureMatrix(out, kept, extractor)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`."""
        arrays = {"mean": self.mean, "factor": self.factor}
        if self.axes is not None:
            arrays["axes"] = self.axes
        return {"clip": self.clip, "unit_rows": self.unit_rows}, arrays

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A scaler again.

        Raises:
            ValueError: The arrays do not fit each other.
        """
        mean, factor = (np.asarray(arrays[name], np.float64) for name in ("mean", "factor"))
        axes = np.asarray(arrays["axes"], np.float64) if "axes" in arrays else None
        fits = mean.ndim == 1 and mean.shape == factor.shape
        if not fits or (axes is not None and (axes.ndim != 2 or len(axes) != len(mean))):
            raise ValueError("arrays of different widths")
        return cls(mean, factor, axes, about["clip"], bool(about["unit_rows"]))


def _moments(values: npt.NDArray[Any], rows: RowArray) -> tuple[DoubleArray, DoubleArray]:
    """Mean and standard deviation of each column, in two passes."""
    dim = values.shape[1]
    mean, squares = np.zeros(dim), np.zeros(dim)
    for part in _blocks(rows, dim):
        mean += values[part].astype(np.float64).sum(axis=0)
    mean /= len(rows)
    for part in _blocks(rows, dim):
        squares += np.square(values[part].astype(np.float64) - mean).sum(axis=0)
    return mean, np.sqrt(squares / len(rows))


class Scaled:
    """A view whose rows end in a :class:`Scaler`."""

    scaler: Scaler

    @property
    def dim(self) -> int:
        """Width of the rows."""
        return self.scaler.dim
