"""Results as Python shows them, and choices by their names."""

from __future__ import annotations

import polars as pl
import pytest

from firstlight.core.choices import one_of
from firstlight.core.errors import InputError
from firstlight.core.shown import Shown


class Thing(Shown):
    @property
    def heading(self) -> str:
        return "two lines\n<of> words"

    @property
    def table(self) -> pl.DataFrame:
        return pl.DataFrame({"name": [f"row {i}" for i in range(30)], "value": range(30)})


def test_it_is_words_over_a_whole_table():
    shown = repr(Thing())
    assert shown.startswith("two lines\n<of> words\n")
    assert "row 17" in shown  # polars alone would leave the middle out
    assert "shape" not in shown


def test_html_is_escaped():
    html = Thing()._repr_html_()
    assert "two lines<br>&lt;of&gt; words" in html
    assert "<table" in html


def test_the_users_own_settings_of_polars_stay():
    with pl.Config(tbl_rows=3):
        before = pl.Config.state()
        repr(Thing())
        assert pl.Config.state() == before


def test_a_choice_is_one_of_those_allowed():
    assert one_of("b", ("a", "b"), "letter") == "b"
    with pytest.raises(InputError, match=r"letter 'c' is not known") as caught:
        one_of("c", ("a", "b"), "letter")
    assert caught.value.hint == "one of: a, b"


class Wide(Shown):
    heading = "wide"

    @property
    def table(self) -> pl.DataFrame:
        numbers = {f"recall@{k}": [0.123456, None] for k in (10, 20, 50, 100, 200, 500)}
        return pl.DataFrame(
            {"targets": ["warm", "harmonic mean of warm and cold"], "users": [1234, None], **numbers}
        )


def test_a_wide_table_goes_on_below_with_whole_headers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = repr(Wide()).splitlines()
    assert max(map(len, lines)) <= 80
    headers = [line for line in lines if line.startswith("targets")]
    assert len(headers) == 2
    assert [word for line in headers for word in line.split()[1:]] == ["users", *Wide().table.columns[2:]]
    assert "null" not in repr(Wide())
    assert "1,234" in repr(Wide())
    assert repr(Wide()).count("harmonic mean of warm and cold") == 2
    monkeypatch.setenv("COLUMNS", "200")
    assert repr(Wide()).count("targets") == 1
    assert "null" not in Wide()._repr_html_()


def test_a_long_table_says_how_much_is_missing():
    class Long(Shown):
        heading = "long"
        table = pl.DataFrame({"name": [f"row {i}" for i in range(55)]})

    assert repr(Long()).splitlines()[-1] == "… 15 more"
