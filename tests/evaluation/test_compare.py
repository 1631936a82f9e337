"""Significance tests against scipy and known answers, and comparisons of runs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from firstlight.core.errors import InputError
from firstlight.evaluation.compare import RunResult, compare
from firstlight.evaluation.significance import (
    bootstrap_interval,
    bootstrap_intervals,
    holm,
    paired_bootstrap,
    paired_t,
)


def test_bootstrap_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).random(4000)
    low, high = bootstrap_interval(values, seed=1)
    reach = 1.96 * values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - reach, abs=0.15 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.15 * reach)
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert bootstrap_interval(values, seed=2) != (low, high)
    narrow = bootstrap_interval(values, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_constants_and_of_nothing() -> None:
    assert bootstrap_interval(np.full(10, 0.25), 0) == (0.25, 0.25)
    with pytest.raises(InputError):
        bootstrap_interval([], 0)
    with pytest.raises(InputError):
        bootstrap_interval([1.0, np.nan], 0)
    with pytest.raises(InputError):
        bootstrap_interval([1.0, 2.0], 0, level=1.0)


def test_bootstrap_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((100, 300))
    low, high = bootstrap_intervals(samples, seed=0, n=400)  # 300 independent samples of 100 values
    covered = ((low <= 0) & (high >= 0)).mean()
    assert 0.89 < covered < 0.99


def test_paired_t_equals_scipy() -> None:
    rng = np.random.default_rng(4)
    first = rng.random(50)
    second = first + 0.02 + 0.1 * rng.standard_normal(50)
    ours, theirs = paired_t(first, second), stats.ttest_rel(second, first)
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert ours.interval == pytest.approx((interval.low, interval.high))
    assert ours.difference == pytest.approx(second.mean() - first.mean())


def test_paired_tests_of_equal_and_shifted_values() -> None:
    values = np.random.default_rng(5).random(40)
    assert paired_t(values, values).p == 1
    assert paired_t([0.0, 1.0], [0.5, 1.5]).p == 0
    assert paired_bootstrap(values, values, 0).p == 1
    with pytest.raises(InputError, match="same length"):
        paired_t([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="two pairs"):
        paired_t([1.0], [2.0])


def test_paired_bootstrap_is_near_the_t_test() -> None:
    rng = np.random.default_rng(6)
    first = rng.random(400)
    second = first + 0.006 + 0.08 * rng.standard_normal(400)
    bootstrap, student = paired_bootstrap(first, second, 0, n=4000), paired_t(first, second)
    assert bootstrap.p == pytest.approx(student.p, abs=0.03)
    assert bootstrap.interval == pytest.approx(student.interval, abs=0.002)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_properties(p: list[float]) -> None:
    adjusted = holm(p)
    for raw, value in zip(p, adjusted, strict=True):
        assert (
            raw <= value <= min(1.0, raw * len(p))
        )  # never kinder than no correction, nor harsher than Bonferroni
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def run(
    name: str, seed: int = 0, shift: float = 0.0, config: str | None = None, **changes: object
) -> RunResult:
    rng = np.random.default_rng(seed)
    values = 0.3 + 0.1 * rng.standard_normal(200) + shift
    per_user = pl.DataFrame({"user": np.arange(200), "n_targets": np.ones(200, int), "recall@20": values})
    fields: dict[str, object] = {
        "name": name,
        "per_user": per_user,
        "metrics": {"recall@20": float(values.mean())},
        "seed": seed,
        "dataset_hash": "data",
        "split_hash": "split",
        "config_hash": config,
    }
    return RunResult(**(fields | changes))  # type: ignore[arg-type]


def test_differences_against_the_first() -> None:
    noise = np.random.default_rng(9).standard_normal(200) * 0.05
    base = run("base")
    better = run("better")
    better = run("better", per_user=better.per_user.with_columns(pl.col("recall@20") + 0.02 + noise))
    same = run("same")
    table = compare([base, better, same], ["recall@20"])
    assert table["name"].to_list() == ["base", "better", "same"]
    assert table["difference"].to_list()[0] is None
    row = table.row(1, named=True)
    raw = paired_t(base.per_user["recall@20"], better.per_user["recall@20"])
    assert row["difference"] == pytest.approx(raw.difference)
    assert row["p_users"] == pytest.approx(2 * raw.p)  # the smaller of two
    assert (row["low"], row["high"]) == pytest.approx(raw.interval)
    assert table.row(2, named=True)["p_users"] == 1
    assert table["p_seeds"].null_count() == 3


def test_seeds_are_grouped_and_paired() -> None:
    runs = [run("a", seed, 0, "A") for seed in (0, 1, 2)] + [
        run("b", seed, shift, "B") for seed, shift in ((2, 0.03), (0, 0.01), (1, 0.02))
    ]
    table = compare(runs, ["recall@20"])
    assert table["seeds"].to_list() == [3, 3]
    first = [r.metrics["recall@20"] for r in runs[:3]]
    assert table["mean"][0] == pytest.approx(np.mean(first))
    assert table["sd"][0] == pytest.approx(np.std(first, ddof=1))
    assert table["difference"][1] == pytest.approx(0.02)
    assert table["p_seeds"][1] == pytest.approx(stats.ttest_1samp([0.01, 0.02, 0.03], 0).pvalue)


def test_users_are_paired_by_row_not_by_position() -> None:
    base = run("base")
    shuffled = run("same", per_user=base.per_user.sample(fraction=1, shuffle=True, seed=3))
    assert compare([base, shuffled], ["recall@20"])["p_users"][1] == 1


@pytest.mark.parametrize("field", ["dataset_hash", "split_hash"])
def test_different_data_is_refused_unless_told(field: str) -> None:
    runs = [run("base"), run("other", **{field: "another"})]
    with pytest.raises(InputError, match="cannot be compared"):
        compare(runs, ["recall@20"])
    assert compare(runs, ["recall@20"], allow_different_data=True).height == 2


def test_what_cannot_be_compared_is_told() -> None:
    base = run("base")
    with pytest.raises(InputError, match="no per-user metric"):
        compare([base, run("other")], ["ndcg@20"])
    with pytest.raises(InputError, match="different users"):
        compare([base, run("other", per_user=base.per_user.head(100))], ["recall@20"])
    with pytest.raises(InputError, match="two configurations"):
        compare([run("a", 0, 0, "A"), run("a", 1, 0, "A")], ["recall@20"])
    with pytest.raises(InputError, match="twice with the same seed"):
        compare([run("a", 0, 0, "A"), run("a", 0, 0, "A"), run("b")], ["recall@20"])
    disjoint = base.per_user.with_columns(pl.col("user") + 1000)
    with pytest.raises(InputError, match="share fewer"):
        compare([base, run("other", per_user=disjoint)], ["recall@20"], allow_different_data=True)
