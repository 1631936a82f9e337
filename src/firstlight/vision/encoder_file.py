"""An encoder with all that using it takes, and the ENC folder that holds it.

::

    ENC/encoder.safetensors   weights, named as in vision/vit.py
    ENC/encoder.json          shape, mean and standard deviation of the images, pooling, licence, history, SHA-256
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.vision.crop_config import IMAGENET_MEAN, IMAGENET_STD
from firstlight.vision.positions import resize_positions
from firstlight.vision.vit import ViT, ViTConfig, pool

WEIGHTS, ABOUT = "encoder.safetensors", "encoder.json"
FORMAT_VERSION = 1

#: What :meth:`Encoder.features` gives of an image.
Tokens = Literal["class", "mean", "patches"]
#: How an encoder multiplies.
Precision = Literal["float32", "bfloat16"]


def usable_pixels(
    mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD
) -> bool:
    """Whether images can be normalised by a mean and a standard deviation a channel."""
    return all(map(math.isfinite, (*mean, *std))) and min(std) > 0


@dataclass
class Encoder:
    """A vision transformer and how images come to it.

    Attributes:
        vit: The transformer.
        mean: Of each channel, in [0, 1]; subtracted from the images.
        std: Of each channel; what is left is divided by it.
        pooling: What stands for an image where nothing else is asked for.
        crop: Share of the resized image's shorter side that the centre crop keeps (.875 is ImageNet's 224 of 256).
        licence: Licence of the weights, or what is known of it.
        history: What made the weights, oldest first: JSON values.
        precision: How it multiplies, from :func:`with_precision`; never part of the folder. None: as its tensors say.
    """

    vit: ViT
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooling: Literal["class", "mean"] = "class"
    crop: float = 1.0
    licence: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.vit.config.channels != 3:
            raise InputError(f"the encoder reads {self.vit.config.channels} channels; images here have 3")
        if not usable_pixels(self.mean, self.std):
            raise InputError(
                f"images cannot be normalised by mean {self.mean} and standard deviation {self.std}"
            )
        if not self.vit.config.class_token and self.pooling == "class":
            raise InputError(
                "pooling 'class' needs a class token, and this encoder has none", hint="use 'mean'"
            )

    def dim(self, tokens: Tokens | None = None) -> int:
        """Width of a row of :meth:`features`, patches one after the other."""
        config = self.vit.config
        return config.dim * (math.prod(config.grid) if tokens == "patches" else 1)

    def prepare(self, image: Image.Image) -> Tensor:
        """The centre of an image in the encoder's aspect, resized (bicubic) and normalised.

        Resized is only what is kept, so that a picture of 5000 × 1 pixels costs no more than another.

        Args:
            image: RGB.

        Returns:
            ``(3, H, W)`` float32.
        """
        height, width = self.vit.config.image_size
        scale = max(height / image.height, width / image.width) / self.crop
        kept_width, kept_height = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
        box = (left, top, min(left + kept_width, image.width), min(top + kept_height, image.height))
        resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return self.normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(…, 3, H, W)`` uint8 to float32 with ``mean`` and ``std`` taken out."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels.float().div_(255).sub_(mean)).div_(std)

    @torch.no_grad()
    def features(self, images: Tensor, tokens: Tokens | None = None) -> Tensor:
        """What the encoder says of images, after its final norm.

        Args:
            images: ``(b, 3, H, W)`` float, normalised.
            tokens: The class token, the mean of the patches, or every patch; None: as ``pooling`` says.

        Returns:
            ``(b, dim)``, or ``(b, n, dim)`` for patches; float32, also where products are in bfloat16.

        Raises:
            InputError: There is no class token.
        """
        how = self.kind_of_row(tokens)
        reduced = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16) if reduced else nullcontext():
            out: Tensor = self.vit(images)
        out = out.float() if reduced else out
        return out[:, self.vit.prefix :] if how == "patches" else pool(out, self.vit.prefix, how)

    def kind_of_row(self, tokens: Tokens | None) -> Tokens:
        """``tokens``, or what ``pooling`` says in their place.

        Raises:
            InputError: There is no class token.
        """
        how: Tokens = tokens or self.pooling
        if how == "class" and not self.vit.config.class_token:
            raise InputError("this encoder has no class token", hint="ask for the mean of the patches")
        return how

    def state_hash(self) -> str:
        """SHA-256 over weights and everything else that decides a feature (licence and history apart)."""
        digest = hashlib.sha256(json.dumps(_recipe(self), sort_keys=True).encode())
        for name, tensor in sorted(self.vit.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def resized(encoder: Encoder, image_size: tuple[int, int]) -> Encoder:
    """The same encoder for images of another size or shape; its positions are brought to the new grid for good.

    Args:
        encoder: The encoder; the new one shares its other weights.
        image_size: Height and width in pixels; patches must tile it.

    Raises:
        InputError: They do not.
    """
    config = encoder.vit.config
    size = config.patch_size
    if min(image_size) < size or any(side % size for side in image_size):
        height, width = image_size
        raise InputError(f"patches of {size} px do not tile an image of {height} × {width} px")
    new = config.model_copy(update={"image_size": tuple(image_size)})
    state = encoder.vit.state_dict()
    vit = ViT(new, None)
    vit.load_state_dict(
        {**state, "pos_embed": resize_positions(state["pos_embed"], config.grid, new.grid)}, assign=True
    )
    history = [*encoder.history, {"resized": list(image_size), "from": list(config.image_size)}]
    return replace(encoder, vit=vit.train(encoder.vit.training), history=history)


def with_precision(encoder: Encoder, precision: Precision) -> Encoder:
    """The same encoder, to run and not to save, with all products in one precision; sums and norms stay in float32.

    ``bfloat16`` is two to four times as fast on processors with instructions for it (AVX512-BF16, AMX, ARM bf16), and
    slower on others. Cosines of rows with those of float32 are above .999 (``tests/vision/test_encoder_file.py``).

    Args:
        encoder: The encoder; its weights are shared, but for the matrices, which are rounded once and for all.
        precision: Which one.
    """
    vit = encoder.vit
    if precision == "bfloat16":
        state = vit.state_dict()
        for name, part in vit.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                for own in part.state_dict():
                    state[f"{name}.{own}"] = state[f"{name}.{own}"].to(torch.bfloat16)
        vit = ViT(vit.config, None)
        vit.load_state_dict(state, assign=True)
        vit.train(encoder.vit.training).requires_grad_(False)
    return replace(encoder, vit=vit, precision=precision)


def foreign_notes(encoder: Encoder) -> list[str]:
    """What was assumed in reading a foreign checkpoint, and its licence, for people; nothing of our own encoders."""
    if len(encoder.history) != 1 or "read" not in encoder.history[0]:
        return []
    notes = encoder.history[0].get("notes")
    told = [str(note) for note in notes] if isinstance(notes, list) else []
    return [*told, *([f"licence: {encoder.licence}"] if encoder.licence else [])]


def _recipe(encoder: Encoder) -> dict[str, Any]:
    return {
        "config": encoder.vit.config.model_dump(mode="json"),
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "crop": encoder.crop,
        "pooling": encoder.pooling,
    }


def describe(encoder: Encoder) -> dict[str, Any]:
    """All of an encoder but its weights, as JSON values."""
    return {
        "format_version": FORMAT_VERSION,
        **_recipe(encoder),
        "licence": encoder.licence,
        "history": encoder.history,
    }


def from_description(about: dict[str, Any], state: dict[str, Tensor]) -> Encoder:
    """The encoder of a description and its weights; the tensors are taken over, not copied.

    Raises:
        ValueError: The description is not one, or the weights do not fit it (KeyError, TypeError: likewise).
    """
    if about["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"format version {about['format_version']!r} is not known; install a newer firstlight"
        )
    vit = ViT(ViTConfig.model_validate(about["config"]), None)
    try:
        vit.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (about["mean"], about["std"]))
    pooling, crop = about["pooling"], float(about["crop"])
    if pooling not in ("class", "mean") or not 0 < crop <= 1 or not usable_pixels(mean, std):
        raise ValueError(
            f"pooling {pooling!r}, crop {crop}, mean {mean} or standard deviation {std} cannot be"
        )
    history = about["history"]
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError("its history is not a list of objects")
    return Encoder(vit.eval(), mean, std, pooling, crop, about["licence"], history)


def save_encoder(folder: Path | str, encoder: Encoder) -> None:
    """Write ``encoder.safetensors`` and then ``encoder.json``, each atomically.

    A process killed between the two leaves weights that the description does not know: loading says so.
    """
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.vit.state_dict().items()}
    content = save(state)
    try:
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.write_bytes(content)
        write_json(folder / ABOUT, {**describe(encoder), "sha256": hashlib.sha256(content).hexdigest()})
    except OSError as error:
        raise InputError(f"the encoder cannot be written ({error})", path=folder) from error


def load_encoder(path: Path | str, *, heads: int | None = None) -> Encoder:
    """Read an encoder.

    Args:
        path: An ENC folder, a folder of Hugging Face or timm (``config.json`` and weights), or a checkpoint file in
            any layout that :mod:`firstlight.vision.checkpoints` knows.
        heads: Attention heads, for a checkpoint file whose width does not tell them.

    Returns:
        The encoder on the CPU, in evaluation mode.

    Raises:
        InputError: There is none, it was changed, or it cannot be understood.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file or folder", path=path)
    if not (path / ABOUT).is_file():
        from firstlight.vision.checkpoints import load_foreign  # reads foreign layouts into an Encoder

        return load_foreign(path, heads=heads)
    try:
        about = read_json(path / ABOUT)
        content = (path / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise InputError(
                "these weights are not the ones that were written (the hash differs)",
                path=path / WEIGHTS,
                hint="a run that was cut short finishes them with --resume",
            )
        return from_description(about, load(content))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(f"the encoder cannot be read ({error})", path=path) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this does not describe an encoder ({error})", path=path / ABOUT) from error
