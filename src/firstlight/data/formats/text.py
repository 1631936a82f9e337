"""Text as it comes: gzip, byte-order marks, and titles in old encodings."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from firstlight.core.errors import InputError
from firstlight.data.formats.base import Problems

BOM = b"\xef\xbb\xbf"


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzipped file for reading bytes.

    Raises:
        InputError: It is a directory, cannot be read, or its compressed data is cut off.
    """
    if path.is_dir():
        raise InputError("this is a folder, and a file was expected", path=path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"the compressed data is broken ({error})", path=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error})", path=path) from error


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed, without a byte-order mark."""
    with open_bytes(path) as handle:
        return handle.read().removeprefix(BOM)


def decode(raw: bytes) -> tuple[str, bool]:
    """Decode UTF-8, or else Windows-1252, or else Latin-1, which takes any byte.

    Returns:
        The text, and whether it was *not* UTF-8.
    """
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        try:
            return raw.decode("cp1252"), True
        except UnicodeDecodeError:
            return raw.decode("latin-1"), True


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Give ``(1-based line number, text without line end)``; lines that are not UTF-8 are noted."""
    with open_bytes(path) as handle:
        for line, raw in enumerate(handle, start=1):
            text, foreign = decode(raw.removeprefix(BOM) if line == 1 else raw)
            if foreign:
                problems.note("not UTF-8", path, "read as Windows-1252 or Latin-1", line=line)
            yield line, text.rstrip("\r\n")
