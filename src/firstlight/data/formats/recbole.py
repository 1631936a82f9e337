"""RecBole's and MMRec's atomic files: ``*.inter``, ``*.item``, and ``*_feat.npy`` or ``*_feat.parquet`` beside them.

Headers are typed (``user_id:token``) or plain (``userID``). A column ``x_label`` (MMRec: 0 train, 1 valid,
2 test) or files ``NAME.train.inter``, ``NAME.valid.inter``, ``NAME.test.inter`` give the split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.clean import PARTS, RawLog, build_dataset
from firstlight.data.dataset import Dataset
from firstlight.data.formats.base import Format, Problems, ReadOptions
from firstlight.data.formats.columns import choose_columns
from firstlight.data.formats.delimited import open_text_table
from firstlight.data.formats.features import FeatureTable, read_feature, read_feature_table
from firstlight.data.formats.items import align_items, catalogue_of, read_items, unknown_items
from firstlight.data.formats.log import Scan, encode_log, scan_delimited

SUFFIXES = (".inter", ".inter.gz")
FEATURE_SUFFIXES = ("_feat.npy", "_feat.parquet")


def _logs(path: Path) -> list[Path]:
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    return [entry for entry in candidates if entry.is_file() and entry.name.endswith(SUFFIXES)]


def detect(path: Path) -> bool:
    """Whether a path is an ``.inter`` file or a folder that holds one."""
    return bool(_logs(path))


def _by_part(path: Path) -> dict[str, Path]:
    """The files by part: one file, or one for each part."""
    logs = _logs(path)
    if len(logs) == 1:
        return {"train": logs[0]}
    parts = {part: log for log in logs for part in PARTS if f".{part}.inter" in log.name}
    if len(parts) != len(logs) or "train" not in parts:
        raise InputError(
            f"several .inter files: {', '.join(log.name for log in logs)}",
            path=path,
            hint="pass one of the files, or name them NAME.train.inter, NAME.valid.inter and NAME.test.inter",
        )
    return {part: parts[part] for part in PARTS if part in parts}


def _features(
    folder: Path, item: str, problems: Problems
) -> tuple[dict[str, FeatureMatrix], dict[str, FeatureTable]]:
    """All ``NAME_feat.npy`` and ``NAME_feat.parquet``.

    Returns:
        Those that go row by row, which all have as many rows; and those that name their items.
    """
    found: dict[str, FeatureMatrix] = {}
    named: dict[str, FeatureTable] = {}
    files = [path for suffix in FEATURE_SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    for path in files:
        name = path.name.removesuffix(f"_feat{path.suffix}")
        if name in found or name in named:
            problems.fatal(f"feature {name!r} is there twice, also as another type of file", path)
            continue
        try:
            if path.suffix == ".npy":
                matrix = read_feature(path, name, problems)
            else:
                table = read_feature_table(path, name, problems, item)
                matrix = table.matrix
                if table.ids is not None:
                    named[name] = table
                    continue
        except InputError as error:
            if not problems.tolerant:
                raise
            problems.fatal(error.problem, path, error.hint)
            continue
        first = next(iter(found.values()), matrix)
        if len(matrix.values) != len(first.values):
            problems.fatal(
                f"{len(matrix.values)} rows, but {first.extractor} has {len(first.values)}; "
                "every feature file must have one row for each item",
                path,
            )
            continue
        found[name] = matrix
    return found, named


def _feature_rows(
    scans: Mapping[str, Scan], features: Mapping[str, FeatureMatrix], folder: Path, problems: Problems
) -> pl.Series | None:
    """Item ids when row r of the features is item r; None if that cannot be (and the list is tolerant)."""
    first = next(iter(features.values()))
    rows, path = len(first.values), folder / first.extractor
    frames = pl.concat([scan.frame.select("item") for scan in scans.values()])
    seen = frames.unique().collect(engine="streaming")["item"]
    odd = seen.filter(~seen.str.contains(r"^(0|[1-9]\d{0,9})$"))
    if len(odd):
        problems.fatal(
            f"row r of a feature file is item id r, but item id {odd[0]!r} is not a row number",
            path,
            "number the items 0, 1, 2, … or move the feature files away",
        )
        return None
    largest = int(seen.cast(pl.Int64).max() or 0)  # type: ignore[arg-type]
    if largest >= rows:
        problems.fatal(f"{rows} rows, but item ids go up to {largest}; row r must be item id r", path)
        return None
    return pl.Series("item", np.arange(rows)).cast(pl.String)


def _item_table(
    path: Path, folder: Path, item: str, key: str | None, problems: Problems
) -> pl.DataFrame | None:
    """The ``.item`` file that belongs to the log, if there is one."""
    stem = path.name.split(".")[0]
    for name in (f"{stem}.item", f"{stem}.item.gz"):
        if (folder / name).is_file():
            return read_items(
                folder / name, problems, item=item.split(":")[0], key=key, separator="\t", quoted=False
            )
    return None


def read(path: Path, options: ReadOptions, problems: Problems) -> Dataset:
    """Read atomic files and the features beside them.

    Args:
        path: The folder, or its ``.inter`` file.
        options: Column names, and what counts as an interaction.
        problems: Collects bad rows.

    Returns:
        The dataset. With features, items are the rows of the feature files, clicked or not; a Parquet file with a
        column of ids names them.

    Raises:
        InputError: A file is broken, or the features do not fit the item ids.
    """
    folder = path if path.is_dir() else path.parent
    scans, roles = {}, {}
    for part, log in _by_part(path).items():
        table = open_text_table(log, quoted=False)
        roles = choose_columns(table.names, options, log)
        scans[part] = scan_delimited(table, roles, problems)
    if len(scans) > 1 and "label" in roles:
        raise InputError("the split is given twice: by files and by a column", path=path)
    features, named = _features(folder, roles["item"].split(":")[0], problems)
    items = _item_table(
        next(iter(scans.values())).path, folder, roles["item"], options.catalogue_item, problems
    )
    rows = _feature_rows(scans, features, folder, problems) if features else None
    if rows is None:
        features = {}
    listed = [*(() if items is None else (items["item"],)), *(table.ids for table in named.values())]
    known = pl.concat([ids for ids in listed if ids is not None]).unique() if listed else None
    user_ids, item_ids, parts = encode_log(scans, problems, known_items=known, item_ids=rows)
    features |= {name: table.aligned(item_ids) for name, table in named.items()}
    catalogue = catalogue_of(align_items(items, item_ids) if items is not None else pl.DataFrame(), features)
    notes = () if items is None else unknown_items(items, "the .item file", item_ids, parts, problems, folder)
    log_ = RawLog(user_ids, item_ids, parts, catalogue, len(parts) > 1, problems.dropped, notes)
    return build_dataset(log_, options, path, None if path.is_dir() else path.name.split(".")[0])


FORMAT = Format(
    "recbole",
    "a folder with NAME.inter (and NAME.item, *_feat.npy, *_feat.parquet), or an .inter file",
    detect,
    read,
)
