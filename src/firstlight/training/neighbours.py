"""Content neighbours that were found before: lists of a catalogue on disk, named by the content that decides them.

One setting, the environment variable ``FIRSTLIGHT_CACHE``, names the folder; empty switches it off. Without it the
folder is ``firstlight`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``). Everything in it may be
deleted at any time. It holds at most a gigabyte: what was used least recently goes first.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from firstlight.core.events import Emit, silent
from firstlight.core.files import atomic_path
from firstlight.core.hashing import hash_arrays, hash_strings
from firstlight.graphs.ann import version
from firstlight.graphs.knn import Finder, Method, Neighbours, chosen_method, item_neighbours

VARIABLE = "FIRSTLIGHT_CACHE"
#: Bytes of all lists together.
LIMIT = 1 << 30
#: Products of two elements below which ranking takes no longer than a fraction of a second: not worth a file.
WORTH = 5 * 10**9
#: Of the way of ranking and of the files: to be raised where one of them changes.
_VERSION = 1


def cache_folder() -> Path | None:
    """Where things may be kept that can be made again; None where that is switched off, or there is no home."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "firstlight"
    except RuntimeError:
        return None


def remembering_finder(emit: Emit = silent) -> Finder:
    """What finds content neighbours in a run: with the cache, unless it is switched off."""
    folder = cache_folder()
    return item_neighbours if folder is None else NeighbourCache(folder / "neighbours", emit)


class NeighbourCache:
    """:func:`firstlight.graphs.knn.item_neighbours` with a memory.

    A file is written atomically and carries a hash of its lists; one that is torn or changed is made anew. A folder
    that cannot be written is told of and costs nothing but the memory.

    Args:
        folder: Where the files are.
        emit: Receives a message where lists were read, or could not be kept.
        limit: Bytes of all files together.
        worth: Products of two elements from which lists are kept.
    """

    def __init__(self, folder: Path, emit: Emit = silent, *, limit: int = LIMIT, worth: int = WORTH) -> None:
        self.folder, self.emit = folder, emit
        self.limit, self.worth = limit, worth

    def __call__(
        self,
        features: Tensor,
        k: int,
        *,
        allowed: Tensor | None = None,
        without_self: bool = False,
        method: Method = "exact",
    ) -> Neighbours:
        """See :func:`firstlight.graphs.knn.item_neighbours`."""
        n_keys = len(features) if allowed is None else int(allowed.sum())
        method = chosen_method(method, n_keys)  # what ``auto`` comes to hangs on the machine
        how: dict[str, Any] = {"allowed": allowed, "without_self": without_self, "method": method}
        if features.numel() * n_keys < self.worth:
            return item_neighbours(features, k, **how)
        path = self.folder / f"{_digest(features, k, **how)}.safetensors"
        known = _read(path, len(features), k)
        if known is not None:
            self.emit("message", text=f"content neighbours of {len(features):,} items: known from {path}")
            return known
        found = item_neighbours(features, k, **how)
        try:
            self._write(path, found)
        except (OSError, SafetensorError) as error:
            self.emit("message", text=f"content neighbours are not kept in {self.folder}: {error}")
        return found

    def _write(self, path: Path, found: Neighbours) -> None:
        """Write one file; others make room for it."""
        tensors = {"ids": found.ids.to(torch.int32), "similarities": found.similarities}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit:
            return
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"sha256": _content(tensors)})
        total = 0
        for _, bytes_, file in sorted(self._files(), reverse=True):
            total += bytes_
            if total > self.limit and file != path:
                file.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each file, half-written ones of killed processes included."""
        found = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process made room
                about = file.stat()
                found.append((about.st_mtime_ns, about.st_size, file))
        return found


def _digest(features: Tensor, k: int, *, allowed: Tensor | None, without_self: bool, method: Method) -> str:
    """Hash of everything that decides the lists."""
    arrays = hash_arrays([features.detach().numpy(), None if allowed is None else allowed.numpy()])
    library = version() if method == "faiss" else ""
    return hash_strings([str(_VERSION), arrays, str(k), str(without_self), method, library])


def _content(tensors: dict[str, Tensor]) -> str:
    return hash_arrays(tensors[name].contiguous().numpy() for name in sorted(tensors))


def _read(path: Path, n: int, k: int) -> Neighbours | None:
    """The lists in a file, or None where there is none that is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("ids", "similarities")}
    except (OSError, SafetensorError):
        return None
    if about.get("sha256") != _content(tensors):
        return None
    if any(tensor.shape != (n, k) for tensor in tensors.values()):
        return None
    with suppress(OSError):
        os.utime(path)
    return Neighbours(tensors["ids"].long(), tensors["similarities"])
