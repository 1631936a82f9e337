"""A new cover with a title goes in, and where it lands comes back."""

from __future__ import annotations

from pathlib import Path

from browser import Page
from serving.page.fake_api import FakeApi


def fill(page: Page, cover: Path | None, title: str, token: str | None = "secret") -> None:
    if cover:
        page.choose_file("#new-cover", cover)
        page.until("!document.querySelector('.preview').hidden")
    page.click("#new-title")
    page.type(title)
    if token:
        page.click("#new-token")
        page.type(token)
    page.click("button.primary")


def test_place_look_around_and_take_out(visit, api: FakeApi, cover_file: Path):
    page = visit("/add")
    fill(page, cover_file, "Fresh <i>paint</i>")
    page.until("document.querySelectorAll('.audience .place:not(.muted)').length > 1")
    assert api.posted["title"] == "Fresh <i>paint</i>"
    assert api.posted["cover"] == cover_file.read_bytes()
    item = api.posted["id"]
    assert page.text(".arrived h2") == "Fresh <i>paint</i> is in"
    assert page.js("document.activeElement.localName") == "h2"
    shown = page.js(
        "[...document.querySelectorAll('.landing .wall.small .tile')].map(one => one.dataset.item)"
    )
    assert shown == [one["id"] for one in api.similar(item, 10)]
    user = page.text(".audience a")
    place = [one["id"] for one in api.recommend(user, 100)["items"]].index(item) + 1
    assert page.text(".audience .place").startswith(str(place))

    page.click(".audience a")  # it stands in that person's list, marked
    page.until("document.querySelector('.wall .marked')")
    assert page.js("document.querySelector('.marked .tile').dataset.item") == item
    page.js("history.back()")  # what was found is still there
    page.until("document.querySelector('.arrived')")
    page.click(".arrived a.button")
    page.until("document.querySelector('.card')?.hidden === false")
    assert "Fresh <i>paint</i>" in page.text(".card")

    page.js("history.back()")
    page.click(".arrived button.quiet")
    page.until("document.querySelector('.landing').innerText.includes('Taken out')")
    assert item not in api.vectors


def test_reload_forgets_nothing_that_was_placed(visit, api: FakeApi, cover_file: Path):
    page = visit("/add")
    fill(page, cover_file, "Fresh")
    page.until("document.querySelector('.audience a')")
    user = page.text(".audience a")
    page.js(f"location.hash = '#/people/{user}?item={api.posted['id']}'")
    page.reload()
    page.until("document.querySelector('.wall .marked')")
    page.js("location.hash = '#/add'")
    page.until("document.querySelector('#new-token')")
    fill(page, None, "Second", token=None)  # the token is kept for this tab
    page.until("document.querySelector('.arrived')")
    assert api.posted["title"] == "Second"
    assert "cover" not in api.posted


def test_without_the_token(visit, api: FakeApi, cover_file: Path):
    page = visit("/add")
    fill(page, cover_file, "Fresh", token="guess")
    page.until("document.querySelector('.trouble [role=alert]')")
    assert "A token is needed" in page.text(".trouble")
    assert page.js("document.activeElement.id") == "new-token"
    assert not api.posted
    assert page.js("document.querySelector('#new-title').value") == "Fresh"  # nothing has to be typed again
    page.js("document.activeElement.select()")
    page.type("secret")
    page.key("Enter")
    page.until("document.querySelector('.arrived')")


def test_a_link_that_brings_the_token(visit, api: FakeApi, cover_file: Path):
    page = visit("token=secret")
    assert page.js("location.hash") == "#/add"
    fill(page, cover_file, "Fresh", token=None)
    page.until("document.querySelector('.arrived')")
    assert all("secret" not in call for call in api.calls)


def test_nothing_given_and_what_the_server_refuses(visit, api: FakeApi, cover_file: Path):
    page = visit("/add")
    page.click("button.primary")
    page.until("document.querySelector('.trouble [role=alert]')")
    assert "A cover or a title is needed" in page.text(".trouble")
    assert not [call for call in api.calls if call.startswith("POST")]
    api.fail["/v1/items"] = (413, {"title": "Too large", "detail": "At most 10 MB."})
    fill(page, cover_file, "Fresh")
    page.until("document.querySelector('.trouble').innerText.includes('At most 10 MB.')")
    assert page.js("document.querySelector('button.primary').textContent") == "Place it"


def test_an_id_that_is_there_already(visit, api: FakeApi, cover_file: Path):
    page = visit("/add")
    page.click("#new-id")
    page.type("v00")
    fill(page, cover_file, "Fresh")
    page.until("document.querySelector('.trouble').innerText.includes('The item is there already')")
    page.click("#new-replace")
    page.click("button.primary")
    page.until("document.querySelector('.arrived')")
    assert (api.posted["id"], api.titles["v00"]) == ("v00", "Fresh")


def test_a_catalogue_that_takes_no_new_items(visit, api: FakeApi):
    api.takes_new_items = False
    page = visit("/add")
    page.until("document.querySelector('.add').innerText.includes('takes no new items')")
    assert page.count("form") == 0
