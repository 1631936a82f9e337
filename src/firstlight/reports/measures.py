"""The numbers of a report: read from run folders, or ranked again where these do not hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from firstlight.evaluation.cold import ColdReport
from firstlight.evaluation.compare import RunResult, compare
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.training.run_folder import Run

#: Protocol → what is looked for, and among what, in words.
PROTOCOLS = {
    "all/all": "all clicks, all items ranked",
    "warm/all": "clicks on known items, all items ranked",
    "cold/all": "clicks on new items, all items ranked",
    "warm/warm": "clicks on known items, known items ranked",
    "cold/cold": "clicks on new items, new items ranked",
}
#: Groups of items by their clicks in training: name → fewest and most.
GROUPS = {"0": (0, 0), "1–5": (1, 5), "6–20": (6, 20), "21–100": (21, 100), "more": (101, None)}


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """One run of a report.

    Attributes:
        label: Its name in the report.
        run: The run.
        cold: Its numbers under the cold-start protocols.
        oracle_share: Share of the harmonic mean of the best single offset on cold scores that it reaches, or None.
        result: What a paired test needs.
    """

    label: str
    run: Run
    cold: ColdReport
    oracle_share: float | None
    result: RunResult


def protocol_values(entry: Measured, k: int) -> dict[str, Value]:
    """Recall under each protocol that has a target, and ``harmonic``, with intervals."""
    name, found = f"recall@{k}", {}
    for protocol in PROTOCOLS:
        evaluation = entry.cold.protocols.get(protocol)
        if evaluation is not None:
            found[protocol] = Value(evaluation.metrics[name], *evaluation.intervals[name])
    if entry.cold.harmonic:
        found["harmonic"] = Value(entry.cold.harmonic[name], *entry.cold.harmonic_intervals[name])
    return found


def group_values(entry: Measured, k: int) -> dict[str, Value]:
    """Recall of the test clicks on each group of :data:`GROUPS` that has any, all items ranked."""
    run, name, found = entry.run, f"recall@{k}", {}
    degrees, targets = run.seen.item_degrees, run.parts["test"]
    valid = run.parts.get("valid")
    seen = [run.seen] if valid is None else [run.seen, valid]
    for group, (fewest, most) in GROUPS.items():
        inside = (degrees >= fewest) & (degrees <= (np.iinfo(np.int64).max if most is None else most))
        wanted = targets.select(inside[targets.items])
        if wanted.n_pairs:
            evaluation = evaluate_ranking(run.scorer, wanted, seen, (k,), seed=run.config.seed)
            found[group] = Value(evaluation.metrics[name], *evaluation.intervals[name])
    return found


def comparisons(entries: Sequence[Measured], k: int) -> list[dict[str, Any]]:
    """Every configuration against the first, paired over users, under each protocol that all runs have.

    Returns:
        Rows of :func:`firstlight.evaluation.compare.compare`, and ``protocol``.

    Raises:
        InputError: There are fewer than two configurations, or the runs are of different data.
    """
    rows: list[dict[str, Any]] = []
    for protocol in PROTOCOLS:
        if not all(protocol in entry.cold.protocols for entry in entries):
            continue
        results = [_under(entry, protocol, k) for entry in entries]
        table = compare(results, (f"recall@{k}",))
        rows += [{"protocol": protocol, **row} for row in table.to_dicts()]
    return rows


def _under(entry: Measured, protocol: str, k: int) -> RunResult:
    evaluation, result = entry.cold.protocols[protocol], entry.result
    return RunResult(
        name=entry.label,
        per_user=evaluation.per_user.select(pl.col("user"), pl.col(f"recall@{k}")),
        metrics={f"recall@{k}": evaluation.metrics[f"recall@{k}"]},
        seed=result.seed,
        dataset_hash=result.dataset_hash,
        split_hash=result.split_hash,
        config_hash=result.config_hash,
    )


def differing_settings(entries: Sequence[Measured]) -> dict[str, list[Any]]:
    """Fields in which the configs differ: path → a value a run, None where there is no such field."""
    flat = [_flat(entry.run.config.model_dump(mode="json")) for entry in entries]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = {name: [config.get(name) for config in flat] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def temperature_course(run: Run) -> list[tuple[int, float, float, float]]:
    """Epoch, smallest, mean and largest τ of the last phase, or nothing where τ stood still."""
    phases = [record["phase"] for record in run.metrics if "tau_mean" in record]
    last = phases[-1] if phases else None
    points = [
        (record["epoch"], record["tau_min"], record["tau_mean"], record["tau_max"])
        for record in run.metrics
        if record.get("phase") == last and "tau_mean" in record
    ]
    values = {value for _, *taus in points for value in taus}
    return points if len(values) > 1 else []
