"""How a run chooses: what validation measures, and where cold items stand among warm ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.seeds import numpy_stream
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.calibration import CalibratedScorer, fit_offset, harmonic_mean
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.models.base import EmbeddingModel, Recommender
from firstlight.models.content import ContentModel
from firstlight.training.config import RunConfig
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

    side, _, name = metric.rpartition("-")
    cold = seen.item_degrees == 0

    def judge(model: EmbeddingModel) -> dict[str, float]:
        scorer = ModelScorer(model)
        found = evaluate_ranking(scorer, targets, [seen], ks=(int(k),), pool=pool).metrics
        if name not in found:
            raise InputError(f"training.metric {metric!r} is unknown", hint=f"known: {', '.join(found)}")
        values = {key: found[key] for key in sorted({name, f"recall@{k}", f"ndcg@{k}"})}
        return values | (_apart(scorer, targets, seen, cold, pool, name) if side else {})

    return judge


def _apart(
    scorer: ModelScorer,
    targets: Interactions,
    seen: Interactions,
    cold: npt.NDArray[np.bool_],
    pool: npt.NDArray[np.bool_] | None,
    name: str,
) -> dict[str, float]:
    """A metric on warm targets among warm items, on cold targets among cold items, and the harmonic mean.

    Each kind is ranked among its own, so that a model is chosen before its cold scores are calibrated.
    """
    values = {}
    for side, mask in (("warm", ~cold), ("cold", cold)):
        wanted = targets.select(mask[targets.items])
        if wanted.n_pairs == 0:
            raise InputError(
                f"training.metric wants {side} validation targets, and there are none",
                hint="split the data with --by cold-items, or choose by recall@20",
            )
        k = int(name.partition("@")[2])
        ranked = mask if pool is None else mask & pool
        values[f"{side}-{name}"] = evaluate_ranking(scorer, wanted, [seen], ks=(k,), pool=ranked).metrics[
            name
        ]
    return values | {f"harmonic-{name}": float(harmonic_mean(*values.values()))}


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

    Without cold validation targets it is rehearsed: a fifth of the warm items is ranked as if it were cold.
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
        found = replace(found, offset=found.offset * share)
    return {"calibration": {**asdict(found), "rehearsed": rehearsed}}


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
