"""The schedule of encoders (specs: mim-refiner §9, 23)."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.core.schedules import warmup_cosine


def test_schedule_vector():
    found = [warmup_cosine(step, 10, 4, 1.0, 0.0) for step in range(10)]
    expected = [0.2, 0.4, 0.6, 0.8, 1, 0.933, 0.75, 0.5, 0.25, 0.067]
    assert found == pytest.approx(expected, abs=5e-4)
    ending = [warmup_cosine(step, 50, 10, 1e-3, 1e-6) for step in range(50)]
    assert all(np.diff(ending[:11]) > 0)
    assert all(np.diff(ending[10:]) < 0)
    assert ending[10] == 1e-3
    assert ending[-1] > 1e-6
    assert warmup_cosine(9, 10, 4, 1.0, 0.1) == pytest.approx(0.1 + 0.9 * 0.067, abs=1e-3)
