"""The numbers of a report: what is recorded with the runs, in the form that tables and pictures take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from firstlight.evaluation.compare import RunResult, compare
from firstlight.training.recorded import ColdNumbers
from firstlight.training.run_folder import Run

#: Protocol → what is looked for, and among what, in words.
PROTOCOLS = {
    "all/all": "all clicks, all items ranked",
    "warm/all": "clicks on known items, all items ranked",
    "cold/all": "clicks on new items, all items ranked",
    "warm/warm": "clicks on known items, known items ranked",
    "cold/cold": "clicks on new items, new items ranked",
}


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
        numbers: Its numbers under the cold-start protocols.
        result: What a paired test needs.
    """

    label: str
    run: Run
    numbers: ColdNumbers
    result: RunResult

    @property
    def oracle_share(self) -> float | None:
        """Share of the harmonic mean of the best single offset on cold scores that the run reaches, or None."""
        share: float | None = self.numbers.value["oracle"]["share"]
        return share

    @property
    def source(self) -> str:
        """Where the numbers are from."""
        record = self.numbers.record
        return "ranked for this report" if record is None else f"numbers read from {record}"


def protocol_values(entry: Measured, k: int) -> dict[str, Value]:
    """Recall under each protocol that has a target, and ``harmonic``, with intervals."""
    name, found, value = f"recall@{k}", {}, entry.numbers.value
    for protocol in PROTOCOLS:
        if protocol in value["protocols"]:
            found[protocol] = _value(value["protocols"][protocol], name)
    if value["harmonic"]["metrics"]:
        found["harmonic"] = _value(value["harmonic"], name)
    return found


def _value(found: Mapping[str, Any], name: str) -> Value:
    return Value(found["metrics"][name], *found["intervals"][name])


def group_values(entry: Measured, k: int) -> dict[str, Value]:
    """Recall of the test clicks on each group of items by training clicks that has any, all items ranked."""
    name, value = f"recall@{k}", entry.numbers.value
    spans = value["group_intervals"]["clicks"]
    rows = [row for row in value["groups"]["clicks"] if row[name] is not None]
    return {row["group"].replace("-", "–"): Value(row[name], *spans[row["group"]][name]) for row in rows}


def comparisons(entries: Sequence[Measured], k: int) -> list[dict[str, Any]]:
    """Every configuration against the first, paired over users, under each protocol that all runs have.

    Returns:
        Rows of :func:`firstlight.evaluation.compare.compare`, and ``protocol``.

    Raises:
        InputError: There are fewer than two configurations, or the runs are of different data.
    """
    rows: list[dict[str, Any]] = []
    for protocol in PROTOCOLS:
        if not all(protocol in entry.numbers.value["protocols"] for entry in entries):
            continue
        results = [_under(entry, protocol, k) for entry in entries]
        table = compare(results, (f"recall@{k}",))
        rows += [{"protocol": protocol, **row} for row in table.to_dicts()]
    return rows


def _under(entry: Measured, protocol: str, k: int) -> RunResult:
    name, result = f"recall@{k}", entry.result
    values = entry.numbers.per_user.select("user", pl.col(f"{protocol} {name}").alias(name)).drop_nulls()
    return RunResult(
        name=entry.label,
        per_user=values,
        metrics={name: entry.numbers.value["protocols"][protocol]["metrics"][name]},
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
