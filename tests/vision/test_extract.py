"""Rows of images: whatever stands beside an image, and however many threads there are."""

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.core.seeds import torch_stream
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.extract import _run_batch, extract_rows
from firstlight.vision.vit import ViT, ViTConfig

CONFIG = ViTConfig(image_size=(16, 16), patch_size=4, dim=32, depth=2, heads=2)
ENCODER = Encoder(ViT(CONFIG, torch_stream(0, "vit")).eval())


def load(seed):
    if seed < 0:
        raise UnusableImageError(f"number {seed} is torn")
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("tokens", ["class", "mean", "patches"])
def test_rows_are_the_encoders_features(tokens):
    seeds = list(range(20))
    rows = list(extract_rows(ENCODER, seeds, load, tokens))
    batch = torch.stack([ENCODER.prepare(load(seed)) for seed in seeds])
    expected = ENCODER.features(batch, tokens).flatten(1).numpy()
    np.testing.assert_allclose(np.stack(rows), expected, atol=1e-5)
    assert rows[0].shape == (ENCODER.dim(tokens),)
    assert rows[0].dtype == np.float32


def test_bits_hang_on_the_image_alone():
    alone = [next(extract_rows(ENCODER, [seed], load)) for seed in range(12)]
    for threads in (1, 3):
        together = list(extract_rows(ENCODER, range(12), load, threads=threads))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


def test_unusable_images_keep_their_places():
    rows = list(extract_rows(ENCODER, [0, -1, 2, -3], load, threads=2))
    assert [isinstance(row, UnusableImageError) for row in rows] == [False, True, False, True]
    assert str(rows[3]) == "number -3 is torn"
    assert list(extract_rows(ENCODER, [], load)) == []


def test_reads_only_a_little_ahead_and_leaves_torchs_threads_alone():
    asked = []

    def counted(seed):
        asked.append(seed)
        return load(seed)

    before = torch.get_num_threads()
    rows = extract_rows(ENCODER, range(1000), counted, threads=2)
    for _ in range(3):
        next(rows)
    rows.close()
    assert len(asked) <= 20
    assert torch.get_num_threads() == before


def test_other_errors_are_not_swallowed():
    def broken(seed):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(extract_rows(ENCODER, [1], broken))


def test_batches_of_a_gpu_keep_the_order_of_images():
    """The way of a GPU, run on the CPU: bfloat16, and unusable images in between."""
    torn = UnusableImageError("torn")
    images = [ENCODER.prepare(load(seed)) for seed in range(3)]
    batch = [images[0], torn, images[1], images[2], torn]
    rows = list(_run_batch(ENCODER, batch, "mean", torch.device("cpu")))
    assert rows[1] is rows[4] is torn
    expected = ENCODER.features(torch.stack(images), "mean").numpy()
    for row, one in zip((rows[0], rows[2], rows[3]), expected, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, one, atol=0.05)
    assert list(_run_batch(ENCODER, [torn], None, torch.device("cpu"))) == [torn]
