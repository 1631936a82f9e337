"""The picture of encoders over depth: k-NN accuracy at every block, before and after refinement."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.core.errors import InputError
from firstlight.core.files import read_json, write_json
from firstlight.core.values import plain
from firstlight.evaluation.encoder_probe import RANDOM
from firstlight.evaluation.encoder_summary import LAST_AGAINST_BEST
from firstlight.reports.pictures import (
    BASELINE,
    INK,
    PALETTE,
    PAPER,
    dress,
    label_ends,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POOLINGS = {"class": "class token", "mean": "mean of the patches"}
#: Per cent between two best values of one block below which their numbers would lie on each other.
_APART = 1.5


def write_probe(out: Path, value: Mapping[str, Any]) -> None:
    """Write what a probe measured as ``probe.json``, and as the picture ``depth.png`` where it looked at the depth.

    Args:
        out: Folder to write to.
        value: From :func:`firstlight.evaluation.encoder_report.probe`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    write_json(out / "probe.json", plain(value))
    if "knn" in value["tasks"]:
        save_depth(out / "depth.png", value)


def read_probe(path: Path) -> dict[str, Any]:
    """What :func:`write_probe` wrote, if it looked at the depth.

    Args:
        path: Its folder, or the file ``probe.json``.

    Raises:
        InputError: It is not there, or has no k-NN numbers.
    """
    file = path / "probe.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"this is no probe ({error})", path=file, hint="give the --out folder of firstlight probe"
        ) from error
    if "knn" not in found.get("tasks", ()):
        raise InputError("this probe has no k-NN numbers", path=file, hint="run probe with --tasks knn")
    return found


def save_depth(path: Path, summary: Mapping[str, Any], k: int | None = None) -> None:
    """Write the accuracy at every block, a panel a pooling.

    Args:
        path: The PNG to write.
        summary: From :func:`firstlight.evaluation.encoder_summary.summarise`, or read back from its JSON.
        k: Neighbours; the fewest measured if None.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    encoders = summary["encoders"]
    k = encoders[0]["knn"][0]["k"] if k is None else k
    shown = [how for how in _POOLINGS if any(row["pooling"] == how for e in encoders for row in e["knn"])]
    figure = new_figure(6.4 * len(shown) + 0.6, 5.2)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, pooling in zip(panels, shown, strict=True):
        draw_depth(axes, summary, pooling, k)
    panels[0].set_ylabel("images classified rightly, %", color=INK, fontsize=9.5)
    title = "\n".join(textwrap.wrap(headline(summary, k), 58 * len(shown)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    images = summary["images"]
    figure.supxlabel(
        f"{images['queries']['images']:,} images of {len(images['classes'])} classes, each named by its {k} nearest "
        f"of {images['bank']['images']:,} labelled ones; bands: one standard error",
        x=0.01,
        ha="left",
        fontsize=9,
        color=INK,
    )
    save_figure(figure, path)


def draw_depth(axes: Axes, summary: Mapping[str, Any], pooling: str, k: int) -> None:
    """Draw one line an encoder over its blocks, and raw pixels as a dotted one."""
    dress(axes)
    names = [encoder["name"] for encoder in summary["encoders"]]
    courses: list[dict[int, tuple[float, float]]] = []
    ticks: dict[int, str] = {}
    for encoder in summary["encoders"]:
        rows = [row for row in encoder["knn"] if row["pooling"] == pooling and row["k"] == k]
        xs = [row["block"] + row["after_final_norm"] for row in rows]
        courses.append(
            {x: (100 * row["accuracy"], 100 * row["standard_error"]) for x, row in zip(xs, rows, strict=True)}
        )
        for x, row in zip(xs, rows, strict=True):
            ticks[x] = ticks.get(x, "after\nnorm") if row["after_final_norm"] else str(row["block"])
    ends: list[tuple[float, str, str]] = []
    for name, colour, course in zip(names, _colours(names), courses, strict=True):
        if course:
            _line(axes, course, courses, colour, "--" if name == RANDOM else "-")
            ends.append((course[max(course)][0], name, colour))
    _reference(axes, summary, k)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.margins(y=0.12)
    label_ends(axes, ends)
    axes.set_title(_POOLINGS[pooling], loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.set_xlabel("block (dot: the best)", color=INK, fontsize=9)


def _line(
    axes: Axes,
    course: Mapping[int, tuple[float, float]],
    courses: Sequence[Mapping[int, tuple[float, float]]],
    colour: str,
    style: str,
) -> None:
    """One encoder: x → accuracy and its error; the best value is written where no higher line runs through it."""
    xs = sorted(course)
    low, high = ([course[x][0] + sign * course[x][1] for x in xs] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(xs, [course[x][0] for x in xs], style, color=colour, linewidth=2, solid_capstyle="round")
    top = max(xs, key=lambda x: course[x][0])
    best = course[top][0]
    above = all(other[top][0] <= best for other in courses if top in other)
    axes.plot(top, best, "o", color=colour, markersize=7)
    tops = [max(other, key=lambda x: other[x][0]) for other in courses if other]
    bests = [other[x][0] for other, x in zip(filter(None, courses), tops, strict=True) if x == top]
    if any(0 < other - best < _APART for other in bests):
        return  # two numbers of one place would lie on each other: the higher one stays
    axes.annotate(
        f"{best:.1f}",
        (top, best),
        xytext=(0, 7 if above else -8),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=9.5,
        fontweight="bold",
        color=colour,
    )


def headline(summary: Mapping[str, Any], k: int) -> str:
    """What the picture shows, in one sentence; of several encoders beside the first, the one that gains most."""
    learned = [encoder for encoder in summary["encoders"] if encoder["name"] != RANDOM]
    names = {encoder["name"] for encoder in learned}
    tests = [
        row
        for row in summary["paired"]
        if row["what"] == LAST_AGAINST_BEST and row["k"] == k and row["after"]["encoder"] in names
    ]
    if len(learned) > 1 and tests:
        row = max(tests, key=lambda test: test["difference"])
        gain = 100 * row["difference"]
        course = "above" if gain >= 0 else "below"
        return (
            f"The last block of {row['after']['encoder']} ({_POOLINGS[row['after']['pooling']]}) is "
            f"{abs(gain):.1f} points {course} the best block of {row['before']['encoder']} "
            f"(block {row['before']['block']}, {_POOLINGS[row['before']['pooling']]}; z\u00a0=\u00a0{row['z']:+.1f})"
        )
    first = learned[0] if learned else summary["encoders"][0]
    rows = [row for row in first["knn"] if row["k"] == k]
    best = max(rows, key=lambda row: row["accuracy"])
    last = max(
        (row for row in rows if row["block"] == first["depth"] - 1 and not row["after_final_norm"]),
        key=lambda row: row["accuracy"],
    )
    return (
        f"{first['name']} sees most at block {best['block']} ({_POOLINGS[best['pooling']]}): "
        f"{100 * best['accuracy']:.1f} %; its last block reaches {100 * last['accuracy']:.1f} %"
    )


def _reference(axes: Axes, summary: Mapping[str, Any], k: int) -> None:
    """Raw pixels: what an encoder has to beat."""
    for row in summary["pixels"]:
        if row["k"] == k:
            level = 100 * row["accuracy"]
            axes.axhline(level, color=INK, linewidth=1, linestyle=":")
            axes.text(
                0.99, level, f"raw pixels {level:.1f}", transform=axes.get_yaxis_transform(),
                ha="right", va="bottom", fontsize=9, color=INK,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip


def _colours(names: Sequence[str]) -> list[str]:
    """Orange before, blue after; what has learned nothing is grey."""
    order = [PALETTE[1], PALETTE[0], *PALETTE[2:]]
    learned = [name for name in names if name != RANDOM]
    return [BASELINE if name == RANDOM else order[learned.index(name) % len(order)] for name in names]
