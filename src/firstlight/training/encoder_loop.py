"""The encoder's training loop: one phase of one objective, with checkpoints from which it goes on bit by bit.

All random numbers come from streams named by epoch, row and step, so a resumed phase repeats them without storing
generator states. With several processes each takes its slice of every batch and gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from firstlight.core.devices import chosen_device, multiplies_bfloat16
from firstlight.core.distributed import any_rank, average_gradients, gather
from firstlight.core.errors import DivergenceError
from firstlight.core.events import Emit, silent
from firstlight.core.schedules import warmup_cosine
from firstlight.core.seeds import torch_stream
from firstlight.training.checkpoint import PhaseProgress
from firstlight.training.encoder_config import EncoderTrainingConfig
from firstlight.training.encoder_optimiser import GroupAdamW
from firstlight.training.optimisers import all_finite
from firstlight.vision.loader import ImageLoader
from firstlight.vision.objective import ImageBatch, Objective

#: Steps between "step" events; on a GPU, between readings of the losses too.
_PROGRESS_STEPS = 5


@dataclass
class EncoderProgress(PhaseProgress):
    """Where a phase stands, within an epoch too.

    Attributes:
        step: Finished steps of the epoch that runs.
        sums: Sum of each loss over those steps.
    """

    note: ClassVar[str] = "encoder_progress"
    loop: ClassVar[str] = "an encoder"

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class EncoderPhase:
    """One objective trained for the epochs of one config.

    Args:
        name: Stands in events, streams and checkpoints.
        objective: What is trained; it is moved to the config's device.
        loader: Batches.
        config: Length and steps.
        emit: Receives the events.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        loader: ImageLoader,
        config: EncoderTrainingConfig,
        *,
        emit: Emit = silent,
    ) -> None:
        if not isinstance(objective, nn.Module):
            raise TypeError(f"{type(objective).__name__} is not a module")
        self.name, self.loader, self.config, self.emit = name, loader, config, emit
        self.device = chosen_device(config.device)
        self.objective, self.module = objective, objective.to(self.device)
        self.groups = objective.parameter_groups()
        self.optimiser = GroupAdamW(self.groups, config.betas, config.weight_decay)
        self.progress = EncoderProgress()
        self._since_checkpoint = time.monotonic()
        #: Losses of steps of this epoch that nobody has read yet: reading a number makes a GPU come to rest.
        self._unread: list[tuple[int, list[str], Tensor]] = []
        self._reads_each = self.device.type == "cpu"

    @property
    def total_steps(self) -> int:
        """Updates of the whole phase."""
        return self.loader.steps * self.config.epochs

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.progress.epoch >= self.config.epochs

    def run(self, checkpoint: Callable[[], None] | None = None) -> None:
        """Train until the last epoch.

        Args:
            checkpoint: Writes a checkpoint; called between steps when one is due.

        Raises:
            DivergenceError: A loss or a parameter is not finite any more.
        """
        self.module.train()
        self._since_checkpoint = time.monotonic()
        while not self.finished:
            self._epoch(checkpoint)
            done = self.progress.epoch
            if checkpoint is not None and (done % self.config.checkpoint_every == 0 or self.finished):
                self._save(checkpoint)

    def _save(self, checkpoint: Callable[[], None]) -> None:
        checkpoint()
        self._since_checkpoint = time.monotonic()

    def _epoch(self, checkpoint: Callable[[], None] | None) -> None:
        progress, per_epoch = self.progress, self.loader.steps
        started = time.perf_counter()
        for batch in self.loader.epoch(progress.epoch, progress.step):
            self.update(batch.to(self.device))
            progress.step += 1
            if progress.step % _PROGRESS_STEPS == 0 or progress.step == 1:
                self._read_losses()
                self.emit(
                    "step",
                    phase=self.name,
                    epoch=progress.epoch + 1,
                    step=progress.step - 1,
                    steps=per_epoch,
                )
            if checkpoint is not None and progress.step < per_epoch and self._due():
                progress.seconds += time.perf_counter() - started
                self._read_losses()
                self._check_parameters()
                self.loader.share_unusable()
                self._save(checkpoint)
                started = time.perf_counter()
        self._read_losses()
        progress.seconds += time.perf_counter() - started
        self._check_parameters()
        self.loader.share_unusable()
        self._finish_epoch()

    def _due(self) -> bool:
        """Whether it is time for a checkpoint; ranks must agree, since they tell each other what it holds."""
        since = time.monotonic() - self._since_checkpoint
        return any_rank(since > 60 * self.config.checkpoint_minutes)

    def _finish_epoch(self) -> None:
        progress = self.progress
        means = {name: total / self.loader.steps for name, total in progress.sums.items()}
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        record: dict[str, Any] = {
            "phase": self.name,
            "epoch": progress.epoch,
            "epochs": self.config.epochs,
            "loss": sum(means.values()),
            **(means if len(means) > 1 else {}),
            **self.objective.figures(),
            "lr": self._rate(progress.epoch * self.loader.steps - 1),
            "unusable": len(self.loader.unusable),
            "seconds": round(progress.seconds, 3),
        }
        progress.history.append(record)
        left = progress.seconds / progress.epoch * (self.config.epochs - progress.epoch)
        self.emit("epoch", **record, eta_seconds=left)

    def _rate(self, step: int) -> float:
        config, per_epoch = self.config, self.loader.steps
        warmup = config.warmup_steps(per_epoch)
        return warmup_cosine(step, self.total_steps, warmup, config.peak_lr, config.end_lr)

    def update(self, batch: ImageBatch) -> None:
        """One step where the progress stands (which :meth:`run` moves on).

        Args:
            batch: On the phase's device.

        Raises:
            DivergenceError: A loss is not finite; on a GPU up to five steps late, but before anything is saved.
        """
        step = self.progress.epoch * self.loader.steps + self.progress.step
        rng = torch_stream(self.config.seed, self.name, "step", step)
        with self._autocast():
            losses = self.objective.loss(batch, rng)
        # The mean over ranks: what one process would see, and the same on all, so that all stop together.
        means = gather(torch.stack([value.detach().float() for value in losses.values()])[None]).mean(dim=0)
        self._unread.append((self.progress.step, list(losses), means))
        if self._reads_each:
            self._read_losses()
        self.optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        average_gradients(parameter for group in self.groups for parameter in group.parameters)
        self.optimiser.step(self._rate(step))
        self.objective.after_step(step, self.total_steps)

    def _read_losses(self) -> None:
        """Add up the losses of the steps since the last reading."""
        unread, self._unread = self._unread, []
        for step, names, means in unread:
            values = dict(zip(names, means.tolist(), strict=True))
            if not all(map(math.isfinite, values.values())):
                raise self._diverged(f"the loss became {values} in step {step + 1}")
            for name, value in values.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value

    def _check_parameters(self) -> None:
        """A loss tells of a broken step only in the next one; no broken state may be kept."""
        if not all_finite(self.module.parameters()):
            raise self._diverged("a parameter is not finite")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _diverged(self, what: str) -> DivergenceError:
        epoch = self.progress.epoch
        kept = f"the last checkpoint (of epoch {epoch} or later) is kept" if epoch else "start again"
        return DivergenceError(
            f"training diverged in epoch {epoch + 1} of phase {self.name}: {what}; {kept}.\n"
            f"  → lower training.base_lr (now {self.config.base_lr:g}) or lengthen training.warmup_epochs"
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed phase needs."""
        state = {f"objective.{name}": value for name, value in self.module.state_dict().items()}
        return state | {f"optimiser.{name}": value for name, value in self.optimiser.state_dict().items()}

    def load_state(self, state: dict[str, Tensor], progress: EncoderProgress) -> None:
        """Continue from :meth:`state` and the progress saved with it."""
        parts: dict[str, dict[str, Tensor]] = {"objective": {}, "optimiser": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.module.load_state_dict(parts["objective"])
        self.optimiser.load_state_dict(parts["optimiser"])
        self.progress = progress


def speed_advice(config: EncoderTrainingConfig) -> list[str]:
    """What would make a run faster on this machine, for people; nothing where there is nothing to say."""
    if config.precision == "float32" and chosen_device(config.device).type == "cpu" and multiplies_bfloat16():
        return [
            "this processor has bfloat16: --set training.precision=bfloat16 trains encoders of some width twice as fast"
        ]
    return []
