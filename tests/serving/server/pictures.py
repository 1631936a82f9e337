"""Pictures as people's phones and other people's spite make them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

RED, BLUE = (200, 30, 30), (30, 30, 200)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(size: tuple[int, int] = (40, 20), mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 2, before: bytes = b""
) -> bytes:
    """A PNG of filtered rows; nothing is checked."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def deep_png() -> bytes:
    """Halves with 16 bits a channel, which Pillow itself cannot write."""
    row = b"".join(struct.pack(">3H", *(value * 257 for value in c)) for c in [RED] * 20 + [BLUE] * 20)
    return png(40, 20, (b"\0" + row) * 20, bits=16)


def turned_jpeg() -> bytes:
    """Halves as a telephone stores them that was held upright: lying, with a note on which side is up."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to look at it
    return saved(halves().rotate(90, expand=True), "JPEG", exif=exif.tobytes(), quality=95)


def animated(kind: str) -> bytes:
    frames = [halves(), *(Image.new("RGB", (40, 20), (0, 255 - at, 0)) for at in range(30))]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, loop=0)


def grey_16() -> bytes:
    """Dark and bright halves of 16 bits, none of which is white."""
    values = np.full((20, 40), 50 * 257, np.uint16)
    values[:, 20:] = 200 * 257
    return saved(Image.fromarray(values), "PNG")


def glass() -> bytes:
    """Halves, of which the right one cannot be seen."""
    image = halves().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(40) < 20, 255, 0)[None].repeat(20, 0).astype(np.uint8)))
    return saved(image, "PNG")


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 300, 0, 0, 54) + head + b"\0" * 300


def _gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def _tiff(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    """Tags are (number, type, count, value)."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 100), *more]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8)  # the next page is this one again


def _webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + b"\0" * 64
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg(width: int, height: int) -> bytes:
    """A good JPEG that claims another size."""
    content = bytearray(saved(halves(), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


WHITE = (255, 255, 255)
#: Name → file, and the colours of the left and the right half of what must be shown.
GOOD: dict[str, tuple[bytes, tuple[int, int, int], tuple[int, int, int]]] = {
    "JPEG": (saved(halves(), "JPEG", quality=95), RED, BLUE),
    "progressive JPEG": (saved(halves(), "JPEG", progressive=True, quality=95), RED, BLUE),
    "JPEG with a tail": (saved(halves(), "JPEG", quality=95) + b"<script>" * 999, RED, BLUE),
    "turned JPEG": (turned_jpeg(), RED, BLUE),
    "CMYK JPEG": (saved(halves(mode="CMYK"), "JPEG", quality=95), RED, BLUE),
    "CMYK TIFF": (saved(halves(mode="CMYK"), "TIFF"), RED, BLUE),
    "PNG": (saved(halves(), "PNG"), RED, BLUE),
    "palette PNG": (saved(halves().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED, BLUE),
    "transparent PNG": (glass(), RED, WHITE),
    "16-bit PNG": (deep_png(), RED, BLUE),
    "16-bit grey PNG": (grey_16(), (50, 50, 50), (200, 200, 200)),
    "1-bit PNG": (saved(halves().convert("1", dither=0), "PNG"), (0, 0, 0), (0, 0, 0)),
    "animated PNG": (animated("PNG"), RED, BLUE),
    "animated GIF": (animated("GIF"), RED, BLUE),
    "animated WebP": (animated("WEBP"), RED, BLUE),
    "TIFF of several pages": (animated("TIFF"), RED, BLUE),
    "TIFF of endless pages and tags": (_tiff(10, 10, (700, 1, 2**32 - 1, 8)), (0, 0, 0), (0, 0, 0)),
    "BMP": (saved(halves(), "BMP"), RED, BLUE),
    "one pixel": (saved(Image.new("RGB", (1, 1), RED), "PNG"), RED, RED),
    "a line": (saved(halves((20_000, 1)), "PNG"), RED, BLUE),
}

_FLAT = b"\0" * 4096
#: Name → file that must be refused. Each is small; what it says of itself is not.
BAD: dict[str, bytes] = {
    "bomb of real pixels": png(8000, 8000, b"\0" * 1001 * 8000, bits=1, colour=0),
    "PNG bomb": png(60_000, 60_000, _FLAT, bits=1, colour=0),
    "PNG of all sizes": png(2**31 - 1, 2**31 - 1, _FLAT),
    "PNG beyond sizes": png(2**32 - 1, 2**32 - 1, _FLAT),
    "PNG without size": png(0, 0, b""),
    "PNG without height": png(10, 0, b""),
    "PNG that is a line": png(2**31 - 1, 1, _FLAT),
    "PNG of 200 bits": png(10, 10, _FLAT, bits=200),
    "PNG without pixels": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
    "PNG that ends early": png(900, 900, _FLAT),
    "GIF bomb": _gif((65_535, 65_535), (65_535, 65_535)),
    "GIF whose frame is larger than it": _gif((10, 10), (65_535, 65_535)),
    "GIF without size": _gif((0, 0), (0, 0)),
    "GIF that is only a head": b"GIF89a",
    "GIF that is a page": b"GIF89a/*" + b"*/=0;<script>alert(1)</script>" * 20,
    "BMP bomb": _bmp(60_000, 60_000),
    "BMP of all sizes": _bmp(2**31 - 1, 2**31 - 1),
    "BMP below zero": _bmp(-(2**31), -(2**31)),
    "BMP without size": _bmp(0, 0),
    "TIFF bomb": _tiff(60_000, 60_000),
    "TIFF of all sizes": _tiff(2**32 - 1, 2**32 - 1),
    "TIFF without size": _tiff(0, 0),
    "WebP bomb": _webp(16_383, 16_383),
    "WebP that is torn": _webp(40, 40)[:30],
    "JPEG bomb": _jpeg(65_535, 65_535),
    "JPEG without size": _jpeg(0, 0),
    "half a JPEG": saved(halves((400, 400)), "JPEG")[:900],
    "half a PNG": saved(Image.effect_noise((100, 100), 50), "PNG")[:4000],
    "half a WebP": saved(Image.effect_noise((100, 100), 50).convert("RGB"), "WEBP")[:700],
    "half a BMP": saved(halves(), "BMP")[:900],
    "half a TIFF": saved(halves(), "TIFF")[:900],
    "JPEG of noise": b"\xff\xd8\xff" + bytes(range(256)) * 40,
    "PNG of noise": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    "AVIF of noise": b"\0\0\0\x20ftypavif" + bytes(range(256)) * 40,
}
#: Name → file that is no picture, whatever it is said to be.
STRANGE: dict[str, bytes] = {
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "SVG behind white space": b" \n\n<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "PDF": b"%PDF-1.7\n",
    "ZIP": b"PK\x03\x04" + b"\0" * 60,
    "program": b"\x7fELF" + b"\0" * 60,
    "ICO": b"\0\0\1\0\1\0" + b"\0" * 60,
    "text": b"../../../etc/passwd",
    "zeros": b"\0" * 5000,
}
