"""What is in a dataset, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.shown import Shown
from firstlight.data.covers import check_pictures
from firstlight.data.dataset import Dataset
from firstlight.data.formats import choose_format
from firstlight.data.formats.base import Format, Problem, Problems, ReadOptions
from firstlight.data.interactions import IntArray, Interactions

#: Fields of :class:`Inspection` that are worth a word where they are not zero.
_NOTES = {
    "duplicates": "repeated pairs (one is kept)",
    "pairs_in_train_and_later": "pairs both in training and in a later part",
    "users_without_train": "users without a training pair",
    "users_in_test_only": "of these, with test pairs",
    "cold_items": "items without a training pair",
    "items_in_test_only": "of these, with test pairs ",
    "test_pairs_of_cold_items": "test pairs on such items",
}
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class FeatureReport:
    """One feature matrix.

    Attributes:
        name: Its name.
        shape: ``(n_items, dim)``.
        present: Items that have it.
        not_finite_rows: Rows that held NaN or infinity.
        zero_rows: Rows that held only zeros.
    """

    name: str
    shape: tuple[int, int]
    present: int
    not_finite_rows: int
    zero_rows: int


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """What :func:`inspect_path` found.

    Attributes:
        path: What was inspected.
        format: Its format.
        n_users: User rows.
        n_items: Item rows.
        parts: part -> number of distinct pairs.
        density: Share of user × item cells that hold a pair of any part.
        user_degrees: Quantiles of training pairs per user.
        item_degrees: Quantiles of training pairs per item.
        time_range: First and last timestamp in seconds since the epoch, or None.
        value_range: Smallest and largest value, or None.
        duplicates: Rows that repeated a pair of the same part.
        pairs_in_train_and_later: Validation and test pairs that are training pairs as well; they are kept.
        users_without_train: Users without a training pair.
        users_in_test_only: Of these, those with test pairs.
        cold_items: Items without a training pair.
        items_in_test_only: Of these, those with test pairs.
        test_pairs_of_cold_items: Test pairs whose item has no training pair.
        features: The feature matrices.
        covers: Items with a cover, or None if there is no such column.
        texts: text column -> items that have it.
        numbers: Columns of numbers, which are not read as texts unless ``views.text.columns`` names them.
        dropped: reason -> rows left out.
        problem_totals: kind of problem -> how often.
        problems: The first cases of each kind.
    """

    path: str
    format: str
    n_users: int
    n_items: int
    parts: dict[str, int]
    density: float
    user_degrees: dict[str, float]
    item_degrees: dict[str, float]
    time_range: tuple[int, int] | None
    value_range: tuple[float, float] | None
    duplicates: int
    pairs_in_train_and_later: int
    users_without_train: int
    users_in_test_only: int
    cold_items: int
    items_in_test_only: int
    test_pairs_of_cold_items: int
    features: tuple[FeatureReport, ...]
    covers: int | None
    texts: dict[str, int]
    numbers: tuple[str, ...]
    dropped: dict[str, int]
    problem_totals: dict[str, int]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    @property
    def facts(self) -> dict[str, Any]:
        """What is there, in words → how much of it; what does not apply is left out."""
        values = self.value_range
        found: dict[str, Any] = {
            "format": self.format,
            "users": self.n_users,
            "items": self.n_items,
            **{f"pairs in {part}": count for part, count in self.parts.items()},
            "density": f"{self.density:.4%}",
            "time": _time_range(self.time_range),
            "values": None if values is None else f"{values[0]:g} to {values[1]:g}",
            "items with a cover": self.covers,
            **{f"items with a {name}": count for name, count in self.texts.items()},
            **{
                f"feature {one.name}": f"{one.shape[0]:,} × {one.shape[1]}, present for {one.present:,} items"
                for one in self.features
            },
            "columns of numbers, no texts": ", ".join(self.numbers) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def notes(self) -> dict[str, int]:
        """What is worth knowing, in words → how often."""
        return {words: getattr(self, name) for name, words in _NOTES.items() if getattr(self, name)}

    @property
    def table(self) -> pl.DataFrame:
        """Quantiles of training pairs per user and per item."""
        rows = (("user", self.user_degrees), ("item", self.item_degrees))
        return pl.DataFrame([{"training pairs per": side, **degrees} for side, degrees in rows])

    @property
    def heading(self) -> str:
        """Everything else, a line each."""
        parts = (self.facts, self.notes, self.dropped, self.problem_totals)
        titles = ("", "Worth knowing:", "Left out:", "What is wrong:")
        lines = [self.path]
        for title, pairs in zip(titles, parts, strict=True):
            lines += [title] if title and pairs else []
            lines += [
                f"  {name}: {value:,}" if isinstance(value, int) else f"  {name}: {value}"
                for name, value in pairs.items()
            ]
        return "\n".join(lines)


def _time_range(seconds: tuple[int, int] | None) -> str | None:
    if seconds is None:
        return None
    try:
        first, last = (
            datetime.fromtimestamp(moment, UTC).isoformat(" ", "seconds")[:19] for moment in seconds
        )
    except (OverflowError, ValueError, OSError):  # counters, or milliseconds: still worth showing
        return f"{seconds[0]} to {seconds[1]} (not seconds since 1970)"
    return f"{first} to {last} UTC"


def _quantiles(degrees: IntArray) -> dict[str, float]:
    if not len(degrees):
        return dict.fromkeys(QUANTILES, 0.0)
    numbers = np.quantile(degrees, list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, numbers), strict=True))


def _range(arrays: list[Any]) -> tuple[Any, Any] | None:
    filled = [array for array in arrays if array is not None and len(array)]
    if not filled:
        return None
    return min(array.min() for array in filled).item(), max(array.max() for array in filled).item()


def _shared_pairs(train: Interactions, later: Interactions) -> int:
    """Number of pairs that both logs hold."""
    first, second = (part.users.astype(np.int64) * part.n_items + part.items for part in (train, later))
    return len(np.intersect1d(first, second, assume_unique=True))


def _coverage(items: pl.DataFrame) -> tuple[int | None, dict[str, int]]:
    """Items with a cover, and items with each text."""
    texts = {
        name: int((items[name].str.strip_chars() != "").sum())
        for name, dtype in items.schema.items()
        if dtype == pl.String and name not in ("cover", "clip", "role")
    }
    if "cover" not in items.columns:
        return None, texts
    cover = items["cover"]
    size = cover.bin.size() if cover.dtype == pl.Binary else cover.cast(pl.String).str.len_bytes()
    return int((size > 0).sum()), texts


def _features(dataset: Dataset, problems: Problems) -> tuple[FeatureReport, ...]:
    def count(name: str, kind: str) -> int:
        return problems.totals.get(f"feature {name}: {kind} row", 0)

    return tuple(
        FeatureReport(
            name,
            (matrix.values.shape[0], matrix.values.shape[1]),
            int(matrix.present.sum()),
            count(name, "NaN or infinite"),
            count(name, "all-zero"),
        )
        for name, matrix in dataset.catalogue.features.items()
    )


def _read(path: Path, options: ReadOptions, problems: Problems, chosen: Format) -> Dataset:
    """Read what can be read; a file of nothing but bad rows is an empty dataset with a list of them."""
    try:
        return chosen.read(path, replace(options, on_bad_rows="skip"), problems)
    except InputError as error:
        if not problems.examples:
            raise
        problems.note("unusable file", error.path or path, error.problem)
    none = pl.Series([], dtype=pl.String)
    return Dataset(
        path.name, none, none, Interactions.empty(0, 0), source=str(path), dropped=problems.dropped
    )


def inspect_path(path: Path | str, options: ReadOptions | None = None) -> Inspection:
    """Read a dataset in any supported format and report what is in it.

    Bad rows, whatever ``options.on_bad_rows`` says, are listed and not raised.

    Args:
        path: The dataset.
        options: Column names, and what counts as an interaction.

    Returns:
        Counts, coverage and problems.

    Raises:
        InputError: Nothing can be read at all: no known format, a torn file, columns that cannot be told.
    """
    path = Path(path)
    chosen = choose_format(path, options or ReadOptions())
    problems = Problems("skip", tolerant=True)
    dataset = _read(path, options or ReadOptions(), problems, chosen)
    train, parts = dataset.train, list(dataset.parts.values())
    later = [part for part in (dataset.valid, dataset.test) if part is not None]
    test = dataset.test or Interactions.empty(dataset.n_users, dataset.n_items)
    no_user, cold = train.user_degrees == 0, train.item_degrees == 0
    check_pictures(dataset.catalogue.items, dataset.item_ids, Path(dataset.source), problems)
    covers, texts = _coverage(dataset.catalogue.items)
    return Inspection(
        path=str(path),
        format=chosen.name,
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        parts={part: pairs.n_pairs for part, pairs in dataset.parts.items()},
        density=sum(part.density for part in parts),
        user_degrees=_quantiles(train.user_degrees),
        item_degrees=_quantiles(train.item_degrees),
        time_range=_range([part.times for part in parts]),
        value_range=_range([part.values for part in parts]),
        duplicates=dataset.dropped.get("duplicate pair", 0),
        pairs_in_train_and_later=sum(_shared_pairs(train, part) for part in later),
        users_without_train=int(no_user.sum()),
        users_in_test_only=int((no_user & (test.user_degrees > 0)).sum()),
        cold_items=int(cold.sum()),
        items_in_test_only=int((cold & (test.item_degrees > 0)).sum()),
        test_pairs_of_cold_items=int(test.item_degrees[cold].sum()),
        features=_features(dataset, problems),
        covers=covers,
        texts=texts,
        numbers=tuple(name for name, dtype in dataset.catalogue.items.schema.items() if dtype.is_numeric()),
        dropped=dict(dataset.dropped),
        problem_totals=dict(problems.totals),
        problems=tuple(problems.examples),
    )
