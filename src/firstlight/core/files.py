"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from firstlight.core.errors import FirstlightError, InputError


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable; file systems that cannot do so are left alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Give a temporary sibling of ``target`` to write to; rename it over ``target`` on success.

    A process killed at any moment leaves either the old file or the new one, never a torn one. The
    temporary file keeps the target's suffix, since some writers choose a format by it.

    Args:
        target: The file to create or replace; its parent folder is made if missing.

    Yields:
        The temporary path to write to.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(target: Path, then: str = "try again") -> Iterator[Path]:
    """:func:`atomic_path` that turns a full or read-only disk into a message about what is still safe.

    Args:
        target: The file to create or replace.
        then: What to do once there is room.

    Raises:
        FirstlightError: The file could not be written.
    """
    from safetensors import SafetensorError  # has its own name for a full disk

    try:
        with atomic_path(target) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        advice = "free some space" if full else "make the folder writable"
        raise FirstlightError(
            f"{target} could not be written: {reason}. What stood there before is unharmed.\n"
            f"  → {advice}, then {then}"
        ) from error


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; rename it to ``target`` on success.

    Args:
        target: A folder that does not exist yet, or is empty.

    Yields:
        The temporary folder to fill.

    Raises:
        FileExistsError: ``target`` exists and holds something.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not empty")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, so that two processes do not fill it at once; a killed process lets go of it by itself.

    Where the system or the disk knows no locks, nothing is held.

    Args:
        folder: Made if missing; a file ``.lock`` stays in it.
        what: What fills it, for the message: ``pipeline``.

    Raises:
        InputError: Another process is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"the folder cannot be written: {error.strerror}", path=folder) from error
    with handle:
        try:
            import fcntl  # not on every system

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another {what} is at work here", path=folder, hint="wait for it, or choose another --out"
            ) from error
        except (ImportError, OSError):
            pass
        yield


def files_below(folder: Path) -> Iterator[Path]:
    """All that is no folder below a folder, links to folders followed; a folder that two ways lead to is met once.

    Links wait until the folders proper are done: those keep their own names, and links in a ring end.
    """
    for place, names, _ in _walk(folder):
        yield from (place / name for name in names)


def folder_links_below(folder: Path) -> Iterator[Path]:
    """All links to folders on the way of :func:`files_below`, those among them that lead to what was met before."""
    for place, _, links in _walk(folder):
        yield from (place / name for name in links)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder once, with the names in it of what is no folder, and of links to folders."""
    seen: set[str] = set()
    waiting = [str(folder)]
    while waiting:
        for here, folders, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(here)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            place = Path(here)
            links = [name for name in folders if (place / name).is_symlink()]
            waiting += [str(place / name) for name in links]
            yield place, names, links


def write_text(target: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has no such numbers."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a UTF-8 JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
