"""One training step: rows, negatives, loss, gradients. The only place where model, loss and sampler meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.data.interactions import Interactions
from firstlight.losses.negatives import Negatives, PairNegatives, SharedNegatives
from firstlight.losses.ranking import ranking_loss
from firstlight.losses.temperature import Temperature
from firstlight.models.base import Batch, EmbeddingModel
from firstlight.training.config import RunConfig
from firstlight.training.negatives import Drawn, NegativeSampler


@dataclass(frozen=True)
class StepResult:
    """What one step computed.

    Attributes:
        total: Scalar to differentiate.
        ranking: Mean ranking loss, detached; the whole loss where there is no ranking loss.
    """

    total: Tensor
    ranking: float


class StepComputer:
    """Computes the loss of a batch of pairs, or of a batch of users with all their pairs.

    Args:
        config: The run's config.
        model: The recommender.
        temperature: The temperature policy.
        train: The training log.
    """

    def __init__(
        self, config: RunConfig, model: EmbeddingModel, temperature: Temperature, train: Interactions
    ) -> None:
        self.config, self.model, self.temperature = config, model, temperature
        self.sampler = NegativeSampler(config.negatives, train)
        self._indptr = torch.from_numpy(train.indptr.copy())
        self._items = torch.from_numpy(train.items.copy())

    def pairs(self, users: Tensor, positives: Tensor, step: int, rng: torch.Generator) -> StepResult:
        """Loss of ``(rows,)`` user–item pairs."""
        drawn = self.sampler.draw(users, positives, rng)
        encoded = self.model.encode(step, rng)
        if self.config.loss.name == "none":
            return self._finish(torch.zeros(()), encoded, users, positives, drawn)
        if self.config.negatives.name == "all":
            user_vectors, table = self.model.vectors(encoded, users, None)
            positive_vectors = F.embedding(positives, table)
            negatives: Negatives = SharedNegatives(table if drawn.ids is None else table[drawn.ids])
        elif drawn.in_batch:
            user_vectors, positive_vectors = self.model.vectors(encoded, users, positives)
            negatives = SharedNegatives(positive_vectors, drawn.offset, drawn.exclude)
        else:
            assert drawn.ids is not None
            user_vectors, both = self.model.vectors(encoded, users, torch.cat([positives, drawn.ids]))
            positive_vectors, others = both[: len(positives)], both[len(positives) :]
            negatives = self._listed(others, drawn)
        scores = (user_vectors * positive_vectors).sum(dim=1)
        losses = self._loss(users, user_vectors, scores, negatives)
        return self._finish(losses.mean(), encoded, users, positives, drawn)

    def users(self, users: Tensor, step: int, rng: torch.Generator) -> StepResult:
        """Loss of all pairs of ``(rows,)`` users: one row of logits a user (specs §7).

        The softmax family is linear in the positive's score, so a user's mean loss needs only the mean score of
        its positives, and the log-sum over negatives once instead of once per pair.
        """
        lengths = self._indptr[users + 1] - self._indptr[users]
        starts = torch.cumsum(lengths, 0) - lengths
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)
        positives = self._items[torch.repeat_interleave(self._indptr[users], lengths) + within].long()
        drawn = self.sampler.draw(users, positives, rng)
        encoded = self.model.encode(step, rng)
        if self.config.loss.name == "none":
            return self._by_pair(torch.zeros(()), encoded, users, positives, drawn, lengths)
        if self.config.negatives.name == "all":
            user_vectors, table = self.model.vectors(encoded, users, None)
            slots = positives
            negatives: Negatives = SharedNegatives(table if drawn.ids is None else table[drawn.ids])
        else:
            assert drawn.ids is not None
            looked, slots = torch.unique(positives, return_inverse=True)
            user_vectors, both = self.model.vectors(encoded, users, torch.cat([looked, drawn.ids]))
            table, others = both[: len(looked)], both[len(looked) :]
            negatives = self._listed(others, drawn)
        centers = F.embedding_bag(slots, table, starts, mode="mean")
        scores = (user_vectors * centers).sum(dim=1)
        losses = self._loss(users, user_vectors, scores, negatives)
        weights = lengths.to(losses.dtype)
        return self._by_pair(
            (losses * weights).sum() / weights.sum(), encoded, users, positives, drawn, lengths
        )

    def _by_pair(
        self,
        ranking: Tensor,
        encoded: object,
        users: Tensor,
        positives: Tensor,
        drawn: Drawn,
        lengths: Tensor,
    ) -> StepResult:
        """A model's own terms are told of pairs, whatever a step takes."""
        index = None if drawn.index is None else drawn.index.repeat_interleave(lengths, dim=0)
        pairs = replace(drawn, index=index)
        return self._finish(ranking, encoded, users.repeat_interleave(lengths), positives, pairs)

    @staticmethod
    def _listed(others: Tensor, drawn: Drawn) -> Negatives:
        if drawn.index is not None:
            return PairNegatives(others, drawn.index)
        return SharedNegatives(others, drawn.offset, drawn.exclude)

    def _loss(self, users: Tensor, vectors: Tensor, scores: Tensor, negatives: Negatives) -> Tensor:
        w_positive, w_negative = self.temperature.for_users(users)
        observes = self.temperature.observes
        result = ranking_loss(
            self.config.loss, vectors, scores, negatives, w_positive, w_negative, observe=observes
        )
        if result.at_tau_one is not None:
            known = result.at_tau_one.isfinite()
            self.temperature.observe(users[known], result.at_tau_one[known])
        return result.per_row

    def _finish(
        self, ranking: Tensor, encoded: object, users: Tensor, positives: Tensor, drawn: Drawn
    ) -> StepResult:
        negatives = positives if drawn.in_batch else drawn.ids
        uses = 1.0 if drawn.index is None or negatives is None else drawn.index.numel() / len(negatives)
        batch = Batch(users, positives, negatives, uses, drawn.index)
        extra = self.model.extra_losses(encoded, batch)  # type: ignore[arg-type]
        total = ranking + sum(extra.values())
        watched = total if self.config.loss.name == "none" else ranking
        return StepResult(total, float(watched.detach()))
