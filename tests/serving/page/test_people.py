"""A person is picked; history, recommendations and reasons appear."""

from __future__ import annotations

import json

from serving.page.fake_api import FakeApi

WALL = "document.querySelectorAll('.person .wall .tile').length"


def in_words(why: dict) -> str:
    """A reason as a screen reader says it."""
    words = f"like {why['title']}"
    if why["view"]:
        words += f", by {why['view']}"
    names = [one["title"] for one in (why["hyperedge"] or {"items": []})["items"]]
    names = [name for name in names if name != why["title"]]
    if names:
        last = f"{',' if len(names) > 2 else ''} and {names[-1]}" if len(names) > 1 else names[0]
        words += ", grouped with " + (", ".join(names[:-1]) + last if len(names) > 1 else last)
    return words


def test_pick_a_person_and_reload(visit, api: FakeApi):
    page = visit()
    page.until("document.querySelectorAll('#found a').length === 30")
    assert "Pick someone" in page.text(".person")
    page.click("#who")
    page.type("U07")
    page.until("document.querySelectorAll('#found a').length === 1")
    page.until("document.querySelector('#live').textContent === '1 person found'")
    page.click("#found a")
    page.until(WALL)
    expected = api.recommend("u07", 24)["items"]
    titles = page.js("[...document.querySelectorAll('.person .wall .title')].map(one => one.textContent)")
    assert titles == [item["title"] for item in expected]
    new = page.js(
        "[...document.querySelectorAll('.person .wall .tile')].map(one => !!one.querySelector('.new'))"
    )
    assert new == [item["new"] for item in expected]
    assert any(new)
    assert not all(new)
    assert page.count(".strip li") == len(api.seen[7])
    reasons = page.js("[...document.querySelectorAll('.person .wall .why')].map(one => one.textContent)")
    assert reasons == [in_words(item["why"]) for item in expected]
    assert sum("grouped" in words for words in reasons) > 3
    assert page.text("h1") == "u07"
    assert page.js("document.title") == "u07 · firstlight"

    page.reload()
    page.until(WALL)
    assert page.text("h1") == "u07"
    page.until(
        "[...document.querySelectorAll('.wall img')].slice(0, 6).every(one => one.naturalWidth === 32)"
    )


def test_pointing_at_an_item_marks_its_reason_in_the_history(visit, api: FakeApi):
    page = visit("/people/u07")
    page.until(WALL)
    page.click(".person .wall li:nth-child(2) .why")
    why = api.recommend("u07")["items"][1]["why"]["item"]
    assert page.js("[...document.querySelectorAll('.strip .lit')].map(one => one.dataset.item)") == [why]


def test_new_only_and_more(visit, api: FakeApi):
    page = visit("/people/u07")
    page.until(WALL)
    page.click(".more")
    page.until(f"{WALL} === 48")
    page.click(".controls button:last-child")
    new = [item["id"] for item in api.recommend("u07", 24, only_new=True)["items"]]
    page.until(f"{WALL} === {len(new)}")
    assert (
        page.js("[...document.querySelectorAll('.person .wall .tile')].map(one => one.dataset.item)") == new
    )
    assert page.js("document.activeElement.textContent") == "New only"
    assert page.js("document.activeElement.ariaPressed") == "true"
    page.until(
        f"document.querySelector('#live').textContent === '{len(new)} recommendations, {len(new)} of them new'"
    )


def test_close_up_of_an_item(visit, api: FakeApi):
    page = visit("/people/u07")
    page.until(WALL)
    page.click(".person .wall .tile")
    page.until("document.querySelectorAll('#item .wall .tile').length === 10")
    first = api.recommend("u07")["items"][0]
    shown = page.js("[...document.querySelectorAll('#item .wall .tile')].map(one => one.dataset.item)")
    assert shown == [item["id"] for item in api.similar(first["id"], 10)]
    why = first["why"]
    assert f"most alike by {why['view']}" in page.text("#item .closeup")
    group = [one["title"] for one in why["hyperedge"]["items"]]
    assert f"By {why['view']} the model groups it with" in page.text("#item .group")
    assert page.js("[...document.querySelectorAll('#item .group q')].map(one => one.textContent)") == group
    page.click("#item .wall .tile")  # the next item opens in its place
    page.until(f"document.querySelector('#item-title').textContent === {json.dumps(api.titles[shown[0]])}")
    page.click("#item .close")
    assert not page.js("document.querySelector('#item').open")


def test_who_comes_last_is_shown(visit, api: FakeApi):
    api.delay["/v1/users/u01"] = 0.5
    page = visit("/people/u01")
    page.js("location.hash = '#/people/u02'")
    page.until(WALL)
    page.wait(0.7)
    assert page.text("h1") == "u02"
    assert page.count(".strip li") == len(api.seen[2])


def test_ids_and_titles_are_text_whatever_they_hold(visit, api: FakeApi):
    evil = "<img src=x onerror='window.hit=1'>"
    ids = [evil, "a/b?c#d%2F&e=1", "ünï 💡 \u202eright to left", "'\"`${1}"]
    api.users[:4] = ids
    for item in api.ids:
        api.titles[item] = f"<b>{item}</b>{evil}"
    page = visit()
    page.until("document.querySelectorAll('#found a').length === 30")
    for place, name in enumerate(ids):
        page.click(f"#found li:nth-child({place + 1}) a")
        page.until(f"{WALL} && document.querySelector('h1').textContent === {json.dumps(name)}")
        assert page.count(".strip li") == len(api.seen[place])
    assert page.text(".person .wall .title").startswith("<b>")
    page.click(".person .wall .tile")
    page.until("document.querySelectorAll('#item .wall .tile').length")
    api.fail["/v1/users"] = (500, {"title": evil, "detail": evil})
    page.key("Escape")
    page.click("#who")
    page.type("x")
    page.until("document.querySelector('.finder [role=alert]')")
    assert evil in page.text(".finder [role=alert]")
    assert page.js("window.hit") is None
    assert page.count("b, img[src=x]") == 0
