"""Random streams: named, and the same whoever draws beside."""

from __future__ import annotations

import numpy as np

from firstlight.core.seeds import derive, uniforms

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """One output of the reference generator, written with Python's whole numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def test_the_mixing_is_splitmix64():
    # The first output of seed 1234567, as published with the generator.
    assert splitmix64((1234567 + 0x9E3779B97F4A7C15) & MASK) == 6457827717110365317


def test_uniforms_are_places_of_one_sequence():
    found = uniforms(7, "augment", 3, rows=np.array([5, 0, 2**40]), count=4)
    assert found.shape == (3, 4)
    for row, numbers in zip([5, 0, 2**40], found, strict=True):
        for place, number in enumerate(numbers):
            state = derive(7, "augment", 3) + (4 * row + place + 1) * 0x9E3779B97F4A7C15
            assert number == (splitmix64(state & MASK) >> 11) / 2**53


def test_rows_draw_alone_and_names_matter():
    rows = np.arange(1000)
    whole = uniforms(0, "a", rows=rows, count=6)
    assert (uniforms(0, "a", rows=rows[700:701], count=6) == whole[700]).all()
    assert (uniforms(0, "b", rows=rows, count=6) != whole).all()
    assert (uniforms(1, "a", rows=rows, count=6) != whole).all()


def test_uniforms_are_uniform():
    drawn = uniforms(0, "many", rows=np.arange(50_000), count=8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    expected = drawn.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110  # 63 degrees of freedom: p of about 2e-4
    # no row, and no number in it, tells of the next
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.007
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.007
