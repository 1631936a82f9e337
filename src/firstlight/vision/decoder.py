"""Picture files to RGB, whatever a platform's uploads hold; never a crash, never a bomb."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

#: What is decoded. Other formats of Pillow run outside programs (EPS) or are no pictures for the web.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
#: Larger files are refused unread.
MAX_BYTES = 64 * 2**20
#: Pictures with more pixels are refused unread: a few kilobytes can unfold to gigabytes.
MAX_PIXELS = 50_000_000


class UnusableImageError(Exception):
    """A picture cannot be used; the message says why."""

    def __reduce__(self) -> tuple[type[UnusableImageError], tuple[str]]:
        return type(self), (str(self),)


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_address(name: str) -> bool:
    """Whether a picture is given by a web address."""
    return name.startswith(("http://", "https://"))


def image_bytes(
    value: Any, folder: Path | None, max_bytes: int = MAX_BYTES, *, listed: bool = False
) -> bytes | None:
    """The file's content.

    Args:
        value: Bytes, a path relative to ``folder``, or ``{"bytes": …, "path": …}`` as image columns of
            some Parquet files have it.
        folder: Where paths start; they must not lead out of it.
        max_bytes: Largest file.
        listed: Whether paths were found by listing the folder, not read from a table that anyone may have written:
            then links in it may lead wherever its owner likes.

    Returns:
        None if there is no picture.

    Raises:
        UnusableImageError: There should be one, but it cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        return None
    if isinstance(value, str):
        value = _file_bytes(value, folder, max_bytes, listed)
    if not isinstance(value, bytes):
        raise UnusableImageError(f"neither bytes nor a path but {type(value).__name__}")
    if len(value) > max_bytes:
        raise UnusableImageError(f"{len(value)} bytes are too many")
    return value


def _file_bytes(name: str, folder: Path | None, max_bytes: int, listed: bool) -> bytes:
    if is_address(name) and not listed:
        raise UnusableImageError("a web address; fetch the pictures first")
    if folder is None:
        raise UnusableImageError("a path, but no folder is known that it starts from")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        raise UnusableImageError(f"{name!r} is not relative to the folder")
    try:
        path, root = (folder / name).resolve(), folder.resolve()
        if not listed and not path.is_relative_to(root):
            raise UnusableImageError(f"{name!r} leads out of the folder")
        if not path.is_file():
            raise UnusableImageError(f"{name!r} is missing")
        if path.stat().st_size > max_bytes:
            raise UnusableImageError(f"{name!r} has {path.stat().st_size} bytes, which are too many")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, a NUL in the name, a loop of links
        raise UnusableImageError(f"{name!r} cannot be read ({error})") from error


def decode_rgb(
    content: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode, turn upright, lay over white.

    Args:
        content: A picture file; of an animation the first frame counts.
        max_pixels: Largest picture.
        at_least: Width and height below which the picture will not be wanted larger: a JPEG can be decoded at a
            fraction of its size, at a fraction of the time.

    Returns:
        An RGB picture.

    Raises:
        UnusableImageError: It is torn, no picture, or too large.
    """
    with _opened(content, max_pixels, at_least) as image:
        return _rgb(_upright(image))


def rgb_size(
    content: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Width and height of what :func:`decode_rgb` gives, by the head of the file alone.

    A good guess: some files say only behind their pixels that they are to be turned.

    Args:
        content: As :func:`decode_rgb` takes it.
        max_pixels: Likewise.
        at_least: Likewise.

    Raises:
        UnusableImageError: It has no head that can be read, or it is too large.
    """
    with _opened(content, max_pixels, at_least) as image:
        turned = 1
        if image.format != "TIFF":  # the size of these is that of the turned picture already
            with suppress(Exception):  # torn EXIF
                turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        return (image.height, image.width) if turned in (5, 6, 7, 8) else image.size


@contextmanager
def _opened(content: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> Iterator[Image.Image]:
    """A picture whose pixels are not read yet; whatever goes wrong with it is one error.

    Raises:
        UnusableImageError: Something did.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of sizes that are checked below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                if image.width * image.height > max_pixels:
                    raise UnusableImageError(f"{image.width} × {image.height} pixels are too many")
                if at_least is not None:
                    image.draft("RGB", at_least)
                yield image
    except UnusableImageError:
        raise
    except Exception as error:  # torn files make Pillow raise nearly anything, from SyntaxError to IndexError
        raise UnusableImageError(f"cannot be decoded ({_reason(error)})") from error


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
