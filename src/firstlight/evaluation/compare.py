"""Runs against a reference run: paired over users, and over seeds where a configuration ran with several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.evaluation.significance import PairedTest, holm, paired_t

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a comparison needs of a run.

    Attributes:
        name: Name for the table.
        per_user: ``user``, then per-user metrics (see :class:`firstlight.evaluation.ranking.Evaluation`).
        metrics: Metric → value.
        seed: Seed of the run.
        dataset_hash: Content hash of the dataset.
        split_hash: Hash of the split.
        config_hash: Hash of everything but the seed; runs that share one are seeds of one configuration.
            None: the run stands alone.
    """

    name: str
    per_user: pl.DataFrame
    metrics: Mapping[str, float]
    seed: int
    dataset_hash: str
    split_hash: str
    config_hash: str | None = None


def compare(
    runs: Sequence[RunResult],
    metrics: Sequence[str] = ("recall@20", "ndcg@20"),
    *,
    allow_different_data: bool = False,
    level: float = 0.95,
) -> pl.DataFrame:
    """Compare configurations with the first one.

    Each difference is tested over users: Student's paired t on the users' values, averaged over the seeds of
    a configuration. Where both configurations ran with the same two or more seeds, it is also tested over
    seeds, which is the harder question: would another training run show it again? The p-values of each kind
    are Holm-corrected over the whole table.

    Args:
        runs: The runs; the first one's configuration is the reference.
        metrics: Per-user metrics to compare.
        allow_different_data: Compare runs on different data or splits, over the users that all runs share
            by row number. Only for those who know that the rows mean the same.
        level: Coverage of the intervals.

    Returns:
        One row per metric and configuration, the reference first: ``metric``, ``name``, ``seeds`` (number of
        runs), ``mean`` and ``sd`` over seeds (null for one seed), ``difference``, ``relative`` (share of the
        reference's mean, null where that is 0), ``low``, ``high``, ``p_users``, ``p_seeds`` (null where it
        cannot be tested).

    Raises:
        InputError: Fewer than two configurations, a missing metric, or runs that cannot be compared.
    """
    configurations = _configurations(runs)
    if len(configurations) < 2:
        raise InputError(
            "a comparison needs at least two configurations",
            hint="runs of one configuration with several seeds are averaged, not compared",
        )
    if not allow_different_data:
        _same_data(runs)
    _has_metrics(runs, metrics)
    users = _shared_users(runs, allow_different_data)
    rows = []
    for metric in metrics:
        reference = configurations[0]
        base = _user_means(reference, metric, users)
        for group in configurations:
            values = _user_means(group, metric, users)
            over_users = None if group is reference else paired_t(base, values, level)
            over_seeds = None if group is reference else _over_seeds(reference, group, metric, level)
            rows.append(_row(group, metric, float(base.mean()), over_users, over_seeds))
    table = pl.DataFrame(rows, schema=_SCHEMA)
    return table.with_columns(_corrected(table["p_users"]), _corrected(table["p_seeds"]))


_SCHEMA = {
    "metric": pl.String,
    "name": pl.String,
    "seeds": pl.Int64,
    "mean": pl.Float64,
    "sd": pl.Float64,
    "difference": pl.Float64,
    "relative": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_users": pl.Float64,
    "p_seeds": pl.Float64,
}


def _configurations(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Runs grouped by configuration, in order of first appearance."""
    groups: dict[object, list[RunResult]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(index if run.config_hash is None else run.config_hash, []).append(run)
    for group in groups.values():
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise InputError(
                f"the configuration of run {group[0].name!r} is given twice with the same seed",
                hint="leave the repeated run out: it would count as evidence twice",
            )
    return list(groups.values())


def _same_data(runs: Sequence[RunResult]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what, mine, theirs in (
            ("dataset", first.dataset_hash, run.dataset_hash),
            ("split", first.split_hash, run.split_hash),
        ):
            if mine != theirs:
                raise InputError(
                    f"runs {first.name!r} and {run.name!r} were evaluated on different {what}s "
                    f"({mine[:12]} and {theirs[:12]}): their numbers cannot be compared",
                    hint="evaluate both on the same data, or allow different data explicitly",
                )


def _has_metrics(runs: Sequence[RunResult], metrics: Sequence[str]) -> None:
    for run in runs:
        for metric in metrics:
            if metric not in run.per_user.columns:
                known = [name for name in run.per_user.columns if "@" in name]
                raise InputError(
                    f"run {run.name!r} has no per-user metric {metric!r}", hint=f"it has: {', '.join(known)}"
                )


def _shared_users(runs: Sequence[RunResult], intersect: bool) -> pl.Series:
    """The users to pair over: the same in every run, or their intersection where that is allowed."""
    sets = [set(run.per_user["user"].to_list()) for run in runs]
    shared = set.intersection(*sets)
    if not intersect and any(len(users) != len(shared) for users in sets):
        raise InputError(
            "the runs were evaluated on different users", hint="evaluate all with the same targets and pool"
        )
    if len(shared) < 2:
        raise InputError("the runs share fewer than two users, so nothing can be paired")
    return pl.Series("user", sorted(shared), dtype=pl.Int64)


def _user_means(group: Sequence[RunResult], metric: str, users: pl.Series) -> FloatArray:
    """``(users,)`` values averaged over the seeds of one configuration."""
    order = pl.DataFrame({"user": users})
    columns = []
    for run in group:
        values = run.per_user.select(pl.col("user").cast(pl.Int64), metric)
        columns.append(order.join(values, on="user", how="left", maintain_order="left")[metric].to_numpy())
    means: FloatArray = np.mean(columns, axis=0, dtype=np.float64)
    return means


def _run_value(run: RunResult, metric: str) -> float:
    """The run's mean; taken from the users' values where the run's table of metrics lacks it."""
    value = run.metrics.get(metric)
    return float(np.mean(run.per_user[metric].to_numpy())) if value is None else float(value)


def _over_seeds(
    reference: Sequence[RunResult], group: Sequence[RunResult], metric: str, level: float
) -> PairedTest | None:
    """Paired t over the seeds that both configurations ran with, or None if there are fewer than two."""
    first = {run.seed: _run_value(run, metric) for run in reference}
    second = {run.seed: _run_value(run, metric) for run in group}
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    return paired_t([first[seed] for seed in shared], [second[seed] for seed in shared], level)


def _row(
    group: Sequence[RunResult],
    metric: str,
    base: float,
    over_users: PairedTest | None,
    over_seeds: PairedTest | None,
) -> dict[str, object]:
    values = [_run_value(run, metric) for run in group]
    row: dict[str, object] = {
        "metric": metric,
        "name": group[0].name,
        "seeds": len(group),
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "p_seeds": None if over_seeds is None else over_seeds.p,
    }
    if over_users is not None:
        row |= {
            "difference": over_users.difference,
            "relative": over_users.difference / base if base else None,
            "low": over_users.interval[0],
            "high": over_users.interval[1],
            "p_users": over_users.p,
        }
    return {name: row.get(name) for name in _SCHEMA}


def _corrected(p: pl.Series) -> pl.Series:
    """Holm over the entries that are not null."""
    known = p.drop_nulls().to_list()
    adjusted = iter(holm(known))
    return pl.Series(p.name, [None if value is None else next(adjusted) for value in p], dtype=pl.Float64)
