"""MIM-Refiner in one run: heads on the frozen encoder, then encoder and heads together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firstlight.core.devices import chosen_device
from firstlight.core.distributed import process_group, rank, world
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.seeds import torch_stream
from firstlight.training.encoder_loop import speed_advice
from firstlight.training.encoder_run import EncoderRun
from firstlight.training.process import use_threads
from firstlight.training.refine_config import RefineConfig
from firstlight.vision.encoder_file import Encoder, foreign_notes, load_encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.loader import ImageLoader
from firstlight.vision.refiner import HeadStage, RefineStage
from firstlight.vision.refiner_config import HeadPooling, head_specs, queue_size, refined_specs
from firstlight.vision.refiner_memory import KNOBS, memory_estimate
from firstlight.vision.vit import ViT

#: Names of the phases.
HEADS, REFINE = "heads", "refine"


def refine(
    images: ImageSet,
    encoder: Path | str,
    config: RefineConfig,
    out: Path | str,
    *,
    resume: bool = False,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Refine an encoder and write the new one's folder.

    Args:
        images: What to learn from; no label is read.
        encoder: The ENC folder or foreign checkpoint of a masked-image encoder.
        config: Everything else that decides the run.
        out: The new ENC folder; must be empty or absent unless ``resume``.
        resume: Continue where the last checkpoint stands, in either stage; a finished run is returned as it is.
        emit: Receives events for progress displays.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: The folder holds another run, or the settings do not fit images or encoder.
        DivergenceError: The numbers blew up; the last checkpoint is kept.
    """
    training = config.training
    with process_group(str(chosen_device(training.device))), use_threads(training.threads):
        emit = emit if rank() == 0 else silent
        known = load_encoder(encoder)
        _check(config, known, images)
        inputs = (known.state_hash(),)
        run = EncoderRun(out, "refine", config, images, inputs=inputs, resume=resume, emit=emit)
        if run.result is not None:
            return run.result
        for note in foreign_notes(known):
            emit("message", text=note)
        loader = ImageLoader(
            images,
            config.crops.crops(known.vit.config, known.mean, known.std),
            training.batch_size,
            training.seed,
            workers=training.workers,
            cache_bytes=training.cache_mb * 2**20,
            device=chosen_device(training.device),
            emit=emit,
        )
        with run.held():
            return _both_stages(run, loader, config, known, emit)


def _both_stages(
    run: EncoderRun, loader: ImageLoader, config: RefineConfig, known: Encoder, emit: Emit
) -> dict[str, Any]:
    heads = build_head_stage(config, known, len(run.images))
    pooling = heads.pooling
    _tell(emit, "refinement, head stage", heads, loader, config.heads.epochs)
    for text in (memory_text(config, known.vit, heads, loader), *speed_advice(config.training)):
        emit("message", text=text)
    emit("message", text=f"in the head stage {moving(heads)}")
    run.phase(HEADS, heads, loader, config.head_training)
    if "temperature" not in run.carried:
        run.carried["temperature"] = heads.chosen_temperature()
    temperature: float = run.carried["temperature"]
    stage = RefineStage(heads, temperature)
    if config.refiner.temperature == "auto":
        emit("message", text=f"τ = {temperature:g}: its neighbours agree most between two crops of an image")
    _tell(emit, "refinement, encoder and heads", stage, loader, config.training.epochs)
    emit("message", text=f"in the refinement stage {moving(stage)}")

    def refined() -> Encoder:
        history = [*known.history, _about(config, run.images, temperature)]
        return Encoder(
            stage.refined(),
            mean=known.mean,
            std=known.std,
            pooling=pooling,
            crop=known.crop,
            licence=known.licence,
            history=history,
        )

    run.phase(REFINE, stage, loader, config.training, refined)
    found = {
        "temperature": temperature,
        "heads": [spec._asdict() for spec in stage.specs],
        "queue": stage.queue_size,
        "top_k": stage.top_k(),
    }
    return run.finish(refined(), found)


def build_head_stage(config: RefineConfig, known: Encoder, images: int) -> HeadStage:
    """The head stage on a copy of the encoder, at its start."""
    shape, seed = known.vit.config, config.training.seed
    vit = ViT(shape, torch_stream(seed, "encoder"))
    if config.start == "encoder":
        vit.load_state_dict(known.vit.state_dict())
    return HeadStage(
        vit,
        config.refiner,
        head_specs(config.refiner, shape.dim, shape.depth),
        queue_size(config.refiner, images, config.training.batch_size),
        _pooling(config, known),
        torch_stream(seed, "heads"),
    )


def _pooling(config: RefineConfig, known: Encoder) -> HeadPooling:
    return known.pooling if config.refiner.pooling == "encoder" else config.refiner.pooling


def _check(config: RefineConfig, known: Encoder, images: ImageSet) -> None:
    """Refuse, before anything is written, settings that do not fit images or encoder."""
    shape, refiner = known.vit.config, config.refiner
    try:
        head_specs(refiner, shape.dim, shape.depth)
        config.crops.sizes(shape)
        queue = queue_size(refiner, len(images), config.training.batch_size)
    except ValueError as error:
        raise InputError(
            str(error), hint="see refiner.heads, refiner.queue_size, crops and training.batch_size"
        ) from error
    if max(refiner.top_k or 1, refiner.head_top_k) > queue // 2:
        raise InputError(f"the k nearest must be at most half of the queue's {queue:,} entries")
    if refiner.freeze_blocks >= shape.depth:
        raise InputError(f"refiner.freeze_blocks must leave some of the {shape.depth} blocks to train")
    if not shape.class_token and _pooling(config, known) == "class":
        raise InputError("the encoder has no class token", hint="use refiner.pooling=mean")


def moving(stage: HeadStage | RefineStage) -> str:
    """Which parameters a stage trains, in words."""
    heads = f"{len(stage.heads)} heads learn ({_count(stage.heads):,} parameters)"
    names = ", ".join(spec.name for spec in stage.specs)
    if isinstance(stage, HeadStage):
        return f"{heads}: {names}; the encoder stands still"
    trained, everything, frozen = _count(stage.encoder), _total(stage.encoder), stage.config.freeze_blocks
    still = f"; the stem and the first {frozen} blocks stand still" if frozen else ""
    return f"{heads}: {names}; and the encoder ({trained:,} of {everything:,} parameters){still}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _total(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_text(config: RefineConfig, vit: ViT, heads: HeadStage, loader: ImageLoader) -> str:
    """The estimate of the refinement stage's memory, images that are kept there included, with the knobs."""
    specs = refined_specs(heads.specs, vit.config.depth, heads.specs[-1].temperature)
    parts = memory_estimate(
        vit.config,
        config.refiner,
        list(specs.values()),
        [view.size for view in config.crops.crops(vit.config, (0, 0, 0), (1, 1, 1)).crops],
        batch=config.training.batch_size,
        ranks=world(),
        queue=heads.queue_size,
        half=config.training.precision == "bfloat16",
        on_gpu=chosen_device(config.training.device).type == "cuda",
    )
    if loader.cache is not None:
        parts["decoded images"] = loader.cache.pixels.nbytes
    listed = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items())
    return (
        f"about {sum(parts.values()) / 1e9:.2g} GB of memory a process ({listed}); "
        f"less with {', '.join(KNOBS)}"
    )


def _about(config: RefineConfig, images: ImageSet, temperature: float) -> dict[str, Any]:
    return {
        "step": "refine",
        "start": config.start,
        "images": len(images),
        "content_hash": images.content_hash,
        "epochs": config.training.epochs,
        "head_epochs": config.heads.epochs,
        "batch_size": config.training.batch_size,
        "seed": config.training.seed,
        "temperature": temperature,
    }


def _tell(
    emit: Callable[..., None], what: str, stage: HeadStage | RefineStage, loader: ImageLoader, epochs: int
) -> None:
    shape = stage.encoder.config
    trained = [parameter for group in stage.parameter_groups() for parameter in group.parameters]
    emit(
        "encoder",
        what=what,
        images=len(loader.rows),
        unusable=len(loader.unusable),
        image_size=list(loader.config.views[0].size),
        patch_size=shape.patch_size,
        encoder_parameters=_total(stage.encoder),
        trained_parameters=sum(map(torch.numel, trained)),
        epochs=epochs,
        steps=loader.steps,
        batch_size=loader.batch_size,
        in_memory=loader.cache is not None,
        device=str(loader.device),
        processes=world(),
    )
