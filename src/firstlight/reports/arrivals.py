"""The picture of items that nobody had clicked: how many later clicks on them were foreseen, and their covers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.files import read_json
from firstlight.data.dataset import Dataset
from firstlight.reports.pictures import (
    BASELINE,
    FAINT,
    INK,
    PALETTE,
    PAPER,
    CoverRow,
    draw_cover_sheet,
    dress,
    new_figure,
    save_figure,
)
from firstlight.serving.bundle import Bundle
from firstlight.serving.lists import recommend_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

OURS = PALETTE[3]
#: Columns of what ``firstlight arrivals`` measures → what is looked for, among what.
COLUMNS = {
    "new among new": "clicks on new items,\nnew items ranked",
    "new among all": "clicks on new items,\nall items ranked",
    "old among all": "clicks on older items,\nall items ranked",
    "all among all": "all clicks,\nall items ranked",
}
#: Rows that know what no method can know.
_BOUNDS = ("knows the truth",)


@dataclass(frozen=True)
class Panel:
    """One group of bars.

    Attributes:
        title: What is looked for, among what.
        values: Method → value, best known method first.
        intervals: Method → 95 % interval.
        line: A value to draw as a dashed line, or None.
        line_label: What it is.
    """

    title: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    line: float | None = None
    line_label: str = ""


def read_arrivals(path: Path) -> dict[str, Any]:
    """What ``firstlight arrivals --json`` printed.

    Raises:
        InputError: It is something else.
    """
    try:
        found: dict[str, Any] = read_json(path)
        fits = all({"label", *COLUMNS} <= row.keys() for row in found["rows"]) and bool(found["rows"])
        fits = fits and {"intervals", "content_ceiling", "items", "pairs", "users", "k"} <= found.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"these are no numbers of added items ({error!r})", path=path, hint=_HINT) from error
    if not fits:
        raise InputError("these are no numbers of added items", path=path, hint=_HINT)
    return found


_HINT = "give what firstlight arrivals --json printed"


def panels_of(found: Mapping[str, Any]) -> list[Panel]:
    """The bars of what :func:`read_arrivals` reads; columns that nobody has a click for are left out."""
    first, panels = next(iter(COLUMNS)), []
    for name, title in COLUMNS.items():
        values = {row["label"]: float(row[name]) for row in found["rows"] if row[name] is not None}
        spans = {
            label: (float(of[name][0]), float(of[name][1]))
            for label, of in found["intervals"].items()
            if name in of
        }
        line = found["content_ceiling"] if name == first else None
        if values:
            panels.append(Panel(title, values, spans, line, "all tastes, as content shows them"))
    return panels


def arrivals_title(found: Mapping[str, Any]) -> str:
    """What the picture shows."""
    return f"{found['items']:,} items arrive that nobody has clicked: recall@{found['k']} of the clicks that followed"


def draw_found(path: Path, found: Mapping[str, Any], rows: Sequence[CoverRow] = ()) -> None:
    """Write the picture of what :func:`read_arrivals` reads.

    Args:
        path: The PNG to write.
        found: The numbers.
        rows: Users and the new items that they are recommended; may be empty.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    labels = [row["label"] for row in found["rows"]]
    bound = next((label for label in labels if label in _BOUNDS), "")
    save_arrivals(path, arrivals_title(found), panels_of(found), rows, ours=labels[0], bound=bound)


def save_arrivals(
    path: Path, title: str, panels: Sequence[Panel], rows: Sequence[CoverRow], *, ours: str, bound: str
) -> None:
    """Write bars above covers.

    Args:
        path: The PNG to write.
        title: What the picture shows, in one sentence.
        panels: Groups of bars, of the same methods.
        rows: Users: what they watched, and the new items that they are recommended; may be empty.
        ours: The method that is coloured.
        bound: The method that is only outlined, since it knows the truth; empty if there is none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    heights = [3.5, 0.86 * len(rows) + 0.55] if rows else [3.5]
    figure = new_figure(11.0, sum(heights))
    parts: list[SubFigure] = list(
        figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    )
    parts[0].suptitle(
        "\n".join(textwrap.wrap(title, 92)), x=0.01, ha="left", fontsize=13.5, fontweight="bold", color=INK
    )
    for axes, panel in zip(parts[0].subplots(1, len(panels), sharey=True), panels, strict=True):
        draw_bars(axes, panel, ours=ours, bound=bound)
    if rows:
        draw_cover_sheet(
            parts[1],
            rows,
            ("watched before", "new items recommended to them (green frame: watched later in fact)"),
        )
    save_figure(figure, path)


def draw_bars(axes: Axes, panel: Panel, *, ours: str, bound: str) -> None:
    """Draw horizontal bars, first method on top, with intervals and the value at the end of each."""
    dress(axes)
    axes.grid(axis="y", visible=False)
    places = np.arange(len(panel.values))[::-1]
    highest = max([*panel.values.values(), *(high for _, high in panel.intervals.values())])
    for place, (name, value) in zip(places, panel.values.items(), strict=True):
        colour = OURS if name == ours else BASELINE
        hollow = name == bound
        axes.barh(
            place,
            value,
            0.68,
            color="none" if hollow else colour,
            edgecolor=BASELINE if hollow else colour,
            linewidth=1.2,
            linestyle="--" if hollow else "-",
        )
        low, high = panel.intervals.get(name, (value, value))
        axes.plot([low, high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.annotate(
            f"{value:.3f}",
            (max(value, high), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
            fontweight="bold" if name == ours else "normal",
            color=INK,
            # Above the dotted line, which would cross it.
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
            zorder=4,
        )
    if panel.line is not None:
        # Short of the outlined bar, which has limits of its own.
        axes.plot([panel.line] * 2, [0.5, len(places) - 0.5], color=INK, linewidth=1, linestyle=":")
        label = "\n".join(textwrap.wrap(panel.line_label, 14))
        axes.text(panel.line + 0.03 * highest, 1.5, label, fontsize=9.5, color=INK, va="center")
    axes.set_xlim(0, highest * 1.28)
    axes.set_xticks([])
    axes.set_yticks(places, list(panel.values), fontsize=11.5)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == ours else "normal")
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_title(panel.title, loc="left", fontsize=11.5, color=INK)


def arrival_covers(
    bundle: Bundle, world: Dataset, *, users: int = 3, watched: int = 5, shown: int = 8, least: int = 3
) -> list[CoverRow]:
    """Covers of the first users who later clicked some of the added items.

    Args:
        bundle: A run with additions.
        world: All items with covers as bytes; clicks before the additions as train and validation, later ones as test.
        users: How many users.
        watched: Covers of the last items that they clicked before.
        shown: Covers of the added items that rank highest for them.
        least: Later clicks on added items that a user must have, so that there is something to foresee.

    Returns:
        At most ``users`` rows, those of the smallest user rows; none if nobody fits.

    Raises:
        InputError: The world holds no covers, or no test part.
    """
    items = world.catalogue.items
    if items.schema.get("cover") != pl.Binary or world.test is None:
        raise InputError(f"dataset {world.name!r} holds no covers or no test part", path=world.source or None)
    place = {name: row for row, name in enumerate(world.item_ids)}
    added = bundle.item_ids()[len(bundle.snapshot.base.table) :]
    new = np.zeros(world.n_items, np.bool_)
    new[[place[name] for name in added]] = True
    before = world.train if world.valid is None else world.train.union(world.valid)
    later = world.test.select(new[world.test.items])
    chosen = np.flatnonzero((later.user_degrees >= least) & (before.user_degrees >= watched))[:users]
    covers, rows = items["cover"], []
    for user in chosen:
        name = str(world.user_ids[int(user)])
        lists = pl.concat(recommend_all(bundle, [name], bundle.snapshot.n_rows))
        best = [place[item] for item in lists["item"].filter(lists["item"].is_in(added.implode()))[:shown]]
        own = slice(int(before.indptr[user]), int(before.indptr[user + 1]))
        times = np.arange(own.stop - own.start) if before.times is None else before.times[own]
        last = before.items[own][np.argsort(-times, kind="stable")[:watched]]
        hits = np.isin(best, later.row(int(user)))
        rows.append(
            CoverRow(name, [covers[int(row)] for row in last], [covers[r] for r in best], hits.tolist())
        )
    return rows
