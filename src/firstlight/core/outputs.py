"""Places that the user named for what a command writes: what is wrong with them, in words, with the path as given.

A place that cannot be used is bad input (exit 2), whichever command was to write there. A disk that is full or fails is
a failure (exit 1): the command was right.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.core.errors import FirstlightError, InputError

_REASONS = {
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the disk is read-only",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where the file should go",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def output(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell in words why ``path`` cannot be written; other errors pass.

    Args:
        path: The file or folder as the user named it.

    Raises:
        InputError: It is no place to write to.
        FirstlightError: The disk is full, or fails.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not _touches(error, path):
            raise
        reason = _REASONS.get(error.errno or 0)
        if reason is not None:
            raise InputError(
                f"it cannot be written: {reason}",
                path=path,
                hint="choose another place, or make this one writable",
            ) from error
        full = error.errno == errno.ENOSPC
        said = "the disk is full" if full else (error.strerror or str(error))
        advice = (
            "free some space, then run it again" if full else "look after the disk, or choose another place"
        )
        raise FirstlightError(f"{path}: it could not be written: {said}\n  → {advice}") from error


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a folder to write that is a file.

    Raises:
        InputError: It is one.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError("a file stands where the folder should go", path=path, hint="choose another place")


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file to write that cannot be one, before there is work done that would be lost.

    Raises:
        InputError: It is a folder, or nothing can be written beside it.
    """
    path = Path(path)
    with output(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()


def _touches(error: OSError, path: Path) -> bool:
    """Whether an error is about ``path``: itself, something in or beside it, or a folder above it."""
    if error.filename is None:
        return True
    other, path = Path(str(error.filename)).absolute(), path.absolute()
    return path.parent in other.parents or other == path or other in path.parents
