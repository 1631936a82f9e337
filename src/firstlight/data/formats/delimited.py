"""Delimited text of any size: CSV, TSV, RecBole's atomic files, ``::``-separated MovieLens.

The fast way scans the file with polars, in pieces, and only checks that every row is sound. If one is
not, the file is read again row by row: that way knows the line of every bad row, and writes the good
rows to a scratch file for the fast way to take up.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.formats.base import Problems
from firstlight.data.formats.columns import LABELS
from firstlight.data.formats.text import BOM, decode, plain_twin
from firstlight.data.formats.times import parse_number, parse_time

LARGEST_VALUE = 3.4e38  # values are kept as float32
NOUN = {"time": "timestamp", "value": "value", "label": "part"}

csv.field_size_limit(2**27)  # the default, 128 KiB, is less than some plots and descriptions hold


@dataclass(frozen=True, eq=False)
class TextTable:
    """An opened file of delimited text.

    Attributes:
        path: The file as the user knows it.
        names: Column names, as many as the first row has fields.
        separator: One character.
        quoted: Whether ``"`` quotes fields.
        has_header: Whether the first row holds the names.
        plain: An uncompressed, one-character-separated twin of the file; the file itself where it is one.
        scratch: Holds the twin, and goes away with this object.
    """

    path: Path
    names: list[str]
    separator: str
    quoted: bool
    has_header: bool
    plain: Path
    scratch: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)


def _first_line(plain: Path, path: Path) -> str:
    with plain.open("rb") as handle:
        for raw in handle:
            line = decode(raw.removeprefix(BOM))[0].rstrip("\r\n")
            if line.strip():
                return line
    raise InputError("this file is empty", path=path)


def _guess_separator(path: Path, line: str) -> str:
    """The separator of a header: by the file's suffix, unless the header says otherwise."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    usual = "\t" if suffixes & {".tsv", ".inter", ".item"} else ","
    if ".dat" in suffixes and "::" in line:
        return "::"
    if usual in line:
        return usual
    return max("\t,;|", key=line.count) if any(mark in line for mark in "\t,;|") else usual


def _with_tabs(plain: Path, target: Path) -> None:
    """Write a copy whose separator is one character instead of ``::``."""
    with plain.open("rb") as source, target.open("wb") as sink:
        for line in source:
            sink.write(line.replace(b"::", b"\t"))


def open_text_table(
    path: Path,
    *,
    separator: str | None = None,
    quoted: bool = True,
    names: list[str] | None = None,
    header: bool = True,
) -> TextTable:
    """Look at a file's header and make it ready for scanning.

    Args:
        path: The file, plain or ``.gz``.
        separator: The separator (``"::"`` is allowed); guessed from the header if None.
        quoted: Whether ``"`` quotes fields.
        names: Column names, for a file without a header.
        header: Whether the first line holds the names, if they are not given; if not, they are ``1``, ``2``, ….

    Returns:
        The opened table.

    Raises:
        InputError: The file is empty, a folder, no text, or cannot be read.
    """
    scratch: TemporaryDirectory[str] = TemporaryDirectory(prefix="firstlight-")
    plain = plain_twin(path, Path(scratch.name))
    line = _first_line(plain, path)
    separator = separator or _guess_separator(path, line)
    if separator == "::":
        line, separator, tabs = line.replace("::", "\t"), "\t", Path(scratch.name) / "tabs.txt"
        _with_tabs(plain, tabs)
        plain = tabs
    first = next(csv.reader([line], delimiter=separator, quoting=_quoting(quoted)))
    if names is None:
        names = [name.strip() if header else str(n) for n, name in enumerate(first, start=1)]
    else:
        header = False
    return TextTable(path, names, separator, quoted, header, plain, scratch)


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def scan_text(table: TextTable) -> pl.LazyFrame:
    """All columns of a table as strings, named by position (``"0"``, ``"1"`` and so on)."""
    frame = pl.scan_csv(
        table.plain,
        has_header=table.has_header,
        separator=table.separator,
        quote_char='"' if table.quoted else None,
        infer_schema=False,
        glob=False,  # a path may hold * or [
    )
    present = frame.collect_schema().names()
    return frame.rename({name: str(position) for position, name in enumerate(present)})


def read_rows(table: TextTable, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Give ``(1-based line, fields)`` of every row that has as many fields as there are columns.

    Empty lines are passed over; rows with too few or too many fields are reported.
    """
    width = len(table.names)
    reader = csv.reader(
        _lines(table, problems), delimiter=table.separator, quoting=_quoting(table.quoted), strict=False
    )
    header_due = table.has_header
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.bad_row("unreadable row", table.path, reader.line_num, str(error))
            continue
        if not fields or (len(fields) == 1 and width > 1 and not fields[0].strip()):
            continue
        if header_due:
            header_due = False
        elif len(fields) != width:
            problems.bad_row(
                "wrong number of fields",
                table.path,
                reader.line_num,
                f"{len(fields)} fields, where there are {width} columns",
            )
        else:
            yield reader.line_num, fields


def _lines(table: TextTable, problems: Problems) -> Iterator[str]:
    with table.plain.open("rb") as handle:
        for line, raw in enumerate(handle, start=1):
            text, foreign = decode(raw.removeprefix(BOM) if line == 1 else raw)
            if foreign:
                problems.note("not UTF-8", table.path, "read as Windows-1252 or Latin-1", line=line)
            yield text


def complaint(role: str, text: str | None) -> tuple[str, str]:
    """What is wrong with a cell that cannot be used: (kind, problem)."""
    if role in ("user", "item"):
        return f"missing {role} id", f"the {role} id is missing"
    if text is None or not text.strip():
        return f"missing {NOUN[role]}", f"the {NOUN[role]} is missing or not a finite number"
    if role == "label":
        return "unknown part", f"{text!r} is not train, valid or test (or 0, 1 or 2)"
    or_date = " or an ISO date such as 2024-01-31 or 2024-01-31 17:30:00" if role == "time" else ""
    return f"{NOUN[role]} is not a number", f"{NOUN[role]} {text!r} is not a number{or_date}"


def _normal(role: str, text: str) -> str | None:
    """A cell as the fast way reads it, or None if it cannot be used."""
    if role in ("user", "item"):
        return text if text.strip() else None
    if role == "label":
        return text if text.lower() in LABELS else None
    number = parse_time(text) if role == "time" else parse_number(text)
    if number is None or (role == "value" and abs(number) > LARGEST_VALUE):
        return None
    return str(number)


def mend(table: TextTable, roles: Mapping[str, str], problems: Problems) -> pl.LazyFrame:
    """Read a file row by row, report the bad rows, and give the good ones.

    Args:
        table: The file.
        roles: role -> column name.
        problems: Gets every bad row with its line.

    Returns:
        The good rows, String columns named by role.

    Raises:
        InputError: A row is bad and the policy is to stop.
    """
    positions = {role: table.names.index(column) for role, column in roles.items()}
    target = Path(table.scratch.name) / "mended.csv"
    with target.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(roles)
        for line, fields in read_rows(table, problems):
            row = {role: _normal(role, fields[position]) for role, position in positions.items()}
            wrong = next((role for role, text in row.items() if text is None), None)
            if wrong is None:
                writer.writerow(row.values())
                continue
            kind, problem = complaint(wrong, fields[positions[wrong]])
            problems.bad_row(kind, table.path, line, problem)
    return pl.scan_csv(target, infer_schema=False, glob=False)


def read_text_frame(table: TextTable, problems: Problems) -> tuple[pl.DataFrame, list[int]]:
    """A whole table as strings, columns by name, row by row: for small files with foreign encodings.

    Returns:
        The table, and the 1-based line of the file that each of its rows ends in.
    """
    columns: list[list[str]] = [[] for _ in table.names]
    lines: list[int] = []
    for line, fields in read_rows(table, problems):
        lines.append(line)
        for column, text in zip(columns, fields, strict=True):
            column.append(text)
    frame = pl.DataFrame(
        dict(zip(table.names, columns, strict=True)), schema=dict.fromkeys(table.names, pl.String)
    )
    return frame, lines
