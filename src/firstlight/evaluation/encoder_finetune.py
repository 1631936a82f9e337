"""Fine-tuning: the whole encoder and a linear head learn the classes of the bank (specs/mim-refiner.md §4.3, §4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight.core.errors import DivergenceError
from firstlight.core.events import Emit, silent
from firstlight.core.schedules import warmup_cosine
from firstlight.core.seeds import numpy_stream, torch_stream
from firstlight.evaluation.encoder_config import FinetuneConfig
from firstlight.evaluation.encoder_data import LabelledImages, Part
from firstlight.evaluation.encoder_subsets import share
from firstlight.vision.augment import crops
from firstlight.vision.crop_config import CropConfig, crop_and_flip
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.images import UnusableImageError
from firstlight.vision.objective import decay_groups
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
    """

    def __init__(self, encoder: Encoder, n_classes: int, rng: torch.Generator) -> None:
        super().__init__()
        self.pooling = encoder.pooling
        self.vit = ViT(encoder.vit.config.model_copy(update={"positions": "learned"}), None)
        weights = {name: value.clone() for name, value in encoder.vit.state_dict().items()}
        self.vit.load_state_dict(weights, assign=True)
        self.vit.requires_grad_(True)
        self.head = nn.Linear(self.vit.config.dim, n_classes)
        nn.init.trunc_normal_(self.head.weight, std=_START_DEVIATION, generator=rng)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(b, 3, H, W)`` to ``(b, classes)``."""
        logits: Tensor = self.head(pool(self.vit(images), self.vit.prefix, self.pooling))
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
    model = Classifier(encoder, len(images.classes), torch_stream(seed, "finetune-start")).to(device)
    batch = min(config.batch_size, len(bank.rows))
    per_epoch = len(bank.rows) // batch
    peak = config.base_rate * batch / _REFERENCE_BATCH
    total, warmup = config.epochs * per_epoch, round(min(config.warmup_epochs, config.epochs / 5) * per_epoch)
    optimiser = torch.optim.AdamW(model.groups(config), lr=peak, betas=_BETAS)
    views = crop_and_flip(encoder.vit.config.image_size, (config.min_scale, 1.0)).model_copy(
        update={"mean": encoder.mean, "std": encoder.std}
    )
    model.train()
    for epoch in range(config.epochs):
        losses = []
        for step, (inputs, labels) in enumerate(_crops(bank, batch, views, seed, epoch)):
            rate = warmup_cosine(epoch * per_epoch + step, total, warmup, peak, config.end_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["lr_scale"]
            losses.append(_step(model, optimiser, inputs.to(device), labels.to(device), config))
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise DivergenceError(f"fine-tuning: the loss is {mean} in epoch {epoch + 1}")
        emit("epoch", phase="fine-tuning", epoch=epoch + 1, epochs=config.epochs, loss=mean)
    return _classified(model.eval(), encoder, images.queries, batch)


def _step(
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
) -> float:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def _crops(
    bank: Part, batch: int, views: CropConfig, seed: int, epoch: int
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
            ready.append(crops(image, views, numpy_stream(seed, "finetune-crops", epoch, row))[0])
            labels.append(int(bank.labels[at]))
        if ready:
            yield torch.stack(ready), torch.tensor(labels)


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
