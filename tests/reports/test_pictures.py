"""Pictures: what is drawn, not how it looks."""

from __future__ import annotations

import io

import numpy as np
import pytest

from firstlight.core.errors import MissingExtraError
from firstlight.reports import pictures
from firstlight.reports.pictures import CoverRow, Curve, Temperatures

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture
def axes():
    return Figure().subplots()


def test_curves_are_drawn_as_given_and_named(axes):
    curves = [Curve("A", [1, 2, 3], [0.1, 0.3, 0.2]), Curve("B", [1, 2], [0.1, 0.2])]
    pictures.draw_curves(axes, curves, "recall@20")
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert [list(line.get_ydata()) for line in lines] == [[0.1, 0.3, 0.2], [0.1, 0.2]]
    assert [text.get_text() for text in axes.texts] == ["A", "B"] or {t.get_text() for t in axes.texts} == {
        "A",
        "B",
    }
    assert axes.get_title(loc="left").replace("\n", " ") == "recall@20 on validation: A reaches 0.300"


def test_labels_at_line_ends_keep_apart(axes):
    curves = [Curve(name, [1, 2], [0.1, 0.2]) for name in "ABC"]
    pictures.draw_curves(axes, curves, "m")
    places = sorted(text.xy[1] for text in axes.texts)
    low, high = axes.get_ylim()
    assert np.diff(places).min() >= 0.05 * (high - low)


def test_groups_have_a_bar_for_every_model_and_group(axes):
    pictures.draw_groups(axes, {"popularity": [0.0, 0.0, 0.5], "B": [0.1, 0.2, 0.4]}, "recall@20")
    assert [patch.get_height() for patch in axes.patches] == [0.0, 0.0, 0.5, 0.1, 0.2, 0.4]
    assert "popularity finds nothing below the top tenth" in axes.get_title(loc="left").replace("\n", " ")


def test_the_title_of_groups_claims_only_what_holds(axes):
    pictures.draw_groups(axes, {"popularity": [0.0, 0.1, 0.5], "B": [0.1, 0.2, 0.4]}, "recall@20")
    assert "finds nothing" not in axes.get_title(loc="left")


def test_temperatures_count_every_user(axes):
    taus = [Temperatures("A", np.linspace(0.1, 0.2, 50)), Temperatures("B", np.full(30, 0.15))]
    pictures.draw_temperatures(axes, taus)
    assert sum(patch.get_height() for patch in axes.patches) == 80
    assert "0.10 to 0.20" in axes.get_title(loc="left").replace("\n", " ")


def test_equal_temperatures_can_be_drawn(axes):
    pictures.draw_temperatures(axes, [Temperatures("A", np.full(5, 0.1))])
    assert sum(patch.get_height() for patch in axes.patches) == 5


def cover(value: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(held, "PNG")
    return held.getvalue()


def test_sheet_and_overview_are_png_files(tmp_path):
    rows = [
        CoverRow(f"u{u}", [cover(10), cover(20)], [cover(30)] * 3, [True, False, False]) for u in range(2)
    ]
    pictures.save_cover_sheet(tmp_path / "sheet.png", rows)
    curves, taus = [Curve("A", [1], [0.1])], [Temperatures("A", np.ones(3))]
    pictures.save_overview(tmp_path / "all.png", curves, {"A": [0.1, 0.2]}, taus, metric="recall@20")
    for name in ("sheet.png", "all.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert image.width > image.height


def test_without_matplotlib_the_way_to_get_it_is_told(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("firstlight.core.extras.importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"firstlight\[plot\]"):
        pictures.save_overview(tmp_path / "a.png", [], {}, [], metric="m")
    assert list(tmp_path.iterdir()) == []
