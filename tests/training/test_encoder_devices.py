"""Encoders where they train: a GPU, if there is one, computes what a CPU does up to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.core.seeds import numpy_stream, uniforms
from firstlight.training.encoder_config import EncoderTrainingConfig, build_pretrain_config
from firstlight.training.encoder_loop import speed_advice
from firstlight.training.pretrain import pretrain
from firstlight.training.refine import refine
from firstlight.training.refine_config import build_refine_config
from firstlight.vision.augment import UNIFORMS
from firstlight.vision.augment_batch import crops_batch
from firstlight.vision.crop_config import multi_crop
from firstlight.vision.encoder_file import load_encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.images import open_images
from firstlight.vision.loader import ImageLoader

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
    ),
]
SHAPE = ["encoder.dim=32", "encoder.depth=4", "encoder.heads=2", "mae.decoder_dim=16", "mae.decoder_heads=2"]
TRAINING = ["training.epochs=2", "training.batch_size=16", "training.threads=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Forty pictures of three colours, with noise, in two sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(40):
        rng = numpy_stream(0, "picture", n)
        pixels = rng.integers(0, 120, (24 if n % 2 else 32, 32, 3))
        pixels[..., n % 3] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n:02}.png")
    return open_images(folder)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def trained(images: ImageSet, folder: Path, *changes: str) -> tuple[list[float], list[float]]:
    """Losses of a pre-training and of a refinement from it."""
    config = build_pretrain_config(images, overrides=[*SHAPE, *TRAINING, *changes])
    pretrain(images, config, folder / "mae")
    overrides: list[Any] = ["refiner.widths=debug", "crops.n_local=2", "crops.local_size=[16, 16]"]
    refining = build_refine_config(
        overrides=[*overrides, "refiner.queue_size=16", "heads.epochs=2", *TRAINING, *changes]
    )
    refine(images, folder / "mae", refining, folder / "refined")
    return losses(folder / "mae"), losses(folder / "refined")


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_trains_what_a_cpu_does(images: ImageSet, tmp_path: Path, device: str) -> None:
    where = f"training.device={device}"
    found = trained(images, tmp_path / "there", where)
    expected = trained(images, tmp_path / "here", "training.device=cpu")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=0.02)
    assert load_encoder(tmp_path / "there" / "refined").vit.pos_embed.device.type == "cpu"


@pytest.mark.parametrize("device", DEVICES)
def test_images_are_kept_and_cropped_there(images: ImageSet, device: str) -> None:
    config = multi_crop((16, 16), (8, 8), n_local=3)
    loader = ImageLoader(images, config, 8, 0, device=device)
    assert loader.cache is not None
    assert loader.cache.pixels.device.type == device
    batch = next(iter(loader.epoch(0)))
    drawn = uniforms(0, "augment", 0, rows=batch.rows.numpy(), count=5 * UNIFORMS).reshape(8, 5, UNIFORMS)
    pixels = loader.cache.pixels.cpu()[batch.rows]
    expected = crops_batch(pixels, loader.cache.sizes[batch.rows], config, drawn)
    for mine, theirs in zip(batch.views, expected, strict=True):
        assert mine.device.type == device
        assert torch.allclose(mine.cpu(), theirs, atol=1e-3)


def test_what_would_be_faster_is_said_where_it_is_true(monkeypatch):
    there = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there, raising=False)
    plain = EncoderTrainingConfig(device="cpu")
    assert "precision=bfloat16" in speed_advice(plain)[0]
    assert speed_advice(plain.model_copy(update={"precision": "bfloat16"})) == []
    there = {"avx512_bf16": False}
    assert speed_advice(plain) == []
