"""Small pictures of items, kept beside their vectors: what a page of recommendations shows.

A base keeps them in one file, one behind the other::

    covers.bin           the JPEG files
    covers.safetensors   ends (n_items + 1,) int64: picture i is bytes ends[i] to ends[i + 1]; nothing there: none
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import save_file

from firstlight.vision.decoder import MAX_BYTES, MAX_PIXELS, UnusableImageError, decode_rgb, image_bytes

#: The picture of an item row, or None.
Pictures = Callable[[int], bytes | None]

DATA, ENDS = "covers.bin", "covers.safetensors"
#: Longest side in pixels.
SIDE = 256


def thumbnail(content: bytes, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """A picture file as a small JPEG: decoded and written anew, so that nothing but pixels is left of it.

    Raises:
        UnusableImageError: It is torn, no picture, or too large.
    """
    image = decode_rgb(content, max_pixels=max_pixels, at_least=(SIDE, SIDE))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    # A fresh image: a decoded one may carry profiles and comments along.
    Image.frombytes("RGB", image.size, image.tobytes()).save(out, "JPEG", quality=82)
    return out.getvalue()


def pictures_of(covers: pl.Series, folder: Path | None, max_bytes: int = MAX_BYTES) -> Pictures:
    """Pictures of a column of covers (bytes, or paths relative to ``folder``); unusable ones are none."""

    def picture(row: int) -> bytes | None:
        value: Any = covers[row]
        try:
            content = image_bytes(value, folder, max_bytes)
            return None if content is None else thumbnail(content)
        except UnusableImageError:
            return None

    return picture


def write_pictures(folder: Path, picture: Pictures, n: int) -> None:
    """Write the two files, if there is any picture; only one picture is held at a time."""
    ends = np.zeros(n + 1, np.int64)
    with (folder / DATA).open("wb") as out:
        for row in range(n):
            ends[row + 1] = ends[row] + out.write(picture(row) or b"")
    if ends[-1]:
        save_file({"ends": torch.from_numpy(ends)}, folder / ENDS)
    else:
        (folder / DATA).unlink()
