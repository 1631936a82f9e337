"""The durable part of the store: segments that are only ever added, and one manifest that names those that count.

::

    FOLDER/  manifest.json                   version, base, segments (name, SHA-256, bytes), its own checksum
             segments/00000007.safetensors   what version 7 added and removed
             manifest-00000012.json          what stood before a compaction or a way back; see :meth:`Journal.at`
             lock                            held by the one writer

A segment is written under a temporary name, synced and renamed; only then is the manifest replaced, in the same way.
A process killed at any moment therefore leaves the old manifest or the new one, and files that the manifest does not
name do not exist for a reader. They are reported by :meth:`Journal.strays`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.files import read_json, writing
from firstlight.serving.segment import Segment

MANIFEST = "manifest.json"
SEGMENTS = "segments"
LOCK = "lock"
#: A server that takes over another catalogue's additions has not finished yet; see ``server/carry.py``.
CARRY = "carry.json"
FORMAT_VERSION = 1
#: Seconds between two looks at a lock that another writer holds.
_LOOK_AGAIN = 0.02

Parsed = TypeVar("Parsed")
#: Device, inode, size and time of a manifest file: another manifest has another one.
Signature = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Entry:
    """How the manifest names a segment: the file's name, its SHA-256 and its length in bytes."""

    file: str
    sha256: str
    bytes: int

    @property
    def version(self) -> int:
        """The version that it made."""
        return int(Path(self.file).stem)


@dataclass(frozen=True)
class Manifest:
    """One version of the catalogue.

    Attributes:
        version: Counts the changes; 0 is a run without additions.
        base: Folder of the base inside the bundle; empty where the base is a run.
        base_hash: What the base must be: the hash of its description, or the fingerprint of the run.
        segments: The changes since the base, oldest first.
    """

    version: int = 0
    base: str = ""
    base_hash: str = ""
    segments: tuple[Entry, ...] = field(default=())

    @property
    def first(self) -> int:
        """The version of the base alone: 0 where it is a run."""
        return int(self.base.removeprefix("base-") or 0)

    def versions(self) -> set[int]:
        """The versions that can be made of the files it names."""
        return {self.first, self.version, *(entry.version for entry in self.segments)}

    def to_json(self) -> str:
        """One JSON object with a checksum over all the rest."""
        body = {
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "base": self.base,
            "base_hash": self.base_hash,
            "segments": [[entry.file, entry.sha256, entry.bytes] for entry in self.segments],
        }
        return json.dumps({**body, "checksum": _checksum(body)}) + "\n"


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class Journal:
    """Reads and writes the segments and the manifest of one folder.

    Args:
        folder: The bundle, or ``RUN/additions``; made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def signature(self) -> Signature:
        """Changes whenever the manifest does; None where there is none. Costs one system call."""
        try:
            found = (self.folder / MANIFEST).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def read(self, name: str = MANIFEST) -> Manifest | None:
        """The manifest, or None where there is none.

        Args:
            name: Another one than that which counts.

        Raises:
            InputError: It is torn, or of another format version.
        """
        path = self.folder / name
        try:
            body = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"the manifest cannot be read ({error})", path=path) from error
        if not isinstance(body, dict) or "checksum" not in body:
            raise InputError("this is not a manifest of served items", path=path)
        if body.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"format version {body.get('format_version')!r} is not known (this is version {FORMAT_VERSION})",
                path=path,
                hint="install a newer firstlight",
            )
        if body.pop("checksum") != _checksum(body):
            raise InputError("the manifest is torn or was changed (its checksum differs)", path=path)
        try:
            entries = tuple(Entry(Path(file).name, sha256, size) for file, sha256, size in body["segments"])
            return Manifest(body["version"], body["base"], body["base_hash"], entries)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"entries of the manifest are missing ({error!r})", path=path) from error

    def load(self, entry: Entry) -> Segment:
        """Read one segment and check it.

        Raises:
            InputError: It is missing or is not what was written; the message names the file.
        """
        return self._parsed(entry, Segment.from_bytes)

    def contents(self, entry: Entry) -> dict[str, bytes]:
        """Raw id of each item that a segment added → what is kept of its content, or nothing.

        Raises:
            InputError: It is missing or is not what was written; the message names the file.
        """
        return self._parsed(entry, Segment.contents_from)

    def _parsed(self, entry: Entry, parse: Callable[[bytes], Parsed]) -> Parsed:
        path = self.folder / SEGMENTS / entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"a segment that the manifest names cannot be read ({error})", path=path
            ) from error
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise InputError("this segment is torn or was changed (its SHA-256 differs)", path=path)
        try:
            return parse(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise InputError(f"not a segment ({error})", path=path) from error

    def append(self, manifest: Manifest, segment: Segment) -> Manifest:
        """Write ``segment`` and the manifest that names it; what was written before is not touched.

        Only the holder of :meth:`lock` may call this, with the manifest that stands on disk.

        Raises:
            FirstlightError: The disk is full or refuses; the catalogue is as it was.
        """
        version = manifest.version + 1
        entry = self.write(version, segment)
        after = replace(manifest, version=version, segments=(*manifest.segments, entry))
        try:
            self.publish(after)
        except FirstlightError:  # and nothing else: after an interruption the manifest may name the segment
            with suppress(OSError):
                (self.folder / SEGMENTS / entry.file).unlink()
            raise
        return after

    def write(self, version: int, segment: Segment) -> Entry:
        """Write a segment that no manifest names yet.

        Raises:
            FirstlightError: The disk is full or refuses.
        """
        data = segment.to_bytes()
        path = self.folder / SEGMENTS / f"{version:08d}.safetensors"
        with writing(path) as temporary:
            temporary.write_bytes(data)
        return Entry(path.name, hashlib.sha256(data).hexdigest(), len(data))

    def publish(self, manifest: Manifest) -> None:
        """Replace the manifest: this is the moment at which a change counts."""
        with writing(self.folder / MANIFEST) as temporary:
            temporary.write_text(manifest.to_json(), encoding="utf-8")

    def keep(self, manifest: Manifest) -> None:
        """Write a manifest as ``manifest-VERSION.json``, so that its versions can be gone back to."""
        with writing(self.folder / f"manifest-{manifest.version:08d}.json") as temporary:
            temporary.write_text(manifest.to_json(), encoding="utf-8")

    def lineages(self, current: Manifest) -> list[Manifest]:
        """The manifest that counts and those that were kept, by version; each names all that its versions need."""
        kept = (self.read(path.name) for path in self._children("") if path.match("manifest-*.json"))
        found = {manifest.version: manifest for manifest in kept if manifest is not None}
        return [manifest for _, manifest in sorted({**found, current.version: current}.items())]

    def at(self, current: Manifest, version: int) -> Manifest:
        """What the manifest was at an older version.

        Changes are numbered by the version that they made and manifests are kept whenever the next one does not go
        on from them. So the oldest manifest that is no older than a version, without newer changes, is that version.

        Raises:
            InputError: There never was such a version, or its files were pruned.
        """
        lineages = self.lineages(current)
        for manifest in lineages:
            if manifest.version >= version:
                if version not in manifest.versions():
                    break
                segments = tuple(entry for entry in manifest.segments if entry.version <= version)
                return replace(manifest, version=version, segments=segments)
        known = sorted(set().union(*(manifest.versions() for manifest in lineages)))
        raise InputError(
            f"version {version} is not kept",
            path=self.folder,
            hint=f"the newest that are: {', '.join(map(str, known[-10:]))}",
        )

    def strays(self, manifest: Manifest | None) -> list[Path]:
        """Files that do not count: of interrupted writes, of versions before the base, and strangers.

        Temporary files of a writer that is still at work are among them, so delete them under the lock only.
        """
        named = {entry.file for entry in manifest.segments} if manifest else set()
        base = manifest.base if manifest else ""
        known = {MANIFEST, LOCK, SEGMENTS, CARRY, base, f"{base}.index"}
        found = [path for path in self._children("") if path.name not in known]
        return sorted(found + [path for path in self._children(SEGMENTS) if path.name not in named])

    def interrupted(self, manifest: Manifest | None) -> list[Path]:
        """Those of :meth:`strays` that an interrupted write left: temporary files, and what is newer than all."""
        version = manifest.version if manifest else 0
        found = []
        for path in self.strays(manifest):
            number = path.stem.removeprefix("base-")
            if path.name.startswith(".") or (number.isdecimal() and int(number) > version):
                found.append(path)
        return found

    def _children(self, name: str) -> list[Path]:
        folder = self.folder / name
        return list(folder.iterdir()) if folder.is_dir() else []

    @contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """Be the only writer.

        The system gives the lock up when its holder dies, however it dies.

        Args:
            wait: Seconds to wait for another writer.

        Raises:
            FirstlightError: Another writer holds it for longer, or the folder cannot be written.
        """
        import fcntl  # not on every system: reading works without

        path = self.folder / LOCK
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FirstlightError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            deadline = time.monotonic() + wait
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise _locked(self.folder, os.pread(handle, 20, 0), wait) from None
                    time.sleep(_LOOK_AGAIN)
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)


def _locked(folder: Path, holder: bytes, wait: float) -> FirstlightError:
    process = f" (process {holder.decode(errors='replace')})" if holder else ""
    return FirstlightError(
        f"{folder} is being written by another process{process}; waited {wait:g} s\n"
        "  → try again when it has finished"
    )
