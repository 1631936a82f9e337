"""The run folder: what a finished (or interrupted) training leaves, and how to read it back."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from torch import Tensor

import firstlight
from firstlight.core.errors import InputError
from firstlight.core.files import read_json, write_json, write_text, writing
from firstlight.core.hashing import hash_strings
from firstlight.core.identity import decisive
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.evaluation.scorer import Scorer, VectorScorer
from firstlight.models import MODELS
from firstlight.models.base import Recommender
from firstlight.training.checkpoint import AGAIN, load_tensors, save_tensors
from firstlight.training.config import RunConfig, config_yaml
from firstlight.training.content import load_views
from firstlight.views.viewset import outside_hashes

_PARTS = ("train", "valid", "test")


class ModelScorer:
    """Ranks with a model: by its vectors where it has some, else by its score rows."""

    def __init__(self, model: Recommender) -> None:
        self._model = model
        self._vectors = model.vectors_for_scoring()
        self.n_users, self.n_items = model.n_users, model.n_items

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """User and item matrices in scoring space, or None."""
        return self._vectors

    def scores(self, users: Tensor) -> Tensor:
        """``(b, n_items)`` scores."""
        if self._vectors is not None:
            return VectorScorer(*self._vectors).scores(users)
        return self._model.scores(users)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read back.

    Attributes:
        path: The folder.
        config: The resolved config.
        result: Content of ``result.json``.
        user_ids: Raw ids by user row.
        item_ids: Raw ids by item row.
        parts: ``train``, ``valid``, ``test`` as they were in the run, where they existed.
        seen: What the final model was trained on: never recommended again.
    """

    path: Path
    config: RunConfig
    result: dict[str, Any]
    user_ids: pl.Series
    item_ids: pl.Series
    parts: dict[str, Interactions]
    seen: Interactions

    @cached_property
    def model(self) -> Recommender:
        """The trained model."""
        config = self.config.model
        built_on = self.seen
        if (self.path / "graph.safetensors").exists():
            built_on = _load_log(self.path / "graph.safetensors", len(self.item_ids))
        state = load_tensors(self.path / "model.safetensors")
        model: Recommender = MODELS.load(config.name).from_state(
            config, built_on, state, load_views(self.path)
        )
        return model

    @cached_property
    def scorer(self) -> Scorer:
        """The trained model as evaluation and recommendation want it."""
        return ModelScorer(self.model)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary an epoch, from ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """Per-user metrics on test."""
        return pl.read_parquet(self.path / "per_user.parquet")


def environment() -> dict[str, Any]:
    """What a reader needs to judge whether numbers of two runs are comparable."""
    return {
        "firstlight": firstlight.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def run_hash(config: RunConfig, dataset: Dataset, start: str | None = None) -> str:
    """Hash of everything that decides the result: config (threads apart), data, encoders of content, and the start."""
    tree = decisive(config)
    tree["training"].pop("threads")
    parts = [json.dumps(tree, sort_keys=True), dataset.content_hash]
    if MODELS.load(config.model.name).needs_views:
        catalogue = dataset.catalogue
        parts += [catalogue.content_hash, catalogue.files_hash(dataset.source or None)]
        parts += outside_hashes(config.views)
    if start is not None:
        parts.append(start)
    return hash_strings(parts)


def start_run(out: Path, config: RunConfig, dataset: Dataset, parts: dict[str, Interactions]) -> None:
    """Write what is known before training: config, environment, ids, split, where the data came from."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.yaml", config_yaml(config))
    except OSError as error:
        raise InputError(f"the run folder cannot be written: {error.strerror}", path=out) from error
    write_json(out / "environment.json", environment())
    source = {
        "name": dataset.name,
        "path": dataset.source,
        "content_hash": dataset.content_hash,
        "split": None if dataset.split is None else vars(dataset.split),
        "dropped": dict(dataset.dropped),
    }
    write_json(out / "dataset.json", source)
    ids = [("user", dataset.user_ids), ("item", dataset.item_ids)]
    frames = [pl.DataFrame({"kind": [kind] * len(s), "id": s.cast(pl.String)}) for kind, s in ids]
    with writing(out / "ids.parquet", AGAIN) as temporary:
        pl.concat(frames).write_parquet(temporary)
    tables = [
        pl.DataFrame({"user": part.users, "item": part.items, "split": np.full(part.n_pairs, code, np.uint8)})
        for code, part in ((_PARTS.index(name), part) for name, part in parts.items())
    ]
    with writing(out / "split.parquet", AGAIN) as temporary:
        pl.concat(tables).write_parquet(temporary)


def save_model(out: Path, model: Recommender, seen: Interactions) -> None:
    """Write the model's tensors, what it must not recommend again, and the log it was built on if that differs."""
    save_tensors(out / "model.safetensors", model.state_dict())
    _save_log(out / "seen.safetensors", seen)
    if model.log.n_pairs != seen.n_pairs:  # some pairs were kept back from the graph
        _save_log(out / "graph.safetensors", model.log)


def _save_log(path: Path, log: Interactions) -> None:
    save_tensors(
        path, {"indptr": torch.from_numpy(log.indptr.copy()), "items": torch.from_numpy(log.items.copy())}
    )


def _load_log(path: Path, n_items: int) -> Interactions:
    arrays = load_tensors(path)
    return Interactions(arrays["indptr"].numpy(), arrays["items"].numpy(), n_items)


def write_metrics(out: Path, history: Iterable[dict[str, Any]]) -> None:
    """Write ``metrics.jsonl`` anew: small, and so never out of step with the checkpoint."""
    write_text(out / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))


def load_run(path: Path | str) -> Run:
    """Read a finished run.

    Raises:
        InputError: The folder is not a run, or the run did not finish.
    """
    path = Path(path)
    if not (path / "config.yaml").exists():
        raise InputError(
            "this folder is not a run", path=path, hint="give the --out folder of firstlight train"
        )
    if not (path / "result.json").exists():
        raise InputError(
            "this run did not finish", path=path, hint="finish it with firstlight train … --resume"
        )
    config = RunConfig.model_validate(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
    ids = pl.read_parquet(path / "ids.parquet")
    users = ids.filter(pl.col("kind") == "user")["id"]
    items = ids.filter(pl.col("kind") == "item")["id"]
    return Run(
        path=path,
        config=config,
        result=read_json(path / "result.json"),
        user_ids=users,
        item_ids=items,
        parts=load_parts(path, len(users), len(items)),
        seen=_load_log(path / "seen.safetensors", len(items)),
    )


def load_parts(path: Path, n_users: int, n_items: int) -> dict[str, Interactions]:
    """The parts of a run's split by name."""
    table = pl.read_parquet(path / "split.parquet")
    parts = {}
    for code, name in enumerate(_PARTS):
        rows = table.filter(pl.col("split") == code)
        if len(rows):
            parts[name] = Interactions.from_pairs(
                rows["user"].to_numpy(), rows["item"].to_numpy(), n_users, n_items
            )
    return parts
