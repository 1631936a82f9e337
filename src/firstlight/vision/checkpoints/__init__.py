"""Foreign checkpoints of vision transformers to :class:`~firstlight.vision.encoder_file.Encoder`, from local files.

MAE, MAE-WS 2B, data2vec 2.0, dBOT, CrossMAE, MIM-Refiner, MAE-CT, I-JEPA, iBOT, DINO, DINOv2, Mugs, Layer-grafting,
timm and Hugging Face. Three steps: :mod:`.containers` (file to tensors, running nothing), :mod:`.layouts` (names),
:mod:`.shapes` (the transformer's shape, positions). What does not fit is an error that lists it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.files import read_json
from firstlight.core.hashing import hash_file
from firstlight.core.refusals import refusal
from firstlight.vision.checkpoints.containers import Container, read_container
from firstlight.vision.checkpoints.layouts import LAYOUTS, LIKE_MAE, Layout, Renamed, rename
from firstlight.vision.checkpoints.shapes import Hints, read_shape
from firstlight.vision.crop_config import IMAGENET_MEAN, IMAGENET_STD
from firstlight.vision.encoder_file import Encoder, usable_pixels
from firstlight.vision.vit import ViT
from firstlight.vision.vit_config import ViTConfig

#: Weights in folders of Hugging Face and timm.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Licences that the authors gave to the weights that they published. The same layout may hold anyone's own.
_LICENCES = {
    "MAE": "published weights of MAE: CC BY-NC 4.0 (those of dBOT, which look the same: Apache 2.0)",
    LIKE_MAE: "not known from the file: published weights of MAE, which look like it, are under CC BY-NC 4.0",
    "MAE-WS": "published weights of MAE-WS (MAWS): CC BY-NC 4.0",
    "CrossMAE": "published weights of CrossMAE: CC BY-NC 4.0",
    "MIM-Refiner": "not known from the file: what was refined binds too, and MAE and CrossMAE are under CC BY-NC 4.0",
    "Mugs": "published weights of Mugs: Apache 2.0",
    "I-JEPA": "published weights of I-JEPA: CC BY-NC 4.0",
    "data2vec 2.0": "published weights of data2vec 2.0 (fairseq): MIT",
    "iBOT or DINO": "published weights of iBOT, DINO and DINOv2: Apache 2.0",
}


@dataclass
class Report:
    """How the weights of a file met those of the transformer.

    Attributes:
        file: Name of the file.
        source: The likely origin of the weights.
        matched: Weights that were taken.
        missing: Weights of the transformer that the file lacks.
        unexpected: Names in the file that mean nothing here.
        dropped: Names in the file that are no part of an encoder (decoders, heads).
        notes: What was changed or assumed.
    """

    file: str
    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.file} ({self.source}): {len(self.matched)} weights taken, {len(self.dropped)} names dropped"
        ]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                more = ", …" if len(names) > 8 else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:8])}{more}")
        return "\n".join([*lines, *self.notes])


def load_foreign(path: Path, *, heads: int | None = None) -> Encoder:
    """As :func:`read_foreign`; the report is the first entry of the encoder's history."""
    return read_foreign(path, heads=heads)[0]


def read_foreign(
    path: Path, *, heads: int | None = None, layouts: Sequence[Layout] = LAYOUTS
) -> tuple[Encoder, Report]:
    """Read a foreign checkpoint.

    Args:
        path: A checkpoint file, or a folder of Hugging Face or timm.
        heads: Attention heads; None: as the file's settings say, else by width.
        layouts: How its names may be formed; the first that fits counts.

    Returns:
        The encoder, and how the file's names met ours.

    Raises:
        InputError: The file cannot be read, asks for something to be run, is in no known layout, or lacks weights or
            holds unknown ones; the message lists them.
    """
    file = _weights_file(Path(path))
    beside = _Beside(file)
    container = read_container(file)
    renamed = rename(container, layouts)
    report = Report(file.name, renamed.source, dropped=sorted(renamed.dropped))
    vit, state = _shaped(renamed, _hints(container, beside, heads), file, report.notes)
    report.source = renamed.source = _source(renamed, vit.config)
    wanted = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    report.matched = sorted(wanted.keys() & state.keys())
    report.missing = sorted(wanted.keys() - state.keys())
    report.unexpected = sorted([*(state.keys() - wanted.keys()), *renamed.strays])
    if report.missing or report.unexpected:
        raise InputError(f"the weights do not make a vision transformer. {report.text()}", path=file)
    for name in report.matched:
        if tuple(state[name].shape) != wanted[name]:
            raise InputError(
                f"{name} has the shape {tuple(state[name].shape)}, not {wanted[name]}", path=file
            )
        if not state[name].isfinite().all():
            raise InputError(f"{name} holds numbers that are not finite", path=file)
    vit.load_state_dict(state, assign=True)
    return _encoder(vit.eval(), renamed, container, beside, report), report


def _shaped(renamed: Renamed, hints: Hints, file: Path, notes: list[str]) -> tuple[ViT, dict[str, Tensor]]:
    """A transformer of the shape that the weights tell, still without them, and the weights under its names.

    Raises:
        InputError: They tell none.
    """
    try:
        config, state = read_shape(renamed, hints, file, notes)
        return ViT(config, None), state
    except ValidationError as error:
        problem, hint = refusal(error, ViTConfig)
        raise InputError(
            f"the weights do not make a vision transformer: {problem}", path=file, hint=hint
        ) from error
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # shapes that nobody thought of, in the file of a stranger
        raise InputError(f"the weights do not make a vision transformer ({error})", path=file) from error


def _source(renamed: Renamed, config: ViTConfig) -> str:
    """The likely origin, now that the shape is known besides the names."""
    if renamed.source in ("MAE", LIKE_MAE, "timm") and (config.dim, config.patch_size) == (2560, 14):
        return "MAE-WS"  # nobody else published this shape
    bare = not any(name.endswith("mask_token") for name in renamed.dropped)  # MAE drops it with its decoder
    if renamed.source == LIKE_MAE and config.positions == "sincos" and bare:
        return "MAE"
    return renamed.source


def _encoder(vit: ViT, renamed: Renamed, container: Container, beside: _Beside, report: Report) -> Encoder:
    mean, std = beside.triple("mean"), beside.triple("std")
    if mean is None or std is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        report.notes.append(
            "mean and standard deviation of the images are not in the file: ImageNet's are taken"
        )
    licence = beside.licence() or container.metadata.get("license") or _LICENCES.get(renamed.source)
    mean_pooled = renamed.source == "CrossMAE" or not vit.config.class_token
    history = [{"read": report.file, "sha256": hash_file(container.path), **_brief(report)}]
    return Encoder(
        vit, mean, std, "mean" if mean_pooled else "class", beside.crop(), licence=licence, history=history
    )


def _brief(report: Report) -> dict[str, Any]:
    return {"source": report.source, "dropped": len(report.dropped), "notes": list(report.notes)}


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"no encoder here: neither encoder.json nor {' nor '.join(_WEIGHTS)}",
        path=path,
        hint="give a folder that firstlight wrote, a checkpoint file, or a folder of Hugging Face or timm",
    )


def _hints(container: Container, beside: _Beside, heads: int | None) -> Hints:
    settings = container.settings
    about = beside.config
    if about.get("hidden_act", "gelu") != "gelu":
        raise InputError(
            f"the activation {about['hidden_act']!r} is not supported, only gelu", path=container.path
        )
    told = (
        about.get("num_attention_heads") or settings.get("num_attention_heads") or settings.get("num_heads")
    )
    eps = about.get("layer_norm_eps")
    return Hints(
        heads=heads or (told if isinstance(told, int) else None),
        eps=float(eps) if isinstance(eps, int | float) else None,
        image_size=beside.image_size(),
    )


class _Beside:
    """What Hugging Face and timm keep beside the weights: settings, preprocessing, a model card."""

    def __init__(self, file: Path) -> None:
        folder = file.parent if file.name in _WEIGHTS else None
        self._folder = folder
        self.config = self._read("config.json")
        images = self.config.get("pretrained_cfg", {})
        self._images = {
            **(images if isinstance(images, dict) else {}),
            **self._read("preprocessor_config.json"),
        }

    def _read(self, name: str) -> dict[str, Any]:
        if self._folder is None or not (self._folder / name).is_file():
            return {}
        try:
            content = read_json(self._folder / name)
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read ({error})", path=self._folder / name) from error
        return content if isinstance(content, dict) else {}

    def triple(self, name: str) -> tuple[float, float, float] | None:
        """Mean or standard deviation of the channels.

        Raises:
            InputError: Images cannot be normalised by what stands there.
        """
        values = self._images.get(f"image_{name}") or self._images.get(name)
        if not isinstance(values, list) or len(values) != 3:
            return None
        red, green, blue = (float(v) if isinstance(v, int | float) else math.nan for v in values)
        if not usable_pixels(**{name: (red, green, blue)}):
            raise InputError(
                f"the images' {name} cannot be {values}",
                path=self._folder,
                hint="see image_mean and image_std, or mean and std, in the JSON files beside the weights",
            )
        return red, green, blue

    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the positions are for."""
        size = self.config.get("image_size", self._images.get("input_size"))
        sides = [size, size] if isinstance(size, int) else size[-2:] if isinstance(size, list) else []
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            return None
        return sides[0], sides[1]

    def crop(self) -> float:
        """Share of the resized image that the centre crop keeps."""
        share = self._images.get("crop_pct", 0.875)
        return float(share) if isinstance(share, int | float) and 0 < share <= 1 else 0.875

    def licence(self) -> str | None:
        """As the settings or the head of the model card say."""
        if isinstance(told := self._images.get("license"), str):
            return told
        card = self._folder / "README.md" if self._folder is not None else None
        if card is None or not card.is_file():
            return None
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]
        found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")]
        return found[0] if found else None
