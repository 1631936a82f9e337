"""Tomorrow's training from today's run: known ids keep their rows, new ones are placed by what is known of them.

Only the ID vectors go on. What a model has made of content starts anew, on views that are fitted anew: today's views
know nothing of later items, and weights that have seen the same items many times over start ahead and end behind (a
known trait of warm starts: Ash & Adams, "On warm-starting neural network training", NeurIPS 2020). MHCR, a tower, MGCN
and BM3 all ended higher so than with all of their weights (docs/pipeline.md).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_file, hash_strings
from firstlight.data.catalogue import ItemViews
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.models.base import EmbeddingModel
from firstlight.models.content import ContentModel, content_rows
from firstlight.models.histories import mean_of_history
from firstlight.training.config import RunConfig
from firstlight.training.content import FOLDER
from firstlight.training.run_folder import Run
from firstlight.views.viewset import ViewSet

IntArray = npt.NDArray[np.int64]

#: Most rows that the map of new rows is fitted on.
_FITTED = 20_000
#: Weight of the penalty on that map, as a share of the mean diagonal.
_PENALTY = 0.01


class WarmStart:
    """A run that another one starts from.

    Args:
        run: Today's finished run.
        config: Tomorrow's config; its model must be that of the run.
        dataset: Tomorrow's data.

    Attributes:
        digest: Hash of all that the start decides.
        about: JSON values for the result.

    Raises:
        InputError: The run's model has nothing to start from, is another one, or knows none of the ids.
    """

    def __init__(self, run: Run, config: RunConfig, dataset: Dataset) -> None:
        ours, theirs = (c.model.model_dump(mode="json") for c in (config, run.config))
        differing = [name for name in ours if ours[name] != theirs.get(name)]
        if differing:
            name = differing[0]
            raise InputError(
                f"this run's model differs: model.{name} is {theirs.get(name)!r} there and {ours[name]!r} here",
                path=run.path,
                hint="leave the model's settings out; they are taken from the run",
            )
        if not isinstance(run.model, EmbeddingModel):
            raise InputError(f"model {run.config.model.name!r} has no vectors to start from", path=run.path)
        if not run.model.user_rows:
            raise InputError(
                f"model {run.config.model.name!r} fits its vectors to the log before it trains, so there is nothing "
                "to start from",
                path=run.path,
                hint="train without --from",
            )
        self.run, self.model, self._dataset = run, run.model, dataset
        self._users, self._items = (
            _places(new, old)
            for new, old in ((dataset.user_ids, run.user_ids), (dataset.item_ids, run.item_ids))
        )
        if not ((self._users >= 0).any() and (self._items >= 0).any()):
            raise InputError(
                "this run knows none of the users or none of the items of the dataset", path=run.path,
                hint="ids are compared as text",
            )  # fmt: skip
        files = ["model.safetensors", "ids.parquet"]
        if isinstance(self.model, ContentModel):
            files += sorted(
                str(file.relative_to(run.path)) for file in (run.path / FOLDER).glob("*") if file.is_file()
            )
        self.digest = hash_strings(hash_file(run.path / name) for name in files)
        self.about = {
            "run": str(run.path),
            "hash": self.digest,
            "known_users": int((self._users >= 0).sum()),
            "known_items": int((self._items >= 0).sum()),
        }

    @cached_property
    def _through_old_views(self) -> ItemViews:
        """Tomorrow's catalogue as today's model reads it."""
        views, dataset = ViewSet.load(self.run.path / FOLDER), self._dataset
        return views.transform(dataset.catalogue, dataset.source or None)

    @torch.no_grad()
    def apply(self, model: EmbeddingModel) -> None:
        """Put today's parameters into tomorrow's model at its start.

        Known users and items get their rows; weights that belong to neither stay as they are. A new user's row
        follows from what ``encode_users`` makes of the history (of items that are known), a new item's from what
        ``encode_items`` makes of the content, or where the model reads none from the users who clicked it: a ridge
        regression, fitted on the known rows, leads from there to rows of the table. Who has neither keeps the start of
        a training from nothing.

        Args:
            model: A model on tomorrow's log.
        """
        before = dict(self.model.named_parameters())
        own = dict(model.named_parameters())
        for names, places in ((model.user_rows, self._users), (model.item_rows, self._items)):
            known = torch.from_numpy(np.flatnonzero(places >= 0))
            rows = torch.from_numpy(places[places >= 0])
            for name in names:
                own[name][known] = before[name][rows].to(own[name].dtype)
        self._new_items(model)
        self._new_users(model)

    def _new_users(self, model: EmbeddingModel) -> None:
        new = np.flatnonzero(self._users < 0)
        histories = _relabelled(model.log, new, self._items, self.model.n_items)
        useful = histories.user_degrees > 0
        if not useful.any():
            return
        fitted = _some(np.flatnonzero(self.model.log.user_degrees))
        known = _relabelled(self.model.log, fitted, np.arange(self.model.n_items), self.model.n_items)
        made = _led(
            self._of_users(known), self.model.user_table[torch.from_numpy(fitted)], self._of_users(histories)
        )
        model.user_table[torch.from_numpy(new[useful])] = made[torch.from_numpy(useful)]

    def _of_users(self, histories: Interactions) -> Tensor:
        """What is known of users by their histories alone."""
        if isinstance(self.model, ContentModel):
            return self.model.encode_users(histories)[:, :-1]
        return mean_of_history(self.model.item_table, histories)

    def _new_items(self, model: EmbeddingModel) -> None:
        new = np.flatnonzero(self._items < 0)
        if not len(new):
            return
        fitted = _some(np.flatnonzero(self.model.log.item_degrees))
        rows = self.model.item_table[torch.from_numpy(fitted)]
        if isinstance(self.model, ContentModel):
            content = content_rows(self._through_old_views, self.model.view_dims)
            content = content[torch.from_numpy(new)]
            useful = content.present.any(dim=1).numpy()
            known = self.model.content_vectors(self.model.content[torch.from_numpy(fitted)])
            found = self.model.content_vectors(content)
        else:
            everyone = np.arange(self.model.n_users)
            clickers = _relabelled(_turned(model.log), new, self._users, self.model.n_users)
            useful = clickers.user_degrees > 0
            before = _relabelled(_turned(self.model.log), fitted, everyone, self.model.n_users)
            known = mean_of_history(self.model.user_table, before)
            found = mean_of_history(self.model.user_table, clickers)
        if useful.any():
            made = _led(known, rows, found)
            model.item_table[torch.from_numpy(new[useful])] = made[torch.from_numpy(useful)]


def _places(new: pl.Series, old: pl.Series) -> IntArray:
    """``(len(new),)``: the row of each id in ``old``, or -1."""
    lookup = pl.DataFrame({"id": old.cast(pl.String), "row": np.arange(len(old))})
    wanted = pl.DataFrame({"id": new.cast(pl.String)})
    found = wanted.join(lookup, on="id", how="left", maintain_order="left")["row"]
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _some(rows: IntArray) -> IntArray:
    """``rows``, or evenly many of them."""
    return rows[:: max(1, -(-len(rows) // _FITTED))]


def _turned(log: Interactions) -> Interactions:
    """Users of items in place of items of users."""
    return Interactions.from_pairs(log.items, log.users, log.n_items, log.n_users)


def _relabelled(log: Interactions, users: IntArray, places: IntArray, n_items: int) -> Interactions:
    """The histories of ``users``, in this order, over other item rows: ``places[row]``, left out where that is -1."""
    order = np.full(log.n_users, -1)
    order[users] = np.arange(len(users))
    kept = (order[log.users] >= 0) & (places[log.items] >= 0)
    return Interactions.from_pairs(order[log.users[kept]], places[log.items[kept]], len(users), n_items)


def _led(known: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    """Rows for ``found`` by the ridge regression that leads from ``known`` ``(n, d)`` to ``rows`` ``(n, dim)``."""
    inputs = torch.cat([known, known.new_ones(len(known), 1)], dim=1)
    normal = inputs.T @ inputs
    ridge = _PENALTY * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype)
    weights = torch.linalg.solve(normal + ridge, inputs.T @ rows.to(inputs.dtype))
    made: Tensor = found @ weights[:-1] + weights[-1]
    return made
