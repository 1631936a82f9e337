"""Drawn covers: a topic is a shape filled with a texture; everything else is drawn at random.

Colours, position, size, rotation of the shape, rotation, phase and period of the texture and the background
are drawn anew for each cover and independently of the topic. So colour statistics hardly tell the topic,
while anything that sees edges and their arrangement can.

Shapes are given by their outline in polar form around the centre, ``ρ = r(φ)`` in units of the radius;
textures by a wave whose sign is the ink, in units of the period. Both are smoothed over about one pixel.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.float32]

_TURN = 2 * np.pi


def _polygon(corners: int) -> Callable[[Array], Array]:
    """Outline of a regular polygon with corners at radius 1."""

    def outline(phi: Array) -> Array:
        sector = np.mod(phi, _TURN / corners) - np.pi / corners
        return np.asarray(np.cos(np.pi / corners) / np.cos(sector), np.float32)

    return outline


def _star(phi: Array) -> Array:
    """Outline of a five-pointed star: straight lines from radius 1 at a point to 0.4 at a notch."""
    inner, half = 0.4, np.pi / 5
    angle = np.abs(np.mod(phi, 2 * half) - half)  # 0 at a notch, half at a point
    # The line through (inner, angle 0) and (1, angle half), in polar form.
    denominator = inner * np.sin(angle) + np.sin(half - angle)
    return np.asarray(inner * np.sin(half) / denominator, np.float32)


def _box(phi: Array, width: float, height: float) -> Array:
    """Outline of a box with half sides ``width`` and ``height``."""
    cosine, sine = np.abs(np.cos(phi)), np.abs(np.sin(phi))
    return np.asarray(1 / np.maximum(np.maximum(cosine / width, sine / height), 1e-6), np.float32)


def _cross(phi: Array) -> Array:
    """Outline of a plus sign."""
    return np.maximum(_box(phi, 1.0, 0.33), _box(phi, 0.33, 1.0))


def _bar(phi: Array) -> Array:
    """Outline of a long bar."""
    return _box(phi, 1.1, 0.42)


def _disc(phi: Array) -> Array:
    """Outline of a disc; smaller than the circle around the other shapes, to even out the areas."""
    return np.full_like(phi, 0.85)


def _stripes(x: Array, _y: Array) -> Array:
    return np.asarray(np.cos(_TURN * x), np.float32)


def _checks(x: Array, y: Array) -> Array:
    return np.asarray(np.cos(np.pi * x) * np.cos(np.pi * y), np.float32)


def _dots(x: Array, y: Array) -> Array:
    """Round dots on a square lattice."""
    return np.asarray(4 * (0.3 - np.hypot(x - np.round(x), y - np.round(y))), np.float32)


def _waves(x: Array, y: Array) -> Array:
    """Wavy stripes."""
    return np.asarray(np.cos(_TURN * (x + 0.4 * np.cos(_TURN * y / 2.2))), np.float32)


def _rings(x: Array, y: Array) -> Array:
    """Concentric rings around the middle of the shape."""
    return np.asarray(np.cos(_TURN * np.hypot(x, y)), np.float32)


def _crosses(x: Array, y: Array) -> Array:
    """Small plus signs on a square lattice, a third wider than the other lattices to stay legible."""
    u, v = np.abs(x / 1.4 - np.round(x / 1.4)), np.abs(y / 1.4 - np.round(y / 1.4))
    arms = np.maximum(np.minimum(0.38 - u, 0.13 - v), np.minimum(0.13 - u, 0.38 - v))
    return np.asarray(5 * arms, np.float32)


SHAPES: dict[str, Callable[[Array], Array]] = {
    "disc": _disc,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "star": _star,
    "cross": _cross,
    "bar": _bar,
}
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
    "rings": _rings,
    "crosses": _crosses,
}
#: Each topic has its own pair of shape and texture.
MOST_TOPICS = len(SHAPES) * len(TEXTURES)


def appearance(topic: int) -> tuple[str, str]:
    """Shape and texture of a topic.

    The first six topics differ in both; later ones reuse each shape with another texture, so neither alone
    tells the topic.
    """
    shapes, textures = list(SHAPES), list(TEXTURES)
    shape = topic % len(shapes)
    return shapes[shape], textures[(shape + topic // len(shapes)) % len(textures)]


def _colours(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Two colours of the texture that differ clearly in brightness, and a background between or beside."""
    while True:
        ink, paper, ground = rng.uniform(0, 255, (3, 3)).astype(np.float32)
        brightness = np.array([0.299, 0.587, 0.114], np.float32)
        if abs((ink - paper) @ brightness) > 70:
            return ink, paper, ground


def draw_cover(topic: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one cover.

    Args:
        topic: Topic in ``[0, MOST_TOPICS)``.
        size: Width and height, in pixels.
        rng: The cover's own random stream.

    Returns:
        ``(size, size, 3)`` uint8, RGB.
    """
    shape, texture = appearance(topic)
    radius = size * rng.uniform(0.34, 0.46)
    centre = size / 2 + rng.uniform(-1, 1, 2) * (0.52 * size - radius)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    x, y = (columns - centre[0]).astype(np.float32), (rows - centre[1]).astype(np.float32)
    phi = np.arctan2(y, x) + np.float32(rng.uniform(0, _TURN))
    outline = SHAPES[shape](phi.astype(np.float32)) * radius
    inside = np.clip(outline - np.hypot(x, y) + 0.5, 0, 1)

    period = size * rng.uniform(0.13, 0.18)
    turn, shift = rng.uniform(0, _TURN), rng.uniform(-0.5, 0.5, 2) * (texture != "rings")
    u = (np.cos(turn) * x + np.sin(turn) * y) / period + shift[0]
    v = (np.cos(turn) * y - np.sin(turn) * x) / period + shift[1]
    # A wave's slope at its zero is at most about 2π a period: this smooths an edge over about one pixel.
    ink = np.clip(0.5 + TEXTURES[texture](u, v) * period / _TURN, 0, 1)

    colour_ink, colour_paper, ground = _colours(rng)
    slope = rng.uniform(-40, 40, (2, 3)).astype(np.float32) / size
    picture = ground + x[..., None] * slope[0] + y[..., None] * slope[1]
    filled = ink[..., None] * colour_ink + (1 - ink[..., None]) * colour_paper
    picture = inside[..., None] * filled + (1 - inside[..., None]) * picture
    picture = picture + rng.normal(0, 4, picture.shape)
    return np.asarray(np.clip(np.round(picture), 0, 255), np.uint8)


def encode_jpeg(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of a picture ``(height, width, 3)`` uint8."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
