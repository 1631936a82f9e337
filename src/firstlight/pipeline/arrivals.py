"""Items that arrive after training: whether people find them, among what users clicked later.

Items join a bundle as ``firstlight add-items`` adds them. :func:`measure_arrivals` then ranks every item for every
user: with the bundle, with the controls that every cold table needs, and where the world was generated with the truth
that it was drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.core.shown import Shown
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.data.simulate import SimulationConfig, Truth, read_truth
from firstlight.data.simulate.world import DAY, instant
from firstlight.evaluation.cold import ColdReport, cold_protocols
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.models.base import ModelConfig, Recommender, build_model
from firstlight.models.content_knn import ContentKNN, ContentKNNConfig
from firstlight.models.popularity import PopularityConfig
from firstlight.models.random_scores import RandomConfig
from firstlight.serving.bundle import Bundle
from firstlight.serving.lists import recommend_all
from firstlight.serving.run_base import RunBase
from firstlight.training.config import check_lengths
from firstlight.training.run_folder import ModelScorer

#: What a row of the report holds, beside its label: name → protocol (targets / pool).
COLUMNS = {
    "new among new": "cold/cold",
    "new among all": "cold/all",
    "old among all": "warm/all",
    "all among all": "all/all",
}
#: The row that ranks by what the world was drawn from; nothing can do better but by luck.
TRUTH = "knows the truth"

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class ArrivalReport(Shown):
    """How well items without a click are found.

    Attributes:
        rows: One a method: ``label``, then recall under each of :data:`COLUMNS` (None where nobody has such a click).
        intervals: Label → column → 95 % interval over users.
        content_ceiling: Recall of new items among new items if every taste were known, as far as content shows it; None
            where the world was not generated.
        items: Items that were added.
        pairs: Clicks on them that were looked for.
        users: Users who made them.
        unknown_pairs: Clicks of users or on items that the bundle does not know; left out.
        share_of_new: Share of places that added items take in the k best of every user.
        k: Length of the lists.
    """

    rows: list[dict[str, Any]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    content_ceiling: float | None
    items: int
    pairs: int
    users: int
    unknown_pairs: int
    share_of_new: float
    k: int

    @property
    def heading(self) -> str:
        """What was looked for."""
        lines = [
            f"{self.items:,} items that were added: recall@{self.k} of {self.pairs:,} clicks of {self.users:,} users "
            "that followed; which clicks among which items",
            f"added items take {self.share_of_new:.0%} of the places in the {self.k} best of every user",
        ]
        if self.unknown_pairs:
            lines.append(
                f"{self.unknown_pairs:,} clicks left out: the bundle does not know their user or item"
            )
        if self.content_ceiling is not None:
            lines.append(
                f"new among new, if every taste were known as far as content shows it: {self.content_ceiling:.3f}"
            )
        return "\n".join(lines)

    @property
    def table(self) -> pl.DataFrame:
        """One row a method."""
        return pl.DataFrame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: what ``firstlight arrivals --json`` prints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ArrivalReport:
        """Back from :meth:`to_dict`, also by way of JSON.

        Raises:
            InputError: It is something else.
        """
        try:
            found = cls(**{name: value[name] for name in cls.__dataclass_fields__})
            spans = {
                label: {column: (float(low), float(high)) for column, (low, high) in of.items()}
                for label, of in found.intervals.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"these are no numbers of added items ({error!r})",
                hint="give what firstlight arrivals --json printed",
            ) from error
        return cls(**{**{name: value[name] for name in cls.__dataclass_fields__}, "intervals": spans})


def measure_arrivals(
    bundle: Bundle,
    later: Dataset,
    *,
    label: str | None = None,
    k: int = 20,
    seed: int = 0,
    folder: Path | None = None,
) -> ArrivalReport:
    """Recall of later clicks, on the items that were added to a bundle and on the others.

    Args:
        bundle: Vectors of users and items; items were added to it (or to the run).
        later: Its test part holds the clicks to look for, its catalogue the content of the items. Ids are matched.
        label: What to call the bundle; the name of its model if None.
        k: Length of the lists.
        seed: Seed of chance, and of the intervals.
        folder: The folder of ``later``: what relative cover paths are relative to, and where the truth of a generated
            world may be.

    Returns:
        The bundle beside content nearest neighbours on the same views, popularity and chance, and the truth if it is
        known.

    Raises:
        InputError: Nothing was added to the bundle, it carries no encoder, or there is no click to look for.
    """
    snapshot = bundle.snapshot
    check_lengths([k], snapshot.n_rows)
    new = (np.arange(snapshot.n_rows) >= len(snapshot.base.table)) & snapshot.alive
    if not new.any():
        raise InputError("no item was added to it", hint="add some with firstlight add-items")
    users, items = (
        _places(names, ids)
        for names, ids in ((snapshot.base.user_ids, later.user_ids), (bundle.item_ids(), later.item_ids))
    )
    wanted, unknown = _targets(later, users, items, snapshot.n_rows)
    if not new[wanted.items].any():
        raise InputError("there is no click on an item that was added", path=later.source or None)
    label = bundle_label(bundle) if label is None else label
    seen = snapshot.seen()
    ours = VectorScorer(snapshot.base.user_vectors, snapshot.vectors())
    scorers: dict[str, Scorer] = {
        label: ours,
        "content k-NN": _content_neighbours(bundle, later, items, seen, folder),
        "popularity": ModelScorer(_untrained(PopularityConfig(), seen, seed)),
        "random": ModelScorer(_untrained(RandomConfig(), seen, seed)),
    }
    known = None if folder is None else read_truth(folder)
    if known is not None:
        scorers[TRUTH] = _Truth(*known, users, items)
    pool = snapshot.shown
    reports = {
        name: cold_protocols(scorer, wanted, [seen], new, (k,), pool=pool, seed=seed)
        for name, scorer in scorers.items()
    }
    ceiling = None
    if known is not None:
        targets = wanted.select(new[wanted.items])
        ceiling = _content_ceiling(known[1], users, items, targets, seen, new & pool, k)
    return ArrivalReport(
        rows=[{"label": name} | _recalls(report, k) for name, report in reports.items()],
        intervals={name: _intervals(report, k) for name, report in reports.items()},
        content_ceiling=ceiling,
        items=int(new.sum()),
        pairs=reports[label].pairs["cold/cold"],
        users=reports[label].protocols["cold/cold"].n_users,
        unknown_pairs=unknown,
        share_of_new=_share_of_new(bundle, k),
        k=k,
    )


def bundle_label(bundle: Bundle) -> str:
    """The name of the model behind a bundle."""
    base = bundle.snapshot.base
    if isinstance(base, RunBase):
        return str(base.run.config.model_dump()["model"]["name"])
    about: Mapping[str, Any] = getattr(base, "about", {}).get("about", {})
    return str(about.get("config", {}).get("model", {}).get("name", "this bundle"))


def _share_of_new(bundle: Bundle, k: int) -> float:
    names = bundle.item_ids()[len(bundle.snapshot.base.table) :]
    listed = pl.concat(recommend_all(bundle, None, k))["item"]
    return float(listed.is_in(names.implode()).sum() / max(1, len(listed)))


def _places(names: pl.Series, ids: pl.Series) -> IntArray:
    """``(len(names),)``: where each name stands in ``ids``, or -1."""
    place = {name: row for row, name in enumerate(ids)}
    return np.array([place.get(name, -1) for name in names], np.int64)


def _targets(later: Dataset, users: IntArray, items: IntArray, n_rows: int) -> tuple[Interactions, int]:
    """The test clicks in rows of the bundle, and the number of those that have none there."""
    if later.test is None:
        raise InputError(f"dataset {later.name!r} has no test part", path=later.source or None)
    to_user, to_item = np.full(later.n_users, -1), np.full(later.n_items, -1)
    for to, places in ((to_user, users), (to_item, items)):
        rows = np.flatnonzero(places >= 0)
        to[places[rows]] = rows
    at = to_user[later.test.users], to_item[later.test.items]
    known = (at[0] >= 0) & (at[1] >= 0)
    log = Interactions.from_pairs(at[0][known], at[1][known], len(users), n_rows)
    return log, int((~known).sum())


def _untrained(config: ModelConfig, log: Interactions, seed: int) -> Recommender:
    return build_model(config, log, torch_stream(seed, "init"))


def _content_neighbours(
    bundle: Bundle, later: Dataset, items: IntArray, seen: Interactions, folder: Path | None
) -> Scorer:
    """Content k-NN on the very views that the bundle's model reads; an item without content there has none here."""
    there, table = np.flatnonzero(items >= 0), later.catalogue.items
    rows = items[there]
    features = {
        name: FeatureMatrix(matrix.values[rows], matrix.present[rows], matrix.extractor)
        for name, matrix in later.catalogue.features.items()
    }
    catalogue = Catalogue(table[rows] if table.width else table, features)
    made = bundle.encoder().views.transform(catalogue, folder)
    views = {}
    for name, matrix in made.items():
        values = np.zeros((len(items), matrix.values.shape[1]), np.float32)
        present = np.zeros(len(items), np.bool_)
        values[there], present[there] = matrix.values, matrix.present
        views[name] = FeatureMatrix(values, present, matrix.extractor)
    return ModelScorer(ContentKNN(ContentKNNConfig(), seen, views=views))


def _recalls(report: ColdReport, k: int) -> dict[str, float | None]:
    found = {name: report.protocols.get(protocol) for name, protocol in COLUMNS.items()}
    return {name: None if one is None else one.metrics[f"recall@{k}"] for name, one in found.items()}


def _intervals(report: ColdReport, k: int) -> dict[str, tuple[float, float]]:
    return {
        name: report.protocols[protocol].intervals[f"recall@{k}"]
        for name, protocol in COLUMNS.items()
        if protocol in report.protocols
    }


class _Truth:
    """Ranks by the chance of the next click after the cut, as the world itself draws it.

    Args:
        config: Of the world.
        truth: What it was drawn from.
        users: Row of the world by user row of the bundle; -1 for strangers, who get zeros.
        items: The same for items.
    """

    def __init__(self, config: SimulationConfig, truth: Truth, users: IntArray, items: IntArray) -> None:
        self._truth, self._users, self._items, self._noise = truth, users, items, config.noise_share
        # Appeal fades as exp(-age / λ); this is its integral from the cut to the end of the log.
        begin, end = np.maximum(truth.cut, truth.arrived), instant(config, 1.0)
        ages = (np.stack([begin, np.full_like(begin, end)]) - truth.arrived) / (config.lifetime_days * DAY)
        self._appeal = np.exp(-ages[0]) - np.exp(-ages[1])
        self.n_users, self.n_items = len(users), len(items)

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """There are none: the chances are normalised per user."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` chances, but for a factor per user."""
        rows = self._users[users.numpy()]
        affinity = self._truth.affinity(rows)
        weights = self._truth.popularity * np.exp(affinity - affinity.max(axis=1, keepdims=True))
        weights = (1 - self._noise) * weights / weights.sum(axis=1, keepdims=True)
        chances = (weights + self._noise / weights.shape[1]) * self._appeal
        known = (rows >= 0)[:, None] & (self._items >= 0)
        return torch.from_numpy((chances[:, self._items] * known).astype(np.float32))


def _content_ceiling(
    truth: Truth,
    users: IntArray,
    items: IntArray,
    targets: Interactions,
    seen: Interactions,
    new: npt.NDArray[np.bool_],
    k: int,
) -> float:
    """Recall of new items among new items, ranked by the part of the true taste that content shows."""
    width = truth.user_vectors.shape[1] - truth.n_hidden
    sides = []
    for vectors, rows in ((truth.user_vectors, users), (truth.item_vectors, items)):
        side = vectors[rows, :width] * (rows >= 0)[:, None]
        sides.append(torch.from_numpy(np.ascontiguousarray(side, np.float32)))
    return evaluate_ranking(VectorScorer(*sides), targets, [seen], (k,), pool=new).metrics[f"recall@{k}"]
