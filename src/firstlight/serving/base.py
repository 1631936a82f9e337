"""What stands below the additions: the vectors, ids and clicks of a finished run, or a frozen folder of them.

::

    BASE/   base.json               counts, width, config of the run, SHA-256 and length of every file
            users.safetensors       vectors (n_users, dim) float32, in scoring space
            items.safetensors       vectors (n_items, dim) float32; alive (n_items,) bool
            seen.safetensors        indptr (n_users + 1,) int64, items (pairs,) int32: never recommended again
            users.parquet           user: raw ids in row order; trained: whether training saw a click of theirs
            items.parquet           item: raw ids in row order, and text columns (title, …)
            covers.bin, covers.safetensors   small pictures (:mod:`firstlight.serving.pictures`), or absent
            rows.NAME.bin           what stands beside vectors (:mod:`firstlight.serving.extras`), or absent
            reasons.json            what explains lists (:mod:`firstlight.serving.reasons`), or absent
            histories.json, histories.safetensors   the rule for new users (:mod:`firstlight.serving.histories`)
            additions.parquet, additions.bin, additions.safetensors   items that came by addition, and their content
            encoder/                what makes vectors of new items (:mod:`firstlight.serving.encoder`), or absent

A file is read when it is first needed, and its hash is checked then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_folder, read_json, sync_folder, write_json
from firstlight.core.hashing import hash_file
from firstlight.data.interactions import Interactions
from firstlight.models.histories import HistoryRule
from firstlight.serving import histories
from firstlight.serving.contents import Additions
from firstlight.serving.extras import Extras, file_of, fitting, open_extra, write_extras
from firstlight.serving.pictures import DATA, ENDS, Pictures, write_pictures
from firstlight.serving.reasons import Reasons

ABOUT = "base.json"
ENCODER = "encoder"
REASONS = "reasons.json"
BoolArray = npt.NDArray[np.bool_]


class Base(Protocol):
    """What a served catalogue is built on; nothing of it ever changes."""

    @property
    def user_ids(self) -> pl.Series:
        """Raw ids by user row."""

    @property
    def table(self) -> pl.DataFrame:
        """``item`` (raw ids by item row) and text columns."""

    @property
    def user_vectors(self) -> Tensor:
        """``(n_users, dim)`` in scoring space."""

    @property
    def item_vectors(self) -> Tensor:
        """``(n_items, dim)`` in scoring space."""

    @property
    def alive(self) -> BoolArray:
        """``(n_items,)``: False for rows that are kept only because users have seen them."""

    @property
    def seen(self) -> Interactions:
        """What is never recommended again."""

    @property
    def trained(self) -> BoolArray:
        """``(n_users,)``: False for users whose vectors say nothing, since training saw no click of theirs."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    @property
    def fingerprint(self) -> str:
        """Another base has another one."""

    def cover(self, row: int) -> bytes | None:
        """A small picture of an item row (JPEG), or None."""

    def has_cover(self, row: int) -> bool:
        """Whether there is one."""

    @property
    def extras(self) -> Extras:
        """Rows beside the item vectors, ``(n_items, width)`` each."""

    @property
    def reasons(self) -> Reasons | None:
        """What explains lists, where the model reads content."""

    @property
    def rule(self) -> HistoryRule | None:
        """The model's own way from a history to a user, where it has one."""

    @property
    def removed(self) -> frozenset[str]:
        """Raw ids that were taken out of the catalogue."""

    @property
    def additions(self) -> Additions:
        """Items that came by addition and not by training."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A base in memory; see :class:`Base` for the attributes.

    Raises:
        InputError: Shapes do not fit, an id is there twice, or a vector is not finite.
    """

    user_ids: pl.Series
    table: pl.DataFrame
    user_vectors: Tensor
    item_vectors: Tensor
    seen: Interactions
    alive: BoolArray
    trained: BoolArray
    fingerprint: str = field(default="memory")
    pictures: Pictures | None = None
    extras: Extras = field(default_factory=dict)
    reasons: Reasons | None = None
    rule: HistoryRule | None = None
    removed: frozenset[str] = frozenset()
    additions: Additions = field(default_factory=Additions)

    def __post_init__(self) -> None:
        shape = (len(self.user_ids), len(self.table))
        vectors = (len(self.user_vectors), len(self.item_vectors))
        if shape != vectors or shape != (self.seen.n_users, self.seen.n_items):
            raise InputError(f"{shape} users and items have {vectors} vectors")
        if self.trained.shape != shape[:1]:
            raise InputError(f"{len(self.trained)} users are said to be trained or not, there are {shape[0]}")
        if self.user_vectors.shape[1:] != self.item_vectors.shape[1:]:
            raise InputError("user and item vectors differ in width")
        for kind, ids in (("user", self.user_ids), ("item", self.table["item"])):
            if ids.null_count() or ids.n_unique() != len(ids):
                raise InputError(f"a {kind} id is missing or there twice")
        for kind, rows in (("user", self.user_vectors), ("item", self.item_vectors)):
            if not bool(rows.isfinite().all()):
                raise InputError(f"a {kind} vector holds NaN or infinity")
        fitting(self.extras, {}, len(self.table))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.item_vectors.shape[1]

    def cover(self, row: int) -> bytes | None:
        """A small picture of an item row, or None."""
        return None if self.pictures is None else self.pictures(row)

    def has_cover(self, row: int) -> bool:
        """Whether there is one."""
        return self.cover(row) is not None


def parts(
    user_ids: pl.Series,
    item_ids: pl.Series,
    user_vectors: Tensor,
    item_vectors: Tensor,
    seen: Interactions | None = None,
    texts: pl.DataFrame | None = None,
) -> Parts:
    """A base from its parts; every user's vector counts as trained.

    Args:
        user_ids: Raw ids by user row.
        item_ids: Raw ids by item row.
        user_vectors: ``(n_users, dim)`` in scoring space: a score is an inner product.
        item_vectors: ``(n_items, dim)``.
        seen: What is never recommended again; nothing if None.
        texts: Text columns (``title``, …), row-aligned to the items.
    """
    ids = item_ids.cast(pl.String).alias("item")
    log = seen or Interactions.empty(len(user_ids), len(item_ids))
    users, items = (
        rows.detach().to("cpu", torch.float32).contiguous() for rows in (user_vectors, item_vectors)
    )
    table = pl.DataFrame([ids, *text_columns(texts).get_columns()])
    alive, trained = np.ones(len(ids), np.bool_), np.ones(len(user_ids), np.bool_)
    return Parts(user_ids.cast(pl.String), table, users, items, log, alive, trained)


def text_columns(table: pl.DataFrame | None) -> pl.DataFrame:
    """The columns of ``table`` that hold text and are not paths or the ids."""
    if table is None:
        return pl.DataFrame()
    left_out = ("item", "cover", "clip", "role")
    return table.select(
        name for name, dtype in table.schema.items() if dtype == pl.String and name not in left_out
    )


class FolderBase:
    """A base folder, opened.

    Args:
        folder: The folder.
        fingerprint: SHA-256 of its ``base.json``.

    Raises:
        InputError: ``base.json`` is missing or another one, or a file is missing or of another length.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        path = folder / ABOUT
        if not path.is_file() or hash_file(path) != fingerprint:
            raise InputError("the description of the base is missing or was changed", path=path)
        #: Content of ``base.json``.
        self.about: dict[str, Any] = read_json(path)
        for name, (_, size) in self.about["files"].items():
            found = folder / name
            if not found.is_file() or found.stat().st_size != size:
                raise InputError("this file of the base is missing or torn", path=found)

    def file(self, name: str) -> Path:
        """Path of one of the base's files, after a check of its hash.

        Raises:
            InputError: It is not the one that was written.
        """
        path = self.folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", path=path) from error
        if found != self.about["files"][name][0]:
            raise InputError("this file of the base was changed (its SHA-256 differs)", path=path)
        return path

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.file(name)
        try:
            return load_file(path)  # mapped into memory, not read
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read ({error})", path=path) from error

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.about["dim"])

    @property
    def encoder(self) -> Path | None:
        """Folder of the encoder, or None."""
        return self.folder / ENCODER if self.about["encoder"] else None

    @cached_property
    def user_ids(self) -> pl.Series:
        """Raw ids by user row."""
        return pl.read_parquet(self.file("users.parquet"))["user"]

    @cached_property
    def trained(self) -> BoolArray:
        """``(n_users,)`` bool; bundles that do not say tell who has clicked anything."""
        users = pl.read_parquet(self.file("users.parquet"))
        if "trained" not in users.columns:
            return self.seen.user_degrees > 0
        return users["trained"].to_numpy()

    @cached_property
    def table(self) -> pl.DataFrame:
        """``item`` and text columns."""
        return pl.read_parquet(self.file("items.parquet"))

    @cached_property
    def user_vectors(self) -> Tensor:
        """``(n_users, dim)``."""
        return self._tensors("users.safetensors")["vectors"]

    @cached_property
    def item_vectors(self) -> Tensor:
        """``(n_items, dim)``."""
        return self._tensors("items.safetensors")["vectors"]

    @cached_property
    def alive(self) -> BoolArray:
        """``(n_items,)`` bool."""
        if self.about["all_alive"]:  # the usual case needs no file
            return np.ones(self.about["counts"]["items"], np.bool_)
        return self._tensors("items.safetensors")["alive"].numpy()

    @cached_property
    def seen(self) -> Interactions:
        """What is never recommended again."""
        log = self._tensors("seen.safetensors")
        return Interactions(log["indptr"].numpy(), log["items"].numpy(), self.about["counts"]["items"])

    @cached_property
    def _covers(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
        if DATA not in self.about["files"]:
            return None
        return np.memmap(self.file(DATA), np.uint8, "r"), self._tensors(ENDS)["ends"].numpy()

    def cover(self, row: int) -> bytes | None:
        """A small picture of an item row (JPEG), or None."""
        if self._covers is None:
            return None
        data, ends = self._covers
        return data[ends[row] : ends[row + 1]].tobytes() or None

    def has_cover(self, row: int) -> bool:
        """Whether there is one."""
        return self._covers is not None and bool(self._covers[1][row + 1] > self._covers[1][row])

    @cached_property
    def extras(self) -> Extras:
        """``(n_items, width)`` each, mapped into memory."""
        n = self.about["counts"]["items"]
        return {
            name: open_extra(self.file(file_of(name)), name, n, width)
            for name, width in self.about.get("extras", {}).items()
        }

    @cached_property
    def reasons(self) -> Reasons | None:
        """What explains lists."""
        if REASONS not in self.about["files"]:
            return None
        return Reasons.from_json(read_json(self.file(REASONS)))

    @cached_property
    def rule(self) -> HistoryRule | None:
        """The model's own way from a history to a user."""
        if histories.SETTINGS not in self.about["files"]:
            return None
        tensors = self._tensors(histories.TENSORS) if histories.TENSORS in self.about["files"] else {}
        return histories.rule_of(read_json(self.file(histories.SETTINGS)), tensors)

    @cached_property
    def removed(self) -> frozenset[str]:
        """Raw ids that were taken out; bundles that do not say keep only those that users have seen."""
        if "removed" in self.about:
            return frozenset(self.about["removed"])
        return frozenset(self.table["item"].filter(pl.Series(~self.alive)))

    @cached_property
    def additions(self) -> Additions:
        """Items that came by addition."""
        if "additions.parquet" not in self.about["files"]:
            return Additions()
        ids = pl.read_parquet(self.file("additions.parquet"))["item"].to_list()
        ends = self._tensors("additions.safetensors")["ends"].tolist()
        if not ends[-1]:
            return Additions(ids)
        data = np.memmap(self.file("additions.bin"), np.uint8, "r")
        return Additions(ids, lambda at: data[ends[at] : ends[at + 1]].tobytes())


def write_base(
    folder: Path,
    base: Base,
    about: Mapping[str, Any],
    write_encoder: Callable[[Path], None] | None = None,
) -> str:
    """Write a base folder; it appears whole or not at all.

    Args:
        folder: A folder that does not exist.
        base: What to write.
        about: JSON values to keep in ``base.json`` under ``about``.
        write_encoder: Writes the encoder into the folder it is given.

    Returns:
        The fingerprint.
    """
    with atomic_folder(folder) as out:
        save_file({"vectors": base.user_vectors}, out / "users.safetensors")
        alive = torch.from_numpy(base.alive.copy())
        save_file({"vectors": base.item_vectors.contiguous(), "alive": alive}, out / "items.safetensors")
        log = {"indptr": base.seen.indptr.copy(), "items": base.seen.items.copy()}
        save_file({name: torch.from_numpy(rows) for name, rows in log.items()}, out / "seen.safetensors")
        users = [base.user_ids.alias("user"), pl.Series("trained", base.trained)]
        pl.DataFrame(users).write_parquet(out / "users.parquet")
        base.table.write_parquet(out / "items.parquet")
        write_pictures(out, base.cover, len(base.table))
        extras = write_extras(out, base.extras)
        if base.reasons is not None:
            write_json(out / REASONS, base.reasons.to_json())
        if base.rule is not None:
            histories.write_rule(out, base.rule)
        _write_additions(out, base.additions)
        if write_encoder is not None:
            (out / ENCODER).mkdir()
            write_encoder(out / ENCODER)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        description = {
            "counts": {
                "users": len(base.user_ids),
                "items": len(base.table),
                "alive": int(base.alive.sum()),
                "seen": base.seen.n_pairs,
            },
            "dim": base.dim,
            "all_alive": bool(base.alive.all()),
            "encoder": write_encoder is not None,
            "extras": extras,
            "removed": sorted(base.removed),
            "about": dict(about),
            "files": {
                path.relative_to(out).as_posix(): [hash_file(path), path.stat().st_size] for path in files
            },
        }
        write_json(out / ABOUT, description)
        for path in files:  # some writers let nobody else read, but a bundle is made to be handed on
            path.chmod((out / ABOUT).stat().st_mode)
        sync_tree(out)
    return hash_file(folder / ABOUT)


def _write_additions(out: Path, additions: Additions) -> None:
    """Write ids and contents, if there are any; only one content is held at a time."""
    if not additions.ids:
        return
    pl.DataFrame([pl.Series("item", list(additions.ids), pl.String)]).write_parquet(out / "additions.parquet")
    ends = [0]
    with (out / "additions.bin").open("wb") as file:
        for _, content in additions:
            ends.append(ends[-1] + file.write(content))
    save_file({"ends": torch.tensor(ends)}, out / "additions.safetensors")


def sync_tree(folder: Path) -> None:
    """Force everything below ``folder`` to the disk: a rename must not overtake what it names."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
