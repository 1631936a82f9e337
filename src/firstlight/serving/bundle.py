"""The store that new items live in: a base that never changes, and additions that survive a kill -9.

A *bundle* is a folder of its own, made from a run by ``firstlight export``; a run can also be its own base, and its
additions then stand in ``RUN/additions``. Both are one class here: the vectors of the base, the segments of
:mod:`firstlight.serving.journal` on top, and versions for readers (:mod:`firstlight.serving.snapshot`).

::

    BUNDLE/  manifest.json, segments/, lock   the additions
             base-00000001/                   the base (:mod:`firstlight.serving.base`)
             manifest-00000012.json           what stood before a compaction; the files that it names stay, too
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.files import atomic_folder
from firstlight.core.topk import top_k_rows
from firstlight.serving.base import Base, FolderBase, text_columns, write_base
from firstlight.serving.checks import check_ids, check_vectors
from firstlight.serving.encoder import ContentEncoder, carry_encoder, load_encoder, run_encoder
from firstlight.serving.journal import MANIFEST, SEGMENTS, Journal, Manifest, Segment, Signature
from firstlight.serving.run_base import FinishedRun, RunBase
from firstlight.serving.snapshot import Snapshot

ADDITIONS = "additions"


class Recommendation(NamedTuple):
    """One entry of a list: raw item id and score."""

    item: str
    score: float


class Bundle:
    """A served catalogue. Any number of threads may read; writers take turns, also across processes.

    Use :meth:`create`, :meth:`open` or :meth:`open_run`.

    Attributes:
        wait: Seconds that a writer waits for another one.
    """

    def __init__(self, folder: Path, run: RunBase | None = None) -> None:
        self.folder, self.wait = Path(folder), 10.0
        self._journal = Journal(self.folder)
        self._run = run
        self._turn = threading.RLock()  # guards the three below
        self._signature: Signature = None
        self._manifest = Manifest()
        self._snapshot: Snapshot | None = None
        self._user_rows: tuple[Base, dict[str, int]] | None = None

    @classmethod
    def create(
        cls,
        out: Path | str,
        base: Base,
        *,
        write_encoder: Callable[[Path], None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write a bundle; it appears whole or not at all.

        Args:
            out: A folder that does not exist yet, or is empty.
            base: The catalogue.
            write_encoder: Writes what makes vectors of new items into a folder (``ContentEncoder.save``).
            about: JSON values to keep with it.

        Raises:
            InputError: ``out`` holds something.
            FirstlightError: It cannot be written.
        """
        out = Path(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError("this folder exists and is not empty", path=out, hint="choose another one")
        try:
            with atomic_folder(out) as folder:
                name = "base-00000001"
                digest = write_base(folder / name, base, about or {}, write_encoder)
                Journal(folder).publish(Manifest(1, name, digest))
        except OSError as error:
            raise FirstlightError(f"{out} could not be written: {error.strerror or error}") from error
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
    def open_run(cls, run: FinishedRun) -> Self:
        """Open a run together with what was added to it (``RUN/additions``, which need not exist).

        Raises:
            InputError: The additions belong to another model, or a file of them is torn or changed.
        """
        bundle = cls(run.path / ADDITIONS, RunBase(run))
        bundle.reload()
        return bundle

    # Reading

    @property
    def snapshot(self) -> Snapshot:
        """The version that was last loaded. Hold on to it where several reads must agree."""
        assert self._snapshot is not None
        return self._snapshot

    @property
    def version(self) -> int:
        """Its number."""
        return self.snapshot.version

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
        snapshot = self.snapshot
        row = snapshot.row(item)
        if row is None:
            raise InputError(f"item {item!r} is unknown", path=self.folder)
        return snapshot.item(row)

    def strays(self) -> list[Path]:
        """Files that do not count: of interrupted writes, of older versions, and strangers."""
        return self._journal.strays(self._manifest if self._manifest.version else None)

    def interrupted(self) -> list[Path]:
        """Those of :meth:`strays` that an interrupted write left."""
        return self._journal.interrupted(self._manifest if self._manifest.version else None)

    def reload(self) -> bool:
        """Take over what other processes wrote. Costs one system call if they wrote nothing.

        Returns:
            Whether there is a new version.

        Raises:
            InputError: A file is missing, torn or changed; the version that was loaded stays.
        """
        if self._snapshot is not None and self._journal.signature() == self._signature:
            return False  # without waiting for a writer of this process
        with self._turn:
            signature = self._journal.signature()
            if self._snapshot is not None and signature == self._signature:
                return False
            while True:
                try:
                    self._take(self._journal.read() or Manifest())
                    break
                except InputError:
                    # A compaction may have deleted what the manifest named a moment ago.
                    before, signature = signature, self._journal.signature()
                    if signature == before:
                        raise
            self._signature = signature
            return True

    def _take(self, manifest: Manifest) -> None:
        known, old = self._manifest, self._snapshot
        count = len(known.segments)
        grown = (known.base, known.base_hash, known.segments) == (
            manifest.base,
            manifest.base_hash,
            manifest.segments[:count],
        )
        if old is None or not (grown or known.version == 0):
            old, count = Snapshot.of(self._base(manifest), manifest.version), 0
        elif known.version == 0:  # the first additions to a run
            self._base(manifest)
        segments = [self._journal.load(entry) for entry in manifest.segments[count:]]
        dim = old.base.dim if isinstance(old.base, FolderBase) else None  # a run's costs building its model
        for entry, segment in zip(manifest.segments[count:], segments, strict=True):
            n, width = segment.vectors.shape
            if n != len(segment.table) or (dim is not None and width != dim):
                path = self.folder / SEGMENTS / entry.file
                raise InputError("the vectors of this segment do not fit", path=path)
        self._snapshot = old.advanced(manifest.version, segments)
        self._manifest = manifest

    def _base(self, manifest: Manifest) -> Base:
        """The base that a manifest names, checked."""
        if self._run is None:
            if not manifest.base:
                raise InputError("the additions of a run are no bundle", path=self.folder)
            return FolderBase(self.folder / Path(manifest.base).name, manifest.base_hash)
        if manifest.version and manifest.base_hash != self._run.fingerprint:
            raise InputError(
                "these additions were made with another model than the run's",
                path=self.folder,
                hint="delete the folder and add the items again",
            )
        return self._run

    # Writing

    def add_items(self, ids: Sequence[str], vectors: Tensor, table: pl.DataFrame | None = None) -> int:
        """Add items, or replace those whose ids are there already. Durable when it returns.

        No other vector changes. An item that was removed comes back.

        Args:
            ids: ``(n,)`` raw ids.
            vectors: ``(n, dim)`` in scoring space.
            table: Text columns (``title``, …), row-aligned to ``ids``.

        Returns:
            The version that holds them; the current one if there is nothing to add.

        Raises:
            InputError: An id is empty or there twice, a vector is not finite or of another width. Nothing is
                added then.
            FirstlightError: Another writer is at work, or the disk is full. Nothing is added then.
        """
        ids = list(ids)
        check_ids(ids)
        columns = text_columns(table)
        if columns.width and len(columns) != len(ids):
            raise InputError(f"the table has {len(columns)} rows for {len(ids)} items")
        rows = check_vectors(ids, vectors, self.snapshot.base.dim)
        if not ids:
            return self.version
        named = pl.DataFrame([pl.Series("item", ids, pl.String), *columns.get_columns()])
        with self._writing():
            self._append(Segment(named, rows))
            return self.version

    def remove_items(self, ids: Sequence[str]) -> int:
        """Take items out of the catalogue; durable when it returns.

        Returns:
            The version without them.

        Raises:
            InputError: An id is unknown, removed already, or there twice. Nothing is removed then.
            FirstlightError: Another writer is at work, or the disk is full. Nothing is removed then.
        """
        ids = list(ids)
        check_ids(ids)
        if not ids:
            return self.version
        with self._writing():
            missing = [item for item in ids if self.snapshot.row(item) is None]
            if missing:
                raise InputError(
                    f"{len(missing)} of the items are not in the catalogue, the first is {missing[0]!r}",
                    path=self.folder,
                )
            empty = pl.DataFrame({"item": []}, schema={"item": pl.String})
            self._append(Segment(empty, torch.empty(0, self.snapshot.base.dim), tuple(ids)))
            return self.version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The only writer, on top of everything that others have written."""
        with self._turn, self._journal.lock(self.wait):
            self.reload()
            yield

    def _append(self, segment: Segment) -> None:
        manifest = self._manifest
        if self._run is not None and not manifest.version:
            manifest = Manifest(base_hash=self._run.fingerprint)
        after = self._journal.append(manifest, segment)
        self._snapshot = self.snapshot.advanced(after.version, [segment])
        self._manifest, self._signature = after, self._journal.signature()

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
                digest = write_base(
                    self.folder / name, self.snapshot.merged(), base.about["about"], carry_encoder(base)
                )
                shutil.copyfile(self.folder / MANIFEST, self.folder / f"manifest-{before.version:08d}.json")
            except OSError as error:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                raise FirstlightError(f"{self.folder} could not be compacted: {error}") from error
            self._journal.publish(Manifest(before.version + 1, name, digest))
            self.reload()
            if prune:
                self._prune()
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

        Raises:
            InputError: The user is unknown.
        """
        snapshot = self.snapshot
        row = self._users(snapshot.base).get(user)
        if row is None:
            raise InputError(f"user {user!r} is unknown", path=self.folder)
        scores = snapshot.vectors() @ snapshot.base.user_vectors[row]
        if not snapshot.alive.all():
            scores[torch.from_numpy(~snapshot.alive)] = float("-inf")
        scores[torch.from_numpy(snapshot.base.seen.row(row).astype(np.int64))] = float("-inf")
        best = top_k_rows(scores[None], k)
        pairs = zip(best.ids[0].tolist(), best.scores[0].tolist(), strict=True)
        return [Recommendation(snapshot.ids.name(i), score) for i, score in pairs if i >= 0]

    def _users(self, base: Base) -> dict[str, int]:
        kept = self._user_rows
        if kept is None or kept[0] is not base:
            self._user_rows = kept = (base, {user: row for row, user in enumerate(base.user_ids)})
        return kept[1]
