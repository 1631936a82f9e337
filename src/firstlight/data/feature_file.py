"""A feature added to a DATASET folder that is there already, block by block."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.data.folder import FEATURE_NAME, MANIFEST, read_manifest

#: Some rows of a feature, and which of them are present.
Block = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def folder_items(folder: Path) -> list[str]:
    """Raw ids of a DATASET folder's items, by row.

    Raises:
        InputError: The folder holds no dataset.
    """
    read_manifest(folder)
    try:
        ids: list[str] = pl.read_parquet(folder / "items.parquet", columns=["item"])["item"].to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"the items cannot be read ({error})", path=folder) from error
    return ids


def check_feature_name(name: str) -> None:
    """Refuse a name that cannot be that of a feature's files.

    Raises:
        InputError: It cannot.
    """
    if not FEATURE_NAME.fullmatch(name):
        raise InputError(f"feature name {name!r} cannot be a file name")


def feature_origin(folder: Path, name: str) -> Mapping[str, Any] | None:
    """What :func:`add_feature` was told of a feature's origin; None if the dataset has no such feature.

    Raises:
        InputError: The folder holds no dataset, or ``name`` cannot be a file name.
    """
    check_feature_name(name)
    if name not in read_manifest(folder)["features"]:
        return None
    origin = read_json(folder / "features" / f"{name}.json").get("origin")
    return origin if isinstance(origin, dict) else {}


def add_feature(
    folder: Path,
    name: str,
    blocks: Iterable[Block],
    shape: tuple[int, int],
    *,
    extractor: str,
    origin: Mapping[str, Any],
) -> None:
    """Write ``features/NAME`` and enter it into ``dataset.json``; it counts from the moment that this is renamed.

    Args:
        folder: The DATASET folder.
        name: A new feature's name.
        blocks: Rows in the order of the items; rows that are not present are zero.
        shape: Items and width.
        extractor: Free text: what made the rows.
        origin: JSON values that tell this feature from others, for :func:`feature_origin`.

    Raises:
        InputError: The feature is there already, or the rows are not one an item.
    """
    if feature_origin(folder, name) is not None:
        raise InputError(
            f"the dataset has a feature {name!r} already", path=folder, hint="choose another name"
        )
    items = folder_items(folder)
    if len(items) != shape[0]:
        raise InputError(f"{shape[0]} rows for {len(items)} items", path=folder)
    target = folder / "features" / f"{name}.safetensors"
    with atomic_path(target) as temporary:
        _write_blocks(temporary, blocks, shape)
    about = target.with_suffix(".json")
    write_json(
        about,
        {
            "items_hash": hash_strings(items),
            "extractor": extractor,
            "extractor_hash": hash_strings([extractor]),
            "origin": dict(origin),
        },
    )
    manifest = read_manifest(folder)
    files = {file.relative_to(folder).as_posix(): hash_file(file) for file in (target, about)}
    manifest["features"] = [*manifest["features"], name]
    manifest["files"] = dict(sorted({**manifest["files"], **files}.items()))
    write_json(folder / MANIFEST, manifest)


def _write_blocks(path: Path, blocks: Iterable[Block], shape: tuple[int, int]) -> None:
    """A safetensors file of ``values`` and ``present`` that never is in memory as a whole."""
    n, dim = shape
    end = 4 * n * dim
    header = json.dumps(
        {
            "values": {"dtype": "F32", "shape": [n, dim], "data_offsets": [0, end]},
            "present": {"dtype": "BOOL", "shape": [n], "data_offsets": [end, end + n]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    masks = []
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for values, present in blocks:
            if values.shape != (len(present), dim):
                raise ValueError(f"a block of {values.shape} for {len(present)} rows of width {dim}")
            file.write(np.ascontiguousarray(values, "<f4").data)
            masks.append(np.asarray(present, np.bool_))
        written = np.concatenate(masks) if masks else np.zeros(0, np.bool_)
        if len(written) != n:
            raise ValueError(f"{len(written)} rows were given, not {n}")
        file.write(written.data)
