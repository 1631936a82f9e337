"""Text as it comes: gzip, byte-order marks, UTF-16, lines that end in CR, and titles in old encodings."""

from __future__ import annotations

import gzip
import io
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from firstlight.core.errors import InputError
from firstlight.data.formats.base import Problems

BOM = b"\xef\xbb\xbf"
#: What files begin with that have the name of a text and are none: what they are, and what to do.
NO_TEXT = {
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"PK\x03\x04": ("a zip archive or an Excel sheet", "save the table as CSV"),
    b"\xd0\xcf\x11\xe0": ("an Excel sheet", "save the table as CSV"),
    b"\x1f\x8b": ("compressed by gzip", "let its name end in .gz"),
}
#: Marks at the beginning of wide encodings; the longer ones first.
WIDE = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_HEAD = 1 << 16  # bytes that are looked at to tell what a file is


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzipped file for reading bytes.

    Raises:
        InputError: It is a directory, cannot be read, or its compressed data is cut off.
    """
    if path.is_dir():
        raise InputError("this is a folder, and a file was expected", path=path)
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"the compressed data is broken ({error})", path=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error})", path=path) from error


def plain_twin(path: Path, folder: Path) -> Path:
    """The file as uncompressed text in UTF-8 (or an old encoding of one byte a letter) with lines that end in LF.

    Args:
        path: A file of text.
        folder: Where a twin is written, if the file is not so itself.

    Returns:
        The file, or its twin.

    Raises:
        InputError: It is no text, or cannot be read.
    """
    with open_bytes(path) as handle:
        head = handle.read(_HEAD)
    for magic, (what, hint) in NO_TEXT.items():
        if head.startswith(magic):
            raise InputError(f"this is not text but {what}", path=path, hint=hint)
    wide = next((name for mark, name in WIDE.items() if head.startswith(mark)), None)
    if wide is None and b"\0" in head.partition(b"\n")[0]:
        raise InputError("this is not text in UTF-8: it holds zero bytes", path=path, hint="save it as UTF-8")
    letters = head if wide is None else head.replace(b"\0", b"")
    only_cr = b"\r" in letters and b"\n" not in letters
    twin = folder / "plain.txt"
    if wide is not None or only_cr:
        _write_utf8(path, twin, wide, only_cr=only_cr)
    elif path.suffix.lower() == ".gz":
        with open_bytes(path) as source, twin.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    else:
        return path
    return twin


def _write_utf8(path: Path, twin: Path, encoding: str | None, *, only_cr: bool) -> None:
    """Write a copy in UTF-8; without an encoding the bytes stay, and only the ends of lines change."""
    try:
        with open_bytes(path) as source, twin.open("wb") as sink:
            text = io.TextIOWrapper(source, encoding or "latin-1", newline="")
            while piece := text.read(1 << 20):
                piece = piece.replace("\r", "\n") if only_cr else piece
                sink.write(piece.encode("utf-8" if encoding else "latin-1"))
    except UnicodeError as error:
        raise InputError(
            f"this is not {encoding} as it begins ({error})", path=path, hint="save it as UTF-8"
        ) from error


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
