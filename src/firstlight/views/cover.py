"""Covers as statistics of colour and edges: no training, no weights, and a yardstick for encoders.

Colours are in CIE L*a*b* (D65), where equal distances look about equally different. A row holds

- mean and standard deviation of L*, a*, b* in each cell of a grid,
- the square roots of a joint histogram of L*, a*, b* over the whole cover,
- in each cell a histogram of edge directions weighted by edge strength, at unit length (after Dalal & Triggs
  2005), and the mean edge strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError, nothing, summary
from firstlight.views.config import CoverConfig
from firstlight.views.scale import Scaled, Scaler, usable_rows
from firstlight.vision.decoder import UnusableImageError, decode_rgb, image_bytes, is_address

FloatArray = npt.NDArray[np.float32]

#: Linear sRGB to XYZ, rows divided by the white point D65 (IEC 61966-2-1).
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])
_CODES = np.arange(256) / 255
_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(np.float32)


def shrunk(content: bytes, config: CoverConfig) -> npt.NDArray[np.uint8]:
    """Decode a cover and resize it to a square, whatever its aspect.

    Args:
        content: A picture file.
        config: Size and limits.

    Returns:
        ``(size, size, 3)`` uint8 sRGB.

    Raises:
        UnusableImageError: It is torn, no picture, or too large.
    """
    double = (2 * config.size, 2 * config.size)
    image = decode_rgb(content, max_pixels=config.max_pixels, at_least=double)
    return np.asarray(image.resize((config.size, config.size), Image.Resampling.BOX), np.uint8)


def lab(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """Turn sRGB into CIE L*a*b*, divided by 100.

    Args:
        pixels: ``(h, w, 3)``.

    Returns:
        ``(h, w, 3)``: L in [0, 1], a and b within about ±1.1.
    """
    xyz = _LINEAR[pixels].reshape(-1, 3) @ _TO_XYZ.T.astype(np.float32)
    bent = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = bent.T
    return (
        np.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], axis=1).reshape(pixels.shape).astype(np.float32)
    )


def statistics_dim(config: CoverConfig) -> int:
    """Width of :func:`statistics`."""
    return config.grid**2 * (6 + config.orientations + 1) + config.colour_bins**3


@lru_cache(maxsize=4)
def _cells(size: int, grid: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The cell of each pixel, ``(size²,)``, and the pixels of each cell, ``(grid²,)``."""
    strip = np.arange(size) * grid // size
    cell = (strip[:, None] * grid + strip).ravel()
    return cell, np.bincount(cell, minlength=grid**2).astype(np.float64)


def statistics(pixels: npt.NDArray[np.uint8], config: CoverConfig) -> FloatArray:
    """The row of one cover, before scaling.

    Args:
        pixels: ``(size, size, 3)`` sRGB.
        config: Grid and bins.

    Returns:
        ``(statistics_dim(config),)`` float32.
    """
    colours = lab(pixels)
    cell, count = _cells(config.size, config.grid)
    flat = colours.reshape(-1, 3).astype(np.float64)
    parts = []
    for channel in flat.T:
        mean = np.bincount(cell, channel, len(count)) / count
        square = np.bincount(cell, channel**2, len(count)) / count
        parts += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    parts.append(_colour_histogram(flat, config.colour_bins))
    parts += _edges(colours[..., 0], cell, count, config.orientations)
    return np.concatenate(parts).astype(np.float32)


def _colour_histogram(flat: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.float64]:
    """Square roots of shares, ``(bins³,)``. Most colours lie within ±.5 of grey; the outer bins take the rest."""
    unit = flat * [1, 1, 1] + [0, 0.5, 0.5]
    code = np.clip((unit * bins).astype(np.int64), 0, bins - 1) @ np.array([bins * bins, bins, 1])
    return np.sqrt(np.bincount(code, minlength=bins**3) / len(flat))


def _edges(
    light: FloatArray, cell: npt.NDArray[np.int64], count: npt.NDArray[np.float64], bins: int
) -> list[npt.NDArray[np.float64]]:
    """Histograms of direction ``(cells · bins,)`` at unit length a cell, and mean strength ``(cells,)``."""
    padded = np.pad(light, 1, mode="edge")
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    strength = np.hypot(across, down).ravel().astype(np.float64)
    # An edge shared between the two nearest bins: a small turn must not move all of its weight.
    place = (np.arctan2(down, across).ravel().astype(np.float64) % np.pi) * (bins / np.pi)
    low = place.astype(np.int64)
    share = place - low
    histogram = np.zeros(len(count) * bins)
    for step, weight in ((0, 1 - share), (1, share)):
        histogram += np.bincount(cell * bins + (low + step) % bins, weight * strength, len(histogram))
    table = histogram.reshape(-1, bins)
    # The constant keeps faint noise on flat ground from looking like a strong direction.
    table = table / np.sqrt(np.square(table).sum(axis=1, keepdims=True) + (0.01 * count[:, None]) ** 2)
    return [table.ravel(), np.bincount(cell, strength, len(count)) / count]


def describe(
    catalogue: Catalogue, rows: npt.NDArray[np.int64], config: CoverConfig, folder: Path | None
) -> tuple[FloatArray, npt.NDArray[np.bool_], list[tuple[int, str]]]:
    """Statistics of the covers of some items.

    Args:
        catalogue: With a ``cover`` column.
        rows: Items to look at.
        config: Size, grid, bins, limits.
        folder: Where paths start.

    Returns:
        ``(len(rows), dim)`` rows, ``(len(rows),)`` mask, and (item row, reason) of each cover that cannot be used.

    Raises:
        InputError: Covers are paths, and no folder is given.
    """
    covers = catalogue.items["cover"]
    values = np.zeros((len(rows), statistics_dim(config)), np.float32)
    present, failures = np.zeros(len(rows), np.bool_), []
    for at, row in enumerate(rows.tolist()):
        cover = covers[row]
        if folder is None and isinstance(cover, str) and cover and not is_address(cover):
            raise InputError(
                f"covers are paths (such as {cover!r}), and no folder is given that they start from",
                hint="pass the dataset's folder",
            )
        try:
            content = image_bytes(cover, folder, config.max_bytes)
            if content is not None:
                values[at] = statistics(shrunk(content, config), config)
                present[at] = True
        except UnusableImageError as error:
            failures.append((row, str(error)))
    return values, present, failures


@dataclass(frozen=True, eq=False)
class CoverView(Scaled):
    """Statistics of covers, scaled.

    Attributes:
        config: How covers are read.
        scaler: Fitted on warm items.
    """

    kind: ClassVar[str] = "cover"
    config: CoverConfig
    scaler: Scaler

    @classmethod
    def fit(
        cls, config: CoverConfig, catalogue: Catalogue, warm: npt.NDArray[np.bool_], folder: Path | None
    ) -> Self:
        """Fit on the covers of warm items.

        Raises:
            NothingToFitError: No warm item has a usable cover, or they are all alike.
            InputError: Covers are paths, and no folder is given.
        """
        rows = np.flatnonzero(warm)
        values, present, failures = describe(catalogue, rows, config, folder)
        if failures and not present.any():
            raise NothingToFitError(summary("covers", failures, len(rows), catalogue.items, "cover"))
        return cls(config, Scaler.fit(config, values, usable_rows(values, present)))

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """See :meth:`firstlight.views.base.View.transform`; a cover that cannot be decoded is absent.

        Raises:
            InputError: Covers are paths, and no folder is given.
        """
        extractor = "colour and edge statistics"
        if "cover" not in catalogue.items.columns:
            return nothing(n_items, self.dim, extractor)
        values, present, failures = describe(catalogue, np.arange(n_items), self.config, folder)
        if failures:
            problems.append(summary("covers", failures, n_items, catalogue.items, "cover"))
        return self.scaler.apply(values, present, extractor)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`."""
        about, arrays = self.scaler.state()
        return {**about, "cover": self.config.model_dump(mode="json")}, arrays

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A fitted view again.

        Raises:
            ValueError: The parts do not fit each other.
        """
        config, scaler = CoverConfig.model_validate(about["cover"]), Scaler.from_state(about, arrays)
        if len(scaler.mean) != statistics_dim(config):
            raise ValueError("arrays of different widths")
        return cls(config, scaler)
