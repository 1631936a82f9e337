"""One Chromium, and one page of it, for all tests that look at the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser import Browser, Page, find_chromium


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or set CHROMIUM")
    with Browser(binary, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="session")
def tab(chromium: Browser) -> Page:
    # A tab for each test would cost most of the time. What pages store belongs to their origin, and servers of tests
    # take ports of their own, so tests do not meet there.
    return chromium.page()


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A page whose console must stay clean; answers like 404 are no complaint of the page's."""
    tab.reset()
    yield tab
    problems = [one for one in tab.problems if not one.startswith("Failed to load resource")]
    tab.reset()
    assert not problems
