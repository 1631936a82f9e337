"""What the API answers, on a real server: the numbers of the command line, and nothing that it should not say."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from firstlight.serving.bundle import Bundle
from serving.server.running import TOKEN, WRITER, picture


def offline(capfd, *words: object) -> dict:
    from firstlight.cli.app import run

    capfd.readouterr()
    assert run([*map(str, words), "--json"]) == 0
    return json.loads(capfd.readouterr().out)["lists"]


def pairs(items: list[dict], name: str = "id") -> tuple[list[str], list[float]]:
    return [entry[name] for entry in items], [entry["score"] for entry in items]


def test_served_lists_are_those_of_the_command_line(live, pristine, capfd):
    users = ["u00", "u07", "u31"]
    for user, wanted in offline(capfd, "recommend", pristine, "--users", ",".join(users), "-k", 15).items():
        found = live.post("/v1/recommend", {"user": user, "k": 15, "candidates": None}).json()
        names, scores = pairs([entry for entry in found["items"] if entry["id"].startswith("v")])
        assert names == pairs(wanted, "item")[0][: len(names)]
        assert scores == pytest.approx(pairs(wanted, "item")[1][: len(names)], rel=1e-5)
    for item, wanted in offline(capfd, "similar", pristine, "--items", "v03,v10", "-k", 50).items():
        found = live.post("/v1/similar", {"item": item, "k": 60}).json()
        names, scores = pairs([entry for entry in found["items"] if entry["id"].startswith("v")])
        assert names[:40] == pairs(wanted, "similar")[0][:40]
        assert scores[:40] == pytest.approx(pairs(wanted, "similar")[1][:40], abs=1e-5)


def test_lists_say_why_and_keep_filters(live, pristine):
    bundle = Bundle.open(pristine)
    seen = {entry["id"] for entry in live.client.get("/v1/users/u07?limit=1000").json()["history"]}
    assert seen == {bundle.item_ids()[int(row)] for row in bundle.snapshot.base.seen.row(7)}
    whole = live.post("/v1/recommend", {"user": "u07", "k": 1000}).json()["items"]
    assert not {entry["id"] for entry in whole} & seen
    assert {entry["why"]["item"] for entry in whole} <= seen
    new = live.post("/v1/recommend", {"user": "u07", "k": 1000, "only_new": True}).json()["items"]
    assert [e["id"] for e in new] == [e["id"] for e in whole if e["new"]]
    assert 0 < len(new) < len(whole)
    some, out = [e["id"] for e in whole[3:9]], [whole[4]["id"], "nobody knows it"]
    body = {"user": "u07", "candidates": [*some, "unknown", *seen], "exclude": out, "k": 3}
    assert [e["id"] for e in live.post("/v1/recommend", body).json()["items"]] == [some[0], *some[2:4]]


def test_a_history_ranks_like_its_owner(live, pristine):
    """A made-up user with the history of a known one gets a similar list, without what they gave."""
    overlaps = []
    for user in ("u00", "u07", "u15", "u31", "u44"):
        history = [entry["id"] for entry in live.client.get(f"/v1/users/{user}?limit=1000").json()["history"]]
        known = live.post("/v1/recommend", {"user": user, "k": 15}).json()["items"]
        like = live.post("/v1/recommend", {"history": [*history, "unknown"], "k": 15}).json()
        assert like["user"] is None
        found = {entry["id"] for entry in like["items"]}
        assert not found & set(history)
        overlaps.append(len(found & {entry["id"] for entry in known}) / 15)
    left = 60 - 20
    assert np.mean(overlaps) > 1.3 * 15 / left, overlaps  # two random lists of 15 share 15 / 40


def test_batches_answer_each_in_its_place(live):
    body = {"requests": [{"user": "u00", "k": 3}, {"user": "nobody"}, {"history": ["v03"], "k": 2}]}
    first, second, third = live.post("/v1/recommend/batch", body).json()["answers"]
    alone = live.post("/v1/recommend", {"user": "u00", "k": 3}).json()
    assert first["items"][0].keys() == alone["items"][0].keys()
    assert pairs(first["items"])[0] == pairs(alone["items"])[0]
    assert pairs(first["items"])[1] == pytest.approx(pairs(alone["items"])[1], rel=1e-5)
    assert (second["status"], second["title"]) == (404, "Unknown user")
    assert len(third["items"]) == 2
    body = {"requests": [{"item": "v03", "k": 2}, {"item": "none"}]}
    first, second = live.post("/v1/similar/batch", body).json()["answers"]
    assert (len(first["items"]), second["status"]) == (2, 404)


def test_an_upload_is_in_the_rankings_at_once(live):
    form = {"title": "Tango rehearsal with the dancer", "id": "fresh/ü 1", "note": "by hand"}
    done = live.client.post("/v1/items", data=form, files={"cover": ("x.png", picture())}, headers=WRITER)
    assert done.status_code == 201, done.text
    told = done.json()
    assert told["id"] == "fresh/ü 1"
    assert len(told["similar"]) == 12
    best = told["audience"][0]
    found = live.post("/v1/recommend", {"user": best["user"], "candidates": ["fresh/ü 1"]}).json()
    assert found["version"] >= told["version"]
    assert found["items"][0]["score"] == pytest.approx(best["score"], rel=1e-5)
    assert found["items"][0]["new"]
    path = f"/v1/items/{quote('fresh/ü 1', safe='')}"
    shown = live.client.get(path).json()
    assert (shown["title"], shown["texts"]["note"], shown["cover"]) == (
        form["title"],
        "by hand",
        f"{path}/cover",
    )
    cover = live.client.get(shown["cover"])
    assert cover.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(cover.content)) as image:
        assert np.abs(np.asarray(image)[5, 5].astype(int) - (180, 40, 40)).max() < 10
    same = live.client.get(shown["cover"], headers={"If-None-Match": cover.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert live.client.get("/v1/items?query=tango reh").json()["items"][0]["id"] == "fresh/ü 1"
    assert "fresh/ü 1" in {point["id"] for point in live.client.get("/v1/map").json()["items"]}

    again = live.client.post("/v1/items", data=form, headers=WRITER)
    assert again.status_code == 409
    replaced = live.client.post(
        "/v1/items?replace=true", data={**form, "title": "Algebra lecture with homework"}, headers=WRITER
    )
    assert replaced.json()["version"] > told["version"]
    assert live.client.get(path).json()["cover"] is None
    gone = live.client.delete(path, headers=WRITER)
    assert gone.status_code == 200
    assert live.client.get(path).status_code == live.client.delete(path, headers=WRITER).status_code == 404
    assert live.post("/v1/recommend", {"user": "u00", "candidates": ["fresh/ü 1"]}).json()["items"] == []


def test_rules_and_versions(live):
    start = live.client.get("/version").json()["version"]
    first = live.post("/v1/recommend", {"user": "u03", "k": 2}).json()["items"]
    assert live.post("/v1/block", {"items": [first[0]["id"]]}, **WRITER).json() == {
        "version": start + 1,
        "unknown": [],
    }
    assert live.post("/v1/recommend", {"user": "u03", "k": 1}).json()["items"][0]["id"] == first[1]["id"]
    assert live.client.get(f"/v1/items/{first[0]['id']}").json()["blocked"]
    live.client.request("DELETE", "/v1/block", json={"items": [first[0]["id"]]}, headers=WRITER)
    assert pairs(live.post("/v1/recommend", {"user": "u03", "k": 2}).json()["items"])[0] == pairs(first)[0]
    last = live.post("/v1/recommend", {"user": "u03", "k": 100}).json()["items"][-1]
    live.post("/v1/boost", {last["id"]: 100.0}, **WRITER)
    shown = live.post("/v1/recommend", {"user": "u03", "candidates": [last["id"]]}).json()["items"][0]
    assert shown["score"] > last["score"]
    live.post("/v1/boost", {last["id"]: 1}, **WRITER)
    made = live.post("/v1/items", {"id": "to-go", "title": "Soup"}, **WRITER).json()["version"]
    back = live.post("/v1/rollback", {"version": made - 1}, **WRITER).json()["version"]
    assert back == made + 1
    assert live.client.get("/v1/items/to-go").status_code == 404
    assert live.post("/v1/rollback", {"version": 10_000}, **WRITER).status_code == 422
    assert live.post("/v1/reload", None, **WRITER).json() == {"version": back, "carried": 0, "lost": []}


def test_other_processes_are_taken_over(copied, trained):
    """Also covers a server of a run, whose titles and covers are with its dataset."""
    import time

    from serving.server.running import server

    with server(trained["run"], "--set", "poll_seconds=0.1") as running:
        item = running.client.get("/v1/items/v03").json()
        assert item["title"]
        assert running.client.get(item["cover"]).headers["content-type"] == "image/jpeg"
        assert running.client.get("/version").json()["takes_new_items"]
    with server(copied, "--set", "poll_seconds=0.1") as running:
        Bundle.open(copied).remove_items(["v03"])
        deadline = time.monotonic() + 20
        while running.client.get("/v1/items/v03").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_about(live):
    assert live.client.get("/health/live").json() == {"status": "ok"}
    assert live.client.get("/health/ready").json()["status"] == "ok"
    about = live.client.get("/version").json()
    assert (about["users"], about["index"], about["takes_new_items"]) == (60, "exact", True)
    text = live.client.get("/metrics").text
    assert 'firstlight_requests_total{method="GET",route="/health/ready",status="200"}' in text
    assert "firstlight_catalogue_items" in text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0
    assert live.client.get("/v1/users?query=U0&limit=3").json()["users"][0]["id"] == "u00"
    described = live.client.get("/openapi.json").json()
    assert {"/v1/recommend", "/v1/items/{item}/cover", "/v1/rollback"} <= set(described["paths"])
    assert described["components"]["schemas"]["RecommendRequest"]["examples"]
    assert TOKEN not in json.dumps(described)
    page = live.client.get("/")
    assert page.status_code == (200 if "text/html" in page.headers["content-type"] else 404)


def test_blocking_ahead_tells_what_is_not_there(live, pristine):
    known = str(Bundle.open(pristine).item_ids()[1])
    told = live.post("/v1/block", {"items": ["not yet", known]}, **WRITER).json()
    assert told["unknown"] == ["not yet"]
    asked = {"items": ["not yet", known]}
    assert live.client.request("DELETE", "/v1/block", json=asked, headers=WRITER).json()["unknown"] == [
        "not yet"
    ]
    assert live.post("/v1/boost", {known: 1.0, "mistyped": 2.0}, **WRITER).json()["unknown"] == ["mistyped"]
    live.post("/v1/boost", {"mistyped": 1.0}, **WRITER)
    found = live.post("/v1/recommend", {"history": [known, "gone"], "k": 2}).json()
    assert (found["unknown"], found["basis"]) == (["gone"], "model")


def test_what_cannot_be_served_is_said_before_anything_is_read(live, pristine, tmp_path, capfd):
    from firstlight.cli.app import run

    def refused(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        return run(["serve", *map(str, words)]), capfd.readouterr().err

    code, told = refused(pristine, "--port", live.port)
    assert code == 1
    assert "another program listens there" in told
    assert "choose another --port" in told
    code, told = refused(tmp_path / "nothing")
    assert (code, told.splitlines()[0]) == (2, f"error: {tmp_path / 'nothing'}: there is no such folder")
    assert "token" not in told
    assert refused(pristine, "--host", "no.such.host.invalid")[0] == 2
