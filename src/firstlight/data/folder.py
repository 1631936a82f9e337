"""The DATASET folder: what ``data convert``, ``data split`` and ``simulate`` write and every command reads.

::

    dataset.json          format version, counts, SHA-256 per file, source, split, rows dropped and why
    interactions.parquet  user, item (raw ids) [timestamp int64 s] [value f32] [split train|valid|test]
    users.parquet         user: every user in row order, with pairs or without
    items.parquet         item: every item in row order, and the catalogue's columns
    features/NAME.safetensors   values (rows, dim) f32, present (rows,) bool
    features/NAME.json    hash of the item ids, extractor, its hash
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_folder, read_json, write_json
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.interactions import Interactions
from firstlight.data.parquet import read_table, write_table

MANIFEST = "dataset.json"
FORMAT_VERSION = 1
#: Columns of the item table that may hold paths relative to the folder.
PATH_COLUMNS = ("cover", "clip")
FEATURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _pairs_frame(dataset: Dataset) -> pl.DataFrame:
    """All parts as one table, in row order within a part."""
    has_times = any(part.times is not None for part in dataset.parts.values())
    has_values = any(part.values is not None for part in dataset.parts.values())
    frames = []
    for name, part in dataset.parts.items():
        columns: dict[str, pl.Series] = {
            "user": dataset.user_ids.cast(pl.String).gather(part.users),
            "item": dataset.item_ids.cast(pl.String).gather(part.items),
        }
        n = part.n_pairs
        if has_times:
            missing = pl.Series([None], dtype=pl.Int64).new_from_index(0, n)
            columns["timestamp"] = missing if part.times is None else pl.Series(part.times)
        if has_values:
            missing = pl.Series([None], dtype=pl.Float32).new_from_index(0, n)
            columns["value"] = missing if part.values is None else pl.Series(part.values)
        if len(dataset.parts) > 1:
            columns["split"] = pl.Series([name]).new_from_index(0, n)
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def _carry_files(items: pl.DataFrame, source: Path, out: Path) -> None:
    """Bring along the cover and clip files that the item table names by relative paths."""
    for column in PATH_COLUMNS:
        if column not in items.columns or items.schema[column] != pl.String:
            continue
        for name in items[column].drop_nulls().unique(maintain_order=True):
            if PurePath(name).is_absolute():
                continue
            origin, copy = source / name, out / name
            if not origin.resolve().is_relative_to(source.resolve()):
                raise InputError(f"{column} path {name!r} leads out of the dataset folder", path=source)
            if not origin.is_file():
                raise InputError(f"{column} file {name!r} is missing", path=source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(origin, copy)  # the same bytes, no second copy on disk
            except OSError:
                shutil.copyfile(origin, copy)


def _write_features(dataset: Dataset, folder: Path) -> None:
    items_hash = hash_strings(dataset.item_ids.cast(pl.String))
    for name, matrix in dataset.catalogue.features.items():
        if not FEATURE_NAME.fullmatch(name):
            raise InputError(
                f"feature name {name!r} cannot be a file name",
                hint="name it, or its column, with letters, digits, underscores, dots and dashes",
            )
        (folder / "features").mkdir(exist_ok=True)
        arrays = {
            "values": np.ascontiguousarray(matrix.values, np.float32),
            "present": np.ascontiguousarray(matrix.present, np.bool_),
        }
        save_file(arrays, folder / "features" / f"{name}.safetensors")
        about = {
            "items_hash": items_hash,
            "extractor": matrix.extractor,
            "extractor_hash": hash_strings([matrix.extractor]),
        }
        write_json(folder / "features" / f"{name}.json", about)


def _manifest(dataset: Dataset, folder: Path, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    split = dataset.split
    return {
        "format_version": FORMAT_VERSION,
        "name": dataset.name,
        "source": dataset.source,
        "content_hash": dataset.content_hash,
        "counts": {"users": dataset.n_users, "items": dataset.n_items},
        "parts": {
            name: {
                "pairs": part.n_pairs,
                "timestamps": part.times is not None,
                "values": part.values is not None,
            }
            for name, part in dataset.parts.items()
        },
        "split": None if split is None else {"name": split.name, "seed": split.seed, "hash": split.hash},
        "dropped": dict(dataset.dropped),
        "notes": list(dataset.notes),
        "features": list(dataset.catalogue.features),
        "files": {path.relative_to(folder).as_posix(): hash_file(path) for path in files},
        "extra": dict(extra or {}),
    }


def write_dataset(dataset: Dataset, out: Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a DATASET folder; it appears whole or not at all.

    Covers and clips that are relative paths are brought along from ``dataset.source``.

    Args:
        dataset: What to write.
        out: A folder that does not exist yet, or is empty.
        extra: JSON values to keep under ``extra`` in ``dataset.json``.

    Raises:
        InputError: ``out`` holds something, a cover file is missing, or a feature's name cannot be a
            file name.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("a file stands where the dataset folder should go", path=out)
    if out.exists() and any(out.iterdir()):
        raise InputError("this folder exists and is not empty", path=out, hint="choose another one")
    items = dataset.catalogue.items
    with atomic_folder(out) as folder:
        if dataset.n_users:
            _pairs_frame(dataset).write_parquet(folder / "interactions.parquet")
            pl.DataFrame({"user": dataset.user_ids.cast(pl.String)}).write_parquet(folder / "users.parquet")
        ids = dataset.item_ids.cast(pl.String).alias("item")
        table = pl.DataFrame([ids, *items.get_columns()])
        write_table(table, folder / "items.parquet")
        _carry_files(items, Path(dataset.source), folder)
        _write_features(dataset, folder)
        write_json(folder / MANIFEST, _manifest(dataset, folder, extra))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``dataset.json`` and check its version.

    Args:
        path: The DATASET folder.

    Returns:
        The parsed file.

    Raises:
        InputError: It is missing, is not JSON, or was written by a newer version.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = read_json(file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", path=file) from error
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise InputError("this is not the description of a dataset", path=file)
    if manifest["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"dataset format version {manifest['format_version']!r} is not known (this is version "
            f"{FORMAT_VERSION})",
            path=file,
            hint="install a newer firstlight, or convert the data again",
        )
    missing = {"name", "parts", "split", "dropped", "features", "files"} - manifest.keys()
    if missing:
        raise InputError(f"entries are missing: {', '.join(sorted(missing))}", path=file)
    if "train" not in manifest["parts"]:
        raise InputError("there is no part called train", path=file)
    return manifest


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    """Compare every file with the hash it had when it was written."""
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError("this file of the dataset is missing", path=file, hint="convert the data again")
        if hash_file(file) != expected:
            raise InputError(
                "this file is not the one that was written (its hash differs)",
                path=file,
                hint="it was changed or is torn; convert the data again",
            )


def _read_parts(
    folder: Path, manifest: Mapping[str, Any], user_ids: pl.Series, item_ids: pl.Series
) -> dict[str, Interactions]:
    shape = len(user_ids), len(item_ids)
    file = folder / "interactions.parquet"
    if file.name not in manifest["files"]:
        return {name: Interactions.empty(*shape) for name in manifest["parts"]}
    frame = pl.scan_parquet(file)
    for side, ids in (("user", user_ids), ("item", item_ids)):
        table = pl.DataFrame({side: ids, f"{side}_row": np.arange(len(ids), dtype=np.int32)}).lazy()
        frame = frame.join(table, on=side, how="left", maintain_order="left").drop(side)
    pairs = frame.collect()
    if pairs["user_row"].null_count() or pairs["item_row"].null_count():
        raise InputError("a user or item is not in users.parquet or items.parquet", path=file)
    parts = {}
    for name, about in manifest["parts"].items():
        rows = pairs.filter(pl.col("split") == name) if "split" in pairs.columns else pairs
        parts[name] = Interactions.from_pairs(
            rows["user_row"].to_numpy(),
            rows["item_row"].to_numpy(),
            *shape,
            rows["timestamp"].to_numpy() if about["timestamps"] else None,
            rows["value"].to_numpy() if about["values"] else None,
        )
        if parts[name].n_pairs != about["pairs"]:
            raise InputError(
                f"{parts[name].n_pairs} pairs in part {name}, but {MANIFEST} says {about['pairs']}", path=file
            )
    return parts


def _read_features(folder: Path, names: list[str], item_ids: pl.Series) -> dict[str, FeatureMatrix]:
    items_hash = hash_strings(item_ids)
    features = {}
    for name in names:
        file = folder / "features" / f"{name}.safetensors"
        about = read_json(file.with_suffix(".json"))
        try:
            arrays = load_file(file)
            values, present = arrays["values"], arrays["present"]
        except (SafetensorError, KeyError, OSError) as error:
            raise InputError(f"cannot be read ({error})", path=file) from error
        if about.get("items_hash") != items_hash or len(values) != len(item_ids):
            raise InputError("these features belong to another list of items", path=file)
        features[name] = FeatureMatrix(values, present, about["extractor"])
    return features


def read_dataset_folder(path: Path, *, pictures: bool = True) -> Dataset:
    """Read a DATASET folder and verify every file by its hash.

    Args:
        path: The folder. It becomes the dataset's ``source``, since covers may be paths relative to it;
            where the data came from first stays in ``dataset.json``.
        pictures: As in :class:`~firstlight.data.formats.base.ReadOptions`.

    Returns:
        The dataset, with the content hash that was written.

    Raises:
        InputError: The version is unknown, or a file is missing, torn or changed; the message names it.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    _verify(folder, manifest["files"])
    try:
        table = folder / "items.parquet"
        bytes_left_out = not pictures and pl.read_parquet_schema(table).get("cover") == pl.Binary
        items = read_table(table, "cover" if bytes_left_out else None)
        has_users = "users.parquet" in manifest["files"]
        users = (
            pl.read_parquet(folder / "users.parquet")["user"]
            if has_users
            else pl.Series("user", [], pl.String)
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"the tables cannot be read ({error})", path=folder) from error
    item_ids = items["item"]
    parts = _read_parts(folder, manifest, users, item_ids)
    columns = items.drop("item")
    split = manifest["split"]
    return Dataset(
        name=manifest["name"],
        user_ids=users,
        item_ids=item_ids,
        train=parts["train"],
        valid=parts.get("valid"),
        test=parts.get("test"),
        catalogue=Catalogue(
            columns if columns.width else pl.DataFrame(),
            _read_features(folder, manifest["features"], item_ids),
        ),
        source=str(path),
        split=None if split is None else SplitInfo(split["name"], split["seed"], split["hash"]),
        dropped=manifest["dropped"],
        notes=tuple(manifest.get("notes", ())),
    )
