"""Mixup and CutMix: known answers, and how shares and boxes are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.vision.mixing import cut_box, cutmix, mix, mixup

IMAGES = torch.stack([torch.full((3, 4, 6), float(value)) for value in (1, 2, 5)])
TARGETS = torch.eye(3)


def test_mixup_by_hand():
    images, targets = mixup(IMAGES, TARGETS, 0.75)
    assert [image.unique().tolist() for image in images] == [[2.0], [2.0], [4.0]]  # with the mirrored place
    assert targets.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]]
    whole, same = mixup(IMAGES, TARGETS, 1.0)
    assert torch.equal(whole, IMAGES)
    assert torch.equal(same, TARGETS)


def test_cutmix_by_hand():
    before = IMAGES.clone()
    images, targets = cutmix(IMAGES, TARGETS, (1, 2, 3, 5))
    assert torch.equal(IMAGES, before)
    assert (images[0, :, 1:3, 2:5] == 5).all()
    assert (images[2, :, 1:3, 2:5] == 1).all()
    assert int((images[0] == 1).sum()) == 3 * (24 - 6)
    assert torch.allclose(targets, torch.tensor([[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]]))
    empty, same = cutmix(IMAGES, TARGETS, (2, 3, 2, 3))
    assert torch.equal(empty, IMAGES)
    assert torch.equal(same, TARGETS)


def test_targets_stay_probabilities_and_tell_what_is_there():
    rng = np.random.default_rng(0)
    for _ in range(50):
        images, targets = mix(IMAGES, TARGETS, rng, mixup_alpha=0.8, cutmix_alpha=1.0)
        assert torch.allclose(targets.sum(dim=1), torch.ones(3))
        assert torch.allclose(images.mean(dim=(1, 2, 3)), targets @ torch.tensor([1.0, 2.0, 5.0]), atol=1e-5)


def kinds(count: int, **alphas) -> list[str]:
    """Which of the two was done: only mixup gives values that were not there."""
    rng, found = np.random.default_rng(1), []
    for _ in range(count):
        images, targets = mix(IMAGES, TARGETS, rng, **alphas)
        cut = set(images.unique().tolist()) <= {1.0, 2.0, 5.0}
        found.append("none" if targets is TARGETS else "cutmix" if cut else "mixup")
    return found


def test_both_are_drawn_alike():
    found = kinds(1000, mixup_alpha=0.8, cutmix_alpha=1.0)
    assert abs(found.count("mixup") - 500) < 50
    assert "none" not in found
    assert set(kinds(30, mixup_alpha=0.8, cutmix_alpha=0.0)) == {"mixup"}
    assert set(kinds(30, mixup_alpha=0.0, cutmix_alpha=1.0)) == {"cutmix"}
    assert set(kinds(30, mixup_alpha=0.0, cutmix_alpha=0.0)) == {"none"}


def test_shares_come_from_the_beta_distribution():
    """Mean one half, variance 1 / (4 (2 α + 1))."""
    rng = np.random.default_rng(2)
    for alpha in (0.8, 1.0):
        drawn = [
            float(mix(IMAGES, TARGETS, rng, mixup_alpha=alpha, cutmix_alpha=0)[1][0, 0]) for _ in range(3000)
        ]
        assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)
        assert np.var(drawn) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_boxes_have_the_asked_size_unless_an_edge_cuts_them():
    rng = np.random.default_rng(3)
    sizes = set()
    centres = []
    for _ in range(500):
        top, left, bottom, right = cut_box(40, 60, 0.75, rng)
        assert 0 <= top <= bottom <= 40
        assert 0 <= left <= right <= 60
        if top > 0 and left > 0 and bottom < 40 and right < 60:
            sizes.add((bottom - top, right - left))
            centres.append((top + bottom) / 2)
    assert sizes == {(20, 30)}  # a quarter of the image, of its aspect
    assert np.mean(centres) == pytest.approx(20, abs=1.5)
    top, left, bottom, right = cut_box(40, 60, 1.0, rng)
    assert (bottom - top) * (right - left) == 0
