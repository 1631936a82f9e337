"""One version of the catalogue, as readers hold it: it never changes, whatever is added meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.serving.base import Base, BoolArray, Parts
from firstlight.serving.extras import Array, Extras, nothing
from firstlight.serving.rows import Rows
from firstlight.serving.segment import Rules, Segment

#: Rows, and what stands there now.
Change = tuple[npt.NDArray[np.int64], Tensor]


class ItemIds:
    """Raw ids and item rows; an id keeps its row for good, removed or not, so all versions share one table.

    Args:
        base: The ids of the base, by row.
    """

    def __init__(self, base: pl.Series) -> None:
        self._base = base
        self._added: list[str] = []
        self._rows: dict[str, int] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    def row(self, item: str) -> int | None:
        """Row of an id, or None."""
        if self._rows is None:
            with self._lock:
                if self._rows is None:
                    rows = {name: row for row, name in enumerate(self._base)}
                    self._rows = rows | {name: len(rows) + k for k, name in enumerate(self._added)}
        return self._rows.get(item)

    def add(self, items: Sequence[str]) -> list[int]:
        """Rows of ``items``; those not known yet get the next ones. Only writers call this."""
        found = []
        for item in items:
            row = self.row(item)
            if row is None:
                row = len(self)
                assert self._rows is not None
                self._added.append(item)
                self._rows[item] = row
            found.append(row)
        return found

    def names(self, n: int) -> pl.Series:
        """The ids of the first ``n`` rows."""
        more = n - len(self._base)
        if not more:
            return self._base
        return pl.concat([self._base.alias("item"), pl.Series("item", self._added[:more], pl.String)])

    def name(self, row: int) -> str:
        """The id of a row."""
        n = len(self._base)
        return str(self._base[row]) if row < n else self._added[row - n]


@dataclass(eq=False)
class Snapshot:
    """One version.

    Attributes:
        base: What the additions stand on.
        ids: Raw ids; may hold rows that are newer than this version.
        version: Counts the changes.
        alive: ``(n_rows,)`` bool: rows that are in the catalogue.
        texts: Row → text columns of items that were added or replaced.
        pictures: Row → small picture of the same items.
        rules: Blocked items and boosts.
        extras: Row → rows beside the vectors of the same items.
        removed: Raw ids that were taken out, and have not come back.
        taken: Folder of another catalogue → its version up to which its changes were taken over.
    """

    base: Base
    ids: ItemIds
    version: int
    alive: BoolArray
    texts: dict[int, dict[str, str | None]]
    pictures: dict[int, bytes | None] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    extras: dict[int, Extras] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    taken: dict[str, int] = field(default_factory=dict)
    _changes: list[Change] = field(default_factory=list)
    _start: Rows | None = None
    _vectors: Rows | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, base: Base, version: int) -> Snapshot:
        """The base without additions."""
        return cls(base, ItemIds(base.table["item"]), version, base.alive, {}, removed=base.removed)

    @property
    def n_rows(self) -> int:
        """Item rows, alive or not."""
        return len(self.alive)

    def row(self, item: str) -> int | None:
        """Row of an item that is in the catalogue, or None."""
        row = self.ids.row(item)
        return row if row is not None and row < self.n_rows and self.alive[row] else None

    def vectors(self) -> Tensor:
        """``(n_rows, dim)``; rows that are not alive hold what they held last. Made when first asked for."""
        with self._lock:
            if self._vectors is None:
                rows = Rows(self.base.item_vectors) if self._start is None else self._start
                for places, values in self._changes:
                    rows = _changed(rows, places, values)
                self._vectors, self._start, self._changes = rows, None, []
            return self._vectors.values

    @cached_property
    def shown(self) -> BoolArray:
        """``(n_rows,)`` bool: rows that may be in a list: alive and not blocked."""
        rows = self.rows_of(self.rules.blocked)
        if not rows:
            return self.alive
        shown = self.alive.copy()
        shown[rows] = False
        return shown

    @cached_property
    def hidden(self) -> npt.NDArray[np.int64]:
        """The other rows, ascending."""
        return np.flatnonzero(~self.shown)

    @cached_property
    def boosts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Boosted rows ``(b,)``, ascending, and their factors."""
        known = {self.ids.row(item): factor for item, factor in self.rules.boosts.items()}
        kept = sorted((row, factor) for row, factor in known.items() if row is not None and row < self.n_rows)
        return np.array([row for row, _ in kept], np.int64), np.array([f for _, f in kept], np.float32)

    def rows_of(self, items: Iterable[str]) -> list[int]:
        """Rows of those ``items`` that ever were in the catalogue."""
        rows = (self.ids.row(item) for item in items)
        return [row for row in rows if row is not None and row < self.n_rows]

    def cover(self, row: int) -> bytes | None:
        """A small picture of a row (JPEG), or None."""
        if row in self.texts or row >= len(self.base.table):
            return self.pictures.get(row)
        return self.base.cover(row)

    def has_cover(self, row: int) -> bool:
        """Whether there is one."""
        if row in self.texts or row >= len(self.base.table):
            return self.pictures.get(row) is not None
        return self.base.has_cover(row)

    def extra(self, name: str, rows: npt.NDArray[np.int64]) -> Array:
        """``(len(rows), width)`` of an extra that the base has."""
        known = self.base.extras[name]
        width = known.shape[1]
        found = nothing(name, len(rows), width)
        old = rows < len(known)
        found[old] = known[rows[old]]
        for at, row in enumerate(rows.tolist()):
            if row in self.extras:
                found[at] = self.extras[row].get(name, nothing(name, 1, width)[0])
        return found

    @cached_property
    def new(self) -> BoolArray:
        """``(n_rows,)`` bool: items that nobody has clicked."""
        degrees = self.base.seen.item_degrees
        new = np.ones(self.n_rows, np.bool_)
        new[: len(degrees)] = degrees == 0
        return new

    @cached_property
    def lengths(self) -> Tensor:
        """``(n_rows,)`` Euclidean lengths of the vectors, never zero: what a cosine is divided by."""
        lengths: Tensor = self.vectors().norm(dim=1)
        return lengths.clamp_(min=1e-12)

    def seen(self) -> Interactions:
        """The clicks, over this version's rows."""
        log = self.base.seen
        return log if log.n_items == self.n_rows else Interactions(log.indptr, log.items, self.n_rows)

    def item(self, row: int) -> dict[str, str | None]:
        """Text columns of a row."""
        if row in self.texts:
            return dict(self.texts[row])
        if row >= len(self.base.table):
            return {}
        found: dict[str, str | None] = self.base.table.row(row, named=True)
        return {name: value for name, value in found.items() if name != "item"}

    def added(self) -> list[str]:
        """Raw ids of this version's items that came by addition and not by training, or were replaced by it."""
        changed = (self.ids.name(row) for row in self.texts)
        both = dict.fromkeys([*self.base.additions.ids, *changed])
        return [item for item in both if self.row(item) is not None]

    def texts_of(self, item: str) -> dict[str, str | None] | None:
        """Text columns of an item; None if it is not in the catalogue."""
        row = self.row(item)
        return None if row is None else self.item(row)

    def advanced(self, version: int, segments: Sequence[Segment]) -> Snapshot:
        """The next version; this one stays as it is."""
        alive, rules, removed, taken = self.alive, self.rules, set(self.removed), dict(self.taken)
        texts, pictures, extras = dict(self.texts), dict(self.pictures), dict(self.extras)
        changes: list[Change] = []
        for segment in segments:
            gone = self.ids.add(segment.removed)  # known ids: the rows are there
            rows = np.array(self.ids.add(segment.table["item"].to_list()), np.int64)
            alive = np.concatenate([alive, np.zeros(len(self.ids) - len(alive), np.bool_)])
            alive[gone] = False
            alive[rows] = True
            removed = (removed | set(segment.removed)) - set(segment.table["item"])
            for at, (row, entry) in enumerate(
                zip(rows.tolist(), segment.table.iter_rows(named=True), strict=True)
            ):
                texts[row] = {name: value for name, value in entry.items() if name != "item"}
                pictures[row] = None
                extras[row] = {name: values[at] for name, values in segment.extras.items()}
            if segment.covers:  # one a row, or none at all
                pictures.update(zip(rows.tolist(), segment.covers, strict=True))
            rules = rules if segment.rules is None else segment.rules
            taken |= segment.taken
            if len(rows):
                changes.append((rows, segment.vectors))
        with self._lock:  # whoever has read the vectors of this version leaves them to the next
            ready = self._vectors if self._vectors is not None else self._start
            before = [] if self._vectors is not None else self._changes
        return replace(
            self,
            version=version,
            alive=alive,
            texts=texts,
            pictures=pictures,
            rules=rules,
            extras=extras,
            removed=frozenset(removed),
            taken=taken,
            _changes=[*before, *changes],
            _start=ready,
            _vectors=None,
            _lock=threading.Lock(),
        )

    def merged(self) -> Parts:
        """This version as a base.

        Rows that are gone are dropped, unless somebody has seen the item: should it come back, it must not be
        recommended to them again. Contents of additions are not part of a version; whoever has the segments adds them.
        """
        log = self.seen()
        keep = self.alive | (log.item_degrees > 0)
        rows = np.flatnonzero(keep)
        position = np.cumsum(keep) - 1  # rows keep their order, and users' items stay ascending
        moved = Interactions(log.indptr, position[log.items].astype(np.int32), len(rows))
        return Parts(
            self.base.user_ids.alias("user"),
            self._table(rows),
            self.base.user_vectors,
            self.vectors()[torch.from_numpy(rows)],
            moved,
            self.alive[rows],
            self.base.trained,
            pictures=lambda row: self.cover(int(rows[row])),
            extras={name: self.extra(name, rows) for name in self.base.extras},
            reasons=self.base.reasons,
            rule=self.base.rule,
            removed=self.removed,
        )

    def _table(self, rows: npt.NDArray[np.int64]) -> pl.DataFrame:
        base = self.base.table.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        own = [{"row": row, "item": self.ids.name(row), **texts} for row, texts in self.texts.items()]
        names = [
            *base.columns,
            *dict.fromkeys(key for entry in own for key in entry if key not in base.columns),
        ]
        schema = {name: pl.Int64 if name == "row" else pl.String for name in names}
        changed = pl.DataFrame(own, schema=schema)
        kept = base.filter(~pl.col("row").is_in(changed["row"].implode()))
        table = pl.concat([kept, changed], how="diagonal").sort("row")
        return table.filter(pl.col("row").is_in(pl.Series(rows).implode())).drop("row")


def _changed(rows: Rows, places: npt.NDArray[np.int64], values: Tensor) -> Rows:
    """``rows`` with ``values`` at ``places``; places behind the end ascend without gaps."""
    old = torch.from_numpy(places < len(rows))
    if old.any():
        rows = rows.replaced(torch.from_numpy(places)[old], values[old])
    return rows if old.all() else rows.appended(values[~old])
