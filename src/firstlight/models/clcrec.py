"""CLCRec (Wei et al., ACM MM 2021): free item vectors and content drawn together by contrast.

What the released code does and this does not: evaluate with the vectors of the last training step (here: of the
parameters as they stand); give already seen items the score 1e-15, above every negative score (here: they are not
ranked); leave the user's validation and test items out of the negatives, which tells the model their labels (here:
negatives know the training log alone); take all items after a row number as cold (here: those without a pair); encode
every item each step (here: the step's distinct items). A negative that is the row's own positive is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from firstlight.data.catalogue import ItemViews
from firstlight.data.interactions import Interactions
from firstlight.models.base import Batch, EmbeddingConfig, Encoded
from firstlight.models.content import ContentModel, ContentRows
from firstlight.models.towers import candidate_scores, content_input, perceptron


class CLCRecConfig(EmbeddingConfig):
    """Config of :class:`CLCRec`; the released MovieLens settings, with ``negatives.count=128``.

    Other than as released: user and item tables start Xavier-uniform, not Xavier-normal; the encoder's input, unit
    views side by side, is scaled to a root-mean-square of one per row, so that no width or absent view changes its
    size.

    With negatives shared by the batch few free vectors move in a step: on MovieLens (small) ``training.lr=.03`` and 512
    of them trained the warm items (Recall@20 .29), .003 and 128 left them near chance.
    """

    name: Literal["clcrec"] = "clcrec"

    normalise: Literal["none"] = "none"
    """Fixed: users and items are contrasted, and scored, by inner product."""

    user_dropout: float = Field(0.0, ge=0, le=0)
    """Fixed."""

    l2: float = Field(0.0, ge=0, le=0)
    """Fixed: ``norm_weight`` takes its place."""

    hidden: int = Field(256, ge=1)
    """Width of the encoder's hidden layer."""

    contrast_temperature: float = Field(2.0, gt=0)
    """Divides the scores of both contrasts (paper: τ); released: 2 on MovieLens, 1 on Amazon."""

    alignment: float = Field(0.5, ge=0, le=1)
    """Share of the item–content contrast in the objective (paper: λ); released: .5, .9."""

    norm_weight: float = Field(0.1, ge=0)
    """Weight of half the mean lengths of user and item vectors (paper: η); released: .1, .001."""

    mixed: float = Field(0.39, ge=0, le=1)
    """Share of candidates of the user–item contrast that content stands in for (paper: ρ). The released ρ = .5 draws
    places with replacement, which reaches 1 − e^{−.5} = .39 of them."""


class Terms(NamedTuple):
    """The parts of the objective, not yet weighted.

    Attributes:
        alignment: L₁, the contrast of item vectors with content.
        ranking: L₂, the contrast of users with items.
        norm: Half the mean lengths.
    """

    alignment: Tensor
    ranking: Tensor
    norm: Tensor

    def total(self, config: CLCRecConfig) -> Tensor:
        """λ L₁ + (1 − λ) L₂ + η · norm."""
        share = config.alignment
        return share * self.alignment + (1 - share) * self.ranking + config.norm_weight * self.norm


class Candidates(NamedTuple):
    """Who is contrasted with what, as slots of a step's distinct items.

    Attributes:
        positives: ``(rows,)``.
        negatives: ``(N,)`` for all rows, or ``(rows, N)``.
        replaced: ``(rows, 1 + N)`` bool: places, the positive's first, where content stands in.
    """

    positives: Tensor
    negatives: Tensor
    replaced: Tensor

    def scores(self, queries: Tensor, table: Tensor) -> Tensor:
        """``(rows, 1 + N)`` inner products; -inf where a negative is the positive itself."""
        positive = (queries * F.embedding(self.positives, table)).sum(dim=1)
        if self.negatives.ndim == 1:
            negative = candidate_scores(queries, F.embedding(self.negatives, table), None)
        else:
            negative = candidate_scores(queries, table, self.negatives)
        clash = self.negatives == self.positives[:, None]
        return torch.cat([positive[:, None], negative.masked_fill(clash, -torch.inf)], dim=1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a value per distinct item over all ``rows × (1 + N)`` places."""
        negatives = values[self.negatives].sum() * (len(self.positives) if self.negatives.ndim == 1 else 1)
        return (values[self.positives].sum() + negatives) / self.replaced.numel()


def objective(users: Tensor, ids: Tensor, contents: Tensor, candidates: Candidates, tau: float) -> Terms:
    """All terms for a batch (rivals spec B2).

    Args:
        users: ``(rows, dim)`` user vectors u.
        ids: ``(n, dim)`` free vectors e of the step's items.
        contents: ``(n, dim)`` their content vectors c.
        candidates: Rows, positives, negatives.
        tau: τ.
    """
    anchors = F.normalize(F.embedding(candidates.positives, ids), dim=1)
    aligned = candidates.scores(anchors, F.normalize(contents, dim=1))
    ranked = torch.where(
        candidates.replaced, candidates.scores(users, contents), candidates.scores(users, ids)
    )
    norm = (users.norm(dim=1).mean() + candidates.mean(ids.norm(dim=1))) / 2
    return Terms(_contrast(aligned / tau), _contrast(ranked / tau), norm)


def _contrast(logits: Tensor) -> Tensor:
    """Mean of −log softmax at the first place."""
    return (torch.logsumexp(logits, dim=1) - logits[:, 0]).mean()


class CLCRec(ContentModel):
    """Free vectors e for warm items, c = W₂ leaky(W₁ x) for cold ones, in one space by contrast."""

    Config = CLCRecConfig

    @classmethod
    def run_defaults(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Its own terms are the whole objective."""
        return {"loss": {"name": "none"}, "temperature": {"name": "fixed"}}

    own_loss = True
    config: CLCRecConfig

    def __init__(
        self,
        config: CLCRecConfig,
        train: Interactions,
        rng: torch.Generator | None = None,
        views: ItemViews | None = None,
    ) -> None:
        super().__init__(config, train, rng, views)
        assert rng is not None
        self.encoder = perceptron(
            [sum(self.view_dims.values()), config.hidden, config.dim], nn.LeakyReLU, rng
        )

    def content_vectors(self, rows: ContentRows) -> Tensor:
        """``(n, dim)`` c."""
        made: Tensor = self.encoder(content_input(rows))
        return made

    def extra_losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The objective, on the step's distinct items alone."""
        others = torch.arange(self.n_items) if batch.negatives is None else batch.negatives
        rows = len(batch.positives)
        items, slots = torch.unique(torch.cat([batch.positives, others]), return_inverse=True)
        drawn = slots[rows:] if batch.index is None else slots[rows:][batch.index]
        places = torch.rand(rows, 1 + drawn.shape[-1], generator=encoded.rng)
        candidates = Candidates(slots[:rows], drawn, places < self.config.mixed)
        terms = objective(
            self._rows(self.user_table, None, batch.users),
            self._rows(self.item_table, None, items),
            self.content_vectors(self.content[items]),
            candidates,
            self.config.contrast_temperature,
        )
        return {"clcrec": terms.total(self.config)}
