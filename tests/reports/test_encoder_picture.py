"""The depth picture: what is drawn, not how it looks."""

from __future__ import annotations

import pytest

from firstlight.reports import encoder as report

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from PIL import Image


def curve(name, values, pooling="class", depth=3):
    rows = [
        {
            "block": min(index, depth - 1),
            "after_final_norm": index == depth,
            "pooling": pooling,
            "k": 10,
            "accuracy": value,
            "standard_error": 0.01,
        }
        for index, value in enumerate(values)
    ]
    return {"name": name, "depth": depth, "knn": rows}


@pytest.fixture
def summary():
    old = {"encoder": "mae", "block": 1, "after_final_norm": False, "pooling": "class"}
    new = {"encoder": "refined", "block": 2, "after_final_norm": False, "pooling": "class"}
    test = {
        "what": report.LAST_AGAINST_BEST,
        "k": 10,
        "before": old,
        "after": new,
        "difference": 0.1,
        "z": 4.2,
    }
    return {
        "images": {"queries": {"images": 500}, "bank": {"images": 2000}, "classes": ["a", "b"]},
        "pixels": [{"k": 10, "accuracy": 0.35, "standard_error": 0.01}],
        "encoders": [curve("mae", [0.3, 0.4, 0.36, 0.37]), curve("refined", [0.3, 0.42, 0.5, 0.49])],
        "paired": [test, {**test, "k": 20, "difference": 0.9}],
    }


def test_every_block_of_every_encoder_is_drawn(summary):
    axes = Figure().subplots()
    report.draw_depth(axes, summary, "class", 10)
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([30, 40, 36, 37]),
        pytest.approx([30, 42, 50, 49]),
    ]
    assert [list(line.get_xdata()) for line in lines] == [[0, 1, 2, 3]] * 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "after\nnorm"]
    assert {"mae", "refined", "40.0", "50.0", "raw pixels 35.0"} <= {text.get_text() for text in axes.texts}


def test_numbers_that_would_lie_on_each_other_are_told_once(summary):
    summary["encoders"].append(curve("again", [0.3, 0.42, 0.495, 0.49]))
    axes = Figure().subplots()
    report.draw_depth(axes, summary, "class", 10)
    told = {text.get_text() for text in axes.texts}
    assert "50.0" in told
    assert "49.5" not in told


def test_the_headline_says_what_the_numbers_show(summary):
    told = report.headline(summary, 10)
    assert "The last block of refined (class token) is 10.0 points above the best block of mae" in told
    assert "z\u00a0=\u00a0+4.2" in told
    summary["paired"][0]["difference"] = -0.02
    assert "2.0 points below" in report.headline(summary, 10)
    summary["paired"][0]["difference"] = 0.1
    better = {
        **summary["paired"][0],
        "difference": 0.2,
        "after": {**summary["paired"][0]["after"], "encoder": "again"},
    }
    summary["paired"].append(better)  # its encoder is not in the picture
    assert "refined (class token) is 10.0 points above" in report.headline(summary, 10)
    summary["encoders"].append(curve("again", [0.3, 0.4, 0.6, 0.6]))
    assert "again (class token) is 20.0 points above" in report.headline(summary, 10)
    summary["encoders"] = summary["encoders"][:1]
    assert report.headline(summary, 10) == (
        "mae sees most at block 1 (class token): 40.0 %; its last block reaches 36.0 %"
    )


def test_the_picture_is_a_png_with_a_panel_a_pooling(summary, tmp_path):
    report.save_depth(tmp_path / "one.png", summary)
    for encoder in summary["encoders"]:
        encoder["knn"] += [{**row, "pooling": "mean"} for row in encoder["knn"]]
    report.save_depth(tmp_path / "two.png", summary)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.format == two.format == "PNG"
        assert two.width > 1.5 * one.width
