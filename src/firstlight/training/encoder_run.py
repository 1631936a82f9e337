"""The folder of an encoder's run: opened, filled at every checkpoint, finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from firstlight.core.distributed import rank
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import alone, read_json, write_json, write_text
from firstlight.core.hashing import hash_strings
from firstlight.core.identity import decisive
from firstlight.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from firstlight.training.encoder_config import EncoderTrainingConfig
from firstlight.training.encoder_loop import EncoderPhase, EncoderProgress
from firstlight.training.process import peak_memory_mb
from firstlight.training.recipes import config_yaml
from firstlight.training.run_folder import environment, write_metrics
from firstlight.vision.encoder_file import Encoder, save_encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.loader import ImageLoader
from firstlight.vision.objective import Objective

#: Settings that change how a run is made but, rounding apart, not what comes out.
_NOT_DECISIVE = ("threads", "workers", "device", "checkpoint_every", "checkpoint_minutes")


class EncoderRun:
    """One folder, one config, one or more phases in a fixed order.

    Nothing is written before :meth:`held`: what is refused until then leaves no folder behind.

    Args:
        out: The ENC folder; must be empty or absent unless ``resume``.
        command: What makes the run, for the result and the encoder's history.
        config: The resolved config.
        images: What is trained on.
        inputs: Hashes of whatever else decides the result, such as the encoder that the run starts from.
        resume: Continue where the last checkpoint stands.
        emit: Receives the events.

    Attributes:
        carried: JSON values that phases hand on; they are in every checkpoint.

    Raises:
        InputError: The folder holds another run or something else.
    """

    def __init__(
        self,
        out: Path | str,
        command: str,
        config: BaseModel,
        images: ImageSet,
        *,
        inputs: tuple[str, ...] = (),
        resume: bool = False,
        emit: Emit = silent,
    ) -> None:
        self.out, self.command, self.config, self.images, self.emit = Path(out), command, config, images, emit
        self.hash = hash_strings([command, _decisive(config), images.content_hash, *inputs])
        self.carried: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self._fresh, self._resume = False, resume
        self._resumed = self._open(resume)

    def _open(self, resume: bool) -> Checkpoint[EncoderProgress] | None:
        out, state = self.out, self.out / "checkpoint" / "state.safetensors"
        filled = out.exists() and (not out.is_dir() or self._filled())
        if not resume:
            if rank() != 0:  # the first one may have begun already
                return None
            if filled:
                raise self._not_empty()
            self._fresh = True
            return None
        # the first one may be about to write it
        if rank() == 0 and filled and not (out / "config.yaml").exists():
            raise InputError(
                "this folder holds something that is not a run", path=out, hint="choose another --out"
            )
        if (out / "result.json").exists():
            self.result = read_json(out / "result.json")
            if self.result.get("run_hash") != self.hash:
                raise self._other()
            return None
        if not state.exists():
            self._fresh = True
            return None
        checkpoint = load_checkpoint(state, EncoderProgress)
        if checkpoint.run_hash != self.hash:
            raise self._other()
        self.carried, self.history = checkpoint.carried, checkpoint.carried.pop("history")
        return checkpoint

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who fills the folder, as rank 0 is for all ranks; a new run is begun in it.

        Raises:
            InputError: Another process does, or has done so since the folder was looked at, or it cannot be written.
        """
        if rank() != 0:
            yield
            return
        with alone(self.out, "training"):
            if self._fresh:
                self._still_free()  # images and encoder were read meanwhile, which may have taken long
                self._begin()
            for torn in self.out.rglob(".*.partial*"):  # a killed process left its unfinished file
                torn.unlink(missing_ok=True)
            yield

    def _filled(self) -> bool:
        """Whether more is in the folder than the lock, which a process that was killed early leaves alone."""
        return any(entry.name != ".lock" for entry in self.out.iterdir())

    def _still_free(self) -> None:
        """Refuse a folder that another process has filled since it was opened."""
        if not self._resume and self._filled():
            raise self._not_empty()
        if any((self.out / name).exists() for name in ("result.json", "checkpoint/state.safetensors")):
            raise InputError(
                "another process has trained here meanwhile",
                path=self.out,
                hint="start with --resume once more",
            )

    def _begin(self) -> None:
        try:
            write_text(self.out / "config.yaml", config_yaml(self.config))
            write_json(self.out / "environment.json", environment())
        except OSError as error:
            raise InputError(
                f"the output folder cannot be written: {error.strerror}", path=self.out
            ) from error

    def _not_empty(self) -> InputError:
        return InputError(
            "the output folder is not empty",
            path=self.out,
            hint="choose another --out, or continue it with --resume",
        )

    def _other(self) -> InputError:
        return InputError(
            "this folder holds a run with another config or other images",
            path=self.out,
            hint="resume with the same options and images (config.yaml there), or choose another --out",
        )

    def phase(
        self,
        name: str,
        objective: Objective,
        loader: ImageLoader,
        training: EncoderTrainingConfig,
        encoder: Callable[[], Encoder] | None = None,
    ) -> EncoderPhase:
        """Train one phase from its start or its checkpoint; one that an earlier call finished is passed over.

        Args:
            name: Different for each phase of the run.
            objective: What is trained. If the phase is passed over it stays as it was given: the state of a later
                phase holds whatever that phase goes on with.
            loader: Batches.
            training: Length and steps.
            encoder: Gives the encoder as it stands; if given, it is written with every checkpoint, so that an
                interrupted run leaves a usable one.
        """
        phase = EncoderPhase(name, objective, loader, training, emit=self.emit)
        resumed = self._resumed
        if resumed is not None and resumed.phase != name and name in self._done:
            return phase
        if resumed is not None and resumed.phase == name:
            where = resumed.progress
            if not where.epoch >= training.epochs:
                at = f"epoch {where.epoch}" + (f" and {where.step} steps" if where.step else "")
                self.emit("message", text=f"continuing phase {name} after {at}")
            phase.load_state(resumed.tensors, where)
            self._resumed = None
        loader.know(self.carried.get("unusable", {}))
        before = list(self.history)

        def note() -> None:
            self.history = [*before, *phase.progress.history]
            self.carried["unusable"] = {
                loader.images.ids[row]: why for row, why in sorted(loader.unusable.items())
            }

        def checkpoint() -> None:
            note()
            self._save(phase, before, encoder)

        phase.run(checkpoint)
        note()
        self.carried["done"] = [*self._done, name]
        self.carried.setdefault("seconds", {})[name] = round(phase.progress.seconds, 2)
        return phase

    @property
    def at(self) -> str | None:
        """The phase whose checkpoint is still to be gone on from."""
        return None if self._resumed is None else self._resumed.phase

    @property
    def _done(self) -> list[str]:
        done: list[str] = self.carried.get("done", [])
        return done

    def _save(
        self, phase: EncoderPhase, earlier: list[dict[str, Any]], encoder: Callable[[], Encoder] | None
    ) -> None:
        if rank() != 0:
            return
        checkpoint = Checkpoint(
            phase.name, self.hash, phase.progress, {**self.carried, "history": earlier}, phase.state()
        )
        save_checkpoint(self.out / "checkpoint" / "state.safetensors", checkpoint)
        write_metrics(self.out, self.history)
        if encoder is not None:
            save_encoder(self.out, encoder())

    def finish(self, encoder: Encoder, found: dict[str, Any]) -> dict[str, Any]:
        """Write the encoder and the result.

        Args:
            encoder: What the run made.
            found: The command's own entries of the result.

        Returns:
            The content of ``result.json``.
        """
        last = self.history[-1] if self.history else {}
        result = {
            "format": 1,
            "command": self.command,
            "images": {
                "source": self.images.source,
                "count": len(self.images),
                "content_hash": self.images.content_hash,
                "without_image": self.images.missing,
                "unusable": self.carried.get("unusable", {}),
            },
            "config": self.config.model_dump(mode="json"),
            "run_hash": self.hash,
            **found,
            "last_epoch": last,
            "seconds": self.carried.get("seconds", {}),
            "peak_memory_mb": peak_memory_mb(),
        }
        if rank() == 0:
            write_metrics(self.out, self.history)
            save_encoder(self.out, encoder)
            write_json(self.out / "result.json", result)
        self.result = result
        self.emit("done", result=result)
        return result


def _decisive(config: BaseModel) -> str:
    """The config as text, without what does not decide the result."""

    def scrub(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: scrub(value) for key, value in tree.items() if key not in _NOT_DECISIVE}
        return tree

    return json.dumps(scrub(decisive(config)), sort_keys=True)
