"""The additions on top of a base: read, taken over from other processes, and written, one version after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.core.errors import InputError
from firstlight.serving.base import Base, FolderBase
from firstlight.serving.contents import Additions
from firstlight.serving.journal import SEGMENTS, Entry, Journal, Manifest, Signature
from firstlight.serving.run_base import RunBase
from firstlight.serving.segment import Segment
from firstlight.serving.snapshot import Snapshot


class Store:
    """The versions of a catalogue. Any number of threads may read; writers take turns, also across processes.

    Args:
        folder: The bundle, or ``RUN/additions``.
        run: The base, where it is a run.

    Attributes:
        wait: Seconds that a writer waits for another one.
    """

    def __init__(self, folder: Path, run: RunBase | None = None) -> None:
        self.folder, self.wait = Path(folder), 10.0
        self._journal = Journal(self.folder)
        self._run = run
        self._turn = threading.RLock()  # guards the four below
        self._signature: Signature = None
        self._manifest = Manifest()
        self._snapshot: Snapshot | None = None
        self._touched: dict[str, Entry] = {}  # id → the last segment that added or removed it

    @property
    def snapshot(self) -> Snapshot:
        """The version that was last loaded. Hold on to it where several reads must agree."""
        assert self._snapshot is not None
        return self._snapshot

    @property
    def version(self) -> int:
        """Its number."""
        return self.snapshot.version

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

    def additions(self) -> Additions:
        """Items of this version that came by addition and not by training, with what is kept of their content.

        A segment that is missing, torn or changed is an error when content is read of it.
        """
        with self._turn:
            snapshot, touched = self.snapshot, dict(self._touched)
        base, ids = snapshot.base.additions, snapshot.added()
        places: dict[str, int | Entry] = {item: at for at, item in enumerate(base.ids)}
        places |= touched
        held: tuple[Entry, dict[str, bytes]] | None = None

        def read(at: int) -> bytes:
            nonlocal held
            place = places[ids[at]]
            if isinstance(place, int):
                return base.read(place)
            if held is None or held[0] != place:  # one segment at a time: they may be large
                held = (place, self._journal.contents(place))
            return held[1][ids[at]]

        return Additions(ids, read)

    def touched(self, since: int) -> frozenset[str] | None:
        """Raw ids of items that were added or removed after a version; None where that cannot be told any more."""
        with self._turn:
            if since not in self._manifest.versions():
                return None
            return frozenset(item for item, entry in self._touched.items() if entry.version > since)

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
            path = self.folder / SEGMENTS / entry.file
            if n != len(segment.table) or (dim is not None and width != dim):
                raise InputError("the vectors of this segment do not fit", path=path)
        self._snapshot = old.advanced(manifest.version, segments)
        self._manifest = manifest
        touched = dict(self._touched) if count else {}
        for entry, segment in zip(manifest.segments[count:], segments, strict=True):
            touched |= dict.fromkeys([*segment.removed, *segment.table["item"]], entry)
        self._touched = touched

    def _base(self, manifest: Manifest) -> Base:
        """The base that a manifest names, checked."""
        if self._run is None:
            if not manifest.base:
                raise InputError("the additions of a run are no bundle", path=self.folder)
            folder = self.folder / Path(manifest.base).name
            kept = None if self._snapshot is None else self._snapshot.base
            # A compaction without changes gives a base of the same content in another folder, and may delete the old.
            if isinstance(kept, FolderBase) and (kept.fingerprint, kept.folder) == (
                manifest.base_hash,
                folder,
            ):
                return kept  # and what was read of it
            return FolderBase(folder, manifest.base_hash)
        if manifest.version and manifest.base_hash != self._run.fingerprint:
            raise InputError(
                "these additions were made with another model than the run's",
                path=self.folder,
                hint="delete the folder and add the items again",
            )
        return self._run

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
        self._touched |= dict.fromkeys([*segment.removed, *segment.table["item"]], after.segments[-1])
        self._manifest, self._signature = after, self._journal.signature()
