"""Items that arrive after training: added by their content, and then looked for among what users clicked later.

A world is cut in two (:func:`cut_world`): what was there when training ended, and a catalogue of what came later. The
later items join a finished run as ``firstlight add-items`` would add them (:func:`add_arrivals`), and
:func:`measure_arrivals` ranks every item for every user: with the run, with the controls that every cold table needs,
and with the truth that the world was drawn from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.interactions import Interactions
from firstlight.data.simulate import Simulation
from firstlight.data.simulate.world import DAY, instant
from firstlight.data.split import hash_parts
from firstlight.evaluation.cold import ColdReport, cold_protocols
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.models.base import ModelConfig, Recommender, build_model
from firstlight.models.content_knn import ContentKNN, ContentKNNConfig
from firstlight.models.popularity import PopularityConfig
from firstlight.models.random_scores import RandomConfig
from firstlight.serving.bundle import Bundle
from firstlight.serving.new_items import NewItems, read_new_items
from firstlight.training.content import load_views
from firstlight.training.run_folder import ModelScorer, Run

#: The cut-off of the report.
K = 20
#: What a row of the report holds, beside its label: name → protocol (targets / pool).
COLUMNS = {
    "new among new": "cold/cold",
    "new among all": "cold/all",
    "old among all": "warm/all",
    "all among all": "all/all",
}
#: The row that ranks by what the world was drawn from; nothing can do better but by luck.
TRUTH = "knows the truth"


@dataclass(frozen=True, eq=False)
class Added:
    """Items that joined a run.

    Attributes:
        bundle: The run with its additions.
        items: Those that joined.
        seconds: From their files on disk until they were durable: reading, content views, vectors, writing.
    """

    bundle: Bundle
    items: NewItems
    seconds: float


@dataclass(frozen=True)
class ArrivalReport:
    """How well items without a click are found.

    Attributes:
        rows: One a method: ``label``, then recall under each of :data:`COLUMNS` (None where nobody has such a click).
        intervals: Label → column → 95 % interval over users.
        content_ceiling: Recall of new items among new items if every taste were known, as far as content shows it.
        pairs: Clicks on new items that were looked for.
        users: Users who made them.
        k: Length of the lists.
    """

    rows: list[dict[str, Any]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    content_ceiling: float
    pairs: int
    users: int
    k: int = K


def cut_world(dataset: Dataset, arrived: npt.NDArray[np.bool_]) -> tuple[Dataset, Dataset]:
    """What is there before some items arrive, and those items.

    Args:
        dataset: A split dataset.
        arrived: ``(n_items,)`` bool: the items that come later.

    Returns:
        The dataset without these items and without the clicks on them; and a dataset of these items alone, without
        users and clicks.
    """
    rows = np.flatnonzero(~arrived)
    parts = {name: _on_rows(part, rows, len(rows)) for name, part in dataset.parts.items()}
    split = None if dataset.split is None else SplitInfo("time", dataset.split.seed, hash_parts(parts))
    known = Dataset(
        name=f"{dataset.name}-known",
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids.gather(rows),
        train=parts["train"],
        valid=parts.get("valid"),
        test=parts.get("test"),
        catalogue=_rows_of(dataset.catalogue, rows),
        source=dataset.source,
        split=split,
    )
    later = np.flatnonzero(arrived)
    new = Dataset(
        name=f"{dataset.name}-new",
        user_ids=pl.Series("user", [], pl.String),
        item_ids=dataset.item_ids.gather(later),
        train=Interactions.empty(0, len(later)),
        catalogue=_rows_of(dataset.catalogue, later),
        source=dataset.source,
    )
    return known, new


def _on_rows(log: Interactions, rows: npt.NDArray[np.int64], n_items: int) -> Interactions:
    """``log`` over other item rows: old row ``rows[i]`` becomes ``i``; pairs on other items are left out."""
    place = np.full(log.n_items, -1)
    place[rows] = np.arange(len(rows))
    kept = log.select(place[log.items] >= 0)
    moved = place[kept.items]
    return Interactions.from_pairs(kept.users, moved, log.n_users, n_items, kept.times, kept.values)


def _rows_of(catalogue: Catalogue, rows: npt.NDArray[np.int64]) -> Catalogue:
    features = {
        name: FeatureMatrix(matrix.values[rows], matrix.present[rows], matrix.extractor)
        for name, matrix in catalogue.features.items()
    }
    return Catalogue(catalogue.items[rows], features)


def add_arrivals(run: Run, path: Path) -> Added:
    """Add the items of a dataset folder to a run, as ``firstlight add-items RUN PATH`` does.

    Args:
        run: A finished run whose model reads content.
        path: The new items.

    Raises:
        InputError: The model reads no content, or the items have none of it.
    """
    bundle = Bundle.open_run(run)
    encoder = bundle.encoder()
    started = time.perf_counter()
    new = read_new_items(path)
    bundle.add_items(new.ids, encoder.encode(new.catalogue, new.folder), new.catalogue.items)
    return Added(bundle, new, time.perf_counter() - started)


def measure_arrivals(label: str, run: Run, added: Added, simulation: Simulation) -> ArrivalReport:
    """Recall of later clicks, on the items that joined and on the others.

    Args:
        label: What to call the run.
        run: A run on what :func:`cut_world` says was known.
        added: The run with the items that it says arrived.
        simulation: The world, whose test part holds the clicks to look for.

    Returns:
        The run beside content nearest neighbours on the same views, popularity, chance, and the truth.
    """
    bundle = added.bundle
    names = bundle.item_ids()
    place = {name: row for row, name in enumerate(simulation.dataset.item_ids)}
    rows = np.array([place[name] for name in names])  # of the world, by row of the bundle
    assert simulation.dataset.test is not None
    later = _on_rows(simulation.dataset.test, rows, len(rows))
    seen, new = bundle.snapshot.seen(), np.arange(len(rows)) >= len(run.item_ids)
    scorers: dict[str, Scorer] = {
        label: VectorScorer(bundle.snapshot.base.user_vectors, bundle.item_vectors()),
        "content k-NN": _content_neighbours(run, added),
        "popularity": ModelScorer(_untrained(PopularityConfig(), seen, run.config.seed)),
        "random": ModelScorer(_untrained(RandomConfig(), seen, run.config.seed)),
        TRUTH: _Truth(simulation, rows),
    }
    reports = {name: cold_protocols(scorer, later, [seen], new, (K,)) for name, scorer in scorers.items()}
    return ArrivalReport(
        rows=[{"label": name} | _recalls(report) for name, report in reports.items()],
        intervals={name: _intervals(report) for name, report in reports.items()},
        content_ceiling=_content_ceiling(simulation, rows, later.select(new[later.items]), seen, new),
        pairs=reports[label].pairs["cold/cold"],
        users=reports[label].protocols["cold/cold"].n_users,
    )


def _untrained(config: ModelConfig, log: Interactions, seed: int) -> Recommender:
    return build_model(config, log, torch_stream(seed, "init"))


def _content_neighbours(run: Run, added: Added) -> Scorer:
    """Content k-NN on the very views that the run's model reads, new items included."""
    views = load_views(run.path)
    model = ContentKNN(ContentKNNConfig(), run.seen, views=views)
    new = added.items
    vectors = model.encode_items(added.bundle.encoder().views.transform(new.catalogue, new.folder))
    return VectorScorer(model.user_vectors(), torch.cat([model.item_vectors(), vectors]))


def _recalls(report: ColdReport) -> dict[str, float | None]:
    found = {name: report.protocols.get(protocol) for name, protocol in COLUMNS.items()}
    return {name: None if one is None else one.metrics[f"recall@{K}"] for name, one in found.items()}


def _intervals(report: ColdReport) -> dict[str, tuple[float, float]]:
    return {
        name: report.protocols[protocol].intervals[f"recall@{K}"]
        for name, protocol in COLUMNS.items()
        if protocol in report.protocols
    }


class _Truth:
    """Ranks by the chance of the next click after the cut, as the world itself draws it."""

    def __init__(self, simulation: Simulation, rows: npt.NDArray[np.int64]) -> None:
        config, truth = simulation.config, simulation.truth
        self._truth, self._rows, self._noise = truth, rows, config.noise_share
        # Appeal fades as exp(-age / λ); this is its integral from the cut to the end of the log.
        begin, end = np.maximum(truth.cut, truth.arrived), instant(config, 1.0)
        ages = (np.stack([begin, np.full_like(begin, end)]) - truth.arrived) / (config.lifetime_days * DAY)
        self._appeal = np.exp(-ages[0]) - np.exp(-ages[1])
        self.n_users, self.n_items = config.n_users, len(rows)

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """There are none: the chances are normalised per user."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` chances, but for a factor per user."""
        affinity = self._truth.affinity(users.numpy())
        weights = self._truth.popularity * np.exp(affinity - affinity.max(axis=1, keepdims=True))
        weights = (1 - self._noise) * weights / weights.sum(axis=1, keepdims=True)
        chances = (weights + self._noise / weights.shape[1]) * self._appeal
        return torch.from_numpy(chances[:, self._rows].astype(np.float32))


def _content_ceiling(
    simulation: Simulation,
    rows: npt.NDArray[np.int64],
    targets: Interactions,
    seen: Interactions,
    new: npt.NDArray[np.bool_],
) -> float:
    """Recall of new items among new items, ranked by the part of the true taste that content shows."""
    truth = simulation.truth
    width = truth.user_vectors.shape[1] - truth.n_hidden
    vectors = (truth.user_vectors[:, :width], truth.item_vectors[rows, :width])
    scorer = VectorScorer(*(torch.from_numpy(np.ascontiguousarray(part)) for part in vectors))
    return evaluate_ranking(scorer, targets, [seen], (K,), pool=new).metrics[f"recall@{K}"]
