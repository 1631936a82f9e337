"""What new items were made of, kept so that another model can place them, too.

A vector means something to one model only. When a server goes over to the next one, what was added to the old catalogue
is encoded again, from the very content that came with it: texts, the file of the cover, features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.data.catalogue import FeatureMatrix
from firstlight.serving.new_items import NewItems
from firstlight.views.words import NO_TEXT_COLUMNS
from firstlight.vision.decoder import UnusableImageError, image_bytes

#: Covers of one call of ``add-items`` that are kept, in bytes: the whole segment is held in memory as it is written.
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Kept:
    """The content of an item.

    Attributes:
        texts: Column → text, list of texts, or number.
        cover: The picture file as it came, or None.
        features: Name → values.
    """

    texts: dict[str, Any] = field(default_factory=dict)
    cover: bytes | None = None
    features: dict[str, list[float]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A line of JSON, and the picture behind it."""
        head = json.dumps({"texts": self.texts, "features": self.features}).encode()
        return head + b"\n" + (self.cover or b"")

    @classmethod
    def from_bytes(cls, data: bytes) -> Kept:
        """Inverse of :meth:`to_bytes`."""
        head, _, cover = data.partition(b"\n")
        return cls(cover=cover or None, **json.loads(head))


@dataclass(frozen=True, eq=False)
class Additions:
    """Items of a base that came by addition and not by training, with what is kept of them.

    Attributes:
        ids: Raw ids.
        read: Place in ``ids`` → :meth:`Kept.to_bytes`, or nothing where no content was kept.
    """

    ids: Sequence[str] = ()
    read: Callable[[int], bytes] = lambda _: b""

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Ids and contents."""
        return ((item, self.read(at)) for at, item in enumerate(self.ids))


def contents_of(new: NewItems) -> tuple[list[bytes], list[str]]:
    """What is kept of new items.

    Returns:
        ``(n,)`` :meth:`Kept.to_bytes`, or nothing for an item whose content cannot be kept whole (a clip is a file
        elsewhere, and covers come to an end at :data:`MOST_BYTES`); and what could not be kept, a sentence each.
    """
    table, left = new.catalogue.items, MOST_BYTES
    kept: list[bytes] = []
    for row in range(len(new.ids)):
        cover = None
        whole = _nothing_in(table, "clip", row)
        if whole and not _nothing_in(table, "cover", row):
            try:
                cover = image_bytes(table["cover"][row], new.folder)
            except UnusableImageError:
                cover = None  # the views could not use it either
            left -= len(cover or b"")
            whole = left >= 0
        features = {name: _row(matrix, row) for name, matrix in new.catalogue.features.items()}
        given = {name: values for name, values in features.items() if values is not None}
        kept.append(Kept(_texts(table, row), cover, given).to_bytes() if whole else b"")
    lost = sum(not content for content in kept)
    notes = [f"the content of {lost:,} items is not kept: add them again to a bundle of another model"]
    return kept, notes if lost else []


def _nothing_in(table: pl.DataFrame, column: str, row: int) -> bool:
    return column not in table.columns or not table[column][row]


def _texts(table: pl.DataFrame, row: int) -> dict[str, Any]:
    """What views may read as text; other types mean nothing to them."""
    names = (name for name in table.columns if name not in NO_TEXT_COLUMNS)
    cells = {name: table[name][row] for name in names}
    cells = {name: cell.to_list() if isinstance(cell, pl.Series) else cell for name, cell in cells.items()}
    return {
        name: cell for name, cell in cells.items() if isinstance(cell, str | int | float) or _is_list(cell)
    }


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(entry, str | int | float) for entry in cell)


def _row(matrix: FeatureMatrix, row: int) -> list[float] | None:
    if not matrix.present[row]:
        return None
    values: list[float] = matrix.values[row].tolist()
    return values


def joined(blobs: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes one behind the other, and where each ends: ``(Σ bytes,)`` and ``(n + 1,)``."""
    data = np.frombuffer(b"".join(blobs), np.uint8)
    return data, np.concatenate([[0], np.cumsum([len(blob) for blob in blobs])]).astype(np.int64)
