"""Nothing to show, not yet, not at all: the page says so, and goes on when it can."""

from __future__ import annotations

import pytest

from serving.page.fake_api import FakeApi

WALL = "document.querySelectorAll('.person .wall .tile').length"


def test_an_empty_catalogue(visit, api: FakeApi, monkeypatch):
    monkeypatch.setattr(api, "users", [])
    monkeypatch.setattr(api, "map", lambda: {"version": 1, "items": []})
    page = visit()
    page.until("document.querySelector('#found .state')")
    assert "This catalogue has no users" in page.text("#found")
    page.js("location.hash = '#/map'")
    page.until("document.querySelector('.stage .state')")
    assert "Nothing to map" in page.text(".stage")
    assert page.js("document.querySelector('.map aside').hidden")


def test_nobody_of_that_name(visit):
    page = visit()
    page.click("#who")
    page.type("zz")
    page.until("document.querySelector('#found .state')")
    assert "Nobody is called “zz”" in page.text("#found")


def test_somebody_whom_training_did_not_know_gets_popular_items_and_is_told(visit, api: FakeApi, monkeypatch):
    recommend = api.recommend
    page = visit("/people/u04")
    page.until(WALL)
    assert "no click of this person" not in page.text(".person")
    monkeypatch.setattr(api, "recommend", lambda **asked: {**recommend(**asked), "basis": "popular"})
    page.reload()
    page.until("document.querySelector('.person .told')")
    assert "Training saw no click of this person" in page.text(".person .told")
    assert page.js("document.querySelector('.person .wall').ariaLabel") == "24 popular items"


def test_no_history_and_no_recommendations(visit, api: FakeApi, monkeypatch):
    api.seen[4] = api.seen[4][:0]
    monkeypatch.setattr(api, "recommend", lambda **_: {"version": 1, "items": []})
    page = visit("/people/u04")
    page.until("document.querySelectorAll('.person .state').length === 2")
    assert "No clicks yet" in page.text(".history")
    assert "Nothing to recommend" in page.text(".person")


def test_an_unknown_person(visit):
    page = visit("/people/nobody")
    page.until("document.querySelectorAll('.person [role=alert]').length === 2")
    assert "user 'nobody' is unknown" in page.text(".person")


def test_loading_shows_the_shape_of_what_comes(visit, api: FakeApi):
    api.delay["/v1/recommend"] = 0.6
    page = visit("/people/u04")
    page.until("document.querySelectorAll('.person .wall .ghost').length === 12")
    assert page.count(".person [aria-busy=true]") == 1
    page.until(WALL)
    assert page.count(".ghost, [aria-busy]") == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, {"title": "Busy", "detail": "Too many requests wait."}), ["Busy", "Too many requests wait."]),
        ((502, b"<html>proxy</html>"), ["Bad Gateway", "The server answered 502."]),
        ((500, []), ["Internal Server Error", "The server answered 500."]),
        ((200, b"not json"), ["The answer cannot be read"]),
    ],
)
def test_an_error_is_told_and_can_be_tried_again(visit, api: FakeApi, answer, words):
    api.fail["/v1/recommend"] = answer
    page = visit("/people/u04")
    page.until("document.querySelector('.person [role=alert]')")
    told = page.text(".person [role=alert]")
    assert all(word in told for word in words), told
    page.until(
        f"document.querySelectorAll('.strip [data-item]').length === {len(api.seen[4])}"
    )  # it does not suffer
    api.fail.clear()
    page.click(".person [role=alert] button")
    page.until(WALL)
    assert page.count("[role=alert]") == 0


def test_a_server_that_is_gone_and_comes_back(visit):
    page = visit("/people/u04")
    page.until(WALL)
    page.forbid("*/v1/*")
    page.js("location.hash = '#/map'")
    page.until("document.querySelector('.stage [role=alert]')")
    assert "The server does not answer" in page.text(".stage")
    page.forbid()
    page.click(".stage [role=alert] button")
    page.until("document.querySelectorAll('.legend li').length > 1")


def test_items_without_pictures_show_their_titles(visit, api: FakeApi):
    first, second = (item["id"] for item in api.recommend("u04", 2)["items"])
    del api.covers[first]
    api.covers[second] = b"no picture at all"
    page = visit("/people/u04")
    page.until("document.querySelectorAll('.person .wall .cover.plain').length === 2")
    assert page.text(".person .wall .cover.plain") == api.titles[first]
    page.problems.clear()
