"""Lists for all users, and items like an item, from a finished run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F

from firstlight.core.errors import InputError
from firstlight.core.files import writing
from firstlight.core.topk import TopK, blocked_top_k, list_length
from firstlight.evaluation.scorer import rank
from firstlight.training.run_folder import Run

#: Users whose lists are held at once while writing.
_CHUNK = 50_000


def _rows(ids: pl.Series, wanted: Sequence[str] | None, kind: str) -> npt.NDArray[np.int64]:
    """Rows of raw ids; all rows if ``wanted`` is None."""
    if wanted is None:
        return np.arange(len(ids))
    lookup = pl.DataFrame({"id": ids, "row": np.arange(len(ids))})
    found = pl.DataFrame({"id": list(wanted)}, schema={"id": pl.String}).join(
        lookup, on="id", how="left", maintain_order="left"
    )
    missing = found.filter(pl.col("row").is_null())["id"].to_list()
    if missing:
        raise InputError(
            f"{len(missing)} {kind} ids are unknown to this run, the first is {missing[0]!r}",
            hint=f"ids are compared as text; known ids look like {ids[0]!r}",
        )
    return found["row"].to_numpy().astype(np.int64)


def recommend(
    run: Run, users: Sequence[str] | None = None, k: int = 20, *, exclude_seen: bool = True
) -> Iterator[pl.DataFrame]:
    """The k best unseen items of each user, in chunks of users.

    Args:
        run: A finished run.
        users: Raw user ids; all users if None.
        k: Length of the lists; users with fewer items left get fewer.
        exclude_seen: Leave out what the run knows the user has clicked.

    Yields:
        Tables with columns ``user``, ``rank`` (from 1), ``item``, ``score``; raw ids.

    Raises:
        InputError: An id is unknown.
    """
    rows, k = _rows(run.user_ids, users, "user"), list_length(k, len(run.item_ids))
    logs = [run.seen, *([run.parts["valid"]] if "valid" in run.parts else [])] if exclude_seen else []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        blocks = rank(run.scorer, chunk, k, logs)
        yield pl.concat(
            [_table(run.user_ids, run.item_ids, chunk[part], best, "user") for part, best in blocks]
        )


def similar_items(run: Run, items: Sequence[str] | None = None, k: int = 20) -> Iterator[pl.DataFrame]:
    """The k items whose vectors point most nearly the same way.

    Args:
        run: A finished run whose model has vectors.
        items: Raw item ids; all items if None.
        k: Length of the lists.

    Yields:
        Tables with columns ``item``, ``rank``, ``similar``, ``score`` (cosine).

    Raises:
        InputError: An id is unknown, or the model has no item vectors.
    """
    vectors = run.scorer.vectors()
    if vectors is None:
        raise InputError(f"model {run.config.model.name!r} has no item vectors", path=run.path)
    rows, k = _rows(run.item_ids, items, "item"), list_length(k, len(run.item_ids))
    unit = F.normalize(vectors[1], dim=1)
    own = (np.arange(len(rows) + 1), rows.astype(np.int32))
    for part, best in blocked_top_k(unit[torch.from_numpy(rows)], unit, k, exclude=own):
        yield _table(run.item_ids, run.item_ids, rows[part], best, "item")


def _table(
    owners: pl.Series, items: pl.Series, rows: npt.NDArray[np.int64], best: TopK, kind: str
) -> pl.DataFrame:
    ids, scores = best.ids.numpy(), best.scores.numpy()
    known = ids >= 0
    ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)
    owner_rows = np.repeat(rows, known.sum(axis=1))
    return pl.DataFrame(
        {
            kind: owners.gather(owner_rows),
            "rank": ranks[known],
            "item" if kind == "user" else "similar": items.gather(ids[known]),
            "score": scores[known],
        }
    )


def write_lists(tables: Iterator[pl.DataFrame], out: Path) -> int:
    """Stream tables to Parquet, CSV or JSON lines, by the suffix of ``out``; memory stays bounded.

    Returns:
        Number of rows written.

    Raises:
        InputError: The suffix is none of these.
    """
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    if out.suffix not in writers:
        raise InputError(
            f"cannot write {out.suffix or 'a file without suffix'}", path=out, hint=", ".join(writers)
        )
    with writing(out) as temporary:
        return writers[out.suffix](tables, temporary)


def _write_parquet(tables: Iterator[pl.DataFrame], path: Path) -> int:
    """One file a chunk, then a streaming concatenation: neither holds all lists at once."""
    count = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lists") as folder:
        for index, table in enumerate(tables):
            table.write_parquet(Path(folder) / f"{index:09d}.parquet")
            count += len(table)
        if count:
            pl.scan_parquet(Path(folder) / "*.parquet").sink_parquet(path)
    if not count:
        raise InputError("there is nobody to recommend to", path=path, hint="the list of ids is empty")
    return count


def _write_csv(tables: Iterator[pl.DataFrame], path: Path) -> int:
    count = 0
    with path.open("wb") as handle:
        for table in tables:
            table.write_csv(handle, include_header=count == 0)
            count += len(table)
    return count


def _write_jsonl(tables: Iterator[pl.DataFrame], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as handle:
        for table in tables:
            for row in table.iter_rows(named=True):
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += len(table)
    return count
