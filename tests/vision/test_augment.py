"""Random crops: the draws, and the two forms that must make the same crop of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.vision.augment import UNIFORMS, crops, draw
from firstlight.vision.augment_batch import blur_matrix, crops_batch, resize_matrix, turn_hue
from firstlight.vision.crop_config import CropConfig, ViewConfig, crop_and_flip, multi_crop

PLAIN = ViewConfig(size=(16, 16), flip=0.0)


def photo(height, width, seed=0):
    """Smooth colours with some noise: unlike noise alone it has something to blur and to turn."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def both_forms(image, config, seed=1):
    """The crops of one image on Pillow and as tensors, in bytes."""
    pixels = torch.from_numpy(np.asarray(image).transpose(0, 2, 1).copy())[None]
    uniforms = np.random.default_rng(seed).random((1, len(config.crops), UNIFORMS))
    on_pillow = crops(image, config, uniforms[0])
    as_tensors = crops_batch(pixels, torch.tensor([[image.height, image.width]]), config, uniforms)
    return [(255 * a, 255 * b[0]) for a, b in zip(on_pillow, as_tensors, strict=True)]


def plain(*views):
    return CropConfig(views=views, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "worst", "mean"),
    [
        ({}, 3, 0.6),
        ({"flip": 1.0}, 3, 0.6),
        ({"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}, 3, 0.6),
        ({"scale": (0.05, 0.1)}, 3, 0.6),
        ({"jitter": 1.0, "contrast": 0, "saturation": 0, "hue": 0}, 3, 0.9),
        ({"jitter": 1.0, "brightness": 0, "saturation": 0, "hue": 0}, 3, 0.9),
        ({"jitter": 1.0, "brightness": 0, "contrast": 0, "hue": 0}, 3, 0.9),
        ({"jitter": 1.0, "brightness": 0, "contrast": 0, "saturation": 0}, 12, 2.0),  # HSV in bytes is coarse
        ({"jitter": 1.0}, 16, 3.0),
        ({"blur": 1.0}, 4, 1.5),
        ({"blur": 1.0, "blur_sigma": (0.1, 0.1)}, 4, 1.0),
        ({"grey": 1.0}, 3, 0.7),
    ],
)
def test_both_forms_make_the_same_crop(changes, worst, mean):
    view = PLAIN.model_copy(update={"count": 3, **changes})
    for seed in range(6):
        for a, b in both_forms(photo(40, 28, seed), plain(view), seed):
            assert a.shape == b.shape == (3, 16, 16)
            assert (a - b).abs().max() <= worst
            assert (a - b).abs().mean() <= mean


def test_solarising_turns_bright_values():
    grey = Image.fromarray(np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, 2).repeat(52, 0))
    view = ViewConfig(size=(52, 52), flip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), solarise=1.0)
    before = np.arange(0, 256, 5)
    expected = np.where(before < 128, before, 255 - before)
    for form in both_forms(grey, plain(view))[0]:
        assert np.abs(form[0, 0].numpy() - expected).max() <= 1


def test_hue_turns_the_colour_circle():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    turned = turn_hue(red, torch.tensor([1 / 3, 2 / 3, 1.0]).view(3, 1, 1))
    assert torch.allclose(turned[:, :, 0, 0], torch.eye(3)[[1, 2, 0]], atol=1e-6)
    grey = torch.full((1, 3, 2, 2), 0.4)
    assert torch.equal(turn_hue(grey, torch.tensor([[[0.3]]])), grey)


def test_resizing_to_the_same_size_changes_nothing():
    start, length = torch.tensor([0, 3]), torch.tensor([8, 8])
    found = resize_matrix(start, length, 12, 8)
    assert torch.allclose(found[0], torch.eye(8, 12), atol=1e-6)
    assert torch.allclose(found[1], torch.eye(12)[3:11], atol=1e-6)


def test_the_blur_has_the_variance_it_is_asked_for():
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    found = blur_matrix(sigma, 41)
    assert torch.allclose(found.sum(2), torch.ones(4, 41, dtype=torch.float64))
    distance = torch.arange(41, dtype=torch.float64) - 20
    assert torch.allclose((found[:, 20] * distance**2).sum(1), sigma**2, rtol=1e-6)


def test_boxes_are_inside_and_of_the_asked_area_and_aspect():
    view = ViewConfig(size=(30, 20), scale=(0.2, 0.6))
    sizes = np.array([[90, 60], [64, 96], [200, 200]]).repeat(400, 0)
    drawn = draw(view, np.random.default_rng(0).random((1200, UNIFORMS)), sizes)
    top, left, height, width = drawn.box.T
    assert (drawn.box[:, 2:] > 0).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= sizes[:, 0]).all()
    assert (left + width <= sizes[:, 1]).all()
    share = height * width / sizes.prod(1)
    assert share.min() > 0.18
    assert share.max() < 0.62
    assert abs(share[:400].mean() - 0.4) < 0.02
    aspect = width / height / (20 / 30)
    assert aspect.min() > 0.72
    assert aspect.max() < 1.38
    # Every place is as likely: the corner is uniform over the room there is.
    assert abs(((top + 0.5) / (sizes[:, 0] - height + 1)).mean() - 0.5) < 0.03


def test_where_no_box_fits_the_middle_is_taken():
    drawn = draw(
        ViewConfig(size=(8, 8)),
        np.random.default_rng(0).random((2, UNIFORMS)),
        np.array([[3, 5000], [400, 3]]),
    )
    assert drawn.box.tolist() == [[0, 2498, 3, 4], [198, 0, 4, 3]]


def test_chances():
    view = ViewConfig(size=(8, 8), flip=0.5, jitter=0.8, blur=0.5, grey=0.2, solarise=0.1)
    drawn = draw(view, np.random.default_rng(0).random((20_000, UNIFORMS)), np.full((20_000, 2), 64))
    for found, chance in (
        (drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.sigma > 0, 0.5), (drawn.grey, 0.2), (drawn.solarise, 0.1),
    ):  # fmt: skip
        assert abs(found.mean() - chance) < 0.015
    assert abs(drawn.sigma[drawn.sigma > 0].mean() - 1.05) < 0.03
    assert np.allclose(drawn.factors.min(0), [0.6, 0.6, 0.8, -0.1], atol=0.01)
    assert np.allclose(drawn.factors.max(0), [1.4, 1.4, 1.2, 0.1], atol=0.01)
    first = np.bincount(drawn.order[:, 0]) / 20_000
    assert np.abs(first - 0.25).max() < 0.015


def test_images_of_different_sizes_share_a_batch():
    images = [photo(20, 30), photo(33, 17, 2)]
    canvas = torch.zeros(2, 33, 3, 30, dtype=torch.uint8)
    canvas[:] = 77  # what lies beside an image must not leak into it
    for slot, image in zip(canvas, images, strict=True):
        slot[: image.height, :, : image.width] = torch.from_numpy(np.asarray(image).transpose(0, 2, 1).copy())
    config = multi_crop((16, 16), (8, 8), n_local=2)
    uniforms = np.random.default_rng(5).random((2, 4, UNIFORMS))
    together = crops_batch(canvas, torch.tensor([[20, 30], [33, 17]]), config, uniforms)
    for row, image in enumerate(images):
        alone = torch.from_numpy(np.asarray(image).transpose(0, 2, 1).copy())[None]
        size = torch.tensor([[image.height, image.width]])
        for whole, part in zip(
            together, crops_batch(alone, size, config, uniforms[row : row + 1]), strict=True
        ):
            assert torch.allclose(whole[row], part[0], atol=1e-5)


def test_the_crop_plan_of_the_paper():
    config = multi_crop((224, 224), (96, 96))
    first, second, local = config.views
    assert len(config.crops) == 12
    assert (first.blur, second.blur, local.blur) == (1.0, 0.1, 0.5)
    assert (first.solarise, second.solarise, local.solarise) == (0.0, 0.2, 0.0)
    assert (first.scale, local.scale, local.size) == ((0.25, 1.0), (0.05, 0.25), (96, 96))
    assert {(view.jitter, view.grey, view.flip) for view in config.views} == {(0.8, 0.2, 0.5)}
    sharp = multi_crop((32, 32), (16, 16), n_local=0, blur=False)
    assert [view.blur for view in sharp.views] == [0.0, 0.0]
    minimal = multi_crop((224, 224), (96, 96), colours=False)
    assert [(view.size, view.count, view.scale) for view in minimal.views] == [
        (view.size, view.count, view.scale) for view in config.views
    ]
    assert all(
        (view.jitter, view.blur, view.grey, view.solarise, view.flip) == (0, 0, 0, 0, 0.5)
        for view in minimal.views
    )
    mae = crop_and_flip((32, 24)).views[0]
    assert (mae.size, mae.scale, mae.jitter, mae.flip) == ((32, 24), (0.2, 1.0), 0.0, 0.5)


def test_values_are_centred():
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    (found,) = crops(white, crop_and_flip((8, 8)), np.random.default_rng(0).random((1, UNIFORMS)))
    assert found[:, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
