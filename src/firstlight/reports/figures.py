"""The pictures of a report, each one PNG: curves, protocols, groups of items, temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from firstlight.reports.measures import PROTOCOLS, Measured, Value, temperature_course
from firstlight.reports.pictures import (
    BASELINE,
    FAINT,
    INK,
    PALETTE,
    PAPER,
    Curve,
    Temperatures,
    dress,
    label_ends,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Runs that set no measure of their own are grey, so that colours are left for the others.
_CONTROLS = ("popularity", "random")


def colours(entries: Sequence[Measured]) -> dict[str, str]:
    """A colour for each run, the same in every picture."""
    others = [entry.label for entry in entries if entry.run.config.model.name not in _CONTROLS]
    found = {label: PALETTE[at % len(PALETTE)] for at, label in enumerate(others)}
    return {entry.label: found.get(entry.label, BASELINE) for entry in entries}


def save_protocols(
    path: Path, values: Mapping[str, Mapping[str, Value]], k: int, shades: Mapping[str, str]
) -> None:
    """Write bars with intervals: a panel a protocol, a bar a run.

    Args:
        path: The PNG to write.
        values: Run → protocol → recall.
        k: Length of the lists.
        shades: Run → colour.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = [name for name in PROTOCOLS if any(name in of for of in values.values())]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(11.0, rows * (0.95 + 0.42 * len(values)))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for at, (axes, name) in enumerate(zip(panels, shown, strict=False)):
        _bars(axes, {run: of[name] for run, of in values.items() if name in of}, shades, list(values))
        axes.set_title(PROTOCOLS[name].replace(", ", ",\n"), loc="left", fontsize=10.5, color=INK)
        if at % columns:
            axes.set_yticklabels([])
    for axes in panels[len(shown) :]:
        axes.axis("off")
    figure.supxlabel(
        f"recall@{k}; lines: 95 % intervals over users", x=0.01, ha="left", fontsize=9, color=INK
    )
    save_figure(figure, path)


def _bars(axes: Axes, values: Mapping[str, Value], shades: Mapping[str, str], runs: Sequence[str]) -> None:
    dress(axes)
    axes.grid(axis="y", visible=False)
    best = max(values, key=lambda run: values[run].value)
    top = max(max(entry.value, entry.high or 0.0) for entry in values.values()) or 1.0
    for run, entry in values.items():
        place = len(runs) - 1 - runs.index(run)
        axes.barh(place, entry.value, 0.66, color=shades[run])
        if entry.low is not None and entry.high is not None:
            axes.plot([entry.low, entry.high], [place, place], color=INK, linewidth=1.4)
        axes.annotate(
            f"{entry.value:.3f}",
            (max(entry.value, entry.high or 0.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            fontweight="bold" if run == best else "normal",
            color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
    axes.set_xlim(0, top * 1.3)
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.set_xticks([])
    axes.set_yticks(range(len(runs))[::-1], list(runs), fontsize=10.5)
    axes.axvline(0, color=FAINT, linewidth=1)


def save_groups(
    path: Path, values: Mapping[str, Mapping[str, Value]], k: int, shades: Mapping[str, str]
) -> None:
    """Write recall by the number of training clicks of the item, all items ranked, with intervals.

    Args:
        path: The PNG to write.
        values: Run → group → recall.
        k: Length of the lists.
        shades: Run → colour.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    groups = list(dict.fromkeys(group for of in values.values() for group in of))
    figure = new_figure(11.0, 3.8)
    axes = figure.subplots()
    dress(axes)
    width = 0.8 / len(values)
    for at, (run, of) in enumerate(values.items()):
        places = [groups.index(group) + (at - (len(values) - 1) / 2) * width for group in of]
        axes.bar(places, [entry.value for entry in of.values()], width * 0.9, color=shades[run], label=run)
        for place, entry in zip(places, of.values(), strict=True):
            if entry.low is not None and entry.high is not None:
                axes.plot([place, place], [entry.low, entry.high], color=INK, linewidth=1.2)
    names = [f"{group}\n(new)" if group == "0" else group for group in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_xlabel("training clicks of the item", color=INK, fontsize=9.5)
    axes.set_ylabel(f"recall@{k}", color=INK, fontsize=9.5)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=10, labelcolor=INK, ncols=len(values))
    save_figure(figure, path)


def save_curves(path: Path, curves: Mapping[str, Sequence[Curve]], shades: Mapping[str, str]) -> None:
    """Write training curves: a panel a metric, a line a run; the best epoch is marked.

    Args:
        path: The PNG to write.
        curves: Metric → curves.
        shades: Run → colour.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(5.6 * len(curves) + 0.4, 3.6)
    for axes, (metric, lines) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        dress(axes)
        ends = []
        for curve in lines:
            colour = shades[curve.label]
            axes.plot(curve.epochs, curve.values, color=colour, linewidth=2, solid_capstyle="round")
            if metric != "loss":
                top = int(np.argmax(curve.values))
                axes.plot(curve.epochs[top], curve.values[top], "o", color=colour, markersize=6)
            ends.append((float(curve.values[-1]), curve.label, colour))
        axes.set_xlim(0, max(curve.epochs[-1] for curve in lines))
        if metric != "loss":
            axes.set_ylim(bottom=0)
        label_ends(axes, ends)
        said = "training loss (of different losses: only its course tells)" if metric == "loss" else metric
        axes.set_title(
            f"{said}{'' if metric == 'loss' else ' on validation'}", loc="left", fontsize=10.5, color=INK
        )
        axes.set_xlabel("epochs" + ("" if metric == "loss" else " (dot: the best)"), color=INK, fontsize=9)
    save_figure(figure, path)


def save_temperatures(
    path: Path, entries: Sequence[Measured], spread: Sequence[Temperatures], shades: Mapping[str, str]
) -> bool:
    """Write τ over epochs, and over users at the end; the band spans the smallest and the largest.

    Args:
        path: The PNG to write.
        entries: The runs.
        spread: τ by user, of the runs that have one a user.
        shades: Run → colour.

    Returns:
        Whether there is a picture: none where τ stood still in every run.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    courses = {entry.label: course for entry in entries if (course := temperature_course(entry.run))}
    if not courses:
        return False
    figure = new_figure(11.0, 3.4)
    panels = figure.subplots(1, 2 if spread else 1, squeeze=False)[0]
    dress(panels[0])
    ends = []
    for label, course in courses.items():
        epochs, low, mean, high = zip(*course, strict=True)
        panels[0].fill_between(epochs, low, high, color=shades[label], alpha=0.15, linewidth=0)
        panels[0].plot(epochs, mean, color=shades[label], linewidth=2)
        ends.append((mean[-1], label, shades[label]))
    label_ends(panels[0], ends)
    panels[0].set_title(
        "τ over training (line: mean of users, band: all users)", loc="left", fontsize=10.5, color=INK
    )
    panels[0].set_xlabel("epochs", color=INK, fontsize=9)
    if spread:
        _spread(panels[1], spread, shades)
    save_figure(figure, path)
    return True


def _spread(axes: Axes, spread: Sequence[Temperatures], shades: Mapping[str, str]) -> None:
    dress(axes)
    everything = np.concatenate([entry.per_user for entry in spread])
    low, high = float(everything.min()), float(everything.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 41).tolist()
    for entry in spread:
        axes.hist(entry.per_user, bins=bins, color=shades[entry.label], alpha=0.6, label=entry.label)
        axes.axvline(float(np.median(entry.per_user)), color=shades[entry.label], linewidth=1.4)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    axes.set_title("τ of the users at the end (line: median)", loc="left", fontsize=10.5, color=INK)
    axes.set_ylabel("users", color=INK, fontsize=9)
