"""The store that new items live in: a base that never changes, and additions that survive a kill -9.

A *bundle* is a folder of its own, made from a run by ``firstlight export``; a run can also be its own base, and its
additions then stand in ``RUN/additions``. Both are one class here: the vectors of the base, the segments of
:mod:`firstlight.serving.journal` on top, and versions for readers (:mod:`firstlight.serving.snapshot`).

::

    BUNDLE/  manifest.json, segments/, lock   the additions
             base-00000001/                   the base (:mod:`firstlight.serving.base`)
             base-00000001.index/             its index, if it is large (:mod:`firstlight.serving.approximate`)
             manifest-00000012.json           what stood before a compaction or a way back; what it names stays, too
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.files import atomic_folder
from firstlight.core.outputs import check_folder, output
from firstlight.core.topk import list_length
from firstlight.serving.base import Base, FolderBase, text_columns, write_base
from firstlight.serving.checks import check_beside, check_factors, check_vectors, id_list
from firstlight.serving.encoder import ContentEncoder, carry_encoder, load_encoder, run_encoder
from firstlight.serving.extras import Extras, fitting
from firstlight.serving.index import ExactIndex, Query
from firstlight.serving.journal import Entry, Journal, Manifest
from firstlight.serving.popular import Popular
from firstlight.serving.run_base import FinishedRun, RunBase
from firstlight.serving.segment import Rules, Segment
from firstlight.serving.snapshot import Snapshot
from firstlight.serving.store import Store

ADDITIONS = "additions"


class Recommendation(NamedTuple):
    """One entry of a list: raw item id and score."""

    item: str
    score: float


class Bundle(Store):
    """A served catalogue. Any number of threads may read; writers take turns, also across processes.

    Use :meth:`create`, :meth:`open` or :meth:`open_run`.
    """

    _user_rows: tuple[Base, dict[str, int]] | None = None

    def __repr__(self) -> str:
        users, items = len(self.snapshot.base.user_ids), int(self.alive.sum())
        return f"<Bundle {str(self.folder)!r}: version {self.version}, {users:,} users, {items:,} items>"

    @classmethod
    def create(
        cls,
        out: Path | str,
        base: Base,
        *,
        write_encoder: Callable[[Path], None] | None = None,
        about: Mapping[str, Any] | None = None,
        rules: Rules | None = None,
    ) -> Self:
        """Write a bundle; it appears whole or not at all.

        Args:
            out: A folder that does not exist yet, or is empty.
            base: The catalogue.
            write_encoder: Writes what makes vectors of new items into a folder (``ContentEncoder.save``).
            about: JSON values to keep with it.
            rules: Blocked items and boosts from the start.

        Raises:
            InputError: ``out`` holds something, or is no place to write to.
            FirstlightError: The disk is full, or fails.
        """
        out = Path(out)
        check_folder(out)
        if out.exists() and any(out.iterdir()):
            raise InputError("this folder exists and is not empty", path=out, hint="choose another one")
        with output(out), atomic_folder(out) as folder:
            name = "base-00000001"
            digest = write_base(folder / name, base, about or {}, write_encoder)
            journal = Journal(folder)
            entries = (journal.write(1, state_segment(base.dim, rules)),) if rules else ()
            journal.publish(Manifest(1, name, digest, entries))
        return cls.open(out)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a bundle; vectors and ids are read when they are first needed.

        Raises:
            InputError: The folder is no bundle, or a file of it is missing, torn or changed.
        """
        bundle = cls(Path(path))
        if bundle._journal.signature() is None:
            raise InputError(
                "this folder is not a bundle",
                path=Path(path),
                hint="make one with firstlight export RUN BUNDLE",
            )
        bundle.reload()
        return bundle

    @classmethod
    def open_run(
        cls, run: FinishedRun, items: pl.DataFrame | None = None, folder: Path | None = None
    ) -> Self:
        """Open a run together with what was added to it (``RUN/additions``, which need not exist).

        Args:
            run: A finished run.
            items: Titles and covers of its items, as :func:`firstlight.serving.export.export_run` takes them.
            folder: What relative cover paths are relative to.

        Raises:
            InputError: The additions belong to another model, or a file of them is torn or changed.
        """
        bundle = cls(run.path / ADDITIONS, RunBase(run, items, folder))
        bundle.reload()
        return bundle

    # Reading

    @property
    def alive(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """``(n_rows,)`` bool: rows of :meth:`item_vectors` that are in the catalogue."""
        return self.snapshot.alive

    def item_vectors(self) -> Tensor:
        """``(n_rows, dim)``; a row is an item's for good, removed or not."""
        return self.snapshot.vectors()

    def item_ids(self) -> pl.Series:
        """``(n_rows,)`` raw ids."""
        return self.snapshot.ids.names(self.snapshot.n_rows)

    def item(self, item: str) -> dict[str, str | None]:
        """Text columns of an item.

        Raises:
            InputError: It is not in the catalogue.
        """
        texts = self.snapshot.texts_of(item)
        if texts is None:
            raise InputError(f"item {item!r} is unknown", path=self.folder)
        return texts

    # Writing

    def add_items(
        self,
        ids: Sequence[str],
        vectors: Tensor,
        table: pl.DataFrame | None = None,
        covers: Sequence[bytes | None] = (),
        extras: Extras | None = None,
        contents: Sequence[bytes | None] = (),
    ) -> int:
        """Add items, or replace those whose ids are there already. Durable when it returns.

        No other vector changes. An item that was removed comes back. :func:`~firstlight.serving.adding.add_new_items`
        makes all this of content.

        Args:
            ids: ``(n,)`` raw ids.
            vectors: ``(n, dim)`` in scoring space.
            table: Text columns (``title``, …), row-aligned to ``ids``.
            covers: Small pictures (:func:`firstlight.serving.pictures.thumbnail`), row-aligned to ``ids``.
            extras: Rows beside the vectors, as :meth:`ContentEncoder.place` gives them; those that the catalogue has
                no place for are left out.
            contents: :meth:`~firstlight.serving.contents.Kept.to_bytes` or nothing, row-aligned to ``ids``.

        Returns:
            The version that holds them; the current one if there is nothing to add.

        Raises:
            InputError: An id is empty or there twice, a vector is not finite or of another width, or there are more or
                fewer rows of something than ids. Nothing is added then.
            FirstlightError: Another writer is at work, or the disk is full. Nothing is added then.
        """
        ids = id_list(ids)
        segment = self._segment(ids, vectors, table, covers, extras or {}, contents)
        return self.change(lambda _: segment) if ids else self.version

    def _segment(
        self,
        ids: Sequence[str],
        vectors: Tensor,
        table: pl.DataFrame | None,
        covers: Sequence[bytes | None],
        extras: Extras,
        contents: Sequence[bytes | None],
    ) -> Segment:
        base, columns = self.snapshot.base, text_columns(table)
        if columns.width and len(columns) != len(ids):
            raise InputError(f"the table has {len(columns)} rows for {len(ids)} items")
        check_beside(len(ids), "covers", covers)
        check_beside(len(ids), "contents", contents)
        rows = check_vectors(ids, vectors, base.dim)
        named = pl.DataFrame([pl.Series("item", ids, pl.String), *columns.get_columns()])
        widths = {name: values.shape[1] for name, values in base.extras.items()} if extras else {}
        kept = fitting(extras, widths, len(ids))
        return Segment(
            named, rows, covers=tuple(covers), extras=kept, contents=tuple(one or b"" for one in contents)
        )

    def change(self, make: Callable[[Snapshot], Segment | None]) -> int:
        """Append what ``make`` makes of the version that counts now, or nothing for None; durable when it returns.

        Nobody else writes in between.

        Returns:
            The version that holds it; the current one if there is nothing to change.

        Raises:
            FirstlightError: Another writer is at work, or the disk is full. Nothing is changed then.
        """
        with self._writing():
            segment = make(self.snapshot)
            if segment is not None:
                self._append(segment)
            return self.version

    def remove_items(self, ids: Sequence[str]) -> int:
        """Take items out of the catalogue; durable when it returns.

        Returns:
            The version without them.

        Raises:
            InputError: An id is unknown, removed already, or there twice. Nothing is removed then.
            FirstlightError: Another writer is at work, or the disk is full. Nothing is removed then.
        """
        ids = id_list(ids)

        def make(snapshot: Snapshot) -> Segment:
            missing = [item for item in ids if snapshot.row(item) is None]
            if missing:
                raise InputError(
                    f"{len(missing)} of the items are not in the catalogue, the first is {missing[0]!r}",
                    path=self.folder,
                )
            return replace(state_segment(snapshot.base.dim), removed=tuple(ids))

        return self.change(make) if ids else self.version

    def block(self, ids: str | Iterable[str]) -> int:
        """Keep items out of every list, whether they are in the catalogue or come later; durable when it returns.

        Args:
            ids: Raw ids, or one.
        """
        blocked = frozenset(id_list(ids))
        return self._rule(lambda old: Rules(old.blocked | blocked, old.boosts))

    def unblock(self, ids: str | Iterable[str]) -> int:
        """Let items into lists again; durable when it returns.

        Args:
            ids: Raw ids, or one.
        """
        free = frozenset(id_list(ids))
        return self._rule(lambda old: Rules(old.blocked - free, old.boosts))

    def boost(self, factors: Mapping[str, float]) -> int:
        """Lift items (factors above one) or lower them; one takes a boost back. Durable when it returns.

        Raises:
            InputError: A factor is not a number between 0.01 and 100.
        """
        new = check_factors(factors)

        def change(old: Rules) -> Rules:
            boosts = {item: factor for item, factor in {**old.boosts, **new}.items() if factor != 1}
            return Rules(old.blocked, boosts)

        return self._rule(change)

    def set_rules(self, rules: Rules) -> int:
        """Set all blocks and boosts at once; durable when it returns."""
        return self._rule(lambda _: rules)

    def _rule(self, change: Callable[[Rules], Rules]) -> int:
        def make(snapshot: Snapshot) -> Segment | None:
            rules = change(snapshot.rules)
            return None if rules == snapshot.rules else state_segment(snapshot.base.dim, rules)

        return self.change(make)

    def compact(self, *, prune: bool = False) -> int:
        """Merge base and segments into a new base; answers stay what they are.

        The old base, its segments and its manifest (as ``manifest-VERSION.json``) stay, unless ``prune``.

        Args:
            prune: Delete every file that does not count any more, those of interrupted writes included.

        Returns:
            The new version.

        Raises:
            InputError: This is a run, whose base is the run itself.
            FirstlightError: Another writer is at work, or the disk is full; the old version stays.
        """
        if self._run is not None:
            raise InputError(
                "a run keeps its additions apart", path=self.folder, hint="firstlight export merges them"
            )
        with self._writing():
            before, base = self._manifest, self.snapshot.base
            assert isinstance(base, FolderBase)
            name = f"base-{before.version + 1:08d}"
            try:
                # Whatever stands there is left of a compaction that never counted.
                shutil.rmtree(self.folder / name, ignore_errors=True)
                merged = replace(self.snapshot.merged(), additions=self.additions())
                digest = write_base(self.folder / name, merged, base.about["about"], carry_encoder(base))
                self._journal.keep(before)
                rules, taken = self.snapshot.rules, self.snapshot.taken
                segments: tuple[Entry, ...] = ()
                if rules != Rules() or taken:
                    state = state_segment(base.dim, rules, taken)
                    segments = (self._journal.write(before.version + 1, state),)
            except OSError as error:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                raise FirstlightError(f"{self.folder} could not be compacted: {error}") from error
            self._journal.publish(Manifest(before.version + 1, name, digest, segments))
            self.reload()
            if prune:
                self._prune()
            return self.version

    def versions(self) -> list[int]:
        """The versions that :meth:`rollback` can go back to, and the current one; ascending."""
        return sorted(set().union(*(kept.versions() for kept in self._journal.lineages(self._manifest))))

    def rollback(self, version: int) -> int:
        """Make the catalogue what it was at an older version; durable when it returns.

        That is a new version: what stood until now stays too, and can be gone back to. Blocked items and boosts are
        those of now: a taken-down item does not return with an old catalogue.

        Returns:
            The new version; the current one if that is asked for.

        Raises:
            InputError: There never was such a version, or its files were pruned. Nothing changes then.
            FirstlightError: Another writer is at work, or the disk is full. Nothing changes then.
        """
        with self._writing():
            before, snapshot, touched = self._manifest, self.snapshot, self._touched
            if version == before.version:
                return version
            old = self._journal.at(before, version)
            self._journal.keep(before)
            state = state_segment(snapshot.base.dim, snapshot.rules, snapshot.taken)
            entry = self._journal.write(before.version + 1, state)
            base_hash = old.base_hash or before.base_hash
            after = Manifest(before.version + 1, old.base, base_hash, (*old.segments, entry))
            try:
                self._take(after)  # reads and checks every file
                self._journal.publish(after)
            except FirstlightError:
                self._manifest, self._snapshot, self._touched = before, snapshot, touched
                raise
            self._signature = self._journal.signature()
            return self.version

    def prune(self) -> list[Path]:
        """Delete every file that does not count: older versions, what interrupted writes left, strangers.

        A reader of an older version that has not read all of it yet must :meth:`reload` to go on.

        Returns:
            What was deleted.
        """
        with self._writing():
            return self._prune()

    def _prune(self) -> list[Path]:
        found = self.strays()
        for path in found:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return found

    def encoder(self) -> ContentEncoder:
        """What makes vectors of new items.

        Raises:
            InputError: The model of this catalogue reads no content.
        """
        if self._run is not None:
            return run_encoder(self._run.run)
        base = self.snapshot.base
        assert isinstance(base, FolderBase)
        return load_encoder(base)

    # Ranking

    def recommend(self, user: str, k: int = 20) -> list[Recommendation]:
        """The k best items of a user that the user has not seen; ties go to the older item.

        A user without a click in what the model was trained on gets the most popular items; scores are clicks then.

        Raises:
            InputError: The user is unknown, or k is not a whole number above zero.
        """
        snapshot = self.snapshot
        k = list_length(k, snapshot.n_rows)
        row = self._users(snapshot.base).get(user) if isinstance(user, str) else None
        if row is None:
            raise InputError(f"user {user!r} is unknown", path=self.folder)
        seen = snapshot.base.seen.row(row).astype(np.int64)
        if snapshot.base.trained[row]:
            found = ExactIndex().search(snapshot, [Query(snapshot.base.user_vectors[row], k, seen)])[0]
        else:
            found = Popular.of(snapshot).best(k, seen)
        pairs = zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        return [Recommendation(snapshot.ids.name(i), score) for i, score in pairs]

    def _users(self, base: Base) -> dict[str, int]:
        kept = self._user_rows
        if kept is None or kept[0] is not base:
            self._user_rows = kept = (base, {user: row for row, user in enumerate(base.user_ids)})
        return kept[1]


def state_segment(dim: int, rules: Rules | None = None, taken: Mapping[str, int] | None = None) -> Segment:
    """A segment that adds no item."""
    nobody = pl.DataFrame(schema={"item": pl.String})
    return Segment(nobody, torch.empty(0, dim), rules=rules, taken=taken or {})
