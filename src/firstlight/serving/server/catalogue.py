"""One opened catalogue, as requests ask it. Everything here reads one version from beginning to end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from firstlight.core.topk import top_k_rows
from firstlight.serving.approximate import ApproximateIndex, open_index
from firstlight.serving.base import Base
from firstlight.serving.bundle import Bundle
from firstlight.serving.histories import NewUsers
from firstlight.serving.index import ExactIndex, Found, Query
from firstlight.serving.popular import MODEL, POPULAR, Popular
from firstlight.serving.server.problems import Problem
from firstlight.serving.server.projection import Projection
from firstlight.serving.server.schemas import RecommendRequest, SimilarRequest
from firstlight.serving.server.why import explain
from firstlight.serving.snapshot import Snapshot

Ask = RecommendRequest | SimilarRequest
Answer = dict[str, Any]
IntArray = npt.NDArray[np.int64]

#: Users who would like a new item, and items that it is like, as an upload is answered.
AUDIENCE, LIKE = 20, 12


class OnBase:
    """What is made once for a base: lookups, the index, and the place of users whom training never saw.

    Args:
        base: The base.
        index: How lists are made.
    """

    def __init__(self, base: Base, index: ExactIndex | ApproximateIndex) -> None:
        self.base, self.index = base, index

    @cached_property
    def users(self) -> dict[str, int]:
        """Raw id → row."""
        return {user: row for row, user in enumerate(self.base.user_ids)}

    @cached_property
    def searched(self) -> pl.DataFrame:
        """Ids and titles in lower case, by item row."""
        table = self.base.table
        title = (
            table["title"] if "title" in table.columns else pl.Series([None] * len(table), dtype=pl.String)
        )
        ids = table["item"].str.to_lowercase().alias("item")
        return pl.DataFrame([ids, title.str.to_lowercase().alias("title")])

    @cached_property
    def new_users(self) -> NewUsers:
        """Makes users of histories."""
        return NewUsers(self.base)


class Catalogue:
    """Answers from a bundle.

    Args:
        bundle: The bundle; it is reloaded by whoever owns it.
        index: Kind of index.
    """

    def __init__(self, bundle: Bundle, index: str = "auto") -> None:
        self.bundle, self._kind = bundle, index
        self._on = OnBase(bundle.snapshot.base, ExactIndex())
        self._map: tuple[Base, Projection] | None = None
        self._drawing = threading.Lock()

    def prepare(self) -> None:
        """Read, and build what lists need, before readers do."""
        base = self.bundle.snapshot.base
        if self._on.base is base and isinstance(self._on.index, ApproximateIndex):
            return
        on = OnBase(base, open_index(base, self._kind))
        # Every file is read, or its hash checked, before somebody waits for it.
        _ = on.users, base.extras, base.reasons, base.rule, base.additions
        self.bundle.snapshot.vectors()
        self._on = on

    def on(self, snapshot: Snapshot) -> OnBase:
        """What was made for the base of a version; exact until :meth:`prepare` has been called for a new one."""
        if self._on.base is not snapshot.base:
            self._on = OnBase(snapshot.base, ExactIndex())
        return self._on

    # Lists

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """Lists for all that ask, made together from one version."""
        snapshot = self.bundle.snapshot
        on = self.on(snapshot)
        answers: list[Answer | Exception | None] = [None] * len(asks)
        queries: list[tuple[int, Query, IntArray]] = []
        for at, ask in enumerate(asks):
            try:
                if isinstance(ask, SimilarRequest):
                    answers[at] = self.similar(snapshot, ask)
                    continue
                query, history = self._query(snapshot, on, ask)
                if ask.user is not None and not snapshot.base.trained[on.users[ask.user]]:
                    best = Popular.of(snapshot).best(query.k, query.exclude, query.candidates)
                    answers[at] = self._listed(snapshot, ask, best, history, POPULAR)
                else:
                    queries.append((at, query, history))
            except Problem as problem:
                answers[at] = problem
        found = on.index.search(snapshot, [query for _, query, _ in queries]) if queries else []
        for (at, _, history), best in zip(queries, found, strict=True):
            ask = asks[at]
            assert isinstance(ask, RecommendRequest)
            answers[at] = self._listed(snapshot, ask, best, history, MODEL)
        return [answer for answer in answers if answer is not None]

    def _query(self, snapshot: Snapshot, on: OnBase, ask: RecommendRequest) -> tuple[Query, IntArray]:
        """What to look for, and the history that explains it."""
        if ask.user is not None:
            row = on.users.get(ask.user)
            if row is None:
                raise Problem(404, "Unknown user", f"user {ask.user!r} is unknown; give a history instead")
            history = snapshot.base.seen.row(row).astype(np.int64)
            vector = snapshot.base.user_vectors[row]
        else:
            history = np.array(sorted(set(snapshot.rows_of(ask.history or []))), np.int64)
            if not len(history):
                raise Problem(404, "Unknown history", "no item of the history is known")
            vector = on.new_users.vector(snapshot, history)
        exclude = np.union1d(history, np.array(snapshot.rows_of(ask.exclude), np.int64))
        candidates = None
        if ask.candidates is not None:
            candidates = np.array(snapshot.rows_of(ask.candidates), np.int64)
        if ask.only_new:
            new = np.flatnonzero(snapshot.new)
            candidates = new if candidates is None else candidates[snapshot.new[candidates]]
        return Query(vector, ask.k, exclude, candidates), history

    def _listed(
        self, snapshot: Snapshot, ask: RecommendRequest, best: Found, history: IntArray, basis: str
    ) -> Answer:
        """A list as it is answered, with what of the history is not known."""
        unknown = [item for item in dict.fromkeys(ask.history or []) if not snapshot.rows_of([item])]
        return {
            "version": snapshot.version,
            "user": ask.user,
            "basis": basis,
            "unknown": unknown,
            "items": self._explained(snapshot, best, history),
        }

    def similar(self, snapshot: Snapshot, ask: SimilarRequest) -> Answer:
        """The items whose vectors point most nearly the same way, blocked ones left out."""
        row = self.row(snapshot, ask.item)
        vectors, lengths = snapshot.vectors(), snapshot.lengths
        scores = (vectors @ (vectors[row] / lengths[row])) / lengths
        scores[torch.from_numpy(snapshot.hidden)] = float("-inf")
        scores[row] = float("-inf")
        best = top_k_rows(scores[None], ask.k)
        items = [
            {**self.item(snapshot, int(at)), "score": score}
            for at, score in zip(best.ids[0].tolist(), best.scores[0].tolist(), strict=True)
            if at >= 0
        ]
        return {"version": snapshot.version, "item": ask.item, "items": items}

    def audience(self, snapshot: Snapshot, item: str) -> list[Answer]:
        """The users with the highest scores for an item; those who have seen it are left out."""
        row = self.row(snapshot, item)
        base = snapshot.base
        if not len(base.user_vectors):
            return []
        scores = base.user_vectors @ snapshot.vectors()[row]
        if row < base.seen.n_items and base.seen.item_degrees[row]:
            scores[torch.from_numpy(base.seen.users[base.seen.items == row].astype(np.int64))] = float("-inf")
        best = top_k_rows(scores[None], AUDIENCE)
        pairs = zip(best.ids[0].tolist(), best.scores[0].tolist(), strict=True)
        return [{"user": str(base.user_ids[at]), "score": score} for at, score in pairs if at >= 0]

    def _explained(self, snapshot: Snapshot, best: Found, history: IntArray) -> list[Answer]:
        """A list with what explains each item."""
        reasons = explain(snapshot, best.rows, history)
        pairs = zip(best.rows.tolist(), best.scores.tolist(), reasons, strict=True)
        return [{**self.item(snapshot, row), "score": score, "why": why} for row, score, why in pairs]

    # Items and users

    @staticmethod
    def row(snapshot: Snapshot, item: str) -> int:
        """Row of an item that is in the catalogue.

        Raises:
            Problem: It is not.
        """
        row = snapshot.row(item)
        if row is None:
            raise Problem(404, "Unknown item", f"item {item!r} is not in the catalogue")
        return row

    @staticmethod
    def item(snapshot: Snapshot, row: int) -> Answer:
        """An item as lists show it."""
        name = snapshot.ids.name(row)
        cover = f"/v1/items/{quote(name, safe='')}/cover" if snapshot.has_cover(row) else None
        title = snapshot.item(row).get("title")
        return {"id": name, "title": title, "cover": cover, "new": bool(snapshot.new[row])}

    def details(self, item: str) -> Answer:
        """An item with all that is known of it."""
        snapshot = self.bundle.snapshot
        row = self.row(snapshot, item)
        rules = snapshot.rules
        return {
            **self.item(snapshot, row),
            "texts": snapshot.item(row),
            "blocked": item in rules.blocked,
            "boost": rules.boosts.get(item, 1.0),
        }

    def cover(self, item: str) -> bytes:
        """The small picture of an item.

        Raises:
            Problem: There is none.
        """
        snapshot = self.bundle.snapshot
        found = snapshot.cover(self.row(snapshot, item))
        if found is None:
            raise Problem(404, "No cover", f"item {item!r} has no cover")
        return found

    def find_users(self, words: str, limit: int) -> list[Answer]:
        """Users whose id holds ``words``, whatever the case."""
        base = self.bundle.snapshot.base
        ids, degrees = base.user_ids, base.seen.user_degrees
        rows: Sequence[int] = range(len(ids))
        if words:
            hit = ids.str.to_lowercase().str.contains(words.lower(), literal=True)
            rows = hit.arg_true().to_list()
        return [{"id": str(ids[row]), "clicks": int(degrees[row])} for row in rows[:limit]]

    def user(self, user: str, limit: int) -> Answer:
        """A user and what they clicked, by item row: a bundle keeps no times."""
        snapshot = self.bundle.snapshot
        row = self.on(snapshot).users.get(user)
        if row is None:
            raise Problem(404, "Unknown user", f"user {user!r} is unknown")
        history = snapshot.base.seen.row(row).tolist()
        items = [self.item(snapshot, at) for at in history[:limit]]
        return {"id": user, "clicks": len(history), "history": items}

    def find_items(self, words: str, limit: int) -> list[Answer]:
        """Items whose id or title holds ``words``: what was added last comes first."""
        snapshot = self.bundle.snapshot
        changed = [row for row in snapshot.texts if snapshot.alive[row]]
        words = words.lower()
        rows = []
        for row in reversed(changed):
            title = snapshot.texts[row].get("title") or ""
            if words in title.lower() or words in snapshot.ids.name(row).lower():
                rows.append(row)
        table = self.on(snapshot).searched
        hit = table["item"].str.contains(words, literal=True) | table["title"].str.contains(
            words, literal=True
        ).fill_null(False)
        for row in hit.arg_true():
            if len(rows) >= limit:
                break
            if snapshot.alive[row] and row not in snapshot.texts:
                rows.append(int(row))
        return [self.item(snapshot, row) for row in rows[:limit]]

    def map(self, limit: int) -> Answer:
        """Items in two dimensions."""
        snapshot = self.bundle.snapshot
        with self._drawing:  # who asks meanwhile waits, and does not draw it, too
            kept = self._map
            if kept is None or kept[0] is not snapshot.base:
                self._map = kept = (snapshot.base, Projection.fit(snapshot))
        return {"version": snapshot.version, "items": kept[1].place(snapshot, limit)}
