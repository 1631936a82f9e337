"""From a finished run to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from firstlight.models.content import ContentModel
from firstlight.serving.base import Parts, text_columns
from firstlight.serving.bundle import Bundle
from firstlight.serving.encoder import run_encoder
from firstlight.serving.run_base import FinishedRun
from firstlight.serving.segment import Rules


def export_run(
    run: FinishedRun, out: Path | str, items: pl.DataFrame | None = None, folder: Path | None = None
) -> Bundle:
    """Write a bundle: the run's vectors, what was added to it, and what makes vectors of new items.

    Args:
        run: A finished run; its additions are merged in.
        out: A folder that does not exist yet, or is empty.
        items: ``item`` (raw ids), text columns such as ``title``, and ``cover`` (bytes or paths), in any order;
            for items that the run knows. Covers are kept small.
        folder: What relative cover paths are relative to.

    Raises:
        InputError: The run's model has no vectors, or ``out`` holds something.
        FirstlightError: It cannot be written.
    """
    added = Bundle.open_run(run, items, folder)
    merged = added.snapshot.merged()
    if added.snapshot.texts:
        merged = replace(_titled(merged, items), additions=added.additions())
    writer = run_encoder(run).save if isinstance(run.model, ContentModel) else None
    about = {"run": run.path.name, "config": run.config.model_dump(mode="json"), "additions": added.version}
    rules = added.snapshot.rules
    return Bundle.create(
        out, merged, write_encoder=writer, about=about, rules=None if rules == Rules() else rules
    )


def _titled(base: Parts, items: pl.DataFrame | None) -> Parts:
    """``base`` with the texts of ``items``; what an addition said of itself counts more."""
    if items is None:
        return base
    texts = pl.DataFrame([items["item"].cast(pl.String), *text_columns(items).get_columns()])
    table = base.table.join(texts, on="item", how="left", maintain_order="left", suffix=":new")
    both = [name for name in base.table.columns if f"{name}:new" in table.columns]
    table = table.with_columns(pl.coalesce(name, f"{name}:new").alias(name) for name in both)
    table = table.drop(f"{name}:new" for name in both)
    return replace(base, table=table)
