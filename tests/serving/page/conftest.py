"""One Chromium for all tests of the page, a fresh page for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from browser import Browser, Page, find_chromium
from serving.page.fake_api import FakeApi, serving


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or set CHROMIUM")
    with Browser(binary, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page whose console must stay clean; answers like 404 are no complaint of the page's."""
    opened = chromium.page()
    opened.screen(1200, 800)
    yield opened
    problems = [one for one in opened.problems if not one.startswith("Failed to load resource")]
    opened.close()
    assert not problems


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def address(api: FakeApi) -> Iterator[str]:
    with serving(api) as url:
        yield url


@pytest.fixture
def visit(page: Page, address: str) -> Callable[[str], Page]:
    """Go to a view, by the part of its address after ``#``."""

    def go(where: str = "/people") -> Page:
        page.open(f"{address}#{where}")
        return page

    return go


@pytest.fixture
def cover_file(api: FakeApi, tmp_path: Path) -> Path:
    path = tmp_path / "cover.jpg"
    path.write_bytes(api.covers[api.ids[0]])
    return path
