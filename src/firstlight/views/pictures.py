"""Cover files to small RGB pictures, whatever a platform's uploads hold; never a crash, never a bomb."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from firstlight.views.config import CoverConfig

#: What is decoded. Other formats of Pillow run outside programs (EPS) or are no pictures for the web.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")


class UnusableCoverError(Exception):
    """A cover cannot be used; the message says why."""


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_address(name: str) -> bool:
    """Whether a cover is given by a web address."""
    return name.startswith(("http://", "https://"))


def cover_bytes(value: Any, folder: Path | None, max_bytes: int) -> bytes | None:
    """The file's content.

    Args:
        value: Bytes, a path relative to ``folder``, or ``{"bytes": …, "path": …}`` as image columns of
            some Parquet files have it.
        folder: Where paths start; they must not lead out of it.
        max_bytes: Largest file.

    Returns:
        None if there is no cover.

    Raises:
        UnusableCoverError: There should be one, but it cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        return None
    if isinstance(value, str):
        value = _file_bytes(value, folder, max_bytes)
    if not isinstance(value, bytes):
        raise UnusableCoverError(f"neither bytes nor a path but {type(value).__name__}")
    if len(value) > max_bytes:
        raise UnusableCoverError(f"{len(value)} bytes are too many")
    return value


def _file_bytes(name: str, folder: Path | None, max_bytes: int) -> bytes:
    if is_address(name):
        raise UnusableCoverError("a web address; fetch the covers first")
    if folder is None:
        raise UnusableCoverError("a path, but no folder is known that it starts from")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        raise UnusableCoverError(f"{name!r} is not relative to the folder")
    try:
        path, root = (folder / name).resolve(), folder.resolve()
        if not path.is_relative_to(root):
            raise UnusableCoverError(f"{name!r} leads out of the folder")
        if not path.is_file():
            raise UnusableCoverError(f"{name!r} is missing")
        if path.stat().st_size > max_bytes:
            raise UnusableCoverError(f"{name!r} has {path.stat().st_size} bytes, which are too many")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, a NUL in the name, a loop of links
        raise UnusableCoverError(f"{name!r} cannot be read ({error})") from error


def decode(content: bytes, config: CoverConfig) -> npt.NDArray[np.uint8]:
    """Decode, turn upright, lay over white, resize.

    Args:
        content: A picture file; of an animation the first frame counts.
        config: Size and limits.

    Returns:
        ``(size, size, 3)`` uint8 sRGB.

    Raises:
        UnusableCoverError: It is torn, no picture, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of odd metadata and of sizes that are checked below
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                if image.width * image.height > config.max_pixels:
                    raise UnusableCoverError(f"{image.width} × {image.height} pixels are too many")
                # A JPEG can be decoded at a fraction of its size, at a fraction of the time.
                image.draft("RGB", (2 * config.size, 2 * config.size))
                small = _rgb(_upright(image)).resize((config.size, config.size), Image.Resampling.BOX)
        return np.asarray(small, np.uint8)
    except UnusableCoverError:
        raise
    except Exception as error:  # torn files make Pillow raise nearly anything, from SyntaxError to IndexError
        raise UnusableCoverError(f"cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # Pillow's own words here name the address of a buffer.
    return (
        "not a picture" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turn as EXIF says; telephones store portraits lying down. Torn EXIF does not spoil a good picture."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, transparency over white."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: conversion would cut off at 255
        grey = np.asarray(image, np.float64)
        grey = np.where(np.isfinite(grey), grey, 0.0)
        grey = grey * (255 / max(float(grey.max()), 255.0 if image.mode == "F" else 65535.0))
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8), "L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
