"""A small catalogue with everything an item can have."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from firstlight.data.catalogue import Catalogue, FeatureMatrix

TOPICS = ("cat kitten paws purring", "goal striker league keeper", "recipe dough oven butter")


def png(colour=(200, 30, 30), size=(24, 36), seed: int | None = None, **options) -> bytes:
    """A PNG of one colour, or of noise around it."""
    pixels = np.full((size[1], size[0], 3), colour, np.int64)
    if seed is not None:
        pixels = pixels + np.random.default_rng(seed).integers(-60, 60, pixels.shape)
    target = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(target, "PNG", **options)
    return target.getvalue()


def make_catalogue(n: int = 40, seed: int = 0) -> Catalogue:
    """Items of three topics; some lack a title, a cover or a feature."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(len(TOPICS), size=n)
    titles: list[str | None] = [
        " ".join(rng.choice(TOPICS[topic].split(), 3)) + f" {rng.choice(['today', 'again', 'now'])}"
        for topic in topics
    ]
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])
    covers: list[bytes | None] = [png(colours[topic], seed=row) for row, topic in enumerate(topics)]
    titles[3], covers[4] = None, None
    values = (rng.standard_normal((n, 6)) * [1, 5, 0.1, 1, 1, 0] + [0, 100, 0, 1, 2, 7]).astype(np.float32)
    present = np.ones(n, np.bool_)
    values[5], present[5] = 0, False
    items = pl.DataFrame({"title": titles, "cover": covers, "role": ["warm"] * n, "arrived": np.arange(n)})
    return Catalogue(items, {"clip": FeatureMatrix(values, present, "a clip encoder")})


def take(catalogue: Catalogue, rows) -> Catalogue:
    """Some items of a catalogue."""
    rows = np.atleast_1d(rows)
    features = {
        name: FeatureMatrix(matrix.values[rows], matrix.present[rows], matrix.extractor)
        for name, matrix in catalogue.features.items()
    }
    return Catalogue(catalogue.items[rows.tolist()] if catalogue.items.width else catalogue.items, features)


@pytest.fixture(scope="session")
def world() -> tuple[Catalogue, np.ndarray]:
    """The catalogue and which of its items are warm."""
    warm = np.arange(40) < 30
    return make_catalogue(), warm


@pytest.fixture(scope="session")
def tools():
    """The makers above, for tests that need other catalogues."""

    class Tools:
        png = staticmethod(png)
        make = staticmethod(make_catalogue)
        take = staticmethod(take)

    return Tools
