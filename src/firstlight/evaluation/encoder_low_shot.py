"""Logistic regression on a few labels (specs/mim-refiner.md §4.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from firstlight.evaluation.encoder_config import LowShotConfig
from firstlight.evaluation.encoder_subsets import share, shots

IntArray = npt.NDArray[np.int64]

_ITERATIONS = 300


@dataclass(frozen=True)
class LowShotResult:
    """Accuracy with so many labels.

    Attributes:
        labels: ``1-shot`` or ``10 %``.
        images: Labelled images.
        accuracies: One a split; the same splits for every encoder on the same images.
    """

    labels: str
    images: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the splits."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the splits; None for a single one."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None


def low_shot(
    bank: Tensor, labels: IntArray, queries: Tensor, truth: IntArray, config: LowShotConfig, seed: int
) -> list[LowShotResult]:
    """Classify the queries from subsets of the labels.

    Args:
        bank: ``(n, dim)`` features of the images that labels are drawn from.
        labels: ``(n,)`` classes.
        queries: ``(m, dim)``.
        truth: ``(m,)`` classes.
        config: Subsets and penalty.
        seed: Of the draws; split s draws with ``seed`` and s.

    Returns:
        A result a number of shots, then a result a share.
    """
    draws: dict[str, Callable[[int], IntArray]] = {
        f"{n}-shot": partial(shots, labels, n) for n in config.shots
    }
    draws |= {f"{100 * part:g} %": partial(share, labels, part) for part in config.shares}
    found = []
    for name, draw in draws.items():
        chosen = [draw(seed * config.splits + split) for split in range(config.splits)]
        accuracies = [_accuracy(bank[rows], labels[rows], queries, truth, config.penalty) for rows in chosen]
        found.append(LowShotResult(name, len(chosen[0]), tuple(accuracies)))
    return found


def _accuracy(train: Tensor, labels: IntArray, queries: Tensor, truth: IntArray, penalty: float) -> float:
    return float((logistic_regression(train, labels, queries, penalty) == truth).mean())


def logistic_regression(
    train: Tensor, labels: IntArray, queries: Tensor, penalty: float = 2.5e-4
) -> IntArray:
    """Multinomial logistic regression without intercept on centred rows of length one.

    The reference centres the labelled images alone; here the queries are shifted by the same mean, since without
    an intercept the decision depends on the origin.

    Args:
        train: ``(n, dim)`` features.
        labels: ``(n,)`` classes, at least two.
        queries: ``(m, dim)``.
        penalty: λ·n of the objective mean log loss + λ/2 · ‖W‖².

    Returns:
        ``(m,)`` predicted classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean = train.mean(dim=0)
    x, asked = (F.normalize(rows - mean, dim=1).double().numpy() for rows in (train, queries))
    # scikit-learn minimises C · sum of losses + ½‖W‖², so C = 1 / (λ n).
    model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-4, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # Few, separable images and hardly a penalty: the last digits of the weights take for ever, and decide nothing.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, labels)
    found: IntArray = np.asarray(model.predict(asked), np.int64)
    return found
