"""MovieLens as GroupLens publishes it: ``ratings.csv`` and ``movies.csv``, or the older ``.dat`` files.

Beside them, optional: ``items.parquet`` (more columns, posters), ``links.csv``, ``tags.csv``.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.clean import RawLog, build_dataset
from firstlight.data.dataset import Dataset
from firstlight.data.formats.base import Format, Problems, ReadOptions
from firstlight.data.formats.columns import choose_columns
from firstlight.data.formats.delimited import open_text_table, read_text_frame
from firstlight.data.formats.items import ITEM_TABLE, align_items, catalogue_of, read_items, unknown_items
from firstlight.data.formats.log import encode_log, scan_delimited

RATING_COLUMNS = ["userId", "movieId", "rating", "timestamp"]
MOVIE_COLUMNS = ["movieId", "title", "genres"]
NO_GENRES = "(no genres listed)"


def _find(folder: Path, stem: str) -> Path | None:
    for suffix in (".csv", ".csv.gz", ".dat", ".dat.gz"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return None


def _is_old(path: Path) -> bool:
    """Whether a file is ``::``-separated and without a header."""
    return ".dat" in path.suffixes


def _files(folder: Path) -> tuple[Path, Path] | None:
    """The files of ratings and of movies, if both are there."""
    ratings, movies = _find(folder, "ratings"), _find(folder, "movies")
    return None if ratings is None or movies is None else (ratings, movies)


def detect(path: Path) -> bool:
    """Whether a folder holds ``ratings`` and ``movies``."""
    return path.is_dir() and _files(path) is not None


def _tags(path: Path, problems: Problems) -> pl.DataFrame:
    """Distinct tags of each film, joined by ``|``."""
    table = open_text_table(path)
    if not {"movieId", "tag"} <= set(table.names):
        problems.note("no tags", path, f"columns found: {', '.join(table.names)}")
        return pl.DataFrame(schema={"item": pl.String, "tags": pl.String})
    frame, _ = read_text_frame(table, problems)
    return (
        frame.select(pl.col("movieId").alias("item"), pl.col("tag").alias("tags"))
        .unique(maintain_order=True)
        .group_by("item", maintain_order=True)
        .agg(pl.col("tags").str.join("|"))
    )


def _movies(path: Path, problems: Problems) -> pl.DataFrame:
    old = _is_old(path)
    return read_items(
        path,
        problems,
        item="movieId",
        separator="::" if old else None,
        quoted=not old,
        names=MOVIE_COLUMNS if old else None,
    )


def _items(folder: Path, movies: Path, pictures: bool, problems: Problems) -> pl.DataFrame:
    """All item tables of the folder as one; a column counts from the first file that has it."""
    items = _movies(movies, problems)
    more: list[pl.DataFrame] = []
    if (folder / ITEM_TABLE).is_file():
        more.append(read_items(folder / ITEM_TABLE, problems, item="movieId", pictures=pictures))
    if (folder / "links.csv").is_file():
        more.append(read_items(folder / "links.csv", problems, item="movieId"))
    if (folder / "tags.csv").is_file() and not any("tags" in table.columns for table in more):
        more.append(_tags(folder / "tags.csv", problems))
    for table in more:
        new = [name for name in table.columns if name == "item" or name not in items.columns]
        items = items.join(table.select(new), on="item", how="full", coalesce=True)
    if "genres" in items.columns:
        items = items.with_columns(pl.col("genres").replace({NO_GENRES: None}))
    return items


def read(path: Path, options: ReadOptions, problems: Problems) -> Dataset:
    """Read a MovieLens folder; every rating is an interaction unless ``min_value`` says otherwise.

    Args:
        path: The folder.
        options: What counts as an interaction.
        problems: Collects bad rows.

    Returns:
        The dataset, all pairs in ``train``, with every film of ``movies`` as an item.

    Raises:
        InputError: A file is broken.
    """
    files = _files(path)
    if files is None:
        raise InputError(f"this is not {FORMAT.looks_for}", path=path)
    ratings, movies = files
    old = _is_old(ratings)
    table = open_text_table(ratings, separator="::" if old else None, names=RATING_COLUMNS if old else None)
    roles = choose_columns(table.names, options, ratings)
    scan = scan_delimited(table, roles, problems)
    items = _items(path, movies, options.pictures, problems)
    user_ids, item_ids, parts = encode_log({"train": scan}, problems, known_items=items["item"])
    catalogue = catalogue_of(align_items(items, item_ids))
    notes = unknown_items(items, movies.name, item_ids, parts, problems, path)
    log = RawLog(user_ids, item_ids, parts, catalogue, len(parts) > 1, problems.dropped, notes)
    return build_dataset(log, options, path)


FORMAT = Format(
    "grouplens", "a folder with ratings.csv and movies.csv (or ratings.dat, movies.dat)", detect, read
)
