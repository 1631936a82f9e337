"""Numbers of a finished run that were measured once and need not be measured again.

``firstlight evaluate --protocol cold`` ranks everything for everybody. What it finds on the run's own test part stays
in the run's folder, and reports read it there::

    RUN/evaluation/  cold-10-20-50.json      what the command printed, and the run that it is about
                     cold-10-20-50.parquet   user row; recall and NDCG of each protocol (``cold/all recall@20``)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import firstlight
from firstlight.core.events import Emit, silent
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.core.values import plain
from firstlight.data.dataset import Dataset
from firstlight.training.assess import ColdAssessment, Part, assess_cold
from firstlight.training.run_folder import Run

FOLDER = "evaluation"


@dataclass(frozen=True, eq=False)
class ColdNumbers:
    """What the cold-start protocols found on a run's own test part.

    Attributes:
        value: As ``firstlight evaluate --protocol cold --json`` prints it.
        per_user: ``user`` (row), then recall and NDCG under each protocol (``cold/all recall@20``); null where a user
            has no such target.
        record: The file that they were read from; None if they were ranked for now.
    """

    value: Mapping[str, Any]
    per_user: pl.DataFrame
    record: Path | None = None


def cold_numbers(run: Run, k: int, emit: Emit = silent) -> ColdNumbers:
    """Recorded numbers at a cut-off, or new ones, which are recorded.

    Args:
        run: A finished run.
        k: The cut-off that is needed.
        emit: Told if everything has to be ranked.

    Raises:
        InputError: The run has no test part.
    """
    found = read_cold(run, k)
    if found is not None:
        return found
    emit("message", text=f"ranking: {run.path.name} (no numbers at {k} are recorded)")
    assessed = assess_cold(run, ks=(k,))
    record_cold(run, assessed, emit)
    return ColdNumbers(plain(assessed.to_dict()), assessed.report.per_user)


def evaluate_cold(
    run: Run,
    dataset: Dataset | None = None,
    *,
    part: Part = "test",
    ks: Sequence[int] = (10, 20, 50),
    emit: Emit = silent,
) -> ColdAssessment:
    """As :func:`firstlight.training.assess.assess_cold`; numbers of the run's own test part are recorded."""
    found = assess_cold(run, dataset, part=part, ks=ks)
    if dataset is None and part == "test":
        record_cold(run, found, emit)
    return found


def record_cold(run: Run, found: ColdAssessment, emit: Emit = silent) -> Path | None:
    """Leave numbers of a run's own test part in its folder.

    Args:
        run: The run.
        found: What :func:`firstlight.training.assess.assess_cold` found, without a foreign dataset.
        emit: Told if the folder cannot be written; nothing else depends on it.

    Returns:
        The JSON file, or None.
    """
    path = run.path / FOLDER / f"cold-{'-'.join(map(str, found.question.ks))}.json"
    about = {"run_hash": run.result["run_hash"], "firstlight": firstlight.__version__}
    try:
        with atomic_path(path.with_suffix(".parquet")) as temporary:
            found.report.per_user.write_parquet(temporary)
        write_json(path, plain({**about, **found.to_dict()}))  # last: what it names is there
    except OSError as error:
        emit("message", text=f"{path}: {error.strerror or error}; the numbers are not kept with the run")
        return None
    return path


def read_cold(run: Run, k: int) -> ColdNumbers | None:
    """Recorded numbers of a run at a cut-off, or None: of another run, torn or older ones do not count."""
    for path in sorted((run.path / FOLDER).glob("cold-*.json")):
        try:
            value = read_json(path)
            if value["run_hash"] != run.result["run_hash"] or value["part"] != "test" or k not in value["k"]:
                continue
            if "group_intervals" not in value or value["firstlight"] != firstlight.__version__:
                continue
            per_user = pl.read_parquet(path.with_suffix(".parquet"))
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
            continue
        if per_user.height == value["protocols"]["all/all"]["users"]:
            return ColdNumbers(value, per_user, path)
    return None
