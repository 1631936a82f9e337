"""The picture of new items: what is drawn, not how it looks."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from PIL import Image
from tests.reports.test_pictures import cover

from firstlight.reports.arrivals import OURS, Panel, draw_bars, save_arrivals
from firstlight.reports.pictures import CoverRow

PANEL = Panel(
    "clicks on new items",
    {"ours": 0.3, "random": 0.1, "truth": 0.5},
    {"ours": (0.2, 0.4), "random": (0.05, 0.15)},
    line=0.45,
    line_label="as far as content shows it",
)


def test_bars_are_the_values_first_method_on_top():
    axes = Figure().subplots()
    draw_bars(axes, PANEL, ours="ours", bound="truth")
    bars = sorted(axes.patches, key=lambda bar: -bar.get_y())
    assert [bar.get_width() for bar in bars] == [0.3, 0.1, 0.5]
    assert bars[0].get_facecolor()[:3] == pytest.approx([int(OURS[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert bars[2].get_facecolor()[3] == 0  # an outline
    names = {
        tick.get_text(): place for tick, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    assert sorted(names, key=names.__getitem__, reverse=True) == ["ours", "random", "truth"]
    assert {"0.300", "0.100", "0.500", "as far as\ncontent shows\nit"} <= {t.get_text() for t in axes.texts}


def test_intervals_and_the_line_stand_where_they_should():
    axes = Figure().subplots()
    draw_bars(axes, PANEL, ours="ours", bound="truth")
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert (0.2, 0.4) in drawn
    assert (0.05, 0.15) in drawn
    assert (0.45, 0.45) in drawn
    assert axes.get_xlim()[1] > 0.5


@pytest.mark.parametrize("rows", [0, 2])
def test_the_picture_is_a_png_with_covers_or_without(tmp_path, rows):
    sheet = [
        CoverRow(f"u{u}", [cover(10)] * 3, [cover(200)] * 4, [True, False, False, False]) for u in range(rows)
    ]
    save_arrivals(tmp_path / "new.png", "Items arrive", [PANEL, PANEL], sheet, ours="ours", bound="truth")
    with Image.open(tmp_path / "new.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height
