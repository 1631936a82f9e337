"""Users that training saw no click of get the most popular items, and are told apart, wherever lists are made."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from firstlight.cli.app import run as command
from firstlight.data.dataset import Dataset
from firstlight.data.folder import write_dataset
from firstlight.data.interactions import Interactions
from firstlight.pipeline.served import open_served
from firstlight.serving.bundle import Bundle
from firstlight.serving.popular import Popular
from serving.catalogues import small_parts

N_ITEMS = 8
#: Clicks of the items by row: i3 has most, then i6 and i1, of which the older row comes first.
CLICKED = [(0, 3), (1, 3), (2, 3), (3, 3), (0, 6), (1, 6), (2, 1), (3, 1), (0, 0), (4, 5)]
STRANGERS = ["u5", "u6"]


@pytest.fixture(scope="module", params=["mf", "item-knn"])
def trained(request, tmp_path_factory):
    """A run on seven users, two of whom have test clicks only."""
    folder = tmp_path_factory.mktemp("popular")
    log = lambda pairs: Interactions.from_pairs(*np.array(pairs).T, 7, N_ITEMS)  # noqa: E731
    ids = [pl.Series([f"{kind}{row}" for row in range(n)]) for kind, n in (("u", 7), ("i", N_ITEMS))]
    write_dataset(Dataset("small", *ids, log(CLICKED), test=log([(5, 3), (6, 1), (0, 1)])), folder / "data")
    quick = (
        ["--set", "model.dim=4", "--set", "training.selection=none", "--epochs", 2]
        if request.param == "mf"
        else []
    )
    words = ["train", folder / "data", "--model", request.param, *quick, "--out", folder / "run"]
    assert command([str(word) for word in words]) == 0
    return folder / "run"


def recommended(capfd, target, *words) -> tuple[dict, str]:
    capfd.readouterr()
    assert command(["recommend", str(target), *map(str, words), "--json"]) == 0
    shown = capfd.readouterr()
    return json.loads(shown.out), shown.err


def test_runs_and_bundles_list_them_alike(trained, tmp_path, capfd):
    targets = [trained]
    if "mf" in (trained / "config.yaml").read_text():  # bundles need vectors
        assert command(["export", str(trained), str(tmp_path / "bundle")]) == 0
        targets.append(tmp_path / "bundle")
    for target in targets:
        found, told = recommended(capfd, target, "--users", "u6,u0,u5", "-k", 3)
        assert list(found["lists"]) == ["u6", "u0", "u5"]
        for user in STRANGERS:
            entries = found["lists"][user]
            assert [entry["item"] for entry in entries] == ["i3", "i1", "i6"]
            assert [entry["score"] for entry in entries] == [4, 2, 2]
            assert {entry["basis"] for entry in entries} == {"popular"}
        assert {entry["basis"] for entry in found["lists"]["u0"]} == {"model"}
        assert "2 users without a training click get the most popular items" in told
        assert "most popular items" not in recommended(capfd, target, "--users", "u0", "-k", 3)[1]
        _, told = recommended(capfd, target, "-k", 3, "--out", tmp_path / "lists.csv")
        table = pl.read_csv(tmp_path / "lists.csv")
        assert table["user"].unique(maintain_order=True).to_list() == [f"u{row}" for row in range(7)]
        assert table.filter(pl.col("basis") == "popular")["user"].unique().sort().to_list() == STRANGERS
        assert table.group_by("user").len()["len"].to_list() == [3] * 7
        assert "2 users" in told


def test_a_bundle_keeps_who_they_are(trained, tmp_path):
    if "mf" not in (trained / "config.yaml").read_text():
        pytest.skip("bundles need vectors")
    assert command(["export", str(trained), str(tmp_path / "bundle")]) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert [entry.item for entry in bundle.recommend("u5", 3)] == ["i3", "i1", "i6"]
    bundle.block(["i3"])
    bundle.boost({"i5": 5.0})
    for opened in (bundle, Bundle.open(tmp_path / "bundle")):
        assert [entry.item for entry in opened.recommend("u5", 3)] == ["i5", "i1", "i6"]
    bundle.compact()
    again = open_served(tmp_path / "bundle")
    assert (~again.snapshot.base.trained).nonzero()[0].tolist() == [5, 6]
    assert [entry.item for entry in again.recommend("u5", 3)] == ["i5", "i1", "i6"]


def test_the_server_says_which_lists_these_are(trained, tmp_path):
    pytest.importorskip("fastapi")
    from firstlight.serving.server.catalogue import Catalogue
    from firstlight.serving.server.schemas import RecommendRequest

    if "mf" not in (trained / "config.yaml").read_text():
        pytest.skip("bundles need vectors")
    assert command(["export", str(trained), str(tmp_path / "bundle")]) == 0
    catalogue = Catalogue(Bundle.open(tmp_path / "bundle"))
    asks = [
        RecommendRequest(user="u5", k=2, exclude=["i3"]),
        RecommendRequest(user="u0", k=2),
        RecommendRequest(user="u5", candidates=["i0", "i6"]),
        RecommendRequest(history=["i0", "gone", "i3", "gone"], k=2),
    ]
    first, second, third, fourth = catalogue.answer(asks)
    assert (first["basis"], [entry["id"] for entry in first["items"]]) == ("popular", ["i1", "i6"])
    assert (second["basis"], second["unknown"]) == ("model", [])
    assert [entry["id"] for entry in third["items"]] == ["i6", "i0"]
    assert (fourth["basis"], fourth["unknown"]) == ("model", ["gone"])


def test_vectors_from_elsewhere_count_as_trained():
    assert small_parts().trained.all()


def test_popular_items_pass_over_what_must_not_be_shown():
    shown = np.array([True, True, False, True])
    popular = Popular(np.array([1, 5, 9, 5], np.float32), shown)
    rows, clicks = popular.best(2, np.array([1]))
    assert (rows.tolist(), clicks.tolist()) == ([3, 0], [5, 1])
    assert popular.best(9, np.array([], np.int64), np.array([2, 3, 0])).rows.tolist() == [3, 0]
