"""Pictures of the page for the README: a generated world, a trained model, the real server, a real Chromium.

    python docs/screenshots.py            makes a world and trains on it first (some minutes)
    python docs/screenshots.py BUNDLE     of any catalogue; nothing is added to it, a copy is served

Text is set in Inter where it is installed (Debian: fonts-inter), in the system's font otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser, Page, find_chromium  # noqa: E402
from firstlight.data.simulate.covers import draw_cover, encode_jpeg  # noqa: E402

MOST_BYTES = 200_000
COVER_SIZE = 192
#: A cover and a title of the same topic of the generated world.
TOPIC, TITLE = 11, "Tango rehearsal with the dancer"
#: The demo's settings for this world, of views that need no encoder. Its hyperedges count, so they explain lists.
SETS = (
    *("training.batch=users", "training.batch_size=64", "training.lr=0.005", "training.eval_every=2"),
    *(
        "training.metric=harmonic-recall@20",
        "views.text.dim=32",
        "views.cover.grid=1",
        "views.features.reduce=16",
    ),
    *("model.content_dropout=0.5", "model.batch_l2=0.03", "model.layers=2", "model.cold_loss=0"),
    *("model.cold_share=0.5", "model.content_weight=0.5", "model.user_content=6", "model.user_dropout=0"),
    *("model.init=xavier", "model.init_norm=null", "model.hyper_weight=0.2"),
)
TRAIN = (
    *("--model", "mhcr", "--loss", "softmax", "--temperature", "fixed:0.2", "--negatives", "all"),
    *("--epochs", "16", "--threads", "1", *(word for one in SETS for word in ("--set", one))),
)


def firstlight(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "firstlight", *map(str, words)], check=True)


def make_bundle(folder: Path) -> Path:
    """A model of a world whose covers are large enough to be looked at."""
    world, data, run, bundle = (folder / name for name in ("world", "data", "run", "made"))
    firstlight("simulate", world, "--users", 400, "--items", 320, "--set", f"cover_size={COVER_SIZE}")
    firstlight("data", "split", world, data, "--by", "cold-items")
    firstlight("train", data, *TRAIN, "--out", run)
    firstlight("export", run, bundle)
    return bundle


@contextmanager
def serving(bundle: Path, token: str) -> Iterator[str]:
    """The server on a free port; gives its address."""
    command = [sys.executable, "-m", "firstlight", "serve", str(bundle), "--port", "0"]
    log = bundle.parent / "serve.log"
    with log.open("w") as out:
        environment = {**os.environ, "FIRSTLIGHT_TOKEN": token}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        while not (found := re.search(r"listening at (\S+)", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def ask(address: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def somebody(address: str) -> str:
    """A person with a history that fits the screen, and old and new items high in their list."""
    users = ask(address, "v1/users?limit=300")["users"]
    best, most = users[0]["id"], -10
    for user in (one["id"] for one in users if 8 <= one["clicks"] <= 14):
        items = ask(address, "v1/recommend", {"user": user, "k": 8})["items"]
        mixed = -abs(2 - sum(item["new"] for item in items[:4])) - abs(4 - sum(item["new"] for item in items))
        if mixed > most:
            best, most = user, mixed
    return str(best)


def settled(page: Page, selector: str) -> None:
    """Everything is there, its pictures included."""
    page.until(f"document.querySelector({json.dumps(selector)})", 120)
    page.until("!document.querySelector('.ghost, [aria-busy]')", 120)
    page.until(
        "[...document.images].every(one => one.complete || one.getBoundingClientRect().top > innerHeight)",
        120,
    )
    page.wait(1)


def shoot(page: Page, path: Path) -> None:
    """A picture with as many colours as fit."""
    page.screenshot(path)
    picture = Image.open(path).convert("RGB")
    for colours, dither in (
        (256, Image.Dither.FLOYDSTEINBERG),
        (256, Image.Dither.NONE),
        (96, Image.Dither.NONE),
    ):
        few = picture.quantize(colours)
        picture.quantize(colours, palette=few, dither=dither).save(path, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            break
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {colours} colours")


def tour(page: Page, address: str, token: str, cover: Path, out: Path) -> None:
    person = somebody(address)
    page.screen(1200, 800)
    page.open(f"{address}#/people/{person}")
    settled(page, ".person .wall .tile")
    shoot(page, out / "page-people.png")

    picked = [item["id"] for item in ask(address, f"v1/users/{person}")["history"][:4]]
    page.open(f"{address}#/visitor?{'&'.join(f'item={item}' for item in picked)}")
    page.until("document.querySelectorAll('#found-items button').length")
    settled(page, ".person .wall .tile")
    shoot(page, out / "page-visitor.png")

    page.open(f"{address}#token={token}")
    page.until("document.querySelector('#new-title')")
    page.choose_file("#new-cover", cover)
    page.until("!document.querySelector('.preview').hidden")
    page.click("#new-title")
    page.type(TITLE)
    page.key("Enter")
    page.until("document.querySelector('.audience .place')", 120)
    page.until("!document.querySelector('.audience').innerText.includes('…')", 120)
    page.screen(1200, 1060)
    page.js("scrollTo(0, 0)")
    settled(page, ".landing .wall.small .tile")
    shoot(page, out / "page-new-item.png")

    item = page.js("document.querySelector('.arrived .tile').dataset.item")
    page.screen(1200, 800)
    page.open(f"{address}#/map?item={item}")
    settled(page, ".legend li + li")
    page.js("document.querySelector('.stage-keys').focus()")
    page.key("0")
    page.js("document.activeElement.blur()")
    page.wait(1)
    shoot(page, out / "page-map.png")

    page.dark()
    page.screen(390, 780, scale=1.5, phone=True)
    page.open(f"{address}#/people/{person}")
    settled(page, ".person .wall .tile")
    shoot(page, out / "page-phone.png")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="a folder of firstlight export")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        parser.error("no Chromium is installed: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = shutil.copytree(options.bundle or make_bundle(folder), folder / "bundle")
        cover = folder / "cover.jpg"
        cover.write_bytes(encode_jpeg(draw_cover(TOPIC, COVER_SIZE, np.random.default_rng(5)), 90))
        token = secrets.token_urlsafe()
        options.out.mkdir(parents=True, exist_ok=True)
        with serving(bundle, token) as address, Browser(chromium, folder / "chromium") as browser:
            page = browser.page()
            tour(page, address, token, cover, options.out)
            if page.problems:
                print(*page.problems, sep="\n", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
