"""Fine-tuning: the whole encoder and a linear head learn the classes of the bank (specs/mim-refiner.md §4.3, §4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from firstlight.core.errors import DivergenceError
from firstlight.core.events import Emit, silent
from firstlight.core.schedules import warmup_cosine
from firstlight.core.seeds import numpy_stream, torch_stream
from firstlight.evaluation.encoder_config import FinetuneConfig
from firstlight.evaluation.encoder_data import LabelledImages, Part
from firstlight.evaluation.encoder_subsets import share
from firstlight.vision.augment import UNIFORMS, crop_images, to_tensor
from firstlight.vision.crop_config import crop_and_flip
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.mixing import mix
from firstlight.vision.objective import decay_groups
from firstlight.vision.rand_augment import erase, rand_augment
from firstlight.vision.refiner import encoder_groups
from firstlight.vision.vit import ViT, pool

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_REFERENCE_BATCH = 256
_BETAS = (0.9, 0.999)
_START_DEVIATION = 0.01


class Classifier(nn.Module):
    """A copy of an encoder, its positions free to learn, under a linear head.

    Args:
        encoder: What is copied; it stays as it is.
        n_classes: Number of classes.
        rng: Draws the head's start.
        drop_path: Chance that training skips a branch of the last block.
    """

    def __init__(
        self, encoder: Encoder, n_classes: int, rng: torch.Generator, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.pooling = encoder.pooling
        changes = {"positions": "learned", "drop_path": drop_path}
        self.vit = ViT(encoder.vit.config.model_copy(update=changes), None)
        weights = {name: value.clone() for name, value in encoder.vit.state_dict().items()}
        self.vit.load_state_dict(weights, assign=True)
        self.vit.requires_grad_(True)
        with torch.device("meta"):  # so that building draws nothing from the global generator
            self.head = nn.Linear(self.vit.config.dim, n_classes)
        self.head.to_empty(device="cpu")  # where the stream is
        nn.init.trunc_normal_(self.head.weight, std=_START_DEVIATION, generator=rng)
        nn.init.zeros_(self.head.bias)
        self.head.to(encoder.vit.pos_embed.device)

    def forward(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """``(b, 3, H, W)`` to ``(b, classes)``; ``rng`` draws which branches are skipped."""
        logits: Tensor = self.head(pool(self.vit(images, rng), self.vit.prefix, self.pooling))
        return logits

    def groups(self, config: FinetuneConfig) -> list[dict[str, object]]:
        """Parameter groups for AdamW; each knows its share ``lr_scale`` of the learning rate."""
        groups = encoder_groups(self.vit, config.layer_decay)
        groups += decay_groups("head", [self.head])
        return [
            {
                "params": group.parameters,
                "lr_scale": group.lr_scale,
                "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
        ]


def finetune(
    encoder: Encoder, images: LabelledImages, config: FinetuneConfig, seed: int, emit: Emit = silent
) -> BoolArray:
    """Fine-tune a copy of an encoder on the bank and classify the queries.

    Images are decoded and cropped anew in every epoch, so memory does not grow with their number.

    Args:
        encoder: Where training starts; its device is used.
        images: Bank and queries.
        config: Length, rates, and the share of labels.
        seed: Of subset, start, order and crops.
        emit: Gets ``epoch`` events.

    Returns:
        ``(m,)`` whether each query that can be read was classified rightly.

    Raises:
        DivergenceError: The loss is no longer a finite number.
    """
    device = next(encoder.vit.parameters()).device
    bank = images.bank.take(share(images.bank.labels, config.share, seed))
    drop_path = config.drop_path_of(encoder.vit.config.dim)
    start = torch_stream(seed, "finetune-start")
    model = Classifier(encoder, len(images.classes), start, drop_path).to(device)
    batch = min(config.batch_size, len(bank.rows))
    per_epoch = len(bank.rows) // batch
    peak = config.base_rate * batch / _REFERENCE_BATCH
    total, warmup = config.epochs * per_epoch, round(min(config.warmup_epochs, config.epochs / 5) * per_epoch)
    optimiser = torch.optim.AdamW(model.groups(config), lr=peak, betas=_BETAS)
    model.train()
    for epoch in range(config.epochs):
        losses = []
        for place, (inputs, labels) in enumerate(_crops(bank, batch, encoder, config, seed, epoch)):
            step = epoch * per_epoch + place
            rate = warmup_cosine(step, total, warmup, peak, config.end_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["lr_scale"]
            inputs, targets = _targets(
                inputs.to(device), labels.to(device), len(images.classes), config, seed, step
            )
            skipped = torch_stream(seed, "finetune-skipped", step)
            losses.append(_step(model, optimiser, inputs, targets, config, skipped))
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise DivergenceError(f"fine-tuning: the loss is {mean} in epoch {epoch + 1}")
        emit("epoch", phase="fine-tuning", epoch=epoch + 1, epochs=config.epochs, loss=mean)
    return _classified(model.eval(), encoder, images.queries, batch)


def _targets(
    inputs: Tensor, labels: Tensor, n_classes: int, config: FinetuneConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Images and the probabilities of their classes, mixed under strong augmentation."""
    targets = F.one_hot(labels, n_classes).float()
    if not config.strong:
        return inputs, targets
    rng = numpy_stream(seed, "finetune-mix", step)
    return mix(inputs, targets, rng, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)


def _step(
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    config: FinetuneConfig,
    skipped: torch.Generator,
) -> float:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        logits = model(inputs, skipped)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def _crops(
    bank: Part, batch: int, encoder: Encoder, config: FinetuneConfig, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images and classes of one epoch's steps; the last, partial batch is dropped."""
    order = numpy_stream(seed, "finetune-order", epoch).permutation(len(bank.rows))
    for start in range(0, len(order) - batch + 1, batch):
        ready, labels = [], []
        for at in order[start : start + batch].tolist():
            row = int(bank.rows[at])
            try:
                image = bank.images.load(row)
            except UnusableImageError:
                continue  # reported when the features were taken
            stream = numpy_stream(seed, "finetune-crops", epoch, row)
            ready.append(augmented(image, encoder, config, stream))
            labels.append(int(bank.labels[at]))
        if ready:
            yield torch.stack(ready), torch.tensor(labels)


def augmented(
    image: Image.Image, encoder: Encoder, config: FinetuneConfig, rng: np.random.Generator
) -> Tensor:
    """A crop, half the time mirrored; under strong augmentation through RandAugment, and sometimes a box erased.

    Args:
        image: RGB.
        encoder: Gives the size, and the statistics that are taken out.
        config: What is done.
        rng: Stream of this image in this epoch.

    Returns:
        ``(3, H, W)`` float32.
    """
    views = crop_and_flip(encoder.vit.config.image_size, (config.min_scale, 1.0))
    crop = crop_images(image, views, rng.random((1, UNIFORMS)))[0]
    if not config.strong:
        return to_tensor(crop, encoder.mean, encoder.std)
    red, green, blue = (round(255 * part) for part in encoder.mean)
    crop = rand_augment(
        crop,
        rng,
        operations=config.operations,
        magnitude=config.magnitude,
        deviation=config.magnitude_deviation,
        fill=(red, green, blue),
    )
    return erase(to_tensor(crop, encoder.mean, encoder.std), config.erasing, rng)


@torch.inference_mode()
def _classified(model: Classifier, encoder: Encoder, queries: Part, batch: int) -> BoolArray:
    device = next(model.parameters()).device
    right: list[bool] = []
    for start in range(0, len(queries.rows), batch):
        ready, labels = [], []
        for at in range(start, min(start + batch, len(queries.rows))):
            try:
                ready.append(encoder.prepare(queries.images.load(int(queries.rows[at]))))
            except UnusableImageError:
                continue
            labels.append(int(queries.labels[at]))
        if ready:
            found = model(torch.stack(ready).to(device)).argmax(dim=1).cpu()
            right += (found == torch.tensor(labels)).tolist()
    return np.array(right, bool)
