"""Any CSV, TSV or Parquet table of interactions, alone or with an item table beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.clean import RawLog, RawPairs, build_dataset, order_ids
from firstlight.data.dataset import Dataset
from firstlight.data.formats.base import Format, Problems, ReadOptions
from firstlight.data.formats.columns import choose_columns
from firstlight.data.formats.delimited import open_text_table
from firstlight.data.formats.header import refuse_data_as_header
from firstlight.data.formats.items import align_items, catalogue_of, read_items, unknown_items
from firstlight.data.formats.log import Scan, encode_log, scan_delimited, scan_parquet

SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
#: Names of tables that are only read if they are named: in a folder they may be anything.
NAMED_SUFFIXES = (*SUFFIXES, ".data", ".dat", ".data.gz", ".dat.gz")


def is_table(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file's name says that it is a table."""
    return path.is_file() and path.name.lower().endswith(suffixes) and not path.name.startswith(".")


def _find(folder: Path, stem: str) -> Path | None:
    """The table of that name, whatever the case of its letters."""
    tables = {
        entry.name.lower(): entry for entry in sorted(folder.iterdir(), reverse=True) if is_table(entry)
    }
    wanted = (f"{stem}{suffix}" for suffix in (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz"))
    return next((tables[name] for name in wanted if name in tables), None)


def _files(path: Path) -> tuple[Path | None, Path | None]:
    """The table of interactions and the table of items of a path."""
    if not path.is_dir():
        return (path if is_table(path, NAMED_SUFFIXES) else None), None
    items = _find(path, "items")
    log = _find(path, "interactions")
    if log is None:
        others = [entry for entry in sorted(path.iterdir()) if is_table(entry) and entry != items]
        log = others[0] if len(others) == 1 else None
    return log, items


def detect(path: Path) -> bool:
    """Whether a path is a table, or a folder with one table of interactions or with an item table."""
    return _files(path) != (None, None)


def scan_log(path: Path, options: ReadOptions, problems: Problems) -> tuple[Scan, dict[str, str]]:
    """Check a table of interactions in any of the file types.

    Args:
        path: The file.
        options: Column names.
        problems: Gets bad rows.

    Returns:
        The sound rows, and role -> column.

    Raises:
        InputError: The file cannot be read or its columns cannot be told.
    """
    if path.suffix.lower() != ".parquet":
        table = open_text_table(path, header=options.header is not False)
        roles = choose_columns(table.names, options, path, may_lack_header=True)
        if options.header is None:
            refuse_data_as_header(table, roles)
        return scan_delimited(table, roles, problems), roles
    if options.header is False:
        raise InputError("--no-header is for CSV and TSV tables; Parquet files have names", path=path)
    roles = {}

    def choose(columns: list[str]) -> dict[str, str]:
        roles.update(choose_columns(columns, options, path))
        return roles

    return scan_parquet(path, choose, problems), roles


def _items_alone(path: Path, items_path: Path | None, options: ReadOptions, problems: Problems) -> Dataset:
    """Items without interactions, such as new ones to add to a trained model."""
    if items_path is None:
        raise InputError(f"this is not {FORMAT.looks_for}", path=path)
    others = [entry.name for entry in sorted(path.iterdir()) if is_table(entry) and entry != items_path]
    if others:
        raise InputError(
            f"cannot tell which table holds the interactions: {', '.join(others)}",
            path=path,
            hint="pass the file, or call it interactions.csv or interactions.parquet",
        )
    key = options.catalogue_item
    items = read_items(items_path, problems, item=options.item, key=key, pictures=options.pictures)
    none = RawPairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    item_ids = order_ids(items["item"])
    catalogue = catalogue_of(align_items(items, item_ids))
    users = pl.Series("user", [], dtype=pl.String)
    log = RawLog(users, item_ids, {"train": none}, catalogue, dropped=problems.dropped)
    return build_dataset(log, ReadOptions(), path)


def read(path: Path, options: ReadOptions, problems: Problems) -> Dataset:
    """Read a table of interactions, and the item table ``items.*`` of its folder if there is one.

    Args:
        path: The table, or the folder.
        options: Column names, and what counts as an interaction.
        problems: Collects bad rows.

    Returns:
        The dataset; all pairs in ``train``, unless a column ``split`` says otherwise.

    Raises:
        InputError: A file is broken, or its columns cannot be told.
    """
    log_path, items_path = _files(path)
    if log_path is None:
        return _items_alone(path, items_path, options, problems)
    scan, roles = scan_log(log_path, options, problems)
    items = None
    if items_path is not None:
        key, column = options.catalogue_item, roles["item"]
        items = read_items(items_path, problems, item=column, key=key, pictures=options.pictures)
    elif options.catalogue_item is not None:
        raise InputError(
            "--catalogue-item names a column of items.csv, and there is no such table", path=path
        )
    user_ids, item_ids, parts = encode_log(
        {"train": scan}, problems, known_items=None if items is None else items["item"]
    )
    catalogue, notes = Catalogue(), tuple[str, ...]()
    if items is not None and items_path is not None:
        catalogue = catalogue_of(align_items(items, item_ids))
        notes = unknown_items(items, items_path.name, item_ids, parts, problems, path)
    log = RawLog(user_ids, item_ids, parts, catalogue, len(parts) > 1, problems.dropped, notes)
    name = log_path.name.split(".")[0] if path.is_file() else None
    return build_dataset(log, options, path, name)


FORMAT = Format(
    "table",
    "a .csv, .tsv, .data, .dat (also .gz) or .parquet file, a folder with one, or with interactions.* or items.*",
    detect,
    read,
)
