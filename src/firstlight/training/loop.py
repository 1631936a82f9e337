"""The recommender's training loop: epochs, temperatures, evaluation, checkpoints.

The loop emits events and writes checkpoints; it knows neither the run folder nor the command line. All random
numbers come from streams named by epoch and step, so a resumed run repeats them without storing generator states,
and the refit repeats the search on more pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.errors import DivergenceError
from firstlight.core.events import Emit, silent
from firstlight.core.seeds import derive, torch_stream
from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.data.split import carve_validation
from firstlight.graphs.knn import Finder
from firstlight.losses.temperature import Temperature, TemperatureStatistics, make_temperature
from firstlight.models.base import EmbeddingModel, build_model
from firstlight.training.checkpoint import PhaseProgress
from firstlight.training.config import RunConfig
from firstlight.training.optimisers import RowAdam, all_finite, learning_rate
from firstlight.training.steps import StepComputer

#: Steps between "step" events.
_PROGRESS_STEPS = 20


@dataclass
class Progress(PhaseProgress):
    """Where a phase stands; the seconds are without evaluation.

    Attributes:
        best: Best value of the selection metric so far.
        best_epoch: Epoch count at which it was reached (1-based), 0 if never evaluated.
        bad: Evaluations since then.
    """

    loop: ClassVar[str] = "a recommender"

    best: float = -1.0
    best_epoch: int = 0
    bad: int = 0


#: Evaluates a model: name → value.
Judge = Callable[[EmbeddingModel], dict[str, float]]


class Phase:
    """One training from initialisation: the search for the number of epochs, or the refit.

    Args:
        name: ``search``, ``refit`` or ``train``; stands in events and checkpoints.
        config: The run's config.
        train: The log to learn from.
        epochs: Epochs to run (the schedule's horizon stays ``config.training.epochs``).
        judge: Evaluates the model every ``eval_every`` epochs; None if nobody watches.
        stop_early: Whether ``patience`` ends the phase.
        emit: Receives the events.
        views: Content of the items, for models that read it.
        finder: What finds content neighbours, for models that know some; None: they are found anew.
        start: Changes the model at its start, such as by what another run has learned.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        train: Interactions,
        *,
        epochs: int,
        judge: Judge | None = None,
        stop_early: bool = False,
        emit: Emit = silent,
        views: ItemViews | None = None,
        finder: Finder | None = None,
        start: Callable[[EmbeddingModel], None] | None = None,
    ) -> None:
        self.name, self.config = name, config
        self.epochs, self.judge, self.stop_early, self.emit = epochs, judge, stop_early, emit
        statistics = TemperatureStatistics.from_pairs(
            *_pairs(train), train.n_users, train.n_items, config.temperature.degree_quantile
        )
        adapts = config.loss.name != "none" and config.temperature.name.startswith("adaptive")
        if adapts and config.temperature.form == "held-out":
            # A mean over a thousand pairs is steady; a small log gives up to a tenth of its pairs for it.
            share = max(config.temperature.held_out_share, min(0.1, 1000 / max(1, train.n_pairs)))
            train, held_out = carve_validation(train, share, derive(config.seed, "held-out-gap"))
            statistics = statistics.measured_on(*_pairs(held_out))
        self.train = train
        users, items = _pairs(train)
        model = build_model(config.model, train, torch_stream(config.seed, "init"), views, finder)
        assert isinstance(model, EmbeddingModel)
        if start is not None:
            start(model)
        self.model = model
        self.temperature: Temperature = make_temperature(config.temperature, statistics)
        self.computer = StepComputer(config, self.model, self.temperature, train)
        self.optimiser = RowAdam(
            [*self.model.named_parameters(), *self._temperature_parameters()],
            config.training.lr,
            betas=(0.9, config.training.beta2),
        )
        self.progress = Progress()
        self._users, self._items = users, items
        active = torch.from_numpy((train.user_degrees > 0).nonzero()[0])
        self._rows = active if config.training.batch == "users" else torch.arange(train.n_pairs)
        self.batch_size = config.training.batch_size or min(2048, max(32, len(self._rows) // 50))

    def _temperature_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self.temperature.named_parameters():
            yield f"temperature.{name}", parameter

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch; the last batch may be smaller, never empty."""
        return -(-len(self._rows) // self.batch_size)

    def run(self, after_epoch: Callable[[Phase, bool], None] | None = None) -> None:
        """Train until the last epoch or until patience ends.

        Args:
            after_epoch: Called after each epoch with this phase and whether the evaluation just made is the
                best so far; writes checkpoints.

        Raises:
            DivergenceError: A loss or a parameter is not finite any more.
        """
        while self.progress.epoch < self.epochs and not self._exhausted():
            improved = self._epoch()
            if after_epoch is not None:
                after_epoch(self, improved)

    def _exhausted(self) -> bool:
        return self.stop_early and self.progress.bad >= self.config.training.patience

    def _epoch(self) -> bool:
        epoch, started = self.progress.epoch, time.perf_counter()
        self.temperature.start_epoch(epoch, self._unit_vectors)
        with _matmul_precision(self.config.training.precision):
            loss = self._steps(epoch)
        if not (
            math.isfinite(loss) and all_finite([*self.model.parameters(), *self.temperature.parameters()])
        ):
            raise self._diverged(epoch, f"the mean loss is {loss} and a parameter may not be finite")
        self.progress.seconds += time.perf_counter() - started
        self.progress.epoch += 1
        tau = self.temperature.per_user()
        record: dict[str, Any] = {
            "phase": self.name,
            "epoch": self.progress.epoch,
            "epochs": self.epochs,
            "loss": loss,
            "tau_min": float(tau.min()),
            "tau_mean": float(tau.mean()),
            "tau_max": float(tau.max()),
            "tau0_updates": self.temperature.updates_made,
            "seconds": round(self.progress.seconds, 3),
        }
        improved = self._judge(record)
        self.progress.history.append(record)
        left = self.progress.seconds / self.progress.epoch * (self.epochs - self.progress.epoch)
        self.emit("epoch", **record, eta_seconds=left)
        return improved

    def _unit_vectors(self) -> tuple[Tensor, Tensor]:
        """What temperature policies measure: cosines, whichever side the model itself normalises."""
        users, items = self.model.training_space()
        return F.normalize(users, dim=1), F.normalize(items, dim=1)

    def _judge(self, record: dict[str, Any]) -> bool:
        """Evaluate where it is due; note the best."""
        done = self.progress.epoch
        due = done % self.config.training.eval_every == 0 or done == self.epochs
        if self.judge is None or not due:
            return False
        values = self.judge(self.model)
        record |= values
        value = values[self.config.training.metric]
        record["metric"], record["metric_value"] = self.config.training.metric, value
        improved = value > self.progress.best
        if improved:
            self.progress.best, self.progress.best_epoch, self.progress.bad = value, done, 0
        else:
            self.progress.bad += 1
        return improved

    def _steps(self, epoch: int) -> float:
        """All steps of one epoch; the mean ranking loss."""
        training = self.config.training
        order = torch.randperm(len(self._rows), generator=torch_stream(self.config.seed, "order", epoch))
        per_epoch, total = self.steps_per_epoch, 0.0
        horizon = per_epoch * training.epochs
        for index in range(per_epoch):
            step = epoch * per_epoch + index
            rng = torch_stream(self.config.seed, "step", step)
            rows = self._rows[order[index * self.batch_size : (index + 1) * self.batch_size]]
            result = self._compute(rows, step, rng)
            if not math.isfinite(result.ranking):
                raise self._diverged(epoch, f"the loss became {result.ranking} in step {index + 1}")
            self.optimiser.zero_grad()
            result.total.backward()
            rate = learning_rate(step, horizon, training.lr, training.schedule, training.warmup_steps)
            self.optimiser.step(rate)
            total += result.ranking * len(rows)
            if index % _PROGRESS_STEPS == 0:
                self.emit("step", phase=self.name, epoch=epoch + 1, step=index, steps=per_epoch)
        return total / len(self._rows)

    def _compute(self, rows: Tensor, step: int, rng: torch.Generator) -> Any:
        if self.config.training.batch == "users":
            return self.computer.users(rows, step, rng)
        return self.computer.pairs(self._users[rows].long(), self._items[rows].long(), step, rng)

    def _diverged(self, epoch: int, what: str) -> DivergenceError:
        kept = f"the checkpoint of epoch {epoch} is kept" if epoch else "this phase has no checkpoint yet"
        return DivergenceError(
            f"training diverged in epoch {epoch + 1} of phase {self.name}: {what}; {kept}.\n"
            f"  → lower training.lr (now {self.config.training.lr:g}) or raise τ "
            f"(now {float(self.temperature.per_user().min()):.4g} at its smallest)"
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed phase needs."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"temperature.{name}": value for name, value in self.temperature.state_dict().items()}
        return state | {f"optimiser.{name}": value for name, value in self.optimiser.state_dict().items()}

    def load_state(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Continue from :meth:`state` and the progress saved with it."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "temperature": {}, "optimiser": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        self.temperature.load_state_dict(parts["temperature"])
        self.optimiser.load_state_dict(parts["optimiser"])
        self.progress = progress


def _pairs(log: Interactions) -> tuple[Tensor, Tensor]:
    """User and item rows of all pairs, each ``(n_pairs,)`` int32: at 10⁸ pairs, int64 would cost a gigabyte more."""
    return torch.from_numpy(log.users.copy()), torch.from_numpy(log.items.copy())


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    """Let float32 products round their inputs to bfloat16 inside the block; a global switch, so it is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "bfloat16" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
