"""Content between a dataset and a model: views fitted on what a phase may know, and kept with the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from firstlight.core.files import read_json, write_json
from firstlight.data.catalogue import FeatureMatrix, ItemViews, with_ids
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.models import MODELS
from firstlight.training.checkpoint import load_tensors, save_tensors
from firstlight.training.config import RunConfig
from firstlight.views.viewset import ViewSet, chosen_views

#: Folder of the fitted views inside a run, and of the catalogue's rows inside that.
FOLDER, ROWS = "views", "rows"


@dataclass(frozen=True, eq=False)
class Content:
    """Views of a catalogue.

    Attributes:
        view_set: The fitted views, for items that arrive later.
        views: The catalogue's rows.
    """

    view_set: ViewSet
    views: ItemViews


def check_content(config: RunConfig, dataset: Dataset) -> None:
    """Refuse a model that reads content on a catalogue without it, before anything is written.

    Raises:
        InputError: There is no content, or not the view that the config names.
    """
    if MODELS.load(config.model.name).needs_views:
        chosen_views(config.views, dataset.catalogue)


def fit_content(config: RunConfig, dataset: Dataset, log: Interactions) -> Content | None:
    """Fit views on the items that ``log`` knows, and transform the whole catalogue.

    Args:
        config: The run's config.
        dataset: Where the catalogue is.
        log: What the model is about to learn from; items without a pair in it are cold and fit nothing.

    Returns:
        None for a model that reads no content.

    Raises:
        InputError: The model reads content and the catalogue has none.
    """
    if not MODELS.load(config.model.name).needs_views:
        return None
    warm = log.item_degrees > 0
    catalogue = with_ids(dataset.catalogue, dataset.item_ids)
    view_set = ViewSet.fit(config.views, catalogue, warm, seed=config.seed, folder=dataset.source or None)
    return Content(view_set, view_set.transform(catalogue, dataset.source or None))


def save_content(out: Path, content: Content) -> None:
    """Write fitted views and the catalogue's rows under ``out/views``."""
    content.view_set.save(out / FOLDER)
    for name, matrix in content.views.items():
        tensors = {"values": torch.from_numpy(matrix.values), "present": torch.from_numpy(matrix.present)}
        save_tensors(out / FOLDER / ROWS / f"{name}.safetensors", tensors)
    # The order of the views is the order of a model's inputs.
    write_json(out / FOLDER / ROWS / "order.json", list(content.views))


def load_views(run: Path) -> ItemViews | None:
    """The catalogue's rows as the run's model read them, or None if it reads none."""
    folder = run / FOLDER / ROWS
    if not (folder / "order.json").exists():
        return None
    views = {}
    for name in read_json(folder / "order.json"):
        tensors = load_tensors(folder / f"{name}.safetensors")
        views[name] = FeatureMatrix(tensors["values"].numpy(), tensors["present"].numpy(), name)
    return views
