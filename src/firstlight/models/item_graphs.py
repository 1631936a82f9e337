"""The base of content models whose items hand something to their content neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.graphs.knn import Finder, Method, Neighbours, item_neighbours
from firstlight.models.base import EmbeddingConfig, ModelConfig
from firstlight.models.content import ContentModel

#: What encoding new rows reads of a trained model.
LearnedT = TypeVar("LearnedT")


class ItemGraphConfig(EmbeddingConfig):
    """Fields of models whose items have content neighbours."""

    neighbours: int = Field(10, ge=1)
    """Content neighbours of an item (k), itself among them unless the model says otherwise."""

    knn: Method = "exact"
    """How they are found: ``exact``; ``faiss`` (extra ``ann``): among candidates from inverted lists, so that a few of
    a hundred may be missed; ``auto``: ``faiss`` where it is installed and at least halves the work, which is from
    50,000 warm items on, else ``exact``."""


class ItemGraphModel(ContentModel, Generic[LearnedT]):
    """A content model that knows each item's content neighbours, view by view.

    They are found once and are part of the state: loading a run ranks nothing, and gives the very graph that was
    trained on, also where it was found approximately.

    Args:
        config: The model's config.
        train: The training log.
        rng: Random stream of the start.
        views: Content of the items.
        finder: What finds neighbours.
    """

    needs_neighbours: ClassVar[bool] = True
    config: ItemGraphConfig

    def __init__(
        self,
        config: ItemGraphConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
        finder: Finder = item_neighbours,
    ) -> None:
        super().__init__(config, train, rng, views)
        self._cache: tuple[tuple[int, ...], LearnedT] | None = None
        for view, values in enumerate(self.content.values):
            self._keep(view, self._found(values, finder))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As the base; a resumed training goes on with the graph that it began with, whatever is found now."""
        keys = super().load_state_dict(state_dict, strict, assign)
        self._build_item_graphs()
        self._cache = None
        return keys

    def _learned(self) -> LearnedT:
        """What new rows are encoded with; made again only after a parameter changed."""
        state = tuple(parameter._version for parameter in self.parameters())
        if self._cache is None or self._cache[0] != state:
            self._cache = (state, self._learn())
        return self._cache[1]

    def _learn(self) -> LearnedT:
        """Make what new rows are encoded with."""
        raise NotImplementedError

    def _build_item_graphs(self) -> None:
        """Make what propagates of :attr:`neighbour_lists`; called again when those are loaded."""
        raise NotImplementedError

    def _found(self, values: Tensor, finder: Finder) -> Neighbours:
        """Neighbours of the whole catalogue in one view ``(n_items, dim)``.

        As the default, each item's nearest *warm* items, itself among them if it is warm. The released graphs of
        FREEDOM and MGCN also run through items that nobody has clicked, whose untrained IDs then reach everybody; here
        they only receive.
        """
        return finder(values, self.config.neighbours, allowed=~self.cold, method=self.config.knn)

    def _keep(self, view: int, near: Neighbours) -> None:
        self.register_buffer(f"neighbour_ids_{view}", near.ids.to(torch.int32))
        self.register_buffer(f"neighbour_cosines_{view}", near.similarities)

    @property
    def neighbour_lists(self) -> list[Neighbours]:
        """Per view, the neighbours of all items."""
        return [_kept(dict(self.named_buffers()), view) for view in range(len(self.content.values))]

    @classmethod
    def from_state(
        cls, config: ModelConfig, log: Interactions, state: dict[str, Tensor], views: ItemViews | None = None
    ) -> Self:
        """As the base, with the neighbours that training found."""
        assert isinstance(config, ItemGraphConfig)
        known = (_kept(state, view) for view in range(len(views or {})))
        plain = config.model_copy(update={"init": "xavier"})  # every tensor is overwritten
        model = cls(plain, log, torch.Generator(), **cls._content(views, lambda *_, **__: next(known)))
        model.load_state_dict(state)
        model.config = config
        return model


def _kept(state: dict[str, Tensor], view: int) -> Neighbours:
    return Neighbours(state[f"neighbour_ids_{view}"].long(), state[f"neighbour_cosines_{view}"])
