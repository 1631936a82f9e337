"""Images by row, wherever they come from; nothing is decoded before it is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from firstlight.vision.decoder import UnusableImageError, decode_rgb, image_bytes, rgb_size

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by row; nothing is decoded before :meth:`load`.

    Attributes:
        ids: Raw id of each row, all different.
        source: Where the images came from.
        content_hash: SHA-256 over ids and bytes; for files, over ids and sizes (a million files would take too long).
        values: What the images are: bytes, paths relative to ``folder``, or ``{"bytes": …, "path": …}``. Pictures from
            Parquet files stay on disk, in a :class:`~firstlight.vision.picture_store.PictureStore`.
        folder: Where paths start.
        labels: ``(n,)`` int64 class of each row, or None.
        classes: Name of each class, or None.
        missing: Rows of the source without an image; they are not counted among the rows here.
        listed: Whether paths were found by listing ``folder``, so that links may lead out of it.
    """

    ids: list[str]
    source: str
    content_hash: str
    values: Sequence[Any]
    folder: Path | None = None
    labels: IntArray | None = None
    classes: list[str] | None = None
    missing: int = 0
    listed: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, row: int, covers: tuple[int, int] | None = None) -> Image.Image:
        """One image as RGB, turned upright.

        Args:
            row: Which.
            covers: Height and width; a larger image is shrunk until it just covers them, which makes decoding a
                large JPEG several times faster. None: its own size.

        Raises:
            UnusableImageError: It cannot be read or decoded; the message says why.
        """
        image = decode_rgb(self._content(row), at_least=_smallest(covers))
        size = _shrunk(image.size, covers)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    def size(self, row: int, covers: tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width that :meth:`load` will give an image, by the head of its file; nearly always so.

        Args:
            row: Which.
            covers: As for :meth:`load`.

        Raises:
            UnusableImageError: It cannot be read.
        """
        width, height = _shrunk(rgb_size(self._content(row), at_least=_smallest(covers)), covers)
        return height, width

    def _content(self, row: int) -> bytes:
        content = image_bytes(self.values[row], self.folder, listed=self.listed)
        if content is None:
            raise UnusableImageError("there is no picture")
        return content


def _smallest(covers: tuple[int, int] | None) -> tuple[int, int] | None:
    """Width and height below which an image that is to cover a size need not be decoded, however it is turned."""
    return None if covers is None else (max(covers), max(covers))


def _shrunk(size: tuple[int, int], covers: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of an image of the given ones once it just covers a height and width; never larger."""
    width, height = size
    scale = 1.0 if covers is None else max(covers[0] / height, covers[1] / width)
    return size if scale >= 1 else (math.ceil(width * scale), math.ceil(height * scale))


def hash_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of pieces, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()
