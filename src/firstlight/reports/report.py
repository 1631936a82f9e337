"""The report on runs: numbers, pictures and samples put together to one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

import firstlight
from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.reports import page
from firstlight.reports.figures import colours, save_curves, save_groups, save_protocols, save_temperatures
from firstlight.reports.measures import Measured, comparisons, group_values, protocol_values
from firstlight.reports.pictures import Curve
from firstlight.reports.runs import training_curve, user_temperatures
from firstlight.reports.samples import draw_users, samples

#: Users of the report where none is named.
USERS = 3


def write_report(
    path: Path,
    entries: Sequence[Measured],
    *,
    k: int,
    dataset: Dataset | None = None,
    folder: Path | None = None,
    users: Sequence[str] | None = None,
    probe: Mapping[str, Any] | None = None,
    arrivals: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Write a report as one HTML file, and its pictures as PNGs beside it.

    Args:
        path: The HTML file; pictures go to the folder ``STEM-pictures`` beside it.
        entries: The runs; the first is what the others are compared with.
        k: Length of the lists.
        dataset: Where titles and covers of the samples are; None: samples show ids.
        folder: What relative cover paths are relative to.
        users: Raw ids of users whose lists are shown; some drawn by chance if None.
        probe: What ``firstlight probe`` measured of encoders (its ``probe.json``).
        arrivals: What ``firstlight arrivals`` measured of items that were added.
        title: The report's title.

    Returns:
        JSON values: the file, the pictures, the numbers.

    Raises:
        InputError: A run did not measure ``recall@k``, or a user is unknown.
        MissingExtraError: matplotlib is not installed.
    """
    pictures = path.parent / f"{path.stem}-pictures"
    values = {entry.label: protocol_values(entry, k) for entry in entries}
    rows, refused = _compared(entries, k)
    same = len({entry.result.split_hash for entry in entries}) == 1
    drawn = users is None
    wanted = draw_users(entries[0].run, USERS) if users is None else list(users)
    found = samples(entries if same else entries[:1], dataset, wanted, folder)
    made = _pictures(entries, values, k, pictures)
    depth = _depth(probe, pictures)
    data = entries[0].run.result["dataset"]
    heading = (
        title or f"{' and '.join(values) if len(values) < 3 else f'{len(values)} runs'} on {data['name']}"
    )
    now = datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC")
    lead = (
        f'<p class="about">{data["users"]:,} users, {data["items"]:,} items, {data["test"]:,} clicks to be found. '
        f"Made by firstlight {firstlight.__version__} on {now}.</p>{page.headline(values, rows, k)}"
    )
    note = "" if refused is None else f'<p class="leak">Not compared: {escape(refused)}</p>'
    results = page.results_table(entries, values, k) + made.get("protocols", "") + note
    sections = [
        ("results", "Results", results),
        ("tests", f"Against {entries[0].label}", page.comparison_table(rows)),
        ("arrivals", "Items that arrived after training", _arrived(arrivals, pictures)),
        ("groups", "By popularity of the item", made.get("groups", "")),
        ("samples", "What users get", _tall(page.samples_html(found, drawn), dataset)),
        ("curves", "Training", made.get("curves", "")),
        ("temperature", "Temperatures", made.get("temperatures", "")),
        ("encoder", "The encoder of covers", depth),
        ("runs", "How the runs were made", page.made_by(entries) + page.settings_table(entries)),
        ("data", "Data and environment", page.data_table(entries[0]) + page.environment_table(entries)),
    ]
    page.write_page(path, heading, sections, lead)
    return {
        "report": path,
        "pictures": sorted(pictures.glob("*.png")),
        "bytes": path.stat().st_size,
        "users": wanted,
        "numbers": {entry.label: entry.source for entry in entries},
        "recall": {label: {name: value.value for name, value in of.items()} for label, of in values.items()},
    }


def _compared(entries: Sequence[Measured], k: int) -> tuple[list[dict[str, Any]], str | None]:
    """Paired tests, or why there are none."""
    if len(entries) < 2:
        return [], None
    if len({(entry.result.dataset_hash, entry.result.split_hash) for entry in entries}) > 1:
        return (
            [],
            "the runs were tested on different data or splits, so their numbers say nothing of each other",
        )
    try:
        return comparisons(entries, k), None
    except InputError as error:
        return [], error.problem


def _tall(html: str, dataset: Dataset | None) -> str:
    """Covers higher than wide, such as posters, are shown so."""
    if not html or dataset is None or "cover" not in dataset.catalogue.items.columns:
        return html
    from firstlight.vision.decoder import UnusableImageError, decode_rgb

    first = dataset.catalogue.items["cover"].drop_nulls()
    if not len(first) or dataset.catalogue.items.schema["cover"] != pl.Binary:
        return html
    try:
        image = decode_rgb(first[0])
    except UnusableImageError:
        return html
    return f'<div class="tall">{html}</div>' if image.height > 1.2 * image.width else html


def _pictures(
    entries: Sequence[Measured], values: Mapping[str, Mapping[str, Any]], k: int, folder: Path
) -> dict[str, str]:
    """Draw everything that there is; name → HTML."""
    shades, made = colours(entries), {}
    save_protocols(folder / "protocols.png", values, k, shades)
    made["protocols"] = page.picture(
        folder / "protocols.png",
        f"Bars of recall at {k} for every run under every protocol; the numbers are in the table above.",
        "The same numbers as bars. “New” items had no click in training; a run that never shows one has zero there.",
    )
    groups = {entry.label: group_values(entry, k) for entry in entries}
    save_groups(folder / "groups.png", groups, k, shades)
    told = "; ".join(
        f"{label}: " + ", ".join(f"{group} {value.value:.2f}" for group, value in of.items())
        for label, of in groups.items()
    )
    made["groups"] = page.picture(
        folder / "groups.png",
        f"Recall at {k} by training clicks of the item. {told}.",
        "Clicks of the test part on items of each group, all items ranked; lines: 95 % intervals over users.",
    )
    curves = _curves(entries)
    if curves:
        save_curves(folder / "curves.png", curves, shades)
        told = "; ".join(
            f"{curve.label} ends at {curve.values[-1]:.3f} in {metric}"
            for metric, lines in curves.items()
            for curve in lines
        )
        made["curves"] = page.picture(
            folder / "curves.png", f"Training curves: {told}.", "The search for the number of epochs."
        )
    spread = [found for entry in entries if (found := user_temperatures(entry.label, entry.run)) is not None]
    if save_temperatures(folder / "temperatures.png", entries, spread, shades):
        made["temperatures"] = page.picture(
            folder / "temperatures.png",
            "Temperatures over training, and over users at the end.",
            "A small τ looks at the hardest items only; users with clear tastes get a smaller one than others.",
        )
    return made


def _curves(entries: Sequence[Measured]) -> dict[str, list[Curve]]:
    """Metric → curves: what each run was chosen by, and the loss."""
    curves: dict[str, list[Curve]] = {}
    for entry in entries:
        metric = entry.run.config.training.metric
        curve = training_curve(entry.label, entry.run, metric)
        if curve is not None:
            curves.setdefault(metric, []).append(curve)
    for entry in entries:
        searched = [record for record in entry.run.metrics if record["phase"] in ("search", "train")]
        if searched:
            points = [(record["epoch"], record["loss"]) for record in searched]
            epochs, losses = zip(*points, strict=True)
            curves.setdefault("loss", []).append(Curve(entry.label, epochs, losses))
    return curves


def _arrived(found: Mapping[str, Any] | None, folder: Path) -> str:
    """Whether people find the items that were added, where that was measured."""
    if found is None:
        return ""
    from firstlight.reports.arrivals import arrivals_title, draw_found

    draw_found(folder / "arrivals.png", found)
    said = (
        f"{found['pairs']:,} clicks on them, of {found['users']:,} users. Beside the bundle: content nearest "
        "neighbours on the same views, popularity and chance; lines: 95 % intervals over users."
    )
    return page.arrivals_table(found) + page.picture(
        folder / "arrivals.png", f"{arrivals_title(found)}; the numbers are in the table above.", said
    )


def _depth(probe: Mapping[str, Any] | None, folder: Path) -> str:
    """The encoders' accuracy over depth, where a probe measured it."""
    if probe is None:
        return ""
    from firstlight.reports.encoder import headline, save_depth

    save_depth(folder / "depth.png", probe)
    said = headline(probe, probe["encoders"][0]["knn"][0]["k"])
    return f"<p>{escape(said)}.</p>" + page.picture(
        folder / "depth.png",
        f"k-NN accuracy at every block. {said}.",
        "What the encoder's blocks tell apart.",
    )
