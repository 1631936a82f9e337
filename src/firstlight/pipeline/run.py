"""Runs the steps of a pipeline: what is there already is passed over, what was cut goes on.

Every step leaves a note in ``OUT/steps``: the hash of its command lines and of all that it read, and what it left. A
step whose note fits is not run again. The note is begun before the step, so that after a kill one can tell what it was
about.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import firstlight
from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import alone, files_below, folder_links_below, read_json, write_json
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.core.outputs import check_folder
from firstlight.data.cut import KNOWN, NEW
from firstlight.pipeline.plan import RESUMING, Step, Words

#: Runs one command line (the words after ``firstlight``); what it would print with ``--json``.
Execute = Callable[[Words], Mapping[str, Any]]
State = Literal["done", "cut", "to do"]

#: What decides the content of an output, by its kind; a folder's other files are its history.
_DECISIVE = {
    "encoder": ("encoder.json", "encoder.safetensors"),
    "run": ("config.yaml", "ids.parquet", "split.parquet", "seen.safetensors", "model.safetensors"),
}
#: What is there only when a command has come to its end.
_LAST = {
    "dataset": "dataset.json",
    "encoder": "result.json",
    "run": "result.json",
    "bundle": "manifest.json",
    "cut": f"{NEW}/dataset.json",
}


@dataclass(frozen=True)
class StepResult:
    """What became of one step.

    Attributes:
        step: The step.
        state: ``done``: it was there already; else how it was found.
        seconds: How long it took, now or when it was made.
        answer: What its last command said.
    """

    step: Step
    state: State
    seconds: float
    answer: Mapping[str, Any]


def states(steps: Sequence[Step], out: Path) -> dict[str, State]:
    """How the steps stand, without touching anything."""
    found: dict[str, State] = {}
    digests: dict[str, str] = {}
    for step in steps:
        wanted = _hash(step, out, digests)
        note = _note(step, out)
        found[step.name] = "to do"
        if wanted is not None and note is not None and note["hash"] == wanted:
            digest = _digest(step)
            if note["state"] == "done" and digest is not None and digest == note["digest"]:
                found[step.name], digests[step.name] = "done", digest
            elif note["state"] == "begun" and step.output.exists():
                found[step.name] = "cut"
    return found


def run_pipeline(
    steps: Sequence[Step],
    out: Path | str,
    execute: Execute,
    *,
    only: str | None = None,
    expected: Mapping[str, float] | None = None,
    emit: Emit = silent,
) -> list[StepResult]:
    """Run what is not there yet.

    Args:
        steps: From :func:`firstlight.pipeline.plan.plan`.
        out: The folder that they fill.
        execute: Runs a command line.
        only: Run this step alone (``train`` stands for every ``train:NAME``); what it reads must be there.
        expected: Seconds that steps may take, by name; messages then say how much there is to go.
        emit: Receives a message a step.

    Returns:
        One result a step that was looked at.

    Raises:
        InputError: There is no such step, what it reads is not there, or an output is in the way.
        FirstlightError: A step failed; its name stands before its own message.
    """
    out = Path(out)
    chosen = chosen_steps(steps, only)
    check_place(out)
    with alone(out, "pipeline"):
        results: list[StepResult] = []
        digests: dict[str, str] = {}
        for number, step in enumerate(steps, 1):
            wanted = _hash(step, out, digests)
            if step not in chosen:
                digest = _fresh(step, out, wanted)
                if digest is not None:
                    digests[step.name] = digest
                continue
            if wanted is None:
                raise not_there(step, next(name for name in step.needs if name not in digests), out)
            ahead = _ahead(steps[number - 1 :], out, expected)
            result = _one(step, out, wanted, execute, f"[{number}/{len(steps)}] {step.name}", ahead, emit)
            results.append(result)
            digest = _digest(step)
            assert digest is not None
            digests[step.name] = digest
    return results


def chosen_steps(steps: Sequence[Step], only: str | None) -> list[Step]:
    """The steps of a name (``train`` stands for every ``train:NAME``); all if None.

    Raises:
        InputError: There is none.
    """
    if only is None:
        return list(steps)
    chosen = [step for step in steps if step.name == only or step.name.partition(":")[0] == only]
    if not chosen:
        raise InputError(
            f"there is no step {only!r}", hint=f"steps: {', '.join(step.name for step in steps)}"
        )
    return chosen


def check_place(out: Path) -> None:
    """Refuse a folder that holds what no pipeline made: its outputs would stand among somebody's files.

    Raises:
        InputError: It is one, or a file.
    """
    check_folder(out)
    held = sorted(path.name for path in out.iterdir() if path.name != ".lock") if out.exists() else []
    if held and not (out / "steps").is_dir():
        raise InputError(
            f"this folder holds something that no pipeline made, such as {held[0]!r}",
            path=out,
            hint="choose another --out: one that does not exist yet, is empty, or that a pipeline filled before",
        )


def not_there(step: Step, missing: str, out: Path) -> InputError:
    """A step alone cannot be run, since what it reads is missing."""
    return InputError(
        f"step {step.name} reads what step {missing} makes, and that is not there or out of date",
        path=out,
        hint=f"run it first with --only {missing}, or leave --only out",
    )


def _ahead(steps: Sequence[Step], out: Path, expected: Mapping[str, float] | None) -> str:
    """How long the first of these steps may take, and all of them that were never run."""
    if not expected or steps[0].name not in expected:
        return ""
    left = sum(
        expected.get(step.name, 0.0) for step in steps if step is steps[0] or last_seconds(step, out) is None
    )
    return f", about {_clock(expected[steps[0].name])} of {_clock(left)} to go"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _one(
    step: Step, out: Path, wanted: str, execute: Execute, title: str, ahead: str, emit: Emit
) -> StepResult:
    note = _note(step, out)
    digest = _fresh(step, out, wanted)
    if digest is not None:
        assert note is not None
        emit("message", text=f"{title}: is there")
        return StepResult(step, "done", note["seconds"], note["answer"])
    at, before, state = _make_room(step, out, note, wanted)
    emit("message", text=f"{title}: {'goes on' if state == 'cut' else _brief(step)}{ahead}")
    answer: Mapping[str, Any] = {}
    begun = time.perf_counter() - before
    for index in range(at, len(step.commands)):
        spent = time.perf_counter() - begun
        _write(step, out, {"hash": wanted, "state": "begun", "commands_done": index, "seconds": spent})
        answer = _execute(step, step.commands[index], execute)
    if step.kind == "numbers":
        write_json(step.output, dict(answer))
    made, spent = _digest(step), round(time.perf_counter() - begun, 2)
    if made is None:
        raise FirstlightError(f"step {step.name} came to its end without leaving {step.output}")
    _write(step, out, {"hash": wanted, "state": "done", "digest": made, "seconds": spent, "answer": answer})
    return StepResult(step, state, spent, answer)


def _execute(step: Step, words: Words, execute: Execute) -> Mapping[str, Any]:
    try:
        return execute(words)
    except InputError as error:
        problem = f"step {step.name}: {error.problem}"
        raise InputError(problem, path=error.path, line=error.line, hint=error.hint) from error
    except FirstlightError as error:
        raise type(error)(f"step {step.name}: {error}") from error


def _brief(step: Step) -> str:
    return ", ".join(" ".join(words[:2] if words[0] == "data" else words[:1]) for words in step.commands)


def _make_room(
    step: Step, out: Path, note: Mapping[str, Any] | None, wanted: str
) -> tuple[int, float, State]:
    """Clear what an earlier run of the step left, or keep what can go on.

    Returns:
        The first command to run, the seconds spent before, and how the step was found.
    """
    for torn in step.output.parent.glob(f".{step.output.name}.*.partial"):
        shutil.rmtree(torn, ignore_errors=True)
    if not step.output.exists():
        return 0, 0.0, "to do"
    if note is None:
        raise InputError(
            f"step {step.name} would write here, and something is here that no pipeline made",
            path=step.output,
            hint="move it away, or choose another --out",
        )
    if note["state"] == "begun" and note["hash"] == wanted:
        at: int = note["commands_done"]
        if step.commands[at][0] in RESUMING:
            return at, note["seconds"], "cut"
    if step.kind == "bundle" and note["state"] == "done":
        _set_aside(step.output)
    elif step.output.is_dir():
        shutil.rmtree(step.output)
    else:
        step.output.unlink()
    return 0, 0.0, "to do"


def _set_aside(bundle: Path) -> None:
    """Keep an older bundle: it may be served, and items may have been added to it."""
    taken = [
        int(match[1])
        for path in bundle.parent.iterdir()
        if (match := re.fullmatch(rf"{re.escape(bundle.name)}-before-(\d+)", path.name))
    ]
    bundle.rename(bundle.with_name(f"{bundle.name}-before-{max(taken, default=0) + 1}"))


def _hash(step: Step, out: Path, digests: Mapping[str, str]) -> str | None:
    """Hash of all that decides a step's output; None if what it needs is not there."""
    if not all(name in digests for name in step.needs):
        return None
    # The pipeline's own folder may be moved, with what it holds.
    place = f"{out}/"
    words = [word.replace(place, "OUT/") for command in step.commands for word in ("firstlight", *command)]
    read = [_content(path) for path in step.outside]
    return hash_strings([firstlight.__version__, *words, *read, *(digests[name] for name in step.needs)])


def _content(path: Path) -> str:
    """Hash of a file, or of all files of a folder and of where its links to folders lead."""
    if path.is_file():
        return hash_file(path)
    left_out = {"checkpoint", "evaluation"}  # of a run: how it came about, and what was measured of it since
    files = sorted(file for file in files_below(path) if file.is_file() and not left_out & {*file.parts})
    told = [text for file in files for text in (str(file.relative_to(path)), hash_file(file))]
    # A file that two names lead to is met under one of them: the other may lead elsewhere tomorrow.
    links = sorted(link for link in folder_links_below(path) if not left_out & {*link.parts})
    told += [text for link in links for text in (str(link.relative_to(path)), str(link.readlink()))]
    return hash_strings(told)


def _digest(step: Step) -> str | None:
    """Hash of what a step left, or None if it is not all there."""
    if step.kind in ("numbers", "table", "page"):
        return hash_file(step.output) if step.output.is_file() else None
    if not (step.output / _LAST[step.kind]).is_file():
        return None
    if step.kind == "bundle":  # items may have been added to it since: that is what it is for
        return "there"
    if step.kind == "dataset":
        return _of_dataset(step.output)
    if step.kind == "cut":
        parts = [step.output / name for name in (KNOWN, NEW)]
        return hash_strings(map(_of_dataset, parts)) if (parts[0] / "dataset.json").is_file() else None
    files = [step.output / name for name in _DECISIVE[step.kind]]
    return hash_strings(hash_file(file) if file.is_file() else "" for file in files)


def _of_dataset(folder: Path) -> str:
    """A dataset's manifest holds the hashes of all files, and where they came from, which decides nothing."""
    manifest = read_json(folder / "dataset.json")
    told = {key: value for key, value in manifest.items() if key not in ("source", "name")}
    return hash_strings([json.dumps(told, sort_keys=True)])


def _fresh(step: Step, out: Path, wanted: str | None) -> str | None:
    """The digest of a step's output if it is what it would be, else None."""
    note = _note(step, out)
    if wanted is None or note is None or note["state"] != "done" or note["hash"] != wanted:
        return None
    digest = _digest(step)
    return digest if digest == note["digest"] else None


def _file(step: Step, out: Path) -> Path:
    return out / "steps" / f"{step.name.replace(':', '.')}.json"


def _note(step: Step, out: Path) -> dict[str, Any] | None:
    path = _file(step, out)
    if not path.exists():
        return None
    note: dict[str, Any] = read_json(path)
    return note


def last_seconds(step: Step, out: Path) -> float | None:
    """How long a step took when it was last run to its end, or None."""
    note = _note(step, out)
    return None if note is None or note["state"] != "done" else float(note["seconds"])


def last_answer(step: Step, out: Path) -> Mapping[str, Any] | None:
    """What a step's command said when it was last run to its end, or None."""
    note = _note(step, out)
    return None if note is None or note["state"] != "done" else note["answer"]


def _write(step: Step, out: Path, note: Mapping[str, Any]) -> None:
    write_json(_file(step, out), {"step": step.name, "commands": step.commands, **note})
