"""Draws the events of a training run on stderr: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from firstlight.cli.output import say
from firstlight.core.values import text
from firstlight.models import MODELS

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Where there is no terminal, an epoch without a new metric is reported at most this often (seconds).
QUIET_SECONDS = 10.0
#: Unusable images that are named; the rest are counted.
NAMED = 10


class TrainingProgress:
    """An event listener; use it as a context manager around the training call.

    Args:
        live: Draw a bar that moves; by default, whether stderr is a terminal.
    """

    def __init__(self, *, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._said = float("-inf")
        self._unusable = 0

    def __enter__(self) -> Self:
        if self._live:
            from rich.progress import BarColumn, Progress, TextColumn

            from firstlight.cli.output import console

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}"),
                console=console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, name: str, /, **values: Any) -> None:
        """Draw one event; names that are not known here are left alone."""
        handler = getattr(self, f"_on_{name}", None)
        if handler is not None:
            handler(values)

    def _on_run(self, values: dict[str, Any]) -> None:
        facts = [f"{text(values[key])} {what}" for key, what in _RUN_FACTS if values.get(key) is not None]
        model = str(values.get("model", ""))
        told = ("loss", "temperature") if MODELS.load(model).trainable else ()
        names = [model, *(str(values[key]) for key in told if values.get(key))]
        self._say(f"training {' + '.join(names)} on {', '.join(facts)}")

    def _on_encoder(self, values: dict[str, Any]) -> None:
        height, width = values["image_size"]
        self._say(
            f"{values['what']}: {text(values['images'])} images at {width} × {height} px, "
            f"{text(values['encoder_parameters'])} parameters in the encoder, "
            f"{text(values['trained_parameters'])} trained; {text(values['epochs'])} epochs of "
            f"{text(values['steps'])} × {text(values['batch_size'])} images on {values['device']}"
        )
        if self._unusable > NAMED:
            self._say(f"{text(self._unusable)} images cannot be used")

    def _on_unusable(self, values: dict[str, Any]) -> None:
        self._unusable += 1
        if self._unusable <= NAMED:
            self._say(f"image {values['id']!r} cannot be used: {values['reason']}")
        elif self._unusable == NAMED + 1:
            self._say("more images cannot be used; the result counts them")

    def _on_step(self, values: dict[str, Any]) -> None:
        if self._bar is not None and self._task is not None:
            done = int(values["epoch"]) - 1 + (int(values["step"]) + 1) / max(1, int(values["steps"]))
            self._bar.update(self._task, completed=done)

    def _on_epoch(self, values: dict[str, Any]) -> None:
        facts = epoch_facts(values)
        phase = str(values.get("phase") or "train")
        epoch, epochs = int(values["epoch"]), int(values["epochs"])
        if self._bar is not None:
            if self._task is None or phase != self._phase:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(phase, total=epochs, facts="")
            label = f"{phase} {epoch}/{epochs}"
            self._bar.update(self._task, completed=epoch, total=epochs, description=label, facts=facts)
        elif (
            values.get("metric_value") is not None
            or epoch == epochs
            or phase != self._phase
            or time.monotonic() - self._said > QUIET_SECONDS
        ):
            self._say(f"{phase} {epoch}/{epochs}  {facts}")
            self._said = time.monotonic()
        self._phase = phase

    def _on_done(self, values: dict[str, Any]) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._phase = None, ""

    def _on_message(self, values: dict[str, Any]) -> None:
        self._say(str(values.get("text", "")))

    def _say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(message)
        else:
            say(message)


_RUN_FACTS = (("n_users", "users"), ("n_items", "items"), ("n_pairs", "pairs"))


def epoch_facts(values: dict[str, Any]) -> str:
    """One epoch in one line: loss, temperatures, metric, time left."""
    facts = []
    if values.get("loss") is not None:
        facts.append(f"loss {text(float(values['loss']))}")
    if values.get("tau_mean") is not None:
        low, high = values.get("tau_min"), values.get("tau_max")
        spread = "" if low is None or high is None or high - low < 1e-9 else f" ({low:.3g}–{high:.3g})"
        facts.append(f"τ {values['tau_mean']:.3g}{spread}")
    if values.get("metric") and values.get("metric_value") is not None:
        facts.append(f"{values['metric']} {text(float(values['metric_value']))}")
    if values.get("eta_seconds") is not None:
        facts.append(f"{duration(float(values['eta_seconds']))} left")
    return "  ".join(facts)


def duration(seconds: float) -> str:
    """``95.0`` as ``1:35``; hours where there are any."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
