"""Covers: what uploads look like, and what is seen in them."""

import io
import struct
import zlib

import numpy as np
import polars as pl
import pytest
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.views.base import NothingToFitError
from firstlight.views.config import CoverConfig
from firstlight.views.cover import CoverView, lab, shrunk, statistics, statistics_dim
from firstlight.vision.decoder import UnusableImageError, image_bytes

CONFIG = CoverConfig(size=16)


def encode(image, kind="PNG", **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def near(content, colour, tolerance=6):
    pixels = shrunk(content, CONFIG).astype(int)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels - colour).max() <= tolerance


RED = Image.new("RGB", (30, 20), (200, 30, 40))


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encode(RED), (200, 30, 40)),
        (encode(RED, "JPEG", quality=95), (200, 30, 40)),
        (encode(RED, "BMP"), (200, 30, 40)),
        (encode(RED, "WEBP", lossless=True), (200, 30, 40)),
        (encode(RED.convert("CMYK"), "JPEG", quality=95), (200, 30, 40)),
        (encode(RED.convert("P", palette=Image.Palette.ADAPTIVE)), (200, 30, 40)),
        (encode(Image.new("L", (9, 9), 120)), (120, 120, 120)),
        (encode(Image.new("1", (9, 9), 1)), (255, 255, 255)),
        (encode(Image.new("LA", (9, 9), (0, 0))), (255, 255, 255)),
        (encode(Image.new("RGBA", (9, 9), (200, 30, 40, 255))), (200, 30, 40)),
        (encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), (255, 255, 255)),
        (encode(Image.new("RGBA", (9, 9), (0, 0, 0, 128))), (127, 127, 127)),
        (encode(Image.new("P", (9, 9), 0), transparency=0), (255, 255, 255)),
        (encode(Image.fromarray(np.full((9, 9), 32768, np.uint16))), (127, 127, 127)),
        (encode(Image.fromarray(np.full((9, 9), 128, np.float32)), "TIFF"), (128, 128, 128)),
        (encode(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]), (200, 30, 40)),
        (encode(Image.new("RGB", (1, 1), (200, 30, 40))), (200, 30, 40)),
        (encode(Image.new("RGB", (5000, 1), (200, 30, 40))), (200, 30, 40)),
    ],
)
def test_any_kind_of_picture(content, colour):
    near(content, colour)


def test_telephones_store_portraits_lying_down():
    lying = Image.new("RGB", (32, 16), (255, 255, 255))
    lying.paste((0, 0, 0), (0, 0, 16, 16))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: the left side becomes the top
    pixels = shrunk(encode(lying, "JPEG", quality=95, exif=exif), CONFIG)
    assert pixels[:6].max() < 60
    assert pixels[10:].min() > 200


def test_torn_exif_does_not_spoil_a_picture():
    near(encode(RED, "JPEG", quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"), (200, 30, 40))


def bomb(width, height):
    """A PNG header that claims a size; pixels follow only in name."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 10_000, 50_000, 2**31 - 1])
def test_bombs_are_refused(side):
    with pytest.raises(UnusableImageError):
        shrunk(bomb(side, side), CONFIG)


def test_torn_files_never_crash():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = encode(noise, kind)
        broken = [
            whole[: len(whole) // 3],
            whole[:10],
            b"",
            b"hello",
            whole[:4] + bytes(60),
            b"%!PS-Adobe-3.0\n",
        ]
        for _ in range(30):
            bytes_ = bytearray(whole)
            for place in rng.integers(len(bytes_), size=8):
                bytes_[place] = rng.integers(256)
            broken.append(bytes(bytes_))
        reasons = [reason for content in broken if (reason := why_not(content)) is not None]
        assert len(reasons) >= 4
        assert all(reason and "0x" not in reason for reason in reasons)


def why_not(content):
    """Why a cover cannot be decoded, or None if it can."""
    try:
        pixels = shrunk(content, CONFIG)
    except UnusableImageError as error:
        return str(error)
    assert pixels.shape == (16, 16, 3)
    return None


def test_paths(tmp_path):
    home = tmp_path / "data"
    (home / "covers").mkdir(parents=True)
    (home / "covers" / "a.png").write_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"secret")
    (home / "link").symlink_to(tmp_path / "secret")
    assert image_bytes("covers/a.png", home, 10) == b"abc"
    assert image_bytes("covers/../covers/a.png", home, 10) == b"abc"
    for name in (
        "../secret", "link", "covers/../../secret", str(tmp_path / "secret"), "covers", "nothing.png",
        "C:\\secret", "https://host/a.png", "a\0b", "x" * 5000,
    ):  # fmt: skip
        with pytest.raises(UnusableImageError):
            image_bytes(name, home, 10)
    for content in ("covers/a.png", b"abc"):
        with pytest.raises(UnusableImageError, match="too many"):
            image_bytes(content, home, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), (b"", None), ("", None), (b"x", b"x"),
        ({"bytes": b"x", "path": "no.png"}, b"x"), ({"bytes": None, "path": None}, None),
    ],
)  # fmt: skip
def test_cells(value, expected):
    assert image_bytes(value, None, 10) == expected


def test_lab_known_colours():
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    np.testing.assert_allclose(lab(colours)[0] * 100, expected, atol=0.05)


def test_statistics_of_flat_and_striped_covers():
    flat = statistics(np.full((16, 16, 3), 119, np.uint8), CONFIG)
    assert flat.shape == (statistics_dim(CONFIG),)
    np.testing.assert_allclose(flat[:16], 0.5003, atol=1e-3)  # mean L of each cell
    np.testing.assert_allclose(flat[16:96], 0, atol=1e-3)
    np.testing.assert_allclose(np.square(flat[96:160]).sum(), 1, rtol=1e-6)  # shares of colours
    np.testing.assert_allclose(flat[160:], 0, atol=1e-6)  # no edge
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, 2::4] = stripes[:, 3::4] = 255
    upright = statistics(stripes, CONFIG)[160 : 160 + 128].reshape(16, 8)
    lying = statistics(stripes.transpose(1, 0, 2).copy(), CONFIG)[160 : 160 + 128].reshape(16, 8)
    assert (upright.argmax(axis=1) == 0).all()  # gradient along x
    assert (lying.argmax(axis=1) == 4).all()  # a quarter turn further


@pytest.mark.parametrize("size", [8, 10, 33])
def test_sizes_that_the_grid_does_not_divide(size):
    config = CoverConfig(size=size, grid=3)
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    row = statistics(pixels, config)
    assert row.shape == (statistics_dim(config),)
    assert np.isfinite(row).all()


def test_view_names_what_it_cannot_use(tools):
    covers = [tools.png(seed=row) for row in range(8)]
    covers[2], covers[5], covers[6] = b"torn", None, b""
    catalogue = Catalogue(pl.DataFrame({"cover": covers}))
    view = CoverView.fit(CONFIG, catalogue, np.ones(8, np.bool_), None)
    problems = []
    rows = view.transform(catalogue, 8, None, problems)
    assert np.flatnonzero(~rows.present).tolist() == [2, 5, 6]
    assert not rows.values[~rows.present].any()
    assert problems == [
        "1 of 8 covers cannot be used and count as absent (row 2: cannot be decoded (not a picture))"
    ]


def test_view_reads_paths_and_wants_their_folder(tools, tmp_path):
    content = [tools.png(seed=row) for row in range(5)]
    for row, cover in enumerate(content):
        (tmp_path / f"{row}.png").write_bytes(cover)
    catalogue = Catalogue(pl.DataFrame({"cover": [f"{row}.png" for row in range(5)]}))
    warm = np.ones(5, np.bool_)
    rows = CoverView.fit(CONFIG, catalogue, warm, tmp_path).transform(catalogue, 5, tmp_path, [])
    inline = Catalogue(pl.DataFrame({"cover": content}))
    np.testing.assert_array_equal(
        rows.values, CoverView.fit(CONFIG, inline, warm, None).transform(inline, 5, None, []).values
    )
    with pytest.raises(InputError, match="no folder"):
        CoverView.fit(CONFIG, catalogue, warm, None)


def test_no_usable_warm_cover():
    catalogue = Catalogue(pl.DataFrame({"cover": [b"a", b"b"]}))
    with pytest.raises(NothingToFitError, match="row 0"):
        CoverView.fit(CONFIG, catalogue, np.ones(2, np.bool_), None)


def test_web_addresses_are_named_for_what_they_are():
    catalogue = Catalogue(pl.DataFrame({"cover": ["https://host/a.png"]}))
    with pytest.raises(NothingToFitError, match="web address"):
        CoverView.fit(CONFIG, catalogue, np.ones(1, np.bool_), None)
