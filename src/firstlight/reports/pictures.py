"""Pictures of runs: training curves, recall by popularity, temperatures, and covers side by side.

Every function takes plain numbers and writes one PNG. Titles say what the numbers show; lines are labelled
where they end, so that no legend has to be decoded.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from firstlight.core.extras import require
from firstlight.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

#: Distinct also in grey and for colour-blind readers (after Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#8a63a8", "#b8860b")
BASELINE = "#7d8a96"
INK, FAINT, PAPER = "#22292f", "#c9d1d8", "#ffffff"
_DPI = 110
_COLOURS = 255


@dataclass(frozen=True)
class Curve:
    """One line of a training plot.

    Attributes:
        label: Name at the end of the line.
        epochs: ``(n,)`` epochs at which the metric was measured.
        values: ``(n,)`` the metric.
    """

    label: str
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Temperatures:
    """Temperatures of one run.

    Attributes:
        label: Name of the run.
        per_user: ``(n_users,)`` τ of each user.
    """

    label: str
    per_user: npt.NDArray[np.floating]


def save_overview(
    path: Path,
    curves: Sequence[Curve],
    groups: Mapping[str, Sequence[float]],
    temperatures: Sequence[Temperatures],
    *,
    metric: str,
) -> None:
    """Write the three plots of a comparison side by side.

    Args:
        path: The PNG to write.
        curves: The metric on validation over epochs, one curve a trained model.
        groups: Name → recall of the held-out clicks on each popularity group, least popular first.
        temperatures: Temperatures by user, of at most two runs.
        metric: Name of the metric of ``curves`` and ``groups``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(15.0, 4.6)
    left, middle, right = figure.subplots(1, 3)
    draw_curves(left, curves, metric)
    draw_groups(middle, groups, metric)
    draw_temperatures(right, temperatures)
    save_figure(figure, path)


def draw_curves(axes: Axes, curves: Sequence[Curve], metric: str) -> None:
    """Draw a validation metric over epochs; the best epoch of each curve is marked."""
    dress(axes)
    last = max((max(curve.epochs) for curve in curves), default=1)
    ends: list[tuple[float, str, str]] = []
    for colour, curve in zip(_colours([curve.label for curve in curves]), curves, strict=True):
        axes.plot(curve.epochs, curve.values, color=colour, linewidth=2, solid_capstyle="round")
        top = int(np.argmax(curve.values))
        axes.plot(curve.epochs[top], curve.values[top], "o", color=colour, markersize=6)
        ends.append((curve.values[-1], curve.label, colour))
    axes.set_xlim(0, last)
    axes.set_ylim(bottom=0)
    label_ends(axes, ends)
    best = max(curves, key=lambda curve: max(curve.values), default=None)
    said = "" if best is None else f": {best.label} reaches {max(best.values):.3f}"
    _title(axes, f"{metric} on validation{said}", "epochs (dot: the best)")


def draw_groups(axes: Axes, groups: Mapping[str, Sequence[float]], metric: str) -> None:
    """Draw the recall of held-out clicks on each tenth of the items, by popularity."""
    dress(axes)
    n = max((len(values) for values in groups.values()), default=0)
    width = 0.8 / max(1, len(groups))
    for index, (colour, (label, values)) in enumerate(
        zip(_colours(list(groups)), groups.items(), strict=True)
    ):
        offset = (index - (len(groups) - 1) / 2) * width
        axes.bar(np.arange(n) + offset, values, width * 0.92, color=colour, label=label)
    axes.set_xticks(range(n), ["least\nclicked", *([""] * (n - 2)), "most\nclicked"] if n > 1 else [""])
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    blind = [label for label, values in groups.items() if sum(values[-1:]) > 0 == sum(values[:-1])]
    said = f": {blind[0]} finds nothing below the top tenth" if len(blind) == 1 else ""
    _title(axes, f"{metric} by popularity of the item{said}", "items in ten equal groups by training clicks")


def draw_temperatures(axes: Axes, temperatures: Sequence[Temperatures]) -> None:
    """Draw how the users' temperatures spread."""
    dress(axes)
    everything = np.concatenate([entry.per_user for entry in temperatures]) if temperatures else np.zeros(1)
    low, high = float(everything.min()), float(everything.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 41).tolist()
    colours = _colours([entry.label for entry in temperatures])
    for colour, entry in zip(colours, temperatures, strict=True):
        axes.hist(entry.per_user, bins=bins, color=colour, alpha=0.65, label=entry.label)
        middle = float(np.median(entry.per_user))
        axes.axvline(middle, color=colour, linewidth=1.4)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    _title(
        axes,
        f"Every user trains at a temperature of their own: τ from {low:.2f} to {high:.2f}",
        "τ (line: median)",
    )
    axes.set_ylabel("users", color=INK, fontsize=9)


@dataclass(frozen=True)
class CoverRow:
    """One user of a cover sheet.

    Attributes:
        label: Who it is.
        watched: Encoded images of clicked items.
        recommended: Encoded images of recommended items, best first.
        hits: Which of ``recommended`` the user clicked later.
    """

    label: str
    watched: Sequence[bytes]
    recommended: Sequence[bytes]
    hits: Sequence[bool]


def save_cover_sheet(path: Path, rows: Sequence[CoverRow]) -> None:
    """Write a sheet of covers: what users watched, and beside it what they are recommended.

    Args:
        path: The PNG to write.
        rows: The users; all need as many covers as the first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    left, right = len(rows[0].watched), len(rows[0].recommended)
    figure = new_figure(0.78 * (left + right) + 1.2, 0.83 * len(rows) + 0.5)
    draw_cover_sheet(
        figure, rows, ("watched", "recommended (green frame: held out from training, watched in fact)")
    )
    save_figure(figure, path)


def draw_cover_sheet(figure: FigureBase, rows: Sequence[CoverRow], titles: tuple[str, str]) -> None:
    """Draw rows of covers into a figure or a part of one; the titles stand above the left and the right ones."""
    from PIL import Image

    left, right = len(rows[0].watched), len(rows[0].recommended)
    grid = figure.subplots(
        len(rows), left + right + 1, squeeze=False, width_ratios=[*[1] * left, 0.35, *[1] * right]
    )
    for axes_row, row in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(
            row.label, rotation=0, ha="right", va="center", color=INK, fontsize=9, labelpad=8
        )
        images = [*row.watched, None, *row.recommended]
        marks = [False] * (left + 1) + list(row.hits)
        for axes, image, hit in zip(axes_row, images, marks, strict=True):
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(visible=hit, color=PALETTE[2], linewidth=3)
            if image is not None:
                axes.imshow(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))
    for column, words in zip((0, left + 1), titles, strict=True):
        axes = grid[0][column]
        axes.set_title(" ", fontsize=11)  # keeps the height; the words themselves must not widen the column
        words_above = axes.text(
            0, 1.1, words, transform=axes.transAxes, fontsize=11, fontweight="bold", color=INK
        )
        words_above.set_in_layout(False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor=PAPER, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with a palette."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=PAPER)
    # A palette makes the file four times smaller and looks the same.
    full = Image.open(drawn).convert("RGB")
    small = full.quantize(palette=full.quantize(_COLOURS))
    with atomic_path(path) as temporary:
        small.save(temporary, format="PNG", optimize=True)


def dress(axes: Axes) -> None:
    """Take away what carries no information."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _title(axes: Axes, title: str, below: str) -> None:
    lines = "\n".join(textwrap.wrap(title, 48))
    axes.set_title(lines, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.set_xlabel(below, color=INK, fontsize=9)


def _colours(names: Sequence[str]) -> list[str]:
    """One colour a name; the baseline is grey, so that the others agree between plots with and without it."""
    others = [name for name in names if name != "popularity"]
    return [
        BASELINE if name == "popularity" else PALETTE[others.index(name) % len(PALETTE)] for name in names
    ]


def label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write names beside the right ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.06
    place = low - gap
    for value, label, colour in sorted(ends):
        place = max(value, place + gap)
        axes.annotate(
            label,
            xy=(1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
