"""Folders of drawn images whose classes anyone can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (210, 50, 40)}


def draw_classes(folder: Path, per_class: int, *, side: int = 16, seed: int = 0) -> Path:
    """One sub-folder a colour; in each, discs of that colour at random places over grey noise."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = rng.integers(90, 160, (side, side, 1), dtype=np.uint8).repeat(3, axis=2)
            image = Image.fromarray(noise)
            radius = side // 4
            x, y = rng.integers(radius, side - radius, 2).tolist()
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(image).ellipse(box, fill=colour)
            image.save(folder / name / f"{index}.png")
    return folder
