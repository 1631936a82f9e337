"""``evaluate --protocol cold``, end to end on a generated world."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """Popularity on the world's own split by time: items that arrive after the cut are cold."""
    from firstlight.cli.app import run as call

    out = tmp_path_factory.mktemp("cold") / "run"
    assert call(["train", str(world), "--model", "popularity", "--out", str(out)]) == 0
    return out


def test_the_report_agrees_with_single_evaluations(firstlight, run):
    found = firstlight("evaluate", run, "--protocol", "cold", "--json").value
    assert set(found["protocols"]) == {"warm/warm", "warm/all", "cold/cold", "cold/all", "all/all"}
    for name, row in found["protocols"].items():
        targets, pool = name.split("/")
        single = firstlight("evaluate", run, "--targets", targets, "--pool", pool, "--json").value
        assert row["metrics"] == pytest.approx(single["metrics"])
        assert {key: row[key] for key in ("users", "pairs", "unreachable_pairs")} == {
            key: single[key] for key in ("users", "pairs", "unreachable_pairs")
        }
        assert row["intervals"]["recall@20"] == pytest.approx(single["intervals"]["recall@20"])
    # Popularity never shows an item without clicks before one with clicks.
    assert found["harmonic"]["metrics"]["recall@10"] == 0
    assert found["oracle"]["harmonic"] > 0
    assert found["oracle"]["share"] == pytest.approx(
        found["harmonic"]["metrics"]["recall@20"] / found["oracle"]["harmonic"]
    )
    assert [row["group"] for row in found["groups"]["clicks"]] == ["0", "1-5", "6-20", "21-100", "101+"]
    assert found["items"]["warm"] + found["items"]["cold"] == 60


def test_it_is_drawn(firstlight, run):
    shown = firstlight("evaluate", run, "--protocol", "cold", "-k", "5")
    assert shown.code == 0
    assert "harmonic mean of warm and cold" in shown.out
    assert "recall@5" in shown.out
    assert "by training clicks" in shown.out


def test_without_cold_targets_there_is_no_harmonic_mean(firstlight, runs):
    found = firstlight("evaluate", runs["mf"], "--protocol", "cold", "-k", "10", "--json").value
    if "cold/cold" not in found["protocols"]:
        assert found["harmonic"] == {"metrics": {}, "intervals": {}}
        assert found["oracle"]["share"] is None
    assert found["oracle"]["k"] == 10


def test_on_another_dataset(firstlight, run, world):
    own = firstlight("evaluate", run, "--protocol", "cold", "--json").value
    again = firstlight("evaluate", run, world, "--protocol", "cold", "--json").value
    assert again["unknown_pairs"] == 0
    assert again["protocols"]["all/all"]["metrics"] == own["protocols"]["all/all"]["metrics"]


def test_what_does_not_go_together_is_refused(firstlight, run):
    refused = firstlight("evaluate", run, "--protocol", "cold", "--pool", "cold")
    assert refused.code == 2
    assert "--pool" in refused.err
    assert firstlight("evaluate", run, "--protocol", "lukewarm").code == 2
