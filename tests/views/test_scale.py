"""Scaling by warm statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import NothingToFitError
from firstlight.views.config import FeatureConfig, ScaleConfig
from firstlight.views.features import FeatureView
from firstlight.views.scale import Scaler, usable_rows

RAW = FeatureConfig(unit_rows=False, clip=None)


def everything(values):
    return np.ones(len(values), np.bool_)


def fit(config, values, **options):
    return Scaler.fit(config, values, np.arange(len(values)), **options)


def test_known_answer():
    values = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 4.0]], np.float32)
    scaled = fit(RAW, values).apply(values, everything(values), "x")
    np.testing.assert_array_equal(scaled.values, [[-1, 0, -1], [1, 0, 1]])
    unit = fit(ScaleConfig(), values).apply(values, everything(values), "x")
    np.testing.assert_allclose(unit.values, np.array([[-1, 0, -1], [1, 0, 1]]) / np.sqrt(2), rtol=1e-7)
    assert scaled.values.dtype == np.float32
    assert scaled.extractor == "x"


def test_half_the_way():
    values = np.array([[0.0, 0.0], [8.0, 2.0]], np.float32)
    for scaling, expected in (("column", [1, 1]), ("root", [2, 1]), ("centre", [4, 1])):
        config = ScaleConfig(scaling=scaling, unit_rows=False)
        np.testing.assert_allclose(
            fit(config, values).apply(values, everything(values), "").values[1], expected
        )


def test_moments_are_those_of_the_chosen_rows():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((500, 7)) * 30 + 1000).astype(np.float32)
    scaled = Scaler.fit(RAW, values, np.arange(100)).apply(values, everything(values), "")
    np.testing.assert_allclose(scaled.values[:100].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.values[:100].std(axis=0), 1, rtol=1e-5)


def test_rounding_is_not_variation():
    values = np.full((100, 2), 1e4, np.float32)
    values[::2, 0] = np.nextafter(values[::2, 0], np.float32(2e4))
    values[:, 1] = np.arange(100)
    scaled = fit(RAW, values).apply(values, everything(values), "")
    assert not scaled.values[:, 0].any()
    assert scaled.values[:, 1].any()


def test_a_column_that_hardly_varies_cannot_own_a_new_row():
    values = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    values[:, 0] *= 1e-4
    new = values[:1].copy()
    new[0, 0] = 5.0
    row = fit(ScaleConfig(), values).apply(new, everything(new), "").values[0]
    assert np.abs(row[1:]).max() > 0.02
    free = fit(ScaleConfig(clip=None), values).apply(new, everything(new), "").values[0]
    assert np.abs(free[1:]).max() < 1e-3


def test_rows_that_say_nothing_are_absent():
    values = np.ones((6, 2))
    values[0, 1], values[1, 0], values[2], values[3, 0] = np.nan, -np.inf, 0, 1e300
    present = np.array([1, 1, 1, 1, 1, 0], np.bool_)
    assert usable_rows(values, present).tolist() == [4]


def test_one_row_is_left_as_it_is():
    values = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(
        fit(ScaleConfig(), values).apply(values, everything(values), "").values, [[0.6, 0.8]]
    )


@pytest.mark.parametrize("values", [np.ones((5, 3)), np.ones((0, 3))])
def test_nothing_to_learn_is_said(values):
    with pytest.raises(NothingToFitError):
        fit(ScaleConfig(), values)


def test_reduction_keeps_inner_products_of_a_low_rank():
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, 12))).astype(np.float32)
    whole = fit(RAW, values).apply(values, everything(values), "").values
    scaler = fit(RAW, values, reduce=8)
    assert scaler.dim == 3  # no axis without strength
    part = scaler.apply(values, everything(values), "").values
    np.testing.assert_allclose(part @ part.T, whole @ whole.T, atol=1e-3)
    assert (part.std(axis=0)[:-1] >= part.std(axis=0)[1:]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from(["column", "root", "centre", "none"]),
    st.sampled_from([None, 3]),
    st.integers(0, 99),
)
def test_an_item_alone_gives_the_bits_it_gives_among_others(n, dim, scaling, reduce, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n + 2, dim)).astype(np.float32)
    scaler = fit(ScaleConfig(scaling=scaling), values, reduce=reduce)
    together = scaler.apply(values, everything(values), "")
    for row in range(n):
        alone = scaler.apply(values[row : row + 1], everything(values[:1]), "")
        np.testing.assert_array_equal(alone.values[0], together.values[row])
        assert alone.present[0] == together.present[row]
    length = np.linalg.norm(together.values, axis=1)
    np.testing.assert_allclose(length[together.present], 1, rtol=1e-5)
    assert not together.values[~together.present].any()


def test_blocks_do_not_show(monkeypatch):
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    whole = fit(FeatureConfig(), values, reduce=2)
    monkeypatch.setattr("firstlight.views.scale._BLOCK", 18)
    parts = fit(FeatureConfig(), values, reduce=2)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(
        whole.apply(values, everything(values), "").values,
        Scaler(whole.mean, whole.factor, whole.axes, whole.clip, True)
        .apply(values, everything(values), "")
        .values,
    )


def view_of(values, present=None):
    present = everything(values) if present is None else present
    return Catalogue(features={"image": FeatureMatrix(values, present, "net")})


def test_another_width_is_refused():
    catalogue = view_of(np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32))
    view = FeatureView.fit(FeatureConfig(), "image", catalogue, everything(range(9)))
    with pytest.raises(InputError, match="3 wide, it was 4 wide"):
        view.transform(view_of(np.ones((2, 3), np.float32)), 2, None, [])


@pytest.mark.parametrize(
    "catalogue",
    [
        view_of(np.ones(3, np.float32)),
        view_of(np.array([["a"]])),
        view_of(np.ones((3, 2), object)),
        view_of(np.ones((3, 2)), np.ones(2, np.bool_)),
        view_of(np.ones((3, 2)), np.ones(3)),
    ],
)
def test_what_is_no_feature_is_refused(catalogue):
    with pytest.raises(InputError, match="image"):
        FeatureView.fit(FeatureConfig(), "image", catalogue, everything(range(3)))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, np.bool_])
def test_numbers_of_any_type(dtype):
    values = (np.arange(12).reshape(6, 2) % 5 > 1).astype(dtype)
    view = FeatureView.fit(FeatureConfig(), "image", view_of(values), everything(values))
    assert view.transform(view_of(values), 6, None, []).values.dtype == np.float32


def test_lost_rows_are_counted():
    values = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    view = FeatureView.fit(FeatureConfig(), "image", view_of(values), everything(values))
    values[2], values[4, 1] = 0, np.nan
    problems = []
    rows = view.transform(view_of(values), 9, None, problems)
    assert np.flatnonzero(~rows.present).tolist() == [2, 4]
    assert len(problems) == 1
    assert "2 of 9" in problems[0]
