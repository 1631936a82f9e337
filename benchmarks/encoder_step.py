"""Encoders against the floor: images a second of embedding and of training steps, on a CPU or a GPU.

    python benchmarks/encoder_step.py [--rounds 5] [--threads 2] [--device cuda --precision bfloat16] [--only 64]
    python benchmarks/encoder_step.py --device cuda --precision bfloat16 --large 64    # one step of ViT-L/16

The floor of a row is the work of its matrix products, forward and backward, at the rate that the machine reaches on one
product of two square matrices with the same threads and the same precision, measured in the same round. The products
are counted while they run (attention written out as products, each matrix once; norms, activations and the optimiser
count as nothing). Tensors lie ready, but for the rows with augmentation, which take their batches from the loader:
images in memory, decoded before; ``decoded each time`` stands for images too many for that, which one process decodes
and crops with Pillow between the steps. ``from files``: as ``firstlight embed`` does, from JPEG files to rows. ``fused
attention``: with PyTorch's own kernel, where firstlight writes attention out. ``ViT-B/16`` has the paper's decoder;
``width 192`` is the recipe ``pretrain-small`` (64 px, patches of 8 px), and its refinement is ``refine-small`` with
2 + 4 crops and four heads. All rows of a round run one after the other, so that what else the machine does hits them
alike; shares are medians over rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from machine import median_ratio, paired, publish
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from firstlight.core.seeds import torch_stream
from firstlight.training.encoder_config import EncoderTrainingConfig
from firstlight.training.encoder_loop import EncoderPhase
from firstlight.vision import layers
from firstlight.vision.crop_config import CropConfig, crop_and_flip, multi_crop
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder, Precision, with_precision
from firstlight.vision.extract import extract_rows
from firstlight.vision.image_set import ImageSet
from firstlight.vision.loader import ImageLoader
from firstlight.vision.mae import MAE, MAEConfig
from firstlight.vision.objective import ImageBatch, Objective
from firstlight.vision.refiner import HeadStage, RefineStage
from firstlight.vision.refiner_config import RefinerConfig, head_specs
from firstlight.vision.refiner_memory import memory_estimate
from firstlight.vision.vit import ViT
from firstlight.vision.vit_config import ViTConfig

SMALL = ViTConfig(image_size=(64, 64), patch_size=8, dim=192, depth=12, heads=3)
BASE = ViTConfig(image_size=(224, 224), patch_size=16, dim=768, depth=12, heads=12)
PAPER_DECODER = MAEConfig(decoder_dim=512, decoder_depth=8, decoder_heads=16)
LARGE = ViTConfig(image_size=(224, 224), patch_size=16, dim=1024, depth=24, heads=16)
SMALL_CROPS = multi_crop((64, 64), (32, 32), n_local=4, local_scale=(0.1, 0.35), blur=False)
#: Side of the square matrices whose product gives the machine's rate.
SIDE = {"cpu": 2048, "cuda": 8192}


def drawn(n: int, side: int) -> ImageSet:
    """JPEG files of coloured clouds."""
    files = []
    for row in range(n):
        pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        target = io.BytesIO()
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(
            target, "JPEG", quality=90
        )
        files.append(target.getvalue())
    return ImageSet([str(row) for row in range(n)], "drawn", "drawn", files)


class Row:
    """One line of the table: some work, and what its matrix products come to.

    Args:
        name: What is done.
        images: Images in one piece of work.
        work: Does it.
    """

    def __init__(self, name: str, images: int, work: Callable[[], object]) -> None:
        self.name, self.images, self.work = name, images, work
        self.flops = 0

    def count(self) -> None:
        """Count the products of one piece of work (and warm it up)."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.work()
        self.flops = counter.get_total_flops()


def forever(loader: ImageLoader) -> Iterator[ImageBatch]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def ready(crops: CropConfig, batch: int, device: torch.device) -> ImageBatch:
    """A batch of noise."""
    rng = torch_stream(0, "noise")
    views = [torch.randn(batch, 3, *view.size, generator=rng).to(device) for view in crops.crops]
    return ImageBatch(views, torch.arange(batch, device=device))


def training(
    name: str,
    objective: Objective,
    crops: CropConfig,
    batch: int,
    settings: dict[str, Any],
    *,
    loads: bool = False,
    kept: bool = True,
) -> Row:
    """A row of the steps that the training loop makes, on one batch or on the loader's.

    Args:
        name: What the table calls it.
        objective: What is trained.
        crops: What it sees.
        batch: Images in a step.
        settings: Device and precision.
        loads: Whether batches come from the loader.
        kept: Whether the loader keeps images decoded.
    """
    config = EncoderTrainingConfig(batch_size=batch, **settings)
    images = drawn(2 * batch, max(crops.views[0].size) * 8 // 7)
    loader = ImageLoader(images, crops, batch, 0, device=settings["device"], cache_bytes=2**30 if kept else 0)
    phase = EncoderPhase("speed", objective, loader, config)
    phase.module.train()
    batches = forever(loader) if loads else itertools.repeat(ready(crops, batch, phase.device))
    return Row(name, batch, lambda: phase.update(next(batches).to(phase.device)))


def embedding(name: str, shape: ViTConfig, batch: int, device: torch.device, precision: str) -> Row:
    vit = ViT(shape, torch_stream(0, "encoder")).eval().to(device)
    images = ready(crop_and_flip(shape.image_size), batch, device).views[0]

    def work() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            vit(images)

    return Row(name, batch, work)


def from_files(name: str, shape: ViTConfig, batch: int, device: torch.device, precision: Precision) -> Row:
    vit = ViT(shape, torch_stream(0, "encoder")).eval().to(device)
    encoder, images = with_precision(Encoder(vit), precision), drawn(batch, shape.image_size[0] * 8 // 7)

    def work() -> None:
        for row in extract_rows(encoder, range(batch), images.load):
            assert not isinstance(row, UnusableImageError)

    return Row(name, batch, work)


def head_stage(queue: int, shape: ViTConfig = SMALL) -> HeadStage:
    config = RefinerConfig(temperature=0.2)
    rng = torch_stream(0, "heads")
    specs = head_specs(config, shape.dim, shape.depth)
    return HeadStage(ViT(shape, torch_stream(0, "encoder")), config, specs, queue, "class", rng)


def mae(shape: ViTConfig, config: MAEConfig) -> MAE:
    return MAE(config, ViT(shape, torch_stream(0, "encoder")), torch_stream(0, "decoder"))


def rows(device: torch.device, precision: Precision, small: int, base: int) -> list[Row]:
    settings: dict[str, Any] = {"device": device.type, "precision": precision}
    flip_small, flip_base = crop_and_flip(SMALL.image_size), crop_and_flip(BASE.image_size)
    with_crops, queue = max(2, small // 4), max(3072, small)
    fused = []
    if device.type == "cpu" and precision == "bfloat16":
        steps = [
            embedding("ViT-B/16 at 224 px, embedding", BASE, base, device, precision),
            training("width 192 at 64 px, MAE step", mae(SMALL, MAEConfig()), flip_small, small, settings),
            training(
                "width 192 at 64 px, refinement", RefineStage(head_stage(queue), 0.2), SMALL_CROPS, with_crops, settings
            ),
        ]  # fmt: skip
        fused = [Row(f"{row.name}, fused attention", row.images, with_fused(row.work)) for row in steps]
    return [
        embedding("ViT-B/16 at 224 px, embedding", BASE, base, device, precision),
        from_files("ViT-B/16 at 224 px, embedding from files", BASE, base, device, precision),
        training("ViT-B/16 at 224 px, MAE step", mae(BASE, PAPER_DECODER), flip_base, base, settings),
        training(
            "ViT-B/16 at 224 px, MAE step with augmentation", mae(BASE, PAPER_DECODER), flip_base, base, settings,
            loads=True,
        ),
        training(
            "ViT-B/16 at 224 px, MAE step, decoded each time", mae(BASE, PAPER_DECODER), flip_base, base, settings,
            loads=True, kept=False,
        ),
        embedding("width 192 at 64 px, embedding", SMALL, small, device, precision),
        from_files("width 192 at 64 px, embedding from files", SMALL, small, device, precision),
        training("width 192 at 64 px, MAE step", mae(SMALL, MAEConfig()), flip_small, small, settings),
        training(
            "width 192 at 64 px, MAE step with augmentation", mae(SMALL, MAEConfig()), flip_small, small, settings,
            loads=True,
        ),
        training("width 192 at 64 px, head stage", head_stage(queue), SMALL_CROPS, with_crops, settings),
        training(
            "width 192 at 64 px, refinement", RefineStage(head_stage(queue), 0.2), SMALL_CROPS, with_crops, settings
        ),
        training(
            "width 192 at 64 px, refinement with augmentation", RefineStage(head_stage(queue), 0.2), SMALL_CROPS,
            with_crops, settings, loads=True,
        ),
        *fused,
    ]  # fmt: skip


def with_fused(work: Callable[[], object]) -> Callable[[], object]:
    """The same work with PyTorch's kernel for attention."""

    def run() -> object:
        kept, layers.WRITTEN_OUT = layers.WRITTEN_OUT, 0
        try:
            return work()
        finally:
            layers.WRITTEN_OUT = kept

    return run


def large(batch: int, chosen: argparse.Namespace) -> None:
    """One refinement step of ViT-L/16 as its recipe has it, but for the batch: memory, speed and the floor."""
    device = torch.device(chosen.device)
    crops, queue = multi_crop((224, 224), (96, 96)), 65536
    settings: dict[str, Any] = {"device": device.type, "precision": chosen.precision}
    stage = RefineStage(head_stage(queue, LARGE), 0.2)
    estimate = memory_estimate(
        LARGE, stage.config, list(stage.specs), [view.size for view in crops.crops], batch=batch, ranks=1, queue=queue,
        half=chosen.precision == "bfloat16",
    )  # fmt: skip
    flops = work_of_an_image(stage, crops, settings)
    torch.cuda.reset_peak_memory_stats()
    row = training("ViT-L/16 at 2 × 224 + 10 × 96 px, refinement step", stage, crops, batch, settings)
    rate = product_rate(chosen.device, chosen.precision)
    times = paired({row.name: settled(row.work, device)}, chosen.rounds + 1)[row.name][1:]
    taken = [wall for wall, _ in times]
    each = statistics.median(taken) / batch
    peak = torch.cuda.max_memory_allocated() / 1e9
    publish(
        "speed",
        f"encoder-large-{chosen.device}-{chosen.precision}",
        f"One step of ViT-L/16 at the recipe's crops, {chosen.precision}, {torch.cuda.get_device_name()}",
        [*("what", "batch", "GFLOP an image", "images a second", "share of the floor", "peak memory, GB"), "estimated"],
        [[row.name, batch, f"{flops / 1e9:,.0f}", f"{1 / each:,.1f}", f"{flops / rate / each:.2f}", f"{peak:.1f}",
          f"{sum(estimate.values()) / 1e9:.1f}"]],
        f"floor: {rate / 1e9:,.1f} GFLOP/s, one product of square matrices; median of {chosen.rounds} steps; eight "
        f"heads, queues of {queue:,}",
    )  # fmt: skip


def work_of_an_image(stage: RefineStage, crops: CropConfig, settings: dict[str, Any]) -> float:
    """FLOP of a step an image; it does not depend on the batch, but for the products of the batch with itself."""
    counted = training("counted", stage, crops, 8, settings)
    counted.count()
    return counted.flops / 8


def product_rate(device: str, precision: str) -> float:
    """FLOP/s of one product of square matrices, the median of seven."""
    side, kind = SIDE[device], torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    times = paired({"product": settled(lambda: left @ right, torch.device(device))}, 10)["product"][3:]
    return 2 * side**3 / statistics.median(wall for wall, _ in times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--small", type=int, default=256, help="batch of the small encoder")
    parser.add_argument("--base", type=int, default=8, help="batch of ViT-B/16")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument(
        "--large", type=int, help="only this: one step of ViT-L/16 with so many images, on a GPU"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.large:
        large(chosen.large, chosen)
        return
    device = torch.device(chosen.device)
    every = rows(device, chosen.precision, chosen.small, chosen.base)
    measured = [row for row in every if chosen.only in row.name]
    for row in measured:
        # What runs in threads is not seen; its products are those of the tensors that lie ready.
        same = next(other for other in every if other.name == row.name.removesuffix(" from files"))
        same.count()
        row.flops = same.flops
        row.work()
    side = SIDE[chosen.device]
    kind = torch.bfloat16 if chosen.precision == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    candidates = {"product": lambda: left @ right} | {row.name: row.work for row in measured}
    times = paired({name: settled(work, device) for name, work in candidates.items()}, chosen.rounds)
    seconds = {name: [wall for wall, _ in times[name]] for name in candidates}
    rate = [2 * side**3 / taken for taken in seconds["product"]]
    lines = []
    for row in measured:
        taken = seconds[row.name]
        share = median_ratio([row.flops / r for r in rate], taken)
        lines.append(
            [row.name, row.images, f"{row.flops / row.images / 1e9:.2f}",
             f"{row.images / statistics.median(taken):,.1f}", f"{share:.2f}"]
        )  # fmt: skip
    # Where nothing is said: what the command does by itself.
    labels = ["cuda"] if device.type == "cuda" else []
    labels += [chosen.precision] if labels or chosen.precision != "float32" else []
    where = f"{chosen.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    publish(
        "speed",
        "-".join(["encoder-step", *labels]),
        f"Encoders against the floor, {chosen.precision}, {where}",
        ["what", "batch", "GFLOP an image", "images a second", "share of the floor"],
        lines,
        f"floor: the same products at the rate of one product of {side} × {side} matrices, "
        f"{statistics.median(rate) / 1e9:,.1f} GFLOP/s here; medians over {chosen.rounds} rounds",
    )


def settled(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """``work`` that has ended when it returns, on a GPU too."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
