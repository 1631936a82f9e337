"""Ready-made features, scaled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, nothing
from firstlight.views.config import FeatureConfig
from firstlight.views.scale import Scaled, Scaler, usable_rows


def _checked(name: str, matrix: FeatureMatrix) -> FeatureMatrix:
    """The matrix, if it is one of numbers with a mask that fits."""
    values, present = np.asarray(matrix.values), np.asarray(matrix.present)
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise InputError(
            f"feature {name!r} must be a matrix of numbers (items, dim), found {values.dtype} {values.shape}"
        )
    if present.shape != values.shape[:1] or present.dtype != np.bool_:
        raise InputError(f"feature {name!r} needs a mask of {len(values)} truth values")
    return FeatureMatrix(values, present, matrix.extractor)


@dataclass(frozen=True, eq=False)
class FeatureView(Scaled):
    """A ready-made feature; rows that are not finite, or all zero, are absent.

    Attributes:
        name: Name of the feature in the catalogue.
        extractor: What made it, as the catalogue said when the view was fitted.
        scaler: Fitted on warm items.
    """

    kind: ClassVar[str] = "feature"
    name: str
    extractor: str
    scaler: Scaler

    @classmethod
    def fit(cls, config: FeatureConfig, name: str, catalogue: Catalogue, warm: npt.NDArray[np.bool_]) -> Self:
        """Fit on the warm items that have the feature.

        Raises:
            NothingToFitError: None has it, or they are all alike.
        """
        matrix = _checked(name, catalogue.features[name])
        rows = usable_rows(matrix.values, matrix.present & warm)
        return cls(name, matrix.extractor, Scaler.fit(config, matrix.values, rows, config.reduce))

    def transform(
        self, catalogue: Catalogue, n_items: int, folder: Path | None, problems: list[str]
    ) -> FeatureMatrix:
        """See :meth:`firstlight.views.base.View.transform`.

        Raises:
            InputError: The feature has another width than at the time of fitting.
        """
        if self.name not in catalogue.features:
            return nothing(n_items, self.dim, self.extractor)
        matrix = _checked(self.name, catalogue.features[self.name])
        width = len(self.scaler.mean)
        if matrix.values.shape[1] != width:
            raise InputError(
                f"feature {self.name!r} is {matrix.values.shape[1]} wide, it was {width} wide in training",
                hint=f"make it with the same extractor as before ({self.extractor})",
            )
        lost = int(matrix.present.sum()) - len(usable_rows(matrix.values, matrix.present))
        if lost:
            problems.append(
                f"feature {self.name}: {lost} of {n_items} rows are NaN, infinite or all zero and count as absent"
            )
        return self.scaler.apply(matrix.values, matrix.present, self.extractor)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays for :meth:`from_state`."""
        about, arrays = self.scaler.state()
        return {"feature": self.name, "extractor": self.extractor, **about}, arrays

    @classmethod
    def from_state(cls, about: dict[str, Any], arrays: Arrays) -> Self:
        """A fitted view again."""
        return cls(str(about["feature"]), str(about["extractor"]), Scaler.from_state(about, arrays))
