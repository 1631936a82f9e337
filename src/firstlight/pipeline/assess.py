"""Finished runs under other eyes: other targets, other pools, other data, other runs beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_strings
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.cold import Calibration, ColdReport, cold_protocols, oracle_offset
from firstlight.evaluation.compare import RunResult
from firstlight.evaluation.ranking import Evaluation, evaluate_ranking
from firstlight.training.run_folder import Run

#: ``warm`` items have clicks in the log that the final model was trained on, ``cold`` ones have none.
Warmth = Literal["all", "warm", "cold"]
Part = Literal["valid", "test"]


@dataclass(frozen=True, eq=False)
class Assessment:
    """One evaluation of a finished run.

    Attributes:
        evaluation: The numbers.
        n_pairs: Target pairs that were evaluated.
        unknown_pairs: Pairs of a foreign dataset whose user or item the run does not know; left out.
    """

    evaluation: Evaluation
    n_pairs: int
    unknown_pairs: int


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
    wanted, unknown = _wanted(run, dataset, part)
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
    return Assessment(evaluation, wanted.n_pairs, unknown)


@dataclass(frozen=True, eq=False)
class ColdAssessment:
    """A finished run under the cold-start protocols.

    Attributes:
        report: The numbers; cold items have no click in the log that the final model was trained on.
        oracle: The single best additive offset on cold scores, chosen with these very targets: what a perfect
            calibration would reach, never a method.
        unknown_pairs: Pairs of a foreign dataset whose user or item the run does not know; left out.
    """

    report: ColdReport
    oracle: Calibration
    unknown_pairs: int

    @property
    def oracle_share(self) -> float | None:
        """Share of the oracle's harmonic mean of warm and cold recall that the run's own scores reach.

        None where that mean is unknown or zero.
        """
        reached = self.report.harmonic.get(f"recall@{self.oracle.k}")
        best = self.oracle.harmonic
        return None if reached is None or not best > 0 else reached / best


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
    wanted, unknown = _wanted(run, dataset, part)
    if wanted.n_pairs == 0:
        raise InputError(f"there is no {part} pair to rank", path=run.path)
    degrees, seen = run.seen.item_degrees, _known(run, part)
    cold = degrees == 0
    pool = _existing(run, wanted, part) if dataset is None else None
    report = cold_protocols(
        run.scorer, wanted, seen, cold, ks, popularity=degrees, pool=pool, seed=run.config.seed
    )
    k = 20 if 20 in ks else ks[0]
    return ColdAssessment(report, oracle_offset(run.scorer, wanted, seen, cold, k, pool=pool), unknown)


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
    config = run.config.model_dump(mode="json")
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


def _wanted(run: Run, dataset: Dataset | None, part: Part) -> tuple[Interactions, int]:
    """The targets in the run's rows, and the number of pairs that have none there."""
    return (_own(run, part), 0) if dataset is None else _foreign(run, dataset, part)


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


def _foreign(run: Run, dataset: Dataset, part: Part) -> tuple[Interactions, int]:
    """A dataset's part in the run's rows, and the number of pairs that have none there.

    A dataset without parts is taken whole.
    """
    held_out = dataset.parts.get(part, dataset.train if len(dataset.parts) == 1 else None)
    if held_out is None:
        raise InputError(f"dataset {dataset.name!r} has no {part} part", path=dataset.source or None)
    users = _rows(dataset.user_ids, run.user_ids)[held_out.users]
    items = _rows(dataset.item_ids, run.item_ids)[held_out.items]
    known = (users >= 0) & (items >= 0)
    log = Interactions.from_pairs(users[known], items[known], len(run.user_ids), len(run.item_ids))
    return log, int((~known).sum())


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
