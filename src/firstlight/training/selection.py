"""How a run chooses: what validation measures, and where cold items stand among warm ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.seeds import numpy_stream
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.calibration import CalibratedScorer, fit_offset, harmonic_mean, offset_curve
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.models.base import EmbeddingModel, Recommender
from firstlight.models.content import ContentModel
from firstlight.training.config import RunConfig, check_lengths
from firstlight.training.loop import Judge
from firstlight.training.run_folder import ModelScorer


def validation_pool(dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """The items that validation ranks: all but those that the split keeps cold for the test."""
    items = dataset.catalogue.items
    return (items["role"] != "cold-test").to_numpy() if "role" in items.columns else None


def make_judge(
    config: RunConfig,
    targets: Interactions,
    seen: Interactions,
    pool: npt.NDArray[np.bool_] | None = None,
) -> Judge:
    """An evaluator for selection: the metrics at the cut-off of ``training.metric`` alone."""
    metric = config.training.metric
    _, _, k = metric.partition("@")
    if targets.n_pairs == 0:
        raise FirstlightError(
            "the validation part is empty, so nothing can be selected on it\n"
            "  → raise training.valid_share, or set training.selection=none"
        )
    if not k.isdigit():
        raise InputError(f"training.metric {metric!r} is not of the form recall@20")
    check_lengths([int(k)], targets.n_items)

    side, _, name = metric.rpartition("-")
    cold = seen.item_degrees == 0
    sides = _sides(side, targets, cold)

    def judge(model: EmbeddingModel) -> dict[str, float]:
        scorer = ModelScorer(model)
        found = evaluate_ranking(scorer, targets, [seen], ks=(int(k),), pool=pool).metrics
        if name not in found:
            raise InputError(f"training.metric {metric!r} is unknown", hint=f"known: {', '.join(found)}")
        values = {key: found[key] for key in sorted({name, f"recall@{k}", f"ndcg@{k}"})}
        for kind, (mask, wanted) in sides.items():
            ranked = mask if pool is None else mask & pool
            found = evaluate_ranking(scorer, wanted, [seen], ks=(int(k),), pool=ranked).metrics
            values[f"{kind}-{name}"] = found[name]
        if side == "harmonic":
            values[metric] = float(harmonic_mean(values[f"warm-{name}"], values[f"cold-{name}"]))
        return values

    return judge


#: Kind → its items ``(n_items,)`` bool, and the targets among them.
_Sides = dict[str, tuple[npt.NDArray[np.bool_], Interactions]]


def _sides(side: str, targets: Interactions, cold: npt.NDArray[np.bool_]) -> _Sides:
    """The kinds of targets that a metric looks at: warm ones among warm items, cold ones among cold items, or both.

    Each kind is ranked among its own, so that a model is chosen before its cold scores are calibrated.

    Raises:
        InputError: A kind is wanted that validation has not.
    """
    kinds = {"warm": ~cold, "cold": cold}
    wanted = [kind for kind in kinds if side in (kind, "harmonic")]
    found = {kind: (kinds[kind], targets.select(kinds[kind][targets.items])) for kind in wanted}
    for kind, (_, part) in found.items():
        if part.n_pairs == 0:
            raise InputError(
                f"training.metric wants {kind} validation targets, and there are none",
                hint="split the data with --by cold-items, or choose by recall@20",
            )
    return found


#: How much of the offset that serves cold and warm targets alike is tried where all targets count the same.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def _share(
    scorer: Scorer,
    offset: float,
    targets: Interactions,
    seen: Interactions,
    cold: npt.NDArray[np.bool_],
    pool: npt.NDArray[np.bool_] | None,
    name: str,
) -> float:
    """The share of an offset that is best for all targets together.

    The harmonic mean asks for as many cold items as if half of the clicks went to them; a metric over all targets knows
    how many do.
    """
    k = int(name.partition("@")[2])
    values = {}
    for share in _SHARES:
        moved = CalibratedScorer(scorer, cold, 1.0, offset * share)
        values[share] = evaluate_ranking(moved, targets, [seen], ks=(k,), pool=pool).metrics[name]
    return max(values, key=lambda share: (values[share], -share))


def calibration(
    config: RunConfig,
    model: Recommender,
    targets: Interactions,
    seen: Interactions,
    pool: npt.NDArray[np.bool_] | None,
) -> dict[str, Any]:
    """Scale and offset of cold scores, fitted on validation; nothing for models that cannot tell cold items.

    Beside them the recall that they reach there, None for a kind that validation has not. Without cold validation
    targets it is rehearsed: a fifth of the warm items is ranked as if it were cold.
    """
    if not isinstance(model, ContentModel):
        return {}
    cold = seen.item_degrees == 0
    scorer: Scorer = ModelScorer(model)
    rehearsed = not bool(cold[targets.items].any())
    if rehearsed:
        cold, scorer = _rehearsal(config, model, seen)
    side, _, name = config.training.metric.rpartition("-")
    k = int(name.partition("@")[2])
    found = fit_offset(scorer, targets, [seen], cold, k, pool=pool)
    if not side and found.fitted:
        share = _share(scorer, found.offset, targets, seen, cold, pool, name)
        offset = found.offset * share
        there = offset_curve(scorer, targets, [seen], cold, [offset], k, scale=found.scale, pool=pool)
        warm, alone, both = (float(part[0]) for part in (there.warm, there.cold, there.harmonic))
        found = replace(found, offset=offset, warm=warm, cold=alone, harmonic=both)
    known = {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in asdict(found).items()
    }
    return {"calibration": {**known, "rehearsed": rehearsed}}


def _rehearsal(
    config: RunConfig, model: ContentModel, seen: Interactions
) -> tuple[npt.NDArray[np.bool_], VectorScorer]:
    """A random fifth of the warm items, and a ranking in which content alone stands for them.

    Training saw their content, so their vectors are better than those of items to come: what is fitted here places new
    items a little lower than they deserve.
    """
    users, items = model.vectors_for_scoring()
    warm = np.flatnonzero(seen.item_degrees)
    chosen = numpy_stream(config.seed, "rehearsal").permutation(warm)[: max(1, len(warm) // 5)]
    cold = np.zeros(len(items), np.bool_)
    cold[chosen] = True
    rows = torch.from_numpy(chosen)
    items = items.clone()
    items[rows] = model.as_if_cold(rows).to(items.dtype)
    return cold, VectorScorer(users, items)
