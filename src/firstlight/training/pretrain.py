"""Pre-training of an encoder from images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firstlight.core.devices import chosen_device
from firstlight.core.distributed import process_group, rank, world
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.seeds import torch_stream
from firstlight.training.checkpoint import load_tensors
from firstlight.training.encoder_config import PretrainConfig
from firstlight.training.encoder_loop import speed_advice
from firstlight.training.encoder_run import EncoderRun
from firstlight.training.process import use_threads
from firstlight.vision import OBJECTIVES
from firstlight.vision.crop_config import CropConfig
from firstlight.vision.encoder_file import Encoder, foreign_notes, load_encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.loader import ImageLoader
from firstlight.vision.pretraining import PretrainObjective
from firstlight.vision.vit import ViT

PHASE = "pretrain"
#: Before it, where only what predicts learns.
FIRST = "predictor"


def pretrain(
    images: ImageSet,
    config: PretrainConfig,
    out: Path | str,
    *,
    start: Path | str | None = None,
    resume: bool = False,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Train an encoder and write its folder.

    Args:
        images: What to learn from.
        config: Everything that decides the run.
        out: The ENC folder; must be empty or absent unless ``resume``.
        start: An encoder to go on from, with a new optimiser and schedule; what predicts from it is taken over too
            where its own pre-training left it.
        resume: Continue where the last checkpoint stands; a finished run is returned as it is.
        emit: Receives events for progress displays.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: The folder holds another run, or the images cannot be trained on.
        DivergenceError: The numbers blew up; the last checkpoint is kept.
    """
    training = config.training
    with process_group(str(chosen_device(training.device))), use_threads(training.threads):
        emit = emit if rank() == 0 else silent
        known = None if start is None else load_encoder(start)
        inputs = () if known is None else (known.state_hash(), *_other_pixels(config, known))
        run = EncoderRun(out, "pretrain", config, images, inputs=inputs, resume=resume, emit=emit)
        if run.result is not None:
            return run.result
        for note in [] if known is None else foreign_notes(known):
            emit("message", text=note)
        loader = ImageLoader(
            images,
            crops_of(config, known),
            training.batch_size,
            training.seed,
            workers=training.workers,
            cache_bytes=training.cache_mb * 2**20,
            device=chosen_device(training.device),
            emit=emit,
        )
        objective = build_objective(config)
        whole = known is None or start is None or _take_over(objective, Path(start), known)
        first = config.predictor_epochs or (config.predictor_epochs is None and not whole)
        emit("encoder", **_facts(config, objective, loader))
        for advice in speed_advice(training):
            emit("message", text=advice)
        earlier = [] if known is None else known.history

        def encoder() -> Encoder:
            history = [*earlier, {**_about(config, images), "epochs": _epochs(run)}]
            if known is not None:  # all that goes with the weights goes on with them, their licence above all
                return replace(known, vit=objective.learned(), history=history)
            return Encoder(
                objective.learned(),
                mean=loader.config.mean,
                std=loader.config.std,
                pooling="class" if config.encoder.class_token else "mean",
                history=history,
            )

        with run.held():
            if first and run.at != PHASE:  # a checkpoint of that is past it, or was begun without it
                _predictor_first(run, objective, loader, config)
            phase = run.phase(PHASE, objective, loader, training, encoder)
            seconds = max(phase.progress.seconds, 1e-9)
            seen = training.epochs * loader.steps * loader.batch_size
            return run.finish(encoder(), {"images_per_second": round(seen / seconds, 1)})


def _epochs(run: EncoderRun) -> int:
    """Epochs in which the encoder learned."""
    return sum(epoch["phase"] == PHASE for epoch in run.history)


def _predictor_first(
    run: EncoderRun, objective: PretrainObjective, loader: ImageLoader, config: PretrainConfig
) -> None:
    """Train what predicts on an encoder that stands still; no graph goes through the encoder."""
    moving = [parameter for parameter in objective.encoder.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        _move(moving)  # nothing learns beside the encoder
        return
    training = config.predictor_training
    run.emit(
        "message", text=f"for {training.epochs} epochs what predicts learns alone; the encoder stands still"
    )
    run.phase(FIRST, objective, loader, training)
    _move(moving)


def _move(parameters: list[nn.Parameter]) -> None:
    """Let parameters learn that stood still."""
    for parameter in parameters:
        parameter.requires_grad_(True).grad = None


def crops_of(config: PretrainConfig, known: Encoder | None = None) -> CropConfig:
    """What the objective sees of an image, normalised as ``known`` is used to where a run goes on from it."""
    kind: type[PretrainObjective] = OBJECTIVES.load(config.objective)
    crops = kind.crops(kind.settings(config), config.encoder.image_size)
    return crops if known is None else crops.model_copy(update={"mean": known.mean, "std": known.std})


def _other_pixels(config: PretrainConfig, known: Encoder) -> tuple[str, ...]:
    """Pixel statistics as an input of the run, where they are not those of the objective's crops.

    Runs were begun once that went on from such an encoder with the crops' own statistics; they must not go on with
    the encoder's. All other runs keep their hash.
    """
    own, taken = crops_of(config), crops_of(config, known)
    same = (own.mean, own.std) == (taken.mean, taken.std)
    return () if same else (repr((taken.mean, taken.std)),)


def build_objective(config: PretrainConfig) -> PretrainObjective:
    """The objective with starting weights."""
    seed, kind = config.training.seed, OBJECTIVES.load(config.objective)
    encoder, rng = ViT(config.encoder, torch_stream(seed, "encoder")), torch_stream(seed, "decoder")
    objective: PretrainObjective = kind(kind.settings(config), encoder, rng)
    return objective


def _take_over(objective: PretrainObjective, start: Path, known: Encoder) -> bool:
    """Copy weights: of the whole objective where its checkpoint is there (True), else of the encoder alone."""
    try:
        objective.start_from(known.vit.state_dict())
    except RuntimeError as error:
        raise InputError(
            "this encoder has another shape than the config says",
            path=start,
            hint="leave the encoder's settings out; they are taken from it",
        ) from error
    state = start / "checkpoint" / "state.safetensors"
    if not state.is_file():
        return False
    tensors = {
        name.removeprefix("objective."): value
        for name, value in load_tensors(state).items()
        if name.startswith("objective.")
    }
    own = objective.state_dict()
    fits = own.keys() == tensors.keys() and all(own[name].shape == tensors[name].shape for name in own)
    if fits:
        objective.load_state_dict(tensors)
    return fits


def _about(config: PretrainConfig, images: ImageSet) -> dict[str, Any]:
    training = config.training
    return {
        "step": "pretrain",
        "objective": config.objective,
        "images": len(images),
        "content_hash": images.content_hash,
        "batch_size": training.batch_size,
        "seed": training.seed,
    }


def _facts(config: PretrainConfig, objective: PretrainObjective, loader: ImageLoader) -> dict[str, Any]:
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return {
        "what": f"pre-training by {config.objective}",
        "images": len(loader.rows),
        "unusable": len(loader.unusable),
        "image_size": list(config.encoder.image_size),
        "patch_size": config.encoder.patch_size,
        "encoder_parameters": sum(parameter.numel() for parameter in objective.encoder.parameters()),
        "trained_parameters": sum(map(torch.numel, trained)),
        "epochs": config.training.epochs,
        "steps": loader.steps,
        "batch_size": loader.batch_size,
        "in_memory": loader.cache is not None,
        "device": str(chosen_device(config.training.device)),
        "processes": world(),
    }
