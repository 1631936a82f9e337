"""RandAugment and erasing: every operation on pictures whose answer is known, and how they are drawn."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.vision import rand_augment as room
from firstlight.vision.rand_augment import OPERATIONS, erase, rand_augment

FILL = (1, 2, 3)


def noise(side: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def flat(*colour: int) -> Image.Image:
    return Image.new("RGB", (10, 10), colour)


def after(name: str, image: Image.Image, level: float) -> np.ndarray:
    return np.asarray(OPERATIONS[name](image, level, FILL)).astype(int)


def test_there_are_the_fourteen_of_the_paper():
    shapes = {"rotate", "shear-x", "shear-y", "translate-x", "translate-y"}
    colours = {"color", "contrast", "brightness", "sharpness", "posterize", "solarize"}
    assert set(OPERATIONS) == {"identity", "autocontrast", "equalize"} | shapes | colours


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_at_level_nought_nothing_happens(name):
    assert np.array_equal(after(name, noise(), 0.0), np.asarray(noise()))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.5, 1.0])
def test_an_image_stays_one(name, level):
    made = OPERATIONS[name](noise(), level, FILL)
    assert (made.mode, made.size) == ("RGB", (20, 20))


def test_colours_by_hand():
    assert (
        after("brightness", flat(100, 50, 200), 0.5) == [145, 72, 255]
    ).all()  # a factor of 1.45, cut off at 255
    assert (after("brightness", flat(100, 50, 200), -1.0) == [10, 5, 20]).all()
    two = Image.new("RGB", (2, 1))
    two.putpixel((0, 0), (80, 80, 80))
    two.putpixel((1, 0), (120, 120, 120))
    assert after("contrast", two, 0.5)[0, :, 0].tolist() == [71, 129]  # 100 ± 20 · 1.45
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 40)
    expected = [grey + 0.1 * (value - grey) for value in (200, 100, 40)]
    assert np.abs(after("color", flat(200, 100, 40), -1.0) - expected).max() <= 1
    # From a threshold of 256 · (1 − .5) on values become their complement.
    assert (after("solarize", flat(127, 128, 250), 0.5) == [127, 127, 5]).all()
    assert (after("solarize", flat(127, 128, 250), -1.0) == [128, 127, 5]).all()
    assert (after("posterize", flat(255, 129, 15), 1.0) == [0xF0, 0x80, 0]).all()
    assert (after("posterize", flat(255, 129, 15), -0.5) == [0xFC, 0x80, 0x0C]).all()
    assert np.array_equal(after("sharpness", flat(9, 9, 9), 1.0), np.asarray(flat(9, 9, 9)))
    ramp = Image.fromarray(np.linspace(50, 150, 100, dtype=np.uint8).reshape(10, 10)).convert("RGB")
    stretched = after("autocontrast", ramp, 1.0)
    assert (stretched.min(), stretched.max()) == (0, 255)
    even = after("equalize", noise(64), 0.3)
    assert np.histogram(even, bins=8, range=(0, 256))[0].std() < 0.02 * even.size


def test_sharpening_and_softening_move_an_edge_apart():
    edge = np.full((10, 10, 3), 50, np.uint8)
    edge[:, 5:] = 200
    picture = Image.fromarray(edge)
    steps = [int(np.abs(np.diff(after("sharpness", picture, level)[5, :, 0])).max()) for level in (-1, 0, 1)]
    assert steps[0] < steps[1] < steps[2]


def test_shapes_by_hand():
    picture = np.asarray(noise()).astype(int)
    moved = after("translate-x", noise(), 0.5)  # int(.45 · .5 · 20) = 4 pixels to the left
    assert np.array_equal(moved[:, :16], picture[:, 4:])
    assert (moved[:, 16:] == FILL).all()
    moved = after("translate-y", noise(), -1.0)  # 9 pixels down
    assert np.array_equal(moved[9:], picture[:11])
    assert (moved[:9] == FILL).all()
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, 20:] = 255
    sheared = after("shear-x", Image.fromarray(stripes), 1.0)[:, :, 0]
    edge = (sheared > 127).argmax(axis=1)  # row y looks at x + .3 y
    assert np.abs(edge - np.clip(20 - 0.3 * (np.arange(40) + 0.5), 0, None)).max() <= 1
    sheared = after("shear-y", Image.fromarray(stripes.transpose(1, 0, 2).copy()), -1.0)[:, :, 0]
    edge = (sheared > 127).argmax(axis=0)[:30]
    assert np.abs(edge - (20 + 0.3 * (np.arange(30) + 0.5))).max() <= 1
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[19:22, 34:37] = 255  # 15 to the right of the centre
    turned = after("rotate", Image.fromarray(dot), 1.0)[:, :, 0].astype(float)
    turned[turned <= FILL[0]] = 0  # the corners that were uncovered
    y, x = (float((turned * place).sum() / turned.sum()) for place in np.mgrid[:41, :41])
    assert (x - 20, 20 - y) == pytest.approx(
        (15 * math.cos(math.pi / 6), 15 * math.sin(math.pi / 6)), abs=0.6
    )


def drawn(monkeypatch, count: int, **options) -> list[tuple[str, float]]:
    """Operations and levels of many draws."""
    seen: list[tuple[str, float]] = []

    def noting(name):
        return lambda image, level, fill: (seen.append((name, level)), image)[1]

    monkeypatch.setattr(room, "OPERATIONS", {name: noting(name) for name in OPERATIONS})
    rng = np.random.default_rng(1)
    for _ in range(count):
        rand_augment(flat(0, 0, 0), rng, **options)
    return seen


def test_two_operations_are_drawn_alike_in_both_directions(monkeypatch):
    seen = drawn(monkeypatch, 2100)
    assert len(seen) == 4200
    counts = Counter(name for name, _ in seen)
    assert len(counts) == 14
    assert sum((count - 300) ** 2 / 300 for count in counts.values()) < 34.5  # chi-square, 13 degrees, .999
    levels = np.array([level for _, level in seen])
    assert abs((levels > 0).mean() - 0.5) < 0.03
    assert np.abs(levels).mean() == pytest.approx(0.9, abs=0.005)
    assert np.abs(levels).std() == pytest.approx(0.05, abs=0.005)
    assert np.abs(levels).max() <= 1


def test_settings_of_the_draw(monkeypatch):
    assert drawn(monkeypatch, 5, operations=0) == []
    levels = [abs(level) for _, level in drawn(monkeypatch, 100, operations=3, magnitude=5, deviation=0)]
    assert len(levels) == 300
    assert set(levels) == {0.5}
    assert {abs(level) for _, level in drawn(monkeypatch, 50, magnitude=10, deviation=100)} >= {0.0, 1.0}


def test_a_stream_decides():
    one, two, other = (
        np.asarray(rand_augment(noise(), np.random.default_rng(s), operations=4)) for s in (0, 0, 1)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_erasing():
    image = torch.zeros(3, 40, 60)
    shares, values, boxes, untouched = [], [], [], 0
    for seed in range(400):
        made = erase(image, 0.25, np.random.default_rng(seed))
        rows, columns = made[0].any(dim=1).nonzero()[:, 0], made[0].any(dim=0).nonzero()[:, 0]
        if not len(rows):
            assert made is image
            untouched += 1
            continue
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        part = made[:, rows[0] : rows[0] + tall, columns[0] : columns[0] + wide]
        assert int((made != 0).sum()) == part.numel()  # all of the box, and nothing else
        shares.append(tall * wide / 2400)
        boxes.append(tall / wide)
        values.append(part.flatten())
    assert not image.any()
    assert abs(untouched / 400 - 0.75) < 0.07
    assert 0.015 < min(shares) < 0.08
    assert 0.25 < max(shares) < 0.35
    assert 0.25 < min(boxes) < max(boxes) < 4
    together = torch.cat(values)
    assert abs(float(together.mean())) < 0.02
    assert float(together.std()) == pytest.approx(1, abs=0.02)
    assert erase(image, 1.0, np.random.default_rng(0)).any()
    assert erase(torch.zeros(3, 1, 1), 1.0, np.random.default_rng(0)).shape == (3, 1, 1)  # no box fits
