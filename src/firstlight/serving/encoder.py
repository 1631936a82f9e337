"""From a new item's content to its vector: the part of a run that outlives training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.files import read_json, write_json
from firstlight.data.catalogue import Catalogue, FeatureMatrix, ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models import MODELS
from firstlight.models.base import Recommender
from firstlight.models.content import ContentModel, content_rows
from firstlight.serving.base import FolderBase
from firstlight.serving.extras import Array
from firstlight.serving.reading import NoContentError, Reads
from firstlight.serving.reasons import rows_of
from firstlight.serving.run_base import FinishedRun
from firstlight.views.viewset import ViewSet


class Encoder(Protocol):
    """Makes vectors of items that training never saw."""

    def encode(self, catalogue: Catalogue, folder: Path | None) -> Tensor:
        """Vectors of a catalogue's items.

        Args:
            catalogue: ``n`` new items.
            folder: What relative cover paths are relative to.

        Returns:
            ``(n, dim)`` in scoring space.
        """


class Placed(NamedTuple):
    """New items as a catalogue takes them: ``(n, dim)`` vectors, and rows beside them."""

    vectors: Tensor
    extras: dict[str, Array]


class ContentEncoder:
    """Fitted views and a trained model that reads them.

    Args:
        model: The model.
        views: The views that it was trained on.
    """

    def __init__(self, model: ContentModel, views: ViewSet) -> None:
        self.model, self.views = model, views

    def encode(self, catalogue: Catalogue, folder: Path | None) -> Tensor:
        """See :class:`Encoder`.

        Raises:
            NoContentError: An item has none of the views, so that nothing can be said of it.
        """
        return self.model.encode_items(self._rows(catalogue, folder))

    @property
    def reads(self) -> Reads:
        """What of an item the model goes by."""
        return Reads.of(self.views, tuple(self.model.view_dims))

    def place(self, catalogue: Catalogue, folder: Path | None) -> Placed:
        """Vectors, and what a catalogue keeps beside them.

        Raises:
            NoContentError: An item has none of the views, so that nothing can be said of it.
        """
        model = self.model
        rows = content_rows(self._rows(catalogue, folder), model.view_dims)
        vectors, handed = model.encode_and_hand(rows)
        extras = rows_of(model, rows)
        if handed is not None:
            extras["handed"] = handed.to(torch.float32).numpy()
        return Placed(vectors, extras)

    def _rows(self, catalogue: Catalogue, folder: Path | None) -> ItemViews:
        """Views of items that have at least one."""
        rows = self.views.transform(catalogue, folder)
        present = np.any([rows[name].present for name in self.model.view_dims], axis=0)
        if not present.all():
            raise NoContentError(np.flatnonzero(~present), present.size, self.reads)
        return rows

    def save(self, folder: Path) -> None:
        """Write everything that :func:`load_encoder` needs into an existing folder."""
        model = self.model
        config = {"config": model.config.model_dump(mode="json"), "n_items": model.n_items}
        write_json(folder / "model.json", {**config, "views": list(model.view_dims)})
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "state.safetensors")
        log = {"indptr": model.log.indptr.copy(), "items": model.log.items.copy()}
        save_file({name: torch.from_numpy(rows) for name, rows in log.items()}, folder / "log.safetensors")
        rows = {f"values.{i}": values.contiguous() for i, values in enumerate(model.content.values)}
        save_file({**rows, "present": model.content.present.contiguous()}, folder / "content.safetensors")
        self.views.save(folder / "views")


def run_encoder(run: FinishedRun) -> ContentEncoder:
    """The encoder of a finished run.

    Raises:
        InputError: The run's model reads no content.
    """
    return ContentEncoder(_content_model(run.model, run.path), ViewSet.load(run.path / "views"))


def _content_model(model: Recommender, path: Path) -> ContentModel:
    if isinstance(model, ContentModel):
        return model
    name = getattr(getattr(model, "config", None), "name", type(model).__name__)
    able = [known for known in MODELS.names() if issubclass(MODELS.load(known), ContentModel)]
    raise InputError(
        f"model {name!r} cannot take in new items",
        path=path,
        hint=f"train one that reads content: {', '.join(able)}",
    )


def load_encoder(base: FolderBase) -> ContentEncoder:
    """The encoder that a bundle carries.

    Raises:
        InputError: It carries none, or a file of it was changed.
    """
    if base.encoder is None:
        raise InputError(
            "this bundle carries no encoder: the model of its run knows items by their clicks only",
            path=base.folder,
            hint="export a run whose model reads content",
        )
    names = [name for name in base.about["files"] if name.startswith(f"{base.encoder.name}/")]
    files = {Path(name).relative_to(base.encoder.name).as_posix(): base.file(name) for name in names}
    about = read_json(files["model.json"])
    log = load_file(files["log.safetensors"])
    built_on = Interactions(log["indptr"].numpy(), log["items"].numpy(), about["n_items"])
    content = load_file(files["content.safetensors"])
    views: ItemViews = {
        name: FeatureMatrix(content[f"values.{i}"].numpy(), content["present"][:, i].numpy(), name)
        for i, name in enumerate(about["views"])
    }
    model_class: type[Recommender] = MODELS.load(about["config"]["name"])
    config = model_class.Config.model_validate(about["config"])
    model = model_class.from_state(config, built_on, load_file(files["state.safetensors"]), views)
    return ContentEncoder(_content_model(model, base.folder), ViewSet.load(base.encoder / "views"))


def carry_encoder(base: FolderBase) -> Callable[[Path], None] | None:
    """What brings a base's encoder along into the next base; None if it has none."""
    source = base.encoder
    if source is None:
        return None

    def carry(out: Path) -> None:
        for path in sorted(source.rglob("*")):
            target = out / path.relative_to(source)
            if path.is_dir():
                target.mkdir()
                continue
            try:
                os.link(path, target)  # the files of a base never change: no second copy is needed
            except OSError:
                shutil.copyfile(path, target)

    return carry
