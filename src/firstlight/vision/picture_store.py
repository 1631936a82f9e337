"""Picture files by row that are not held in memory: what image sets read from Parquet columns.

A Parquet column can only be read in large pieces, and not from the worker processes of a loader (polars has threads of
its own, which do not survive a fork). So its pictures are laid out once, end to end, in a temporary file, from which
any process reads any of them; a few megabytes stay in memory instead. The file goes when the store does. One that a
killed process left behind goes when the next store is made.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from firstlight.core.errors import FirstlightError, InputError

IntArray = npt.NDArray[np.int64]

#: Pictures that take no more than so many bytes together stay in memory.
HELD_BYTES = 32 << 20
#: Names of the temporary files, and how old one must be before it may be taken for left behind.
_PREFIX, _SETTLED_SECONDS = "firstlight-pictures-", 60


class PictureStore(Sequence[bytes | str | None]):
    """Picture files, paths of picture files, or nothing, by row; read-only.

    It may be read from threads and forked processes, and pickled: what travels is where the rows lie.

    Args:
        starts: ``(n,)`` where each row begins.
        lengths: ``(n,)`` its bytes; 0: nothing.
        paths: ``(n,)`` whether it is a path.
        source: All of it, or the file that holds it.

    Attributes:
        lengths: As given.
    """

    def __init__(
        self,
        starts: IntArray,
        lengths: IntArray,
        paths: npt.NDArray[np.bool_],
        source: bytes | _Scratch,
    ) -> None:
        self._starts, self.lengths, self._paths, self._source = starts, lengths, paths, source

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: Any) -> Any:
        """A picture file's bytes, a path, or None; only single rows can be asked for."""
        start, length = int(self._starts[row]), int(self.lengths[row])
        if not length:
            return None
        source = self._source
        content = source[start : start + length] if isinstance(source, bytes) else source.read(start, length)
        return content.decode() if self._paths[row] else content

    def select(self, rows: IntArray) -> PictureStore:
        """Some rows, in the order given; nothing is copied."""
        return PictureStore(self._starts[rows], self.lengths[rows], self._paths[rows], self._source)


def store_pictures(pictures: Iterable[bytes | str | None], held_bytes: int = HELD_BYTES) -> PictureStore:
    """Lay pictures out.

    Args:
        pictures: Bytes of a file, a path, or nothing, a row each; read once.
        held_bytes: Up to so many bytes stay in memory. More go to a file in the system's temporary folder, which the
            environment variable ``TMPDIR`` moves.

    Raises:
        InputError: The temporary folder cannot take them.
    """
    lengths, paths = array("q"), bytearray()
    held, scratch, out = bytearray(), None, None
    try:
        for picture in pictures:
            content = picture.encode() if isinstance(picture, str) else picture or b""
            lengths.append(len(content))
            paths.append(isinstance(picture, str))
            if scratch is None and len(held) + len(content) > held_bytes:
                scratch = _Scratch()
                out = scratch.path.open("r+b")
                out.write(held)
                held.clear()
            if out is None:
                held += content
            else:
                out.write(content)
    except OSError as error:
        raise _no_room(error) from error
    finally:
        _close(out)
    sizes = np.frombuffer(lengths, np.int64) if lengths else np.zeros(0, np.int64)
    starts = np.cumsum(sizes) - sizes
    return PictureStore(starts, sizes, np.frombuffer(bytes(paths), np.bool_), scratch or bytes(held))


def _close(out: IO[bytes] | None) -> None:
    if out is not None:
        try:
            out.close()  # writes what is left
        except OSError as error:
            raise _no_room(error) from error


def _no_room(error: OSError) -> InputError:
    return InputError(
        f"the pictures cannot be laid out in the temporary folder ({error.strerror or error})",
        path=tempfile.gettempdir(),
        hint="it takes as much room as the pictures do; another folder: set TMPDIR, or give a folder of files",
    )


class _Scratch:
    """A temporary file of this process, marked as in use by a lock; processes that get a copy only read it."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        handle, name = tempfile.mkstemp(prefix=_PREFIX)
        _locked(handle)
        self._attach(Path(name), handle, True)

    def _attach(self, path: Path, handle: int, own: bool) -> None:
        self.path, self._handle = path, handle
        weakref.finalize(self, _let_go, path, handle, own, os.getpid())

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self._attach(path, os.open(path, os.O_RDONLY), False)

    def read(self, start: int, length: int) -> bytes:
        """Some bytes; threads and forked processes share nothing by it, least of all a position."""
        try:
            if hasattr(os, "pread"):
                content = os.pread(self._handle, length, start)
            else:
                with self.path.open("rb", buffering=0) as file:
                    file.seek(start)
                    content = file.read(length)
        except OSError as error:
            raise FirstlightError(f"{self.path}: the pictures laid out here are gone ({error})") from error
        if len(content) < length:
            raise FirstlightError(f"{self.path}: the pictures laid out here were cut off")
        return content


def _let_go(path: Path, handle: int, own: bool, owner: int) -> None:
    if os.getpid() != owner:  # a forked process has copies of the store and of the handle, not the file
        return
    with suppress(OSError):
        os.close(handle)  # first: some systems remove no open file
    if own:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _locked(handle: int) -> bool:
    """Lock a file for as long as its handle is open; False if another process has it, or there are no locks."""
    try:
        import fcntl  # not on every system

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: files that nobody locks, old enough to have been locked."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < _SETTLED_SECONDS:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                if _locked(handle):
                    path.unlink()
            finally:
                os.close(handle)
