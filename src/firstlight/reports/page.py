"""A report as one HTML file: nothing is fetched from anywhere, so that it can be attached, archived and printed."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from firstlight.core.files import write_text
from firstlight.reports.measures import PROTOCOLS, Measured, Value, differing_settings
from firstlight.reports.samples import Card, Sample

#: Columns of the table of results, in this order.
_COLUMNS = ("all/all", "warm/all", "cold/all", "harmonic", "warm/warm", "cold/cold")
_HEADS = {
    "all/all": ("all clicks", "all items"),
    "warm/all": ("known items", "all items"),
    "cold/all": ("new items", "all items"),
    "harmonic": ("harmonic mean", "of known and new"),
    "warm/warm": ("known items", "known items"),
    "cold/cold": ("new items", "new items"),
}


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str, str]], lead: str) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        title: The report's title.
        sections: Anchor, heading, HTML; those without content are left out.
        lead: HTML that stands before all sections.
    """
    kept = [section for section in sections if section[2]]
    style = (resources.files("firstlight") / "reports" / "page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{anchor}">{escape(head)}</a></li>' for anchor, head, _ in kept)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{escape(head)}</h2>{html}</section>'
        for anchor, head, html in kept
    )
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the report</a><header><h1>{escape(title)}</h1>{lead}'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header><main id="main">{body}</main></body></html>\n',
    )


def headline(values: Mapping[str, Mapping[str, Value]], rows: Sequence[Mapping[str, Any]], k: int) -> str:
    """What the numbers say, in a few sentences."""
    said = []
    for name, what in (
        ("all/all", "of all clicks that followed"),
        ("cold/all", "of the clicks on items that nobody had clicked"),
    ):
        of = {run: found[name] for run, found in values.items() if name in found}
        if len(of) == 0:
            continue
        best = max(of, key=lambda run: of[run].value)
        chance = f"{_number(of[best])}"
        others = sorted((run for run in of if run != best), key=lambda run: -of[run].value)
        against = f"; next is {escape(others[0])} with {of[others[0]].value:.3f}" if others else ""
        said.append(
            f"<li><strong>{escape(best)}</strong> finds {chance} {what} among its {k} best{against}.</li>"
        )
    sure = [
        row
        for row in rows
        if row["protocol"] == "all/all" and row["p_users"] is not None and row["p_users"] < 0.05
    ]
    for row in sure:
        word = "more" if row["difference"] > 0 else "fewer"
        said.append(
            f"<li>Over all clicks, {escape(row['name'])} finds {word} than {escape(_reference(rows))}: "
            f"{row['difference']:+.3f} (95 % interval {row['low']:+.3f} to {row['high']:+.3f}, "
            f"p {_p(row['p_users'])}).</li>"
        )
    return f'<ul class="said">{"".join(said)}</ul>'


def _reference(rows: Sequence[Mapping[str, Any]]) -> str:
    return next((str(row["name"]) for row in rows if row["difference"] is None), "the first run")


def results_table(entries: Sequence[Measured], values: Mapping[str, Mapping[str, Value]], k: int) -> str:
    """Recall of every run under every protocol, the best of a column in bold."""
    shown = [name for name in _COLUMNS if any(name in of for of in values.values())]
    best = {name: max(of[name].value for of in values.values() if name in of) for name in shown}
    first = "".join(
        f'<th scope="col">{escape(_HEADS[name][0])}<small>{escape(_HEADS[name][1])}</small></th>'
        for name in shown
    )
    body = []
    for entry in entries:
        cells = []
        for name in shown:
            value = values[entry.label].get(name)
            if value is None:
                cells.append("<td>–</td>")
                continue
            number = f"{value.value:.3f}"
            number = f"<strong>{number}</strong>" if value.value == best[name] else number
            spread = "" if value.low is None else f"<small>{value.low:.3f} – {value.high:.3f}</small>"
            cells.append(f"<td>{number}{spread}</td>")
        body.append(f'<tr><th scope="row">{escape(entry.label)}</th>{"".join(cells)}</tr>')
    items = entries[0].numbers.value["items"]
    caption = (
        f"Recall@{k}: of a user's held-out clicks, the share among the {k} items ranked highest. First line: which "
        f"clicks are looked for; second line: which items are ranked. Below each number its 95 % interval over users. "
        f"{items['warm']:,} known items have clicks in training, {items['cold']:,} new ones have none."
    )
    return _table(caption, f'<th scope="col">run</th>{first}', body)


def arrivals_table(found: Mapping[str, Any]) -> str:
    """Recall of clicks on added items and on the others, a row a method."""
    names = [name for name in found["rows"][0] if name != "label"]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("ranked by", *names))
    body = [
        f'<tr><th scope="row">{escape(row["label"])}</th>'
        + "".join("<td>–</td>" if row[name] is None else f"<td>{row[name]:.3f}</td>" for name in names)
        + "</tr>"
        for row in found["rows"]
    ]
    ceiling = found["content_ceiling"]
    more = (
        ""
        if ceiling is None
        else f" If every taste were known as far as content shows it, new among new would be {ceiling:.3f}."
    )
    caption = (
        f"{found['items']:,} items were added without a click and without training. Recall@{found['k']} of the clicks "
        f"that followed: on which items, among which items.{more}"
    )
    return _table(caption, heads, body)


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Differences from the first run with intervals and p-values."""
    tested = [row for row in rows if row["difference"] is not None]
    if not tested:
        return ""
    seeds = any(row["p_seeds"] is not None for row in tested)
    body = []
    for row in tested:
        mark = "sure" if row["p_users"] is not None and row["p_users"] < 0.05 else "open"
        share = "" if row["relative"] is None else f"<small>{row['relative']:+.1%}</small>"
        over = f"<td>{_p(row['p_seeds'])}</td>" if seeds else ""
        body.append(
            f'<tr class="{mark}"><th scope="row">{escape(row["name"])}</th>'
            f"<td class=words>{escape(PROTOCOLS[row['protocol']])}</td>"
            f"<td>{row['difference']:+.4f}{share}</td><td>{row['low']:+.4f} to {row['high']:+.4f}</td>"
            f"<td>{_p(row['p_users'])}</td>{over}</tr>"
        )
    caption = (
        f"Differences in {escape(tested[0]['metric'])} from {escape(_reference(rows))}. Paired t-tests over users"
        f"{' and over seeds' if seeds else ''}, p-values corrected by Holm within a kind of clicks. Rows in grey: "
        "the difference may be chance. Users of one training are compared: another seed may differ by more."
    )
    heads = ["run", "clicks", "difference", "95 % interval", "p (users)", *(["p (seeds)"] if seeds else [])]
    marked = (f'<th scope="col"{" class=words" if head == "clicks" else ""}>{head}</th>' for head in heads)
    return _table(caption, "".join(marked), body)


def picture(path: Path, alt: str, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def samples_html(found: Sequence[Sample], drawn: bool) -> str:
    """What users clicked, and the lists of the runs beside each other."""
    if not found:
        return ""
    how = (
        "The users were drawn by chance among those with enough clicks, not by how well they are served. "
        if drawn
        else ""
    )
    parts = [
        f"<p>{how}A green frame and ✓: clicked in the test part, which no run has learned from. "
        "“new”: no click in training.</p>"
    ]
    for sample in found:
        parts.append(
            f"<article><h3>User {escape(sample.user)}</h3><p>{sample.clicks:,} clicks before, "
            f"{sample.later:,} to be found.</p>{_row('clicked before', sample.history)}"
        )
        parts += [_row(label, cards) for label, cards in sample.lists.items()]
        parts.append("</article>")
    return "".join(parts)


def _row(label: str, cards: Sequence[Card]) -> str:
    return f'<h4>{escape(label)}</h4><ol class="wall">{"".join(map(_card, cards))}</ol>'


def _card(card: Card) -> str:
    face = (
        f'<img alt="" src="{card.cover}">'
        if card.cover
        else f'<span class="blank" aria-hidden="true">{escape(card.title[:2])}</span>'
    )
    marks = ('<span class="hit">✓<span class="aside"> clicked later</span></span>' if card.hit else "") + (
        '<span class="new">new</span>' if card.new else ""
    )
    kind = " class=found" if card.hit else ""
    name = f'<span class="name">{escape(card.title)}</span>'
    return f'<li{kind} title="{escape(card.title, quote=True)}">{face}{marks}{name}</li>'


def settings_table(entries: Sequence[Measured]) -> str:
    """The fields in which the runs' configs differ."""
    rows = differing_settings(entries)
    if not rows:
        return ""
    body = [
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        + "".join(f"<td class=words>{_setting(value)}</td>" for value in values)
        + "</tr>"
        for name, values in rows.items()
    ]
    heads = "".join(f'<th scope="col">{escape(entry.label)}</th>' for entry in entries)
    return (
        f"<details><summary>{len(rows)} settings in which the runs differ</summary>"
        + _table("Everything else is the same in all runs.", f'<th scope="col">setting</th>{heads}', body)
        + "</details>"
    )


def _setting(value: Any) -> str:
    return "–" if value is None else escape(json.dumps(value, ensure_ascii=False).strip('"'))


def made_by(entries: Sequence[Measured]) -> str:
    """How each run came about: its command, how its length was found, times."""
    parts = []
    for entry in entries:
        run = entry.run
        environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
        words = [word for word in environment["command"] if word not in ("--resume", "--json")]
        found, protocol = run.result["found"], run.result["protocol"]
        leak = ' class="leak"' if protocol["selection"] == "test" else ""
        facts = [f"<span{leak}>{escape(protocol['meaning'])}</span>"]
        if found.get("epochs"):
            facts.append(f"{found['epochs']} epochs")
        facts.append(
            f"{run.result['seconds']['total']:,.0f} s, at most {run.result['peak_memory_mb']:,.0f} MB"
        )
        facts += [f"seed {run.config.seed}", escape(entry.source)]
        if entry.oracle_share is not None:
            facts.append(
                f"{entry.oracle_share:.1%} of the harmonic mean that the best single offset on new items would reach"
            )
        parts.append(
            f"<h3>{escape(entry.label)}</h3><pre><code>{escape(shlex.join(words))}</code></pre>"
            f"<p>{'; '.join(facts)}.</p>"
        )
    return "".join(parts)


def data_table(entry: Measured) -> str:
    """What the runs learned from and were tested on."""
    data = entry.run.result["dataset"]
    split = data["split"]
    seed = "" if split is None or split["seed"] is None else f", seed {split['seed']}"
    rows = {
        "dataset": data["name"],
        "content (SHA-256)": data["content_hash"],
        "split": "as the data brings it" if split is None else f"{split['name']}{seed}",
        "split (SHA-256)": None if split is None else split["hash"],
        "users": data["users"],
        "items": data["items"],
        **{f"pairs in {name}": data[name] for name in ("train", "valid", "test") if name in data},
        **{f"left out: {why}": count for why, count in data["dropped"].items()},
    }
    return _pairs("Data and split, the same for all runs", rows)


def environment_table(entries: Sequence[Measured]) -> str:
    """Versions and machine; where runs differ, each value."""
    found = [
        json.loads((entry.run.path / "environment.json").read_text(encoding="utf-8")) for entry in entries
    ]
    rows = {}
    for name in found[0]:
        if name != "command":
            values = list(dict.fromkeys(str(environment.get(name)) for environment in found))
            rows[name.replace("_", " ")] = "; ".join(values)
    return _pairs("Environment", rows)


def _pairs(caption: str, rows: Mapping[str, Any]) -> str:
    body = [
        f'<tr><th scope="row">{escape(name)}</th><td class=words>{escape(_text(value))}</td></tr>'
        for name, value in rows.items()
        if value is not None
    ]
    return _table(caption, "", body)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(caption: str, heads: str, rows: Sequence[str]) -> str:
    head = f"<thead><tr>{heads}</tr></thead>" if heads else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption[:60], quote=True)}">'
        f"<table><caption>{caption}</caption>{head}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: Value) -> str:
    return f"{value.value:.3f}" + ("" if value.low is None else f" ({value.low:.3f} – {value.high:.3f})")


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
