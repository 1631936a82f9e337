"""The seam between models and everything else.

Training talks to a model through four calls: ``encode`` once a step, ``vectors`` for the rows of the batch,
``extra_losses``, and ``sparse_rows``. Everything after training uses ``user_vectors`` and ``item_vectors`` in
*scoring space* (a score is their inner product), or ``scores`` for models without vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firstlight.core.errors import InputError
from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models import MODELS

if TYPE_CHECKING:
    from firstlight.graphs.knn import Finder
    from firstlight.models.histories import Histories

Normalise = Literal["both", "user", "item", "none"]


class ModelConfig(BaseModel):
    """What every model's config has: it is frozen, refuses unknown fields, and carries its registry name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Registry name of the model."""


class EmbeddingConfig(ModelConfig):
    """Fields of models that learn one vector per user and item."""

    dim: int = Field(64, ge=1)
    """Width of the vectors (paper: F)."""

    normalise: Normalise = "both"
    """Which side is divided by its length before scoring; the paper's table 4. ``both`` is the cosine."""

    user_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of elements of the user vector that training sets to zero (released MF: .1)."""

    init: Literal["xavier", "spectral"] = "xavier"
    """Start of the vectors: Xavier-uniform as released, or the leading singular vectors of the normalised
    adjacency, scaled to the same mean square."""

    init_norm: float | None = Field(None, gt=0)
    """Root-mean-square length of the vectors at the start; None leaves Xavier's (about .065 for Gowalla), as
    released. Under a cosine a step turns a vector by about learning rate / length, so a tiny start is forgotten
    within a few steps: a spectral start needs a length near one to be worth anything."""

    l2: float = Field(0.0, ge=0)
    """Weight of ½(‖e_u‖² + ‖e_i‖² + Σ_j ‖e_j‖²)/batch over the raw rows of a step, as released. With cosines it
    does not change the loss; it bounds the norms and so keeps the effective learning rate up."""


@dataclass(frozen=True)
class Encoded:
    """What ``encode`` prepared for one step.

    Attributes:
        users: ``(n_users, dim)`` propagated user vectors, or None where rows are looked up directly.
        items: ``(n_items, dim)``, or None.
        rng: Random stream of the step; None in evaluation mode.
    """

    users: Tensor | None
    items: Tensor | None
    rng: torch.Generator | None


@dataclass(frozen=True)
class Batch:
    """The rows that one step touches.

    Attributes:
        users: ``(rows,)`` user row of each pair.
        positives: ``(rows,)`` item row of its positive.
        negatives: item rows of the negatives that were looked up, or None for all items.
        negative_uses: How often each of ``negatives`` counts in the released L2 term (rows × M draws spread
            over the distinct ones).
        index: ``(rows, M)`` into ``negatives`` where each row drew its own; None where all rows share them.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor | None
    negative_uses: float = 1.0
    index: Tensor | None = None


class Recommender(nn.Module):
    """Base of all models.

    Args:
        config: The model's config.
        train: The training log; a model may read all of it (graph, degrees), and nothing else.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    #: Whether there is anything to train by gradient descent.
    trainable: ClassVar[bool] = True
    #: Whether the model reads content: it is then built with ``views``.
    needs_views: ClassVar[bool] = False
    #: Whether the model knows content neighbours: it is then built with a ``finder``, where there is a special one.
    needs_neighbours: ClassVar[bool] = False
    #: Whether building it computes what is saved with its tensors: it is then built with ``fit=False`` to be read back.
    fits_when_built: ClassVar[bool] = False
    #: Whether ``extra_losses`` is the model's whole objective; its runs default to ``loss: none``.
    own_loss: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, train: Interactions, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.n_users, self.n_items = train.n_users, train.n_items
        #: The log that the model was built on: a graph model must be rebuilt on exactly this one.
        self.log = train

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Sections of a run's config as this model wants them where nobody says otherwise.

        Args:
            given: The model's section as far as it is given.

        Returns:
            Section (``loss``, ``temperature``, ``negatives``, ``training``) → fields.
        """
        return {}

    @classmethod
    def from_state(
        cls,
        config: ModelConfig,
        log: Interactions,
        state: dict[str, Tensor],
        views: ItemViews | None = None,
    ) -> Self:
        """A trained model again, from its config, the log it was built on, its tensors and its views."""
        unfitted = {"fit": False} if cls.fits_when_built else {}
        model = cls(config, log, torch.Generator(), **cls._content(views), **unfitted)
        model.load_state_dict(state)
        return model

    @classmethod
    def _content(cls, views: ItemViews | None, finder: Finder | None = None) -> dict[str, Any]:
        """The further arguments of models that read content."""
        if not cls.needs_views:
            return {}
        if not views:
            raise InputError(
                "this model reads content, and the items have none",
                hint="give the dataset features, titles or covers (firstlight data inspect shows what it has)",
            )
        if finder is not None and cls.needs_neighbours:
            return {"views": views, "finder": finder}
        return {"views": views}

    def user_vectors(self) -> Tensor:
        """``(n_users, dim)`` in scoring space, detached."""
        raise NotImplementedError(f"{type(self).__name__} has no vectors")

    def item_vectors(self) -> Tensor:
        """``(n_items, dim)`` in scoring space, detached."""
        raise NotImplementedError(f"{type(self).__name__} has no vectors")

    def vectors_for_scoring(self) -> tuple[Tensor, Tensor] | None:
        """Both sides at once, or None for a model that only has :meth:`scores`."""
        return self.user_vectors(), self.item_vectors()

    def histories(self) -> Histories | None:
        """How the model makes vectors of users that training never saw; None where it has no way of its own."""
        return None

    def scores(self, users: Tensor) -> Tensor:
        """``(len(users), n_items)`` scores; only for models without vectors."""
        raise NotImplementedError(f"{type(self).__name__} scores by its vectors")


#: Runs of models that score by inner products and were published with BPR and one uniform negative a pair; scores are
#: used as they are.
PUBLISHED_BPR: dict[str, dict[str, Any]] = {
    "loss": {"name": "bpr"},
    "temperature": {"name": "fixed", "tau": 1.0},
    "negatives": {"name": "uniform", "count": 1},
}


class TrainsAsPublished:
    """Of models that were published with inner products and BPR: so they train, unless vectors are normalised."""

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """:data:`PUBLISHED_BPR`, or nothing."""
        return PUBLISHED_BPR if given.get("normalise", "none") == "none" else {}


def build_model(
    config: ModelConfig,
    log: Interactions,
    rng: torch.Generator,
    views: ItemViews | None = None,
    finder: Finder | None = None,
) -> Recommender:
    """The model that a config names, at its start.

    Args:
        config: Names the model.
        log: The training log.
        rng: Random stream of the start.
        views: Content of the items, row-aligned to the log; only for models that read it.
        finder: What finds content neighbours, for models that know some; None: they are found anew.

    Raises:
        InputError: The model reads content and there is none.
    """
    model_class: type[Recommender] = MODELS.load(config.name)
    return model_class(config, log, rng, **model_class._content(views, finder))


class EmbeddingModel(Recommender):
    """A model with a table of user vectors and one of item vectors.

    Attributes:
        user_rows: Names of the trained parameters that hold a row per user.
        item_rows: Names of those that hold a row per item.
    """

    Config = EmbeddingConfig
    user_rows: ClassVar[tuple[str, ...]] = ("user_table",)
    item_rows: ClassVar[tuple[str, ...]] = ("item_table",)

    def __init__(
        self, config: EmbeddingConfig, train: Interactions, rng: torch.Generator | None = None
    ) -> None:
        super().__init__(config, train)
        if rng is None:
            raise ValueError("a model with tables needs a random stream for their start")
        self.config = config
        self.user_table = nn.Parameter(torch.empty(train.n_users, config.dim))
        self.item_table = nn.Parameter(torch.empty(train.n_items, config.dim))
        with torch.no_grad():
            for table in (self.user_table, self.item_table):
                bound = float(np.sqrt(6 / (table.shape[0] + table.shape[1])))
                table.uniform_(-bound, bound, generator=rng)
            if config.init == "spectral":
                _spectral_start(self.user_table, self.item_table, train, rng)
            if config.init_norm is not None:
                for table in (self.user_table, self.item_table):
                    table.mul_(config.init_norm / table.square().sum(dim=1).mean().sqrt())

    @classmethod
    def from_state(
        cls,
        config: ModelConfig,
        log: Interactions,
        state: dict[str, Tensor],
        views: ItemViews | None = None,
    ) -> Self:
        """As the base; the costly start is skipped, since every tensor is overwritten."""
        model = super().from_state(config.model_copy(update={"init": "xavier"}), log, state, views)
        model.config = config  # type: ignore[assignment]
        return model

    def encode(self, step: int, rng: torch.Generator | None) -> Encoded:
        """Prepare a training step (``rng`` given) or an evaluation (None): nothing, for plain tables."""
        return Encoded(None, None, rng)

    def vectors(self, encoded: Encoded, users: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows in training space.

        Args:
            encoded: What :meth:`encode` gave.
            users: ``(rows,)`` user rows.
            items: ``(k,)`` item rows, or None for all items.

        Returns:
            ``(rows, dim)`` and ``(k or n_items, dim)``.
        """
        raw_users = self._rows(self.user_table, encoded.users, users)
        raw_items = self._rows(self.item_table, encoded.items, items)
        return self._normalised(self._drop(raw_users, encoded.rng), raw_items)

    def _rows(self, table: Tensor, propagated: Tensor | None, rows: Tensor | None) -> Tensor:
        if propagated is not None:
            return propagated if rows is None else F.embedding(rows, propagated)
        # Sparse gradients let the optimiser visit the touched rows alone.
        return table if rows is None else F.embedding(rows, table, sparse=True)

    def _drop(self, users: Tensor, rng: torch.Generator | None) -> Tensor:
        rate = self.config.user_dropout
        if rng is None or rate == 0:
            return users
        kept = torch.rand(users.shape, generator=rng) >= rate
        return users * kept / (1 - rate)

    def _normalised(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        mode = self.config.normalise
        return (
            F.normalize(users, dim=1) if mode in ("both", "user") else users,
            F.normalize(items, dim=1) if mode in ("both", "item") else items,
        )

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Named, already weighted terms beside the ranking loss: the released L2 term, where it is on."""
        if self.config.l2 == 0:
            return {}
        squares = self._rows(self.user_table, encoded.users, batch.users).square().sum()
        squares = squares + self._rows(self.item_table, encoded.items, batch.positives).square().sum()
        negatives = self._rows(self.item_table, encoded.items, batch.negatives).square().sum()
        return {"l2": self.config.l2 / 2 / len(batch.users) * (squares + batch.negative_uses * negatives)}

    def sparse_rows(self) -> list[str]:
        """Names of parameters whose rows are touched sparsely."""
        return ["user_table", "item_table"]

    @torch.no_grad()
    def training_space(self) -> tuple[Tensor, Tensor]:
        """Evaluation-mode vectors as the loss sees them, detached."""
        encoded = self.encode(0, None)
        users, items = self.vectors(encoded, torch.arange(self.n_users), None)
        return users.detach(), items.detach()

    @torch.no_grad()
    def vectors_for_scoring(self) -> tuple[Tensor, Tensor]:
        """Both sides in scoring space."""
        return self.training_space()

    def user_vectors(self) -> Tensor:
        """``(n_users, dim)`` in scoring space."""
        return self.vectors_for_scoring()[0]

    def item_vectors(self) -> Tensor:
        """``(n_items, dim)`` in scoring space."""
        return self.vectors_for_scoring()[1]


def _spectral_start(users: Tensor, items: Tensor, train: Interactions, rng: torch.Generator) -> None:
    """Overwrite tables by the leading singular vectors of D_u^{-½} A D_i^{-½} (randomised subspace iteration).

    The scale of each table is kept, so that the optimiser's step is as large relative to the vectors as with
    the random start.
    """
    from firstlight.graphs.propagation import BipartitePropagation  # only this start needs the graph

    hop = BipartitePropagation(train.indptr, train.items, train.n_items)
    dim = users.shape[1]
    width = min(dim + 16, train.n_items, train.n_users)
    basis = torch.randn(train.n_items, width, generator=rng)
    for _ in range(6):
        basis = torch.linalg.qr(hop.to_items.times(hop.to_users.times(basis))).Q
    image = hop.to_users.times(basis)
    left, values, right = torch.linalg.svd(image, full_matrices=False)
    rank = min(dim, width)
    root = values[:rank].sqrt()
    for table, vectors in ((users, left[:, :rank] * root), (items, (basis @ right.T)[:, :rank] * root)):
        scale = table.square().mean().sqrt()
        # A little of the random start stays: rows without a pair and padded columns must not be zero.
        table.mul_(0.05)
        table[:, :rank] += vectors * (scale / vectors.square().mean().sqrt())
