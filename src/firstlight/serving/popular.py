"""Lists for users of whom the model knows nothing: what most others clicked.

A user without a click in what the model was trained on has a vector that says nothing, zero or as it was drawn. Ranking
by it gives the alphabet, or noise, which looks like any other list. These users get the most clicked items instead, and
the list says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.data.interactions import Interactions
from firstlight.serving.index import Found
from firstlight.serving.snapshot import Snapshot

#: What a list goes by: the model, or the clicks of all others.
MODEL, POPULAR = "model", "popular"
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class Popular:
    """Items by their clicks; ties go to the older row.

    Args:
        clicks: ``(n_items,)`` clicks of the items.
        shown: ``(n_items,)`` bool: items that may be in a list; all if None.
    """

    def __init__(self, clicks: npt.NDArray[np.float32], shown: BoolArray | None = None) -> None:
        order = np.argsort(-clicks, kind="stable")
        self._order = order if shown is None else order[shown[order]]
        self._clicks = clicks

    @classmethod
    def of(cls, snapshot: Snapshot) -> Popular:
        """Those of a version of a catalogue, boosts included; what was added has no clicks yet."""
        clicks = snapshot.seen().item_degrees.astype(np.float32)
        rows, factors = snapshot.boosts
        clicks[rows] *= factors
        return cls(clicks, snapshot.shown)

    def best(self, k: int, exclude: npt.NDArray[np.integer], candidates: IntArray | None = None) -> Found:
        """The k items with most clicks.

        Args:
            k: Length of the list.
            exclude: Item rows that must not be in it, each once.
            candidates: Item rows that alone may be in it; any if None.
        """
        rows = self._order if candidates is None else self._order[np.isin(self._order, candidates)]
        rows = rows[: k + len(exclude)]
        rows = rows[~np.isin(rows, exclude)][:k]
        return Found(rows, self._clicks[rows])


def with_popular(
    tables: Iterator[pl.DataFrame],
    ids: tuple[pl.Series, pl.Series],
    trained: BoolArray,
    seen: Interactions,
    popular: Popular,
    k: int,
) -> Iterator[pl.DataFrame]:
    """Lists of a model, but the most popular items for users that it never saw a click of.

    Args:
        tables: Lists of users by the model, each user's rows together and by rank.
        ids: Raw ids of users and of items, by row.
        trained: ``(n_users,)`` bool: users with a click in what the model was trained on.
        seen: What is never recommended again.
        popular: The items of the same catalogue.
        k: Length of the lists.

    Yields:
        The tables with one more column, ``basis``: :data:`MODEL` or :data:`POPULAR`.
    """
    users, items = ids
    strangers = {str(users[int(row)]): int(row) for row in np.flatnonzero(~trained)}
    for table in tables:
        marked = table.with_columns(pl.lit(MODEL).alias("basis"))
        met = [name for name in table["user"].unique(maintain_order=True) if name in strangers]
        if met:
            lists = [
                _list(name, items, popular.best(k, seen.row(strangers[name])), table.schema) for name in met
            ]
            marked = _in_place(marked, pl.concat(lists))
        yield marked


def _list(user: str, items: pl.Series, found: Found, schema: pl.Schema) -> pl.DataFrame:
    rows = {
        "user": pl.Series([user], dtype=pl.String).new_from_index(0, len(found.rows)),
        "rank": np.arange(1, len(found.rows) + 1, dtype=np.int32),
        "item": items.gather(found.rows),
        "score": found.scores,
    }
    return pl.DataFrame(rows).cast(schema).with_columns(pl.lit(POPULAR).alias("basis"))


def _in_place(table: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """``table`` with other rows for the users of ``lists``, in the order that they had."""
    order = table.select(pl.col("user").unique(maintain_order=True)).with_row_index("at")
    kept = table.join(lists.select("user").unique(), on="user", how="anti", maintain_order="left")
    both = pl.concat([kept, lists]).join(order, on="user", maintain_order="left")
    return both.sort("at", "rank").drop("at")
