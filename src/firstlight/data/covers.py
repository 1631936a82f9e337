"""Whether covers and clips are there, and begin like pictures; nothing is decoded."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import polars as pl

from firstlight.data.formats.base import Problems

#: How many items a message names.
EXAMPLES = 3
#: What JPEG and PNG files end with, maybe with something behind it: bytes at the end that are looked at.
_TAIL = 1 << 16
_HEAD = 16
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND"}
_STARTS = (b"GIF8", b"BM", b"II*\0", b"MM\0*")


def picture_fault(head: bytes, tail: bytes) -> str | None:
    """What a picture's first and last bytes say is wrong with it, or None."""
    if not head:
        return "cover that is empty"
    for start, end in _ENDS.items():
        if head.startswith(start):
            return None if end in tail else "cover that is cut off"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if webp or head[4:8] == b"ftyp" or head.startswith(_STARTS):  # ftyp: AVIF
        return None
    return "cover that is no picture"


def _file_fault(column: str, name: str, folder: Path) -> str | None:
    """What is wrong with a file that an item names, or None."""
    if name.startswith(("http://", "https://")):
        return f"{column} that is a web address"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return f"{column} file outside the folder"
    try:
        path, root = (folder / name).resolve(), folder.resolve()
        if not path.is_relative_to(root):
            return f"{column} file outside the folder"
        if not path.is_file():
            return f"missing {column} file"
        size = path.stat().st_size
        if column != "cover":
            return None if size else f"{column} that is empty"
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(-min(size, _TAIL), os.SEEK_END)
            return picture_fault(head, file.read())
    except (OSError, ValueError, RuntimeError):  # unreadable, a NUL in the name, a loop of links
        return f"{column} file that cannot be read"


def check_pictures(items: pl.DataFrame, item_ids: pl.Series, folder: Path, problems: Problems) -> None:
    """Note covers and clips that training cannot use, as far as a look at their ends tells.

    Args:
        items: The item table, row-aligned to the ids.
        item_ids: ``(n_items,)``.
        folder: What relative paths start from.
        problems: Gets one note a kind of fault, with the number of items and the first few.
    """
    for column in ("cover", "clip"):
        dtype = items.schema.get(column)
        faults: dict[str, list[str]] = defaultdict(list)
        if dtype not in (pl.String, pl.Binary):
            continue
        for item, cell in zip(item_ids, items[column], strict=True):
            if not cell:
                continue
            if isinstance(cell, str):
                fault, named = _file_fault(column, cell, folder), f"item {item!r} ({cell})"
            else:
                fault, named = picture_fault(cell[:_HEAD], cell[-_TAIL:]), f"item {item!r}"
            if fault is not None and (column == "cover" or dtype == pl.String):
                faults[fault].append(named)
        for fault, found in faults.items():
            more = ", …" if len(found) > EXAMPLES else ""
            problems.note(fault, folder, f"{fault}: {', '.join(found[:EXAMPLES])}{more}", len(found))
