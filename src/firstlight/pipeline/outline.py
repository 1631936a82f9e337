"""A pipeline before and after it runs: what its steps will do, and what they did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.core.events import Emit, silent
from firstlight.core.shown import Shown
from firstlight.pipeline.config import PipelineConfig, read_pipeline
from firstlight.pipeline.estimate import estimate, expected_seconds, sizes_of
from firstlight.pipeline.plan import Step, plan
from firstlight.pipeline.run import (
    Execute,
    StepResult,
    check_place,
    chosen_steps,
    not_there,
    run_pipeline,
    states,
)


@dataclass(frozen=True, repr=False)
class Outline(Shown):
    """What a pipeline would do.

    Attributes:
        name: The pipeline's name.
        out: The folder that it fills.
        steps: One a step, as JSON values: ``step``, ``state`` (``done``, ``cut``, ``to do``), ``size``, ``seconds``,
            ``measured`` (here, the last time), ``commands``, ``output``.
    """

    name: str
    out: Path
    steps: list[dict[str, Any]]

    @property
    def seconds_left(self) -> float:
        """What the steps that are not done may take."""
        return round(float(sum(row["seconds"] for row in self.steps if row["state"] != "done")), 1)

    @property
    def heading(self) -> str:
        """The folder, and how long it may take."""
        return f"{self.name} in {self.out}: about {self.seconds_left:,.0f} s to go; nothing was run"

    @property
    def table(self) -> pl.DataFrame:
        """One row a step: ``step``, ``state``, ``size``, ``seconds``, ``output``."""
        names = ("step", "state", "size", "seconds", "output")
        return pl.DataFrame(
            [
                {name: row[name] if name != "output" else str(row[name]) for name in names}
                for row in self.steps
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``firstlight pipeline --dry-run --json`` prints."""
        return {"name": self.name, "out": self.out, "steps": self.steps, "seconds_left": self.seconds_left}


@dataclass(frozen=True, repr=False)
class Outcome(Shown):
    """What a pipeline did.

    Attributes:
        name: The pipeline's name.
        out: The folder that it filled.
        steps: All of its steps.
        results: What became of those that were looked at.
    """

    name: str
    out: Path
    steps: list[Step]
    results: list[StepResult]

    @property
    def numbers(self) -> dict[str, Any]:
        """Run → what ``evaluate --protocol cold`` said of it."""
        return {
            result.step.name.partition(":")[2]: result.answer
            for result in self.results
            if result.step.name.startswith("evaluate:")
        }

    @property
    def arrivals(self) -> Mapping[str, Any] | None:
        """What ``arrivals`` said of the items that were added, if that was a step."""
        found = [result.answer for result in self.results if result.step.name == "arrivals"]
        return found[0] if found else None

    @property
    def places(self) -> dict[str, Path]:
        """What is there, by its kind (``run``, ``bundle``, ``page``, …); the last one of each."""
        return {step.kind: step.output for step in self.steps if step.output.exists()}

    @property
    def heading(self) -> str:
        """The folder."""
        return f"{self.name} in {self.out}"

    @property
    def table(self) -> pl.DataFrame:
        """One row a step: ``step``, ``was`` (as it was found), ``seconds``, ``output``."""
        return pl.DataFrame([{**row, "output": str(row["output"])} for row in self._rows()])

    def to_dict(self) -> dict[str, Any]:
        """What ``firstlight pipeline --json`` prints."""
        value = {"name": self.name, "out": self.out, "steps": self._rows(), "numbers": self.numbers}
        return value if self.arrivals is None else {**value, "arrivals": self.arrivals}

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"step": r.step.name, "was": r.state, "seconds": r.seconds, "output": r.step.output}
            for r in self.results
        ]


def planned(
    config: str, out: Path | None = None, changes: Sequence[str] = ()
) -> tuple[PipelineConfig, list[Step], Path]:
    """Read a pipeline and plan its steps.

    Args:
        config: A YAML file, or the name of a shipped pipeline.
        out: The folder to fill; ``NAME-out`` if None.
        changes: ``key=value`` texts that go over the file's fields.

    Raises:
        InputError: The file or a step's own settings are wrong.
    """
    settings, source = read_pipeline(config, changes)
    folder = Path(f"{settings.name}-out") if out is None else out
    return settings, plan(settings, folder, source), folder


def outline(
    config: str, out: Path | None = None, changes: Sequence[str] = (), *, only: str | None = None
) -> Outline:
    """What a pipeline would do; nothing is run. Arguments and errors: :func:`carry_out`."""
    settings, steps, folder = planned(config, out, changes)
    chosen = chosen_steps(steps, only)
    check_place(folder)
    sizes, state = sizes_of(settings, steps, folder), states(steps, folder)
    rows: list[dict[str, Any]] = []
    for step in chosen:
        for missing in step.needs:
            if state[missing] != "done" and missing not in {other.name for other in chosen}:
                raise not_there(step, missing, folder)
        expected = estimate(step, steps, sizes, folder)
        lines = [command_line(words) for words in step.commands]
        if step.kind == "numbers":
            lines[-1] += f" --json > {shlex.quote(str(step.output))}"
        rows.append(
            {
                "step": step.name,
                "state": state[step.name],
                "size": expected.size,
                "seconds": round(expected.seconds, 1),
                "measured": expected.measured,
                "commands": lines,
                "output": step.output,
            }
        )
    return Outline(settings.name, folder, rows)


def carry_out(
    config: str,
    execute: Execute,
    out: Path | None = None,
    changes: Sequence[str] = (),
    *,
    only: str | None = None,
    emit: Emit = silent,
) -> Outcome:
    """Run what is not there yet.

    Args:
        config: A YAML file, or the name of a shipped pipeline.
        execute: Runs a command line.
        out: The folder to fill; ``NAME-out`` if None.
        changes: ``key=value`` texts that go over the file's fields.
        only: Run this step alone.
        emit: Receives a message a step.

    Raises:
        InputError: As :func:`planned` and :func:`firstlight.pipeline.run.run_pipeline` say.
        FirstlightError: A step failed.
    """
    settings, steps, folder = planned(config, out, changes)
    expected = expected_seconds(settings, steps, folder)
    results = run_pipeline(steps, folder, execute, only=only, expected=expected, emit=emit)
    return Outcome(settings.name, folder, steps, results)


def command_line(words: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["firstlight", *words])
