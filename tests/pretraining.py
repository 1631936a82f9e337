"""A pre-training small enough for tests, and images for it."""

import io

import numpy as np
import polars as pl
from PIL import Image

from firstlight.training.encoder_config import build_pretrain_config

TINY = [
    "encoder.image_size=[16,16]",
    "encoder.patch_size=4",
    "encoder.dim=16",
    "encoder.depth=2",
    "encoder.heads=2",
    "mae.decoder_dim=16",
    "mae.decoder_heads=2",
    "mae.decoder_depth=1",
    "training.batch_size=8",
    "training.epochs=3",
    "training.threads=1",
    "training.device=cpu",
]


def write_images(path, n=26, broken=()):
    rng = np.random.default_rng(0)
    values = []
    for row in range(n):
        target = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(target, "PNG")
        values.append(b"torn" if row in broken else target.getvalue())
    ids = [f"cover {row}" for row in range(n)]
    pl.DataFrame({"item": ids, "image": values}).write_parquet(path)
    return path


def config(images, *changes):
    return build_pretrain_config(images, overrides=[*TINY, *changes])
