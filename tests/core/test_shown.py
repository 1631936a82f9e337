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
