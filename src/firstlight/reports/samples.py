"""What some users clicked, and what runs recommend to them, with covers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.seeds import numpy_stream
from firstlight.data.dataset import Dataset
from firstlight.reports.measures import Measured
from firstlight.training.recommend import recommend
from firstlight.training.run_folder import Run
from firstlight.vision.decoder import UnusableImageError, decode_rgb, image_bytes

#: Height of a cover in the report, in pixels (shown at half of it), and the quality of its JPEG.
_HEIGHT, _QUALITY = 160, 78
#: Fewest clicks before and after the split of a user who is drawn.
_BEFORE, _AFTER = 5, 3


@dataclass(frozen=True)
class Card:
    """One item of a list.

    Attributes:
        item: Raw id.
        title: Its title, or the id.
        cover: A ``data:`` address of a small JPEG, or None.
        new: Whether it had no click in training.
        hit: Whether the user clicked it in the test part.
    """

    item: str
    title: str
    cover: str | None
    new: bool = False
    hit: bool = False


@dataclass(frozen=True)
class Sample:
    """One user: the last clicks, and a list from every run."""

    user: str
    clicks: int
    later: int
    history: list[Card]
    lists: dict[str, list[Card]]


def draw_users(run: Run, count: int) -> list[str]:
    """Users by chance among those with enough clicks before and after the split; not by how well they are served."""
    test = run.parts["test"]
    fit = np.flatnonzero((run.seen.user_degrees >= _BEFORE) & (test.user_degrees >= _AFTER))
    drawn = numpy_stream(0, "report", "users").permutation(fit)[:count]
    return [str(run.user_ids[int(row)]) for row in sorted(drawn)]


def samples(
    entries: Sequence[Measured], dataset: Dataset | None, users: Sequence[str], folder: Path | None,
    *, shown: int = 8, watched: int = 8,
) -> list[Sample]:  # fmt: skip
    """Lists of users, side by side.

    Args:
        entries: The runs, all of the same users and items.
        dataset: Where titles and covers are; None: ids alone.
        users: Raw ids.
        folder: What relative cover paths are relative to.
        shown: Items of a list.
        watched: Items of a history, the last ones where there are times.

    Raises:
        InputError: A user is unknown.
    """
    first = entries[0].run
    rows = {str(name): row for row, name in enumerate(first.user_ids)}
    unknown = [user for user in users if user not in rows]
    if unknown:
        raise InputError(f"user {unknown[0]!r} is unknown", path=first.path)
    shelf = _Shelf(dataset, folder, set(first.item_ids.gather(np.flatnonzero(first.seen.item_degrees == 0))))
    lists = {entry.label: pl.concat(list(recommend(entry.run, users, shown))) for entry in entries}
    found = []
    for user in users:
        later = set(first.item_ids.gather(first.parts["test"].row(rows[user])))
        history = _history(first, dataset, user, rows[user], watched)
        found.append(
            Sample(
                user,
                int(first.seen.user_degrees[rows[user]]),
                len(later),
                [shelf.card(item) for item in history],
                {
                    label: [shelf.card(item, later) for item in table.filter(pl.col("user") == user)["item"]]
                    for label, table in lists.items()
                },
            )
        )
    return found


def _history(run: Run, dataset: Dataset | None, user: str, row: int, count: int) -> list[str]:
    """The user's last training items."""
    items = run.seen.row(row)
    if dataset is not None and dataset.train.times is not None:
        place = {str(name): at for at, name in enumerate(dataset.user_ids)}.get(user)
        if place is not None:
            log = dataset.train if dataset.valid is None else dataset.train.union(dataset.valid)
            own = slice(int(log.indptr[place]), int(log.indptr[place + 1]))
            order = np.argsort(-log.times[own], kind="stable")  # type: ignore[index]
            return [str(dataset.item_ids[int(item)]) for item in log.items[own][order[:count]]]
    return [str(run.item_ids[int(item)]) for item in items[:count]]


class _Shelf:
    """Titles and covers by id."""

    def __init__(self, dataset: Dataset | None, folder: Path | None, new: set[str]) -> None:
        self._folder, self._new = folder, new
        self._rows: dict[str, int] = {}
        self._titles: pl.Series | None = None
        self._covers: pl.Series | None = None
        if dataset is not None:
            self._rows = {str(name): row for row, name in enumerate(dataset.item_ids)}
            items = dataset.catalogue.items
            self._titles = items["title"] if "title" in items.columns else None
            self._covers = items["cover"] if "cover" in items.columns else None

    def card(self, item: str, later: set[str] | None = None) -> Card:
        row = self._rows.get(item)
        title = None if row is None or self._titles is None else self._titles[row]
        cover = None if row is None or self._covers is None else self._thumb(self._covers[row])
        return Card(item, str(title or item), cover, item in self._new, later is not None and item in later)

    def _thumb(self, cover: bytes | str | None) -> str | None:
        """A small JPEG as a ``data:`` address; None for a cover that cannot be read."""
        try:
            content = image_bytes(cover, self._folder)
            if content is None:
                return None
            small = decode_rgb(content)
        except UnusableImageError:
            return None
        small.thumbnail((2 * _HEIGHT, _HEIGHT))
        held = io.BytesIO()
        small.save(held, format="JPEG", quality=_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")
