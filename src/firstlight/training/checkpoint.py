"""Checkpoints: one safetensors file each, replaced atomically, everything in it."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.files import atomic_path
from firstlight.training.loop import Progress


@dataclass(frozen=True)
class Checkpoint:
    """A phase at the end of an epoch.

    Attributes:
        phase: Name of the phase.
        run_hash: Hash over config and data: a checkpoint continues only the run that wrote it.
        progress: Where the phase stands.
        carried: What earlier phases found, as JSON values.
        tensors: The phase's state.
    """

    phase: str
    run_hash: str
    progress: Progress
    carried: dict[str, Any]
    tensors: dict[str, Tensor]


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """An atomic write that turns a full or read-only disk into a message about what is still safe."""
    try:
        with atomic_path(target) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        advice = "free some space" if full else "make the folder writable"
        raise FirstlightError(
            f"{target} could not be written: {reason}. What stood there before is unharmed.\n"
            f"  → {advice}, then go on with --resume"
        ) from error


def save_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with writing(target) as temporary:
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


def save_checkpoint(target: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` over ``target`` atomically."""
    note = {
        "phase": checkpoint.phase,
        "run_hash": checkpoint.run_hash,
        "progress": json.dumps(asdict(checkpoint.progress)),
        "carried": json.dumps(checkpoint.carried),
    }
    save_tensors(target, checkpoint.tensors, note)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: The file is missing or not a checkpoint.
    """
    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as handle:
        note = handle.metadata() or {}
    if "progress" not in note:
        raise InputError("this file is not a firstlight checkpoint", path=path)
    progress = Progress(**json.loads(note["progress"]))
    return Checkpoint(note["phase"], note["run_hash"], progress, json.loads(note["carried"]), tensors)
