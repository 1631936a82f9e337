"""Texts to words: any script, lists, and what data sets write where they have no text."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.formats.items import NOT_A_TEXT

#: Columns of the item table that are never texts.
NO_TEXT_COLUMNS = frozenset({"cover", "clip", "role", "arrived", "item"})

_NO_TEXT = frozenset(word.casefold() for word in NOT_A_TEXT)
#: Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_PICTURES = "\u2600-\u27bf\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff"
_UNSPACED_FIRST = re.compile(f"[{_UNSPACED}]")
_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")


@lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    r"""A letter or digit and what follows it, marks included, or one pictograph.

    ``\w`` alone leaves out combining marks and so would cut Hindi or Arabic words at every vowel sign.
    """
    marks = "".join(
        re.escape(chr(code)) for code in range(0x300, 0xFE00) if unicodedata.category(chr(code))[0] == "M"
    )
    return re.compile(rf"[^\W_](?:[^\W_]|[{marks}])*|[{_PICTURES}]")


def words(text: str, ngrams: int = 1) -> Iterator[str]:
    """The words of a text, in compatibility form and without case.

    Runs of a script without spaces give their characters and pairs of neighbouring characters.

    Args:
        text: Any text.
        ngrams: Longest run of neighbouring words that is given as one more word, joined by spaces.
    """
    row: list[str] = []
    for match in _word().finditer(unicodedata.normalize("NFKC", text).casefold()):
        for run in _RUNS.findall(match.group()):
            if _UNSPACED_FIRST.match(run):
                yield from run
                yield from (run[at : at + 2] for at in range(len(run) - 1))
                row.clear()
                continue
            yield run
            row.append(run)
            for length in range(2, min(ngrams, len(row)) + 1):
                yield " ".join(row[-length:])


def pieces(value: Any, limit: int = sys.maxsize) -> Iterator[str]:
    """The texts in one cell: a string, ``A|B|C``, a list of these, or a number; none if there is no text.

    Args:
        value: The cell.
        limit: Characters read of a string.
    """
    if value is None or isinstance(value, (bytes, bytearray, dict)):
        return
    if isinstance(value, str):
        for piece in value[:limit].split("|"):
            if piece.strip().casefold() not in _NO_TEXT:
                yield piece
    elif isinstance(value, float):
        if value == value:  # not NaN
            yield str(int(value)) if value.is_integer() else str(value)
    elif isinstance(value, Iterable):
        for part in value:
            yield from pieces(part, limit)
    else:
        yield str(value)


def _holds_text(dtype: pl.DataType | type[pl.DataType]) -> bool:
    inner = getattr(dtype, "inner", None)  # of lists and arrays
    return (
        _holds_text(inner) if inner is not None else dtype in (pl.String, pl.Categorical, pl.Enum, pl.Object)
    )


def text_columns(items: pl.DataFrame) -> list[str]:
    """Columns that are texts by their type, in the table's order."""
    return [
        name for name, dtype in items.schema.items() if name not in NO_TEXT_COLUMNS and _holds_text(dtype)
    ]


def cells(items: pl.DataFrame, column: str) -> list[Any]:
    """The cells of a column as Python values that :func:`pieces` reads.

    Raises:
        InputError: The column holds neither texts, lists nor numbers.
    """
    series = items[column]
    if isinstance(series.dtype, (pl.Binary, pl.Struct)):
        raise InputError(f"column {column!r} holds {series.dtype}, which is not a text")
    return series.to_list()
