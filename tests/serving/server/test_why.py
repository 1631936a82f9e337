"""Reasons and new users over HTTP: what the model and its views say, and nothing that may not be shown."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from firstlight.data.interactions import Interactions
from firstlight.serving.bundle import Bundle
from firstlight.serving.server.app import create_app
from firstlight.serving.server.schemas import RecommendAnswer
from firstlight.serving.server.settings import Settings
from firstlight.training.run_folder import Run, load_run
from serving.server.running import TOKEN, WRITER, picture


@pytest.fixture
def client(grouped: dict[str, Path], tmp_path: Path) -> Iterator[TestClient]:
    folder = Path(shutil.copytree(grouped["bundle"], tmp_path / "bundle"))
    with TestClient(create_app(Bundle.open, folder, Settings(token=TOKEN))) as asking:
        yield asking


@pytest.fixture(scope="module")
def run(grouped: dict[str, Path]) -> Run:
    return load_run(grouped["run"])


def asked(client: TestClient, **body: object) -> list[dict]:
    answer = client.post("/v1/recommend", json={"k": 100, **body})
    assert answer.status_code == 200, answer.text
    RecommendAnswer.model_validate(answer.json())
    return answer.json()["items"]


def exact_likeness(values: torch.Tensor) -> torch.Tensor:
    """``(n, n)`` cosines in deviations above their mean over all pairs of different items, from whole rows."""
    unit = values / values.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = unit @ unit.T
    others = cosines[~torch.eye(len(unit), dtype=torch.bool)]
    return (cosines - others.mean()) / others.std()


def test_version_says_what_there_is(client, live):
    about = client.get("/version").json()
    assert (about["histories"], about["views"], about["hyperedges"]) == (
        "model",
        ["clip", "text", "cover"],
        True,
    )
    about = live.client.get("/version").json()
    assert (about["histories"], about["hyperedges"]) == ("model", False)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("RecommendAnswer", "Reloaded"):
        assert schemas[name]["examples"]
    RecommendAnswer.model_validate(schemas["RecommendAnswer"]["examples"][0])


def test_a_list_says_by_what_and_in_which_group(client, run):
    names = list(run.model.view_dims)
    row = {item: at for at, item in enumerate(run.item_ids)}
    members = run.model.hyperedges(run.model.content).numpy()
    likeness = [exact_likeness(values) for values in run.model.content.values]
    listed = asked(client, user="u07")
    told = [entry["why"] for entry in listed]
    assert {why["view"] for why in told} <= {*names, None}
    assert sum(why["view"] is not None for why in told) > len(told) / 2
    clear: list[bool] = []
    for entry, why in zip(listed, told, strict=True):
        exact = [float(table[row[entry["id"]], row[why["item"]]]) for table in likeness]
        first, second = sorted(exact, reverse=True)[:2]
        if first - second > 0.2 and abs(first) > 0.2:  # the usual likeness is known from some pairs only
            assert why["view"] == (names[exact.index(first)] if first > 0 else None)
        if why["view"] is None:
            assert why["hyperedge"] is None
            continue
        item, view = row[entry["id"]], names.index(why["view"])
        group = why["hyperedge"]
        weight = float(members[item, view].max())
        if abs(weight - 2 / 5) > 1e-2:  # twice an even share
            assert (group is not None) == (weight > 2 / 5)
        clear.append(group is not None)
        if group is None:
            continue
        assert group["number"] == int(members[item, view].argmax())
        assert group["weight"] == pytest.approx(weight, abs=2e-3)
        assert 0 < len(group["items"]) <= 3
        assert entry["id"] not in {one["id"] for one in group["items"]}
        weights = [members[row[one["id"]], view, group["number"]] for one in group["items"]]
        assert weights == sorted(weights, reverse=True)
        titles = {one["id"]: one["title"] for one in group["items"]}
        assert all(client.get(f"/v1/items/{item}").json()["title"] == title for item, title in titles.items())
    assert {True, False} == set(clear)


def test_items_that_may_not_be_shown_tell_nothing(client):
    before = asked(client, user="u07")
    groups = [entry["why"]["hyperedge"] for entry in before if entry["why"]["hyperedge"]]
    blocked, removed = (one["id"] for one in groups[0]["items"][:2])
    client.post("/v1/block", json={"items": [blocked]}, headers=WRITER)
    client.delete(f"/v1/items/{removed}", headers=WRITER)
    after = [entry["why"]["hyperedge"] for entry in asked(client, user="u07")]
    shown = {one["id"] for group in after if group for one in group["items"]}
    assert shown
    assert not shown & {blocked, removed}


def test_an_uploaded_item_has_its_reasons(client):
    done = client.post(
        "/v1/items",
        data={"id": "fresh", "title": "Tango rehearsal with the dancer"},
        files={"cover": ("x.png", picture())},
        headers=WRITER,
    )
    assert done.status_code == 201, done.text
    views = set()
    for user in ("u00", "u07", "u15", "u31", "u44"):
        why = asked(client, user=user, candidates=["fresh"])[0]["why"]
        views.add(why["view"])
        if why["hyperedge"]:
            assert why["hyperedge"]["items"]
    assert views - {None} <= {"text", "cover"}  # it came without a clip
    assert views - {None}


def test_a_history_gets_the_scores_of_the_run(client, run):
    items = run.model.item_vectors().numpy()
    row = {item: at for at, item in enumerate(run.item_ids)}
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        history = [run.item_ids[int(at)] for at in rng.choice(len(row), size, replace=False)]
        log = Interactions.from_pairs([0] * size, [row[one] for one in history], 1, len(row))
        user = run.model.encode_users(log)[0].numpy()
        listed = asked(client, history=history)
        assert len(listed) == len(row) - size
        assert [entry["score"] for entry in listed] == pytest.approx(
            [float(items[row[entry["id"]]] @ user) for entry in listed], abs=1e-5
        )
        assert {entry["why"]["item"] for entry in listed} <= set(history)


def test_a_history_of_an_uploaded_item_counts_it(client):
    new = {"id": "fresh", "title": "Tango rehearsal with the dancer"}
    done = client.post("/v1/items", json=new, headers=WRITER)
    assert done.status_code == 201, done.text
    alone, both = asked(client, history=["fresh"]), asked(client, history=["fresh", "v03"])
    assert {entry["why"]["item"] for entry in alone} == {"fresh"}
    without = asked(client, history=["v03"])
    order = [
        [entry["id"] for entry in listed if entry["id"] not in ("v03", "fresh")] for listed in (both, without)
    ]
    assert order[0] != order[1]
