"""One change of a catalogue, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise, repeat
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load, save
from torch import Tensor

from firstlight.serving.extras import Extras


@dataclass(frozen=True)
class Rules:
    """What an operator wants of the lists, whatever the model says.

    Attributes:
        blocked: Raw ids that are in no list; they need not be in the catalogue.
        boosts: Raw id → factor of its score: above one lifts the item, below one lowers it.
    """

    blocked: frozenset[str] = frozenset()
    boosts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Segment:
    """One change of the catalogue; removals come before additions.

    Attributes:
        table: One row an added item: ``item`` (raw id), and any text columns.
        vectors: ``(n, dim)`` float32, row-aligned to ``table``, in scoring space.
        removed: Raw ids.
        covers: ``(n,)`` small pictures (JPEG) or None, row-aligned to ``table``; empty if there is none at all.
        rules: The rules from here on; None if they stay as they are.
        extras: Rows beside the vectors (:mod:`firstlight.serving.extras`), row-aligned to ``table``.
        contents: ``(n,)`` :meth:`~firstlight.serving.contents.Kept.to_bytes`, or nothing, row-aligned to ``table``;
            empty if there is none at all. Written but not read back: :meth:`contents_from` reads them when they are
            needed.
        taken: Folder of another catalogue → its version up to which its changes were taken over.
    """

    table: pl.DataFrame
    vectors: Tensor
    removed: tuple[str, ...] = ()
    covers: tuple[bytes | None, ...] = ()
    rules: Rules | None = None
    extras: Extras = field(default_factory=dict)
    contents: tuple[bytes, ...] = ()
    taken: Mapping[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The segment as a safetensors file: the vectors, and table and ids as UTF-8 JSON."""
        tensors = {
            "vectors": self.vectors.contiguous(),
            "table": _as_tensor(self.table.to_dict(as_series=False)),
            "removed": _as_tensor(list(self.removed)),
        }
        if any(self.covers):
            sizes = [len(cover or b"") for cover in self.covers]
            tensors["covers.ends"] = torch.tensor([0, *sizes]).cumsum(0)
            tensors["covers.data"] = _bytes_tensor(b"".join(cover or b"" for cover in self.covers))
        if self.rules is not None:
            rules = {"blocked": sorted(self.rules.blocked), "boosts": dict(self.rules.boosts)}
            tensors["rules"] = _as_tensor(rules)
        tensors |= {f"extras.{name}": torch.from_numpy(rows) for name, rows in self.extras.items()}
        if any(self.contents):
            sizes = [len(content) for content in self.contents]
            tensors["contents.ends"] = torch.tensor([0, *sizes]).cumsum(0)
            tensors["contents.data"] = _bytes_tensor(b"".join(self.contents))
        if self.taken:
            tensors["taken"] = _as_tensor(dict(self.taken))
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Segment:
        """Inverse of :meth:`to_bytes`; the data have been checked by their hash.

        Covers that were written when their number was not checked are filled up, or cut: the items are sound without.
        """
        tensors = load(data)
        columns = _from_tensor(tensors["table"])
        table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
        covers: tuple[bytes | None, ...] = ()
        if "covers.ends" in tensors:
            pictures, ends = tensors["covers.data"].numpy(), tensors["covers.ends"].tolist()
            found = (pictures[a:b].tobytes() or None for a, b in pairwise(ends))
            covers = tuple(islice(chain(found, repeat(None)), table.height))
        rules = None
        if "rules" in tensors:
            wanted = _from_tensor(tensors["rules"])
            rules = Rules(frozenset(wanted["blocked"]), wanted["boosts"])
        extras = {
            name.removeprefix("extras."): rows.numpy()
            for name, rows in tensors.items()
            if name.startswith("extras.")
        }
        removed = tuple(_from_tensor(tensors["removed"]))
        taken = _from_tensor(tensors["taken"]) if "taken" in tensors else {}
        return cls(table, tensors["vectors"], removed, covers, rules, extras, taken=taken)

    @staticmethod
    def contents_from(data: bytes) -> dict[str, bytes]:
        """Raw id of each added item → its kept content, or nothing."""
        tensors = load(data)
        ids = _from_tensor(tensors["table"])["item"]
        if "contents.ends" not in tensors:
            return dict.fromkeys(ids, b"")
        contents, ends = tensors["contents.data"].numpy(), tensors["contents.ends"].tolist()
        written = (contents[a:b].tobytes() for a, b in pairwise(ends))
        return dict(zip(ids, chain(written, repeat(b"")), strict=False))  # filled up or cut, as covers are


def _as_tensor(value: Any) -> Tensor:
    return _bytes_tensor(json.dumps(value).encode())


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _from_tensor(tensor: Tensor) -> Any:
    return json.loads(tensor.numpy().tobytes())
