"""Texts as TF-IDF, reduced by a truncated SVD (latent semantic analysis; Deerwester et al. 1990)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.seeds import derive
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError, nothing
from firstlight.views.config import SentenceConfig, TextConfig
from firstlight.views.scale import Scaled, Scaler, usable_rows
from firstlight.views.words import NO_TEXT_COLUMNS, cells, pieces, text_columns, words

FloatArray = npt.NDArray[np.float32]

#: Below so many warm texts every word counts, however rare.
FEW_TEXTS = 100


def chosen_columns(config: TextConfig | SentenceConfig, items: pl.DataFrame) -> tuple[str, ...]:
    """The columns that the view reads.

    Raises:
        InputError: A named column is not there.
    """
    if config.columns is None:
        return tuple(text_columns(items))
    missing = [name for name in config.columns if name not in items.columns]
    if missing:
        known = ", ".join(name for name in items.columns if name not in NO_TEXT_COLUMNS)
        raise InputError(
            f"there is no text column {', '.join(map(repr, missing))}",
            hint=f"columns found: {known or 'none'}",
        )
    return config.columns


def _documents(config: TextConfig, items: pl.DataFrame, columns: Iterable[str]) -> Iterator[dict[str, float]]:
    """Word → weighted count of each item, over all columns that are there."""
    there = [(config.weights.get(name, 1.0), name) for name in columns if name in items.columns]
    table = [(weight, cells(items, name)) for weight, name in there if weight > 0]
    for row in range(items.height):
        counts: dict[str, float] = {}
        for weight, column in table:
            for piece in pieces(column[row], config.max_characters):
                for word in words(piece, config.ngrams):
                    counts[word] = counts.get(word, 0.0) + weight
        yield counts


def _vocabulary(config: TextConfig, documents: Iterable[dict[str, float]]) -> tuple[list[str], FloatArray]:
    """Kept words, sorted, and their inverse document frequencies ``ln((1 + n)/(1 + df)) + 1``."""
    frequency: Counter[str] = Counter()
    n = 0
    for counts in documents:
        frequency.update(counts.keys())
        n += bool(counts)
    if not frequency:
        raise NothingToFitError("no warm item has a text")
    least = config.min_count if n >= FEW_TEXTS else 1
    found = [word for word, count in frequency.items() if count >= least]
    if not found:
        raise NothingToFitError(f"no word is in the texts of {least} warm items")
    kept = sorted(sorted(found, key=lambda word: (-frequency[word], word))[: config.max_features])
    return kept, np.array([np.log((1 + n) / (1 + frequency[word])) + 1 for word in kept], np.float32)


@dataclass(frozen=True, eq=False)
class TextView(Scaled):
    """TF-IDF rows times the leading right singular vectors of the warm ones.

    Attributes:
        config: How texts are read.
        columns: Columns that are read, where a catalogue has them.
        vocabulary: Words, sorted.
        idf: ``(n_words,)`` float32.
        axes: ``(n_words, dim)`` float32 right singular vectors.
        scaler: Fitted on the projected warm rows.
    """

    kind: ClassVar[str] = "text"
    config: TextConfig
    columns: tuple[str, ...]
    vocabulary: list[str]
    idf: FloatArray
    axes: FloatArray
    scaler: Scaler

    @property
    def extractor(self) -> str:
        """What made the rows."""
        return f"TF-IDF and SVD of {', '.join(self.columns)}"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.vocabulary)}

    @classmethod
    def fit(cls, config: TextConfig, catalogue: Catalogue, warm: npt.NDArray[np.bool_], seed: int) -> Self:
        """Fit words, weights and axes on the texts of warm items.

        Args:
            config: How.
            catalogue: All items.
            warm: ``(n_items,)``.
            seed: Of the randomised SVD.

        Raises:
            NothingToFitError: Warm items have no words, or all the same.
            InputError: A named column is not there or is not a text.
        """
        columns = chosen_columns(config, catalogue.items)
        known = catalogue.items.select(columns).filter(pl.Series(warm)) if columns else pl.DataFrame()
        vocabulary, idf = _vocabulary(config, _documents(config, known, columns))
        start = cls(config, columns, vocabulary, idf, np.zeros((len(idf), 0), np.float32), _NO_SCALER)
        weights = start._tf_idf(known)
        weights = weights[np.diff(weights.indptr) > 0]
        axes = _singular_axes(weights, config.dim, derive(seed, "views", "text") % 2**32)
        rows = weights @ axes
        scaler = Scaler.fit(config, rows, usable_rows(rows, np.ones(len(rows), np.bool_)))
        return cls(config, columns, vocabulary, idf, axes, scaler)

    def _tf_idf(self, items: pl.DataFrame) -> Any:
        """``(n_items, n_words)`` float32 CSR matrix; rows have length one, or zero without a known word."""
        from scipy.sparse import csr_array

        indptr, numbers, data = array("q", [0]), array("i"), array("f")
        for counts in _documents(self.config, items, self.columns):
            known = sorted(
                (self._numbers[word], count) for word, count in counts.items() if word in self._numbers
            )
            at = np.array([number for number, _ in known], np.intp)
            weights = np.array([count for _, count in known], np.float32)
            weights = (np.log1p(weights) if self.config.sublinear else weights) * self.idf[at]
            numbers.extend(at.tolist())
            data.extend((weights / max(float(np.sqrt(np.square(weights).sum())), 1e-30)).tolist())
            indptr.append(len(numbers))
        parts = np.array(data, np.float32), np.array(numbers, np.int32), np.array(indptr, np.int64)
        return csr_array(parts, shape=(len(indptr) - 1, len(self.vocabulary)))

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """See :meth:`firstlight.views.base.View.transform`; an item without any known word is absent."""
        if not set(self.columns) & set(catalogue.items.columns):
            return nothing(n_items, self.dim, self.extractor)
        weights = self._tf_idf(catalogue.items)
        present = np.diff(weights.indptr) > 0
        # A sparse product goes row by row, so a row's bits do not hang on the rows beside it.
        return self.scaler.apply(np.ascontiguousarray(weights @ self.axes), present, self.extractor)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`."""
        about, arrays = self.scaler.state()
        about |= {"columns": list(self.columns), "text": self.config.model_dump(mode="json")}
        return {**about, "vocabulary": self.vocabulary}, {
            **arrays,
            "idf": self.idf,
            "singular_axes": self.axes,
        }

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A fitted view again.

        Raises:
            ValueError: The parts do not fit each other.
        """
        scaler = Scaler.from_state(about, arrays)
        vocabulary = [str(word) for word in about["vocabulary"]]
        idf, axes = (np.asarray(arrays[name], np.float32) for name in ("idf", "singular_axes"))
        if idf.shape != (len(vocabulary),) or axes.shape != (len(vocabulary), len(scaler.mean)):
            raise ValueError("arrays of different widths")
        config = TextConfig.model_validate(about["text"])
        return cls(config, tuple(map(str, about["columns"])), vocabulary, idf, axes, scaler)


_NO_SCALER = Scaler(np.zeros(0), np.zeros(0), None, None, False)


def _singular_axes(weights: Any, dim: int, seed: int) -> FloatArray:
    """``(n_words, ≤ dim)`` leading right singular vectors; those without strength are left out."""
    from sklearn.decomposition import TruncatedSVD

    if weights.shape[1] == 1:  # a single word: it is the axis, and scikit-learn wants two at least
        return np.ones((1, 1), np.float32)
    svd = TruncatedSVD(min(dim, *weights.shape), n_iter=5, random_state=seed)
    with np.errstate(invalid="ignore"):  # it divides by the total variance, which a single text does not have
        svd.fit(weights.astype(np.float64))
    strong = svd.singular_values_ > 1e-5 * svd.singular_values_.max()
    return np.ascontiguousarray(svd.components_[strong].T, np.float32)
