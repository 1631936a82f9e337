"""Finished runs under other eyes: other targets, other pools, other data, other runs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.choices import one_of
from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_strings
from firstlight.core.identity import decisive
from firstlight.core.shown import Shown
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.cold import Calibration, ColdReport, cold_protocols, oracle_offset
from firstlight.evaluation.compare import RunResult
from firstlight.evaluation.ranking import Evaluation, evaluate_ranking, metric_table
from firstlight.training.config import check_lengths
from firstlight.training.run_folder import Run

#: ``warm`` items have clicks in the log that the final model was trained on, ``cold`` ones have none.
Warmth = Literal["all", "warm", "cold"]
Part = Literal["valid", "test"]


@dataclass(frozen=True, eq=False)
class Question:
    """What a run was asked.

    Attributes:
        part: The part that held the targets.
        ks: Cut-offs.
        protocol: How the run itself was selected, as its result says.
        dropped: Reason → rows that reading a foreign dataset left out.
    """

    part: Part
    ks: tuple[int, ...]
    protocol: Mapping[str, Any]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def warning(self) -> str | None:
        """That the run's length was chosen on the test part, if it was."""
        return str(self.protocol["meaning"]) if self.protocol["selection"] == "test" else None


@dataclass(frozen=True, eq=False, repr=False)
class Assessment(Shown):
    """One evaluation of a finished run.

    Attributes:
        question: What was asked.
        targets: Which items' pairs counted.
        pool: Which items were ranked.
        evaluation: The numbers.
        n_pairs: Target pairs that were evaluated.
        unknown_pairs: Pairs of a foreign dataset whose user or item the run does not know; left out.
        learned_pairs: Pairs of a foreign dataset that the run has learned, or chose its length by; left out.
    """

    question: Question
    targets: Warmth
    pool: Warmth
    evaluation: Evaluation
    n_pairs: int
    unknown_pairs: int
    learned_pairs: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """``"recall@20"`` and so on → value."""
        return self.evaluation.metrics

    @property
    def heading(self) -> str:
        """What was ranked, and what was left out."""
        lines = [
            f"{self.question.part} pairs on {self.targets} items, ranked among {self.pool} items",
            f"{self.n_pairs:,} pairs of {self.evaluation.n_users:,} users",
        ]
        lines += _left_out(self.unknown_pairs, self.learned_pairs)
        if self.evaluation.unreachable:
            lines.append(
                f"{self.evaluation.unreachable:,} pairs cannot be recommended (outside the pool, or seen); "
                "they count as missed"
            )
        return "\n".join([*lines, *([self.question.warning] if self.question.warning else [])])

    @property
    def table(self) -> pl.DataFrame:
        """``metric``, then one column a cut-off (``@10``)."""
        return metric_table(self.evaluation.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: what ``firstlight evaluate --json`` prints."""
        evaluation, question = self.evaluation, self.question
        return {
            "part": question.part,
            "targets": self.targets,
            "pool": self.pool,
            "k": list(question.ks),
            "users": evaluation.n_users,
            "pairs": self.n_pairs,
            "unknown_pairs": self.unknown_pairs,
            "learned_pairs": self.learned_pairs,
            "unreachable_pairs": evaluation.unreachable,
            "dropped": dict(question.dropped),
            "metrics": evaluation.metrics,
            "intervals": evaluation.intervals,
            "groups": {name: table.to_dicts() for name, table in evaluation.groups.items()},
            "protocol": question.protocol,
        }


def assess(
    run: Run,
    dataset: Dataset | None = None,
    *,
    part: Part = "test",
    targets: Warmth = "all",
    pool: Warmth = "all",
    ks: Sequence[int] = (10, 20, 50),
) -> Assessment:
    """Evaluate a finished run.

    Args:
        run: The run.
        dataset: Whose held-out pairs to rank; the run's own if None. Ids are matched as text.
        part: Which part holds the targets.
        targets: Count only targets on such items.
        pool: Rank only such items.
        ks: Cut-offs.

    Returns:
        The evaluation and what it leaves out.

    Raises:
        InputError: There is no such part, no target is left, or the final model was trained on the part.
    """
    one_of(targets, get_args(Warmth), "targets")
    one_of(pool, get_args(Warmth), "pool")
    check_lengths(ks, len(run.item_ids))
    wanted, unknown, learned = _wanted(run, dataset, part)
    degrees = run.seen.item_degrees
    if targets != "all":
        wanted = wanted.select(_mask(degrees, targets)[wanted.items])
    if wanted.n_pairs == 0:
        kind = "" if targets == "all" else f" on {targets} items"
        raise InputError(f"there is no {part} pair{kind} to rank", path=run.path)
    evaluation = evaluate_ranking(
        run.scorer,
        wanted,
        _known(run, part),
        ks,
        pool=None if pool == "all" else _mask(degrees, pool),
        popularity=degrees,
        seed=run.config.seed,
    )
    question = _question(run, dataset, part, ks)
    return Assessment(question, targets, pool, evaluation, wanted.n_pairs, unknown, learned)


def _left_out(unknown: int, learned: int) -> list[str]:
    """What a heading says of pairs of a foreign dataset that were not evaluated."""
    lines = []
    if unknown:
        lines.append(f"{unknown:,} pairs left out: the run does not know their user or item")
    if learned:
        lines.append(f"{learned:,} pairs left out: the run was trained or chosen on them")
    return lines


def _question(run: Run, dataset: Dataset | None, part: Part, ks: Sequence[int]) -> Question:
    dropped = {} if dataset is None else dataset.dropped
    return Question(part, tuple(ks), run.result["protocol"], dropped)


@dataclass(frozen=True, eq=False, repr=False)
class ColdAssessment(Shown):
    """A finished run under the cold-start protocols.

    Attributes:
        question: What was asked.
        report: The numbers; cold items have no click in the log that the final model was trained on.
        oracle: The single best additive offset on cold scores, chosen with these very targets: what a perfect
            calibration would reach, never a method.
        unknown_pairs: Pairs of a foreign dataset whose user or item the run does not know; left out.
        learned_pairs: Pairs of a foreign dataset that the run has learned, or chose its length by; left out.
    """

    question: Question
    report: ColdReport
    oracle: Calibration
    unknown_pairs: int
    learned_pairs: int = 0

    @property
    def oracle_share(self) -> float | None:
        """Share of the oracle's harmonic mean of warm and cold recall that the run's own scores reach.

        None where that mean is unknown or zero.
        """
        reached = self.report.harmonic.get(f"recall@{self.oracle.k}")
        best = self.oracle.harmonic
        return None if reached is None or not best > 0 else reached / best

    @property
    def heading(self) -> str:
        """How many items there were of each kind, and what was left out."""
        lines = [
            f"{self.question.part} pairs; {self.report.n_warm:,} warm and {self.report.n_cold:,} cold items"
        ]
        lines += _left_out(self.unknown_pairs, self.learned_pairs)
        if self.oracle_share is not None:
            lines.append(
                f"recall@{self.oracle.k}: {self.oracle_share:.1%} of the harmonic mean that the best single offset "
                "on cold scores reaches, chosen with these answers"
            )
        return "\n".join([*lines, *([self.question.warning] if self.question.warning else [])])

    @property
    def table(self) -> pl.DataFrame:
        """One row a protocol: targets, pool, users, pairs, recall and NDCG; the harmonic mean last."""
        return pl.DataFrame(self.report.table())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: what ``firstlight evaluate --protocol cold --json`` prints."""
        report, oracle, question = self.report, self.oracle, self.question
        return {
            "part": question.part,
            "k": list(question.ks),
            "items": {"warm": report.n_warm, "cold": report.n_cold},
            "unknown_pairs": self.unknown_pairs,
            "learned_pairs": self.learned_pairs,
            "dropped": dict(question.dropped),
            "protocols": {
                name: {
                    "users": evaluation.n_users,
                    "pairs": report.pairs[name],
                    "unreachable_pairs": evaluation.unreachable,
                    "metrics": evaluation.metrics,
                    "intervals": evaluation.intervals,
                }
                for name, evaluation in report.protocols.items()
            },
            "harmonic": {"metrics": report.harmonic, "intervals": report.harmonic_intervals},
            "oracle": {**vars(oracle), "share": self.oracle_share},
            "groups": {"clicks": [] if report.groups is None else report.groups.to_dicts()},
            "group_intervals": {"clicks": report.group_intervals},
            "protocol": question.protocol,
        }


def assess_cold(
    run: Run, dataset: Dataset | None = None, *, part: Part = "test", ks: Sequence[int] = (10, 20, 50)
) -> ColdAssessment:
    """Evaluate warm and cold targets of a finished run apart, among their own kind and among all items.

    Items that the split keeps cold for the other held-out part are not ranked.

    Args:
        run: The run.
        dataset: Whose held-out pairs to rank; the run's own if None. Ids are matched as text.
        part: Which part holds the targets.
        ks: Cut-offs; the oracle is chosen at 20 if it is one of them, else at the first.

    Returns:
        The report, and the oracle that it is measured by.

    Raises:
        InputError: There is no such part, no target is left, or the final model was trained on the part.
    """
    check_lengths(ks, len(run.item_ids))
    wanted, unknown, learned = _wanted(run, dataset, part)
    if wanted.n_pairs == 0:
        raise InputError(f"there is no {part} pair to rank", path=run.path)
    degrees, seen = run.seen.item_degrees, _known(run, part)
    cold = degrees == 0
    pool = _existing(run, wanted, part) if dataset is None else None
    report = cold_protocols(
        run.scorer, wanted, seen, cold, ks, popularity=degrees, pool=pool, seed=run.config.seed
    )
    k = 20 if 20 in ks else ks[0]
    oracle = oracle_offset(run.scorer, wanted, seen, cold, k, pool=pool)
    return ColdAssessment(_question(run, dataset, part, ks), report, oracle, unknown, learned)


def _existing(run: Run, wanted: Interactions, part: Part) -> npt.NDArray[np.bool_]:
    """``(n_items,)``: every item but those that the split keeps cold for the other held-out part.

    Without a refit the cold items of validation are cold at the test too, and nobody is to find them there.
    """
    other = run.parts.get("test" if part == "valid" else "valid")
    if other is None:
        return np.ones(len(run.item_ids), np.bool_)
    foreign = (run.seen.item_degrees == 0) & (other.item_degrees > 0) & (wanted.item_degrees == 0)
    existing: npt.NDArray[np.bool_] = ~foreign
    return existing


def run_result(run: Run) -> RunResult:
    """A run as :func:`firstlight.evaluation.compare.compare` wants it.

    Runs whose configs agree but for the seed (and the number of threads) count as one configuration.

    Raises:
        InputError: The run has no numbers, because its dataset has no test part.
    """
    if not run.result["metrics"]:
        raise InputError("this run has no test numbers: its dataset has no test part", path=run.path)
    config = decisive(run.config)
    config.pop("seed")
    config["training"].pop("threads")
    data = run.result["dataset"]
    split = data["split"]
    return RunResult(
        name=run.path.name,
        per_user=run.per_user,
        metrics=run.result["metrics"],
        seed=run.config.seed,
        dataset_hash=data["content_hash"],
        split_hash=data["content_hash"] if split is None else split["hash"],
        config_hash=hash_strings([json.dumps(config, sort_keys=True)]),
    )


def _wanted(run: Run, dataset: Dataset | None, part: Part) -> tuple[Interactions, int, int]:
    """The targets in the run's rows, and how many pairs have none there, or are known to the run."""
    return (_own(run, part), 0, 0) if dataset is None else _foreign(run, dataset, part)


def _known(run: Run, part: Part) -> list[Interactions]:
    """The logs whose pairs are not ranked: what the model has learned, and for test what was held out before it."""
    valid = run.parts.get("valid")
    return [run.seen, valid] if part == "test" and valid is not None else [run.seen]


def _own(run: Run, part: Part) -> Interactions:
    """The run's own part, unless the model has learned it."""
    if part not in run.parts:
        raise InputError(
            f"this run has no {part} part", path=run.path, hint=f"it has: {', '.join(run.parts)}"
        )
    wanted = run.parts[part]
    if part == "valid" and run.seen.union(wanted).n_pairs == run.seen.n_pairs:
        raise InputError(
            "the final model of this run was trained on its validation part",
            path=run.path,
            hint="train with --set training.refit=false to evaluate on validation",
        )
    return wanted


def _foreign(run: Run, dataset: Dataset, part: Part) -> tuple[Interactions, int, int]:
    """A dataset's part in the run's rows; how many pairs have none there; and how many the run has learned.

    A dataset without parts is taken whole.

    Raises:
        InputError: There is no such part, or the run has learned all of it.
    """
    held_out = dataset.parts.get(part, dataset.train if len(dataset.parts) == 1 else None)
    if held_out is None:
        raise InputError(f"dataset {dataset.name!r} has no {part} part", path=dataset.source or None)
    users = _rows(dataset.user_ids, run.user_ids)[held_out.users]
    items = _rows(dataset.item_ids, run.item_ids)[held_out.items]
    known = (users >= 0) & (items >= 0)
    log = Interactions.from_pairs(users[known], items[known], len(run.user_ids), len(run.item_ids))
    new = np.ones(log.n_pairs, np.bool_)
    for seen in _known(run, part):
        new &= ~log.in_common(seen)
    if log.n_pairs and not new.any():
        raise InputError(
            "the run has learned every one of these pairs, so there is nothing to evaluate",
            path=dataset.source or None,
            hint="give pairs that came later, or the run alone for its own test part",
        )
    return log.select(new), int((~known).sum()), int((~new).sum())


def _rows(ids: pl.Series, known: pl.Series) -> npt.NDArray[np.int64]:
    """``(len(ids),)``: the place of each id in ``known``, or -1."""
    lookup = pl.DataFrame({"id": known.cast(pl.String), "row": np.arange(len(known))})
    wanted = pl.DataFrame({"id": ids.cast(pl.String)})
    found = wanted.join(lookup, on="id", how="left", maintain_order="left")["row"]
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _mask(degrees: npt.NDArray[np.int64], warmth: Warmth) -> npt.NDArray[np.bool_]:
    """``(n_items,)``: which items are warm, or cold."""
    warm = degrees > 0
    return warm if warmth == "warm" else ~warm
