"""Checkpoints: one safetensors file each, replaced atomically, everything in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.files import writing

#: What to do once a full disk has room.
AGAIN = "go on with --resume"


@dataclass
class PhaseProgress:
    """Where a phase stands; all of it is in the checkpoint. Each loop notes more.

    Attributes:
        epoch: Finished epochs.
        seconds: Training seconds.
        history: One flat dictionary an epoch.
    """

    #: What the file calls it, and whose it is.
    note: ClassVar[str] = "progress"
    loop: ClassVar[str] = "a phase"

    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


Noted = TypeVar("Noted", bound=PhaseProgress)


@dataclass(frozen=True)
class Checkpoint(Generic[Noted]):
    """A phase between two steps.

    Attributes:
        phase: Name of the phase.
        run_hash: Hash over config and data: a checkpoint continues only the run that wrote it.
        progress: Where the phase stands.
        carried: What earlier phases found, as JSON values.
        tensors: The phase's state.
    """

    phase: str
    run_hash: str
    progress: Noted
    carried: dict[str, Any]
    tensors: dict[str, Tensor]


def save_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with writing(target, AGAIN) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: The file is missing or not a whole safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"not a readable safetensors file: {error}", path=path) from error


def save_checkpoint(target: Path, checkpoint: Checkpoint[Noted]) -> None:
    """Write ``checkpoint`` over ``target`` atomically."""
    note = {
        "phase": checkpoint.phase,
        "run_hash": checkpoint.run_hash,
        checkpoint.progress.note: json.dumps(asdict(checkpoint.progress)),
        "carried": json.dumps(checkpoint.carried),
    }
    save_tensors(target, checkpoint.tensors, note)


def load_checkpoint(path: Path, kind: type[Noted]) -> Checkpoint[Noted]:
    """Read a checkpoint.

    Args:
        path: The file.
        kind: What the loop that wrote it notes.

    Raises:
        InputError: The file is missing or not a checkpoint of this loop.
    """
    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as handle:
        note = handle.metadata() or {}
    if kind.note not in note:
        raise InputError(f"this file is not a checkpoint of {kind.loop}", path=path)
    progress = kind(**json.loads(note[kind.note]))
    return Checkpoint(note["phase"], note["run_hash"], progress, json.loads(note["carried"]), tensors)
