"""A refiner small enough for tests, and images for it."""

from __future__ import annotations

from typing import Any

import torch

from firstlight.core.seeds import torch_stream
from firstlight.vision.objective import ImageBatch
from firstlight.vision.refiner import HeadStage, RefineStage
from firstlight.vision.refiner_config import RefinerConfig, head_specs
from firstlight.vision.vit import ViT, ViTConfig

VIT = ViTConfig(image_size=(16, 16), patch_size=4, dim=32, depth=4, heads=2)
SMALL: dict[str, Any] = {"widths": "debug", "queue_size": 32, "top_k": 4, "ema": 0.5}
GLOBAL, LOCAL = (16, 16), (8, 8)


def config(**changes: Any) -> RefinerConfig:
    return RefinerConfig.model_validate(SMALL | changes)


def encoder(**changes: Any) -> ViT:
    return ViT(VIT.model_copy(update=changes), torch_stream(0, "encoder"))


def head_stage(vit: ViT | None = None, **changes: Any) -> HeadStage:
    vit = encoder() if vit is None else vit
    settings = config(**changes)
    specs = head_specs(settings, vit.config.dim, vit.config.depth)
    assert settings.queue_size is not None
    return HeadStage(vit, settings, specs, settings.queue_size, "class", torch_stream(0, "heads"))


def refine_stage(vit: ViT | None = None, **changes: Any) -> RefineStage:
    return RefineStage(head_stage(vit, **changes), 0.2)


def images(n: int = 6, n_local: int = 3, seed: int = 0) -> ImageBatch:
    rng = torch_stream(seed, "images")
    sizes = [GLOBAL] * 2 + [LOCAL] * n_local
    return ImageBatch(
        [torch.randn(n, 3, *size, generator=rng) for size in sizes], torch.arange(n) + 100 * seed
    )
