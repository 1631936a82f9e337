"""Covers and clips through a vision transformer, as views like the others."""

import contextlib
import io
import struct
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError, MissingExtraError
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views import encoder as encoder_module
from firstlight.views.config import ViewsConfig
from firstlight.views.encoder import ClipView, EncoderView
from firstlight.views.viewset import ViewSet, outside_hashes
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder, load_encoder, save_encoder
from firstlight.vision.vit import ViT, ViTConfig

SHAPE = ViTConfig(image_size=(16, 8), patch_size=4, dim=16, depth=2, heads=2)


@pytest.fixture(autouse=True)
def forgetful():
    encoder_module._known.cache_clear()
    yield
    encoder_module._known.cache_clear()


@pytest.fixture(scope="module")
def enc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enc")
    save_encoder(folder, Encoder(ViT(SHAPE, torch_stream(0, "vit")).eval()))
    return folder


def config(enc, **changes):
    return ViewsConfig.model_validate({"use": ["encoder"], "encoder": {"path": str(enc)} | changes})


def test_rows_are_the_encoders(world, enc):
    catalogue, warm = world
    plain = config(enc, scaling="none", unit_rows=False)
    rows = ViewSet.fit(plain, catalogue, warm).transform(catalogue)["encoder"]
    assert np.flatnonzero(~rows.present).tolist() == [4]
    encoder = load_encoder(enc)
    for row in (0, 7, 39):
        image = Image.open(io.BytesIO(catalogue.items["cover"][row])).convert("RGB")
        expected = encoder.features(encoder.prepare(image)[None])[0].numpy()
        np.testing.assert_allclose(rows.values[row], expected, atol=1e-5)
    mean = ViewSet.fit(config(enc, scaling="none", unit_rows=False, tokens="mean"), catalogue, warm)
    assert not np.allclose(mean.transform(catalogue)["encoder"].values, rows.values, atol=1e-3)


def test_products_in_bfloat16_before_and_after_saving(world, enc, tmp_path):
    catalogue, warm = world
    plain = {"scaling": "none", "unit_rows": False}
    exact = ViewSet.fit(config(enc, **plain), catalogue, warm).transform(catalogue)["encoder"].values
    fitted = ViewSet.fit(config(enc, precision="bfloat16", **plain), catalogue, warm)
    rows = fitted.transform(catalogue)["encoder"].values
    assert not np.array_equal(rows, exact)
    np.testing.assert_allclose(rows, exact, atol=0.05)
    fitted.save(tmp_path)
    np.testing.assert_array_equal(ViewSet.load(tmp_path).transform(catalogue)["encoder"].values, rows)


def test_pictures_of_another_size(world, enc, tmp_path):
    own = config(enc, scaling="none", unit_rows=False, image_size=[24, 24], tokens="mean")
    fitted = ViewSet.fit(own, *world)
    rows = fitted.transform(world[0])["encoder"]
    encoder = load_encoder(enc)
    image = Image.open(io.BytesIO(world[0].items["cover"][7])).convert("RGB")
    square = image.crop((0, 6, 24, 30))
    batch = encoder.normalise(torch.from_numpy(np.array(square)).permute(2, 0, 1))[None]
    np.testing.assert_allclose(rows.values[7], encoder.features(batch, "mean")[0].numpy(), atol=1e-5)
    fitted.save(tmp_path)
    np.testing.assert_array_equal(ViewSet.load(tmp_path).transform(world[0])["encoder"].values, rows.values)
    with pytest.raises(InputError, match="tile"):
        ViewSet.fit(config(enc, image_size=[25, 24]), *world)


def test_all_views_with_the_encoder_among_them(world, enc):
    every = ViewSet.fit(ViewsConfig.model_validate({"encoder": str(enc)}), *world)
    assert every.names == ("clip", "text", "cover", "encoder")
    assert every.dims["encoder"] == 16
    np.testing.assert_allclose(
        np.linalg.norm(every.transform(world[0])["encoder"].values[:4], axis=1), 1, rtol=1e-5
    )


def test_a_row_depends_on_its_item_only(world, enc, tools):
    fitted = ViewSet.fit(config(enc), *world)
    everything = fitted.transform(world[0])["encoder"]
    for rows in ([3], [9, 4, 9], [39, 0, 1, 2, 30]):
        encoder_module._known.cache_clear()
        some = fitted.transform(tools.take(world[0], rows))["encoder"]
        np.testing.assert_array_equal(some.values, everything.values[rows])
        np.testing.assert_array_equal(some.present, everything.present[rows])


def test_the_run_keeps_the_encoder(world, enc, tmp_path):
    """New items go through the encoder of the run, wherever that came from, and whatever stands there now."""
    own = tmp_path / "enc"
    save_encoder(own, load_encoder(enc))
    fitted = ViewSet.fit(config(own), *world)
    before = fitted.transform(world[0])["encoder"]
    fitted.save(tmp_path / "views")
    save_encoder(own, Encoder(ViT(SHAPE, torch_stream(1, "vit")).eval()))
    encoder_module._known.cache_clear()
    loaded = ViewSet.load(tmp_path / "views")
    np.testing.assert_array_equal(loaded.transform(world[0])["encoder"].values, before.values)
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "views").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_pictures_are_run_once(world, enc, monkeypatch):
    runs = []
    original = EncoderView._run
    monkeypatch.setattr(
        EncoderView,
        "_run",
        lambda self, encoder, files: runs.append(len(files)) or original(self, encoder, files),
    )
    fitted = ViewSet.fit(config(enc), *world)
    first = fitted.transform(world[0])["encoder"]
    again = ViewSet.fit(config(enc), *world).transform(world[0])["encoder"]
    assert sum(runs) == 39  # all covers, though they were asked for in four calls
    np.testing.assert_array_equal(first.values, again.values)
    twice = Catalogue(pl.DataFrame({"cover": [world[0].items["cover"][0]] * 3}))
    encoder_module._known.cache_clear()
    runs.clear()
    fitted.transform(twice)
    assert runs == [1]
    monkeypatch.setattr(encoder_module, "_REMEMBERED_BYTES", 0)
    encoder_module._known.cache_clear()
    np.testing.assert_array_equal(fitted.transform(world[0])["encoder"].values, first.values)


def test_small_chunks_change_nothing(world, enc, monkeypatch):
    fitted = ViewSet.fit(config(enc), *world)
    whole = fitted.transform(world[0])["encoder"]
    for name, value in (("_CHUNK_ROWS", 3), ("_CHUNK_BYTES", 1)):
        encoder_module._known.cache_clear()
        monkeypatch.setattr(encoder_module, name, value)
        np.testing.assert_array_equal(fitted.transform(world[0])["encoder"].values, whole.values)


def test_what_cannot_be_used_is_named(enc, tools, tmp_path):
    covers = [tools.png(seed=row) for row in range(8)]
    covers[2], covers[5], covers[6] = b"torn", None, b""
    catalogue = Catalogue(pl.DataFrame({"cover": covers}))
    fitted = ViewSet.fit(config(enc), catalogue, np.ones(8, np.bool_))
    rows = fitted.transform(catalogue)["encoder"]
    assert np.flatnonzero(~rows.present).tolist() == [2, 5, 6]
    assert not rows.values[~rows.present].any()
    assert fitted.problems == [
        "1 of 8 covers cannot be used and count as absent (row 2: cannot be decoded (not a picture))"
    ]
    paths = Catalogue(pl.DataFrame({"cover": ["a.png", "missing.png", "https://host/a.png"]}))
    (tmp_path / "a.png").write_bytes(covers[0])
    found = fitted.transform(paths, tmp_path)["encoder"]
    np.testing.assert_array_equal(found.values[0], rows.values[0])
    assert found.present.tolist() == [True, False, False]
    with pytest.raises(InputError, match="no folder"):
        fitted.transform(paths)
    assert not fitted.transform(Catalogue(pl.DataFrame({"title": ["x"]})))["encoder"].present.any()
    with pytest.raises(InputError, match="cannot be fitted: 2 of 2 covers"):
        ViewSet.fit(config(enc), Catalogue(pl.DataFrame({"cover": [b"x", b"y"]})), np.ones(2, np.bool_))


def test_encoders_that_are_not_there(world, enc, tmp_path):
    with pytest.raises(InputError, match="no encoder here"):
        ViewSet.fit(config(tmp_path / "nothing"), *world)
    with pytest.raises(InputError, match=r"no view 'encoder'[\s\S]*views\.encoder\.path"):
        ViewSet.fit(ViewsConfig(use=("encoder",)), *world)
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no weights"):
        ViewSet.fit(config(tmp_path / "w.pth"), *world)


def test_hash_of_what_lies_outside(enc, tmp_path):
    one = outside_hashes(config(enc))
    save_encoder(tmp_path, load_encoder(enc))
    assert outside_hashes(config(tmp_path)) == one
    save_encoder(tmp_path, Encoder(ViT(SHAPE, torch_stream(1, "vit")).eval()))
    assert outside_hashes(config(tmp_path)) != one
    assert outside_hashes(ViewsConfig()) == []


def test_a_feature_called_encoder_keeps_its_name(world, enc):
    catalogue, warm = world
    features = {"encoder": catalogue.features["clip"]}
    fitted = ViewSet.fit(
        ViewsConfig.model_validate({"encoder": str(enc)}), Catalogue(catalogue.items, features), warm
    )
    assert fitted.names == ("encoder", "text", "cover", "encoder-covers")


def test_views_without_pictures_load_no_torch():
    script = "import sys, firstlight.views.viewset; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "av"} & set(loaded.split())


# --- clips ---------------------------------------------------------------------------------------------------------


def make_clip(colours, rate=4, size=(32, 16), container="mp4"):
    """A clip that shows each colour for one second."""
    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format=container) as clip:
        stream = clip.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for colour in colours:
            pixels = np.broadcast_to(np.uint8(colour), (size[1], size[0], 3))
            for _ in range(rate):
                clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        clip.mux(stream.encode())
    return target.getvalue()


RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def test_frames_are_a_second_apart():
    from firstlight.vision.clips import frames

    content = make_clip([RED, GREEN, BLUE])
    shown = [np.asarray(image).mean((0, 1)) for image in frames(content)]
    np.testing.assert_allclose(shown, [RED, GREEN, BLUE], atol=12)
    assert len(list(frames(content, seconds=0.5))) == 6
    assert len(list(frames(content, seconds=10))) == 1
    assert len(list(frames(content, most=2))) == 2


def test_clips_that_are_none(tmp_path):
    from firstlight.vision.clips import frames

    content = make_clip([RED, GREEN])
    (tmp_path / "secret.mp4").write_bytes(content)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    joined = f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n"
    for wrong in (b"", b"hello", content[:60], playlist.encode(), joined.encode(), bytes(1000)):
        with pytest.raises(UnusableImageError):
            list(frames(wrong))


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((0, 1, -1, 0), (1, 0)), ((0, -1, 1, 0), (0, 1)), ((-1, 0, 0, -1), (1, 1)), ((1, 0, 0, 1), (0, 0))],
)
def test_clips_of_telephones_stand_upright(matrix, corner):
    """A point (x, y) is shown at (ax + cy, bx + dy), y downwards; ``corner`` is where the first pixel then lies."""
    from firstlight.vision.clips import frames

    def packed(a, b, c, d):
        return b"".join(struct.pack(">i", n << 16) for n in (a, b, 0, c, d, 0, 0, 0)) + struct.pack(
            ">i", 1 << 30
        )

    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as clip:
        stream = clip.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 32, "yuv420p", 4_000_000
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:16, :32] = 255
        clip.mux([*stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")), *stream.encode()])
    content = target.getvalue()
    track = content.index(b"tkhd")
    content = content[:track] + content[track:].replace(packed(1, 0, 0, 1), packed(*matrix), 1)
    shown = next(iter(frames(content)))
    assert shown.size == ((32, 64) if matrix[0] == 0 else (64, 32))
    x, y = (8 + at * (side - 16) for at, side in zip(corner, shown.size, strict=True))
    assert min(shown.getpixel((x, y))) > 200
    assert max(shown.getpixel((shown.width - 1 - x, shown.height - 1 - y))) < 50


def test_a_clip_of_an_unknown_codec_is_one_unusable_clip(enc):
    clips = [make_clip([colour], container="avi") for colour in (RED, GREEN, BLUE)]
    clips.append(clips[0].replace(b"FMP4", b"QQQQ"))
    catalogue = Catalogue(pl.DataFrame({"clip": clips}))
    settings = ViewsConfig.model_validate({"use": ["clip"], "clip": {"path": str(enc)}})
    fitted = ViewSet.fit(settings, catalogue, np.ones(4, np.bool_))
    assert fitted.transform(catalogue)["clip"].present.tolist() == [True, True, True, False]
    assert "its codec is not known here" in fitted.problems[0]


@pytest.mark.parametrize("container", ["avi", "mp4"])
def test_flipped_bytes_leave_frames_or_a_reason(container):
    """Whatever a torn upload holds, nothing but the one error comes of it."""
    from firstlight.vision.clips import frames

    content = make_clip([RED, GREEN], container=container, rate=2)
    rng = np.random.default_rng(0)
    for flips in (1, 2, 4, 16) * 60:
        torn = np.frombuffer(content, np.uint8).copy()
        torn[rng.integers(len(torn), size=flips)] = rng.integers(256, size=flips)
        with contextlib.suppress(UnusableImageError):
            assert all(image.mode == "RGB" for image in frames(torn.tobytes(), most=3))


def test_an_encoder_that_makes_no_numbers_makes_no_rows(tools):
    from firstlight.vision.clips import clip_row
    from firstlight.vision.extract import _run_batch, extract_rows

    encoder = Encoder(ViT(SHAPE, torch_stream(0, "vit")).eval())
    with torch.no_grad():
        encoder.vit.norm.bias[3] = torch.nan
    with pytest.raises(UnusableImageError, match="not finite"):
        clip_row(encoder, make_clip([RED]))
    picture = Image.open(io.BytesIO(tools.png(seed=1))).convert("RGB")
    batch = _run_batch(encoder, [encoder.prepare(picture)], None, torch.device("cpu"))
    for row in (*extract_rows(encoder, [0], lambda _: picture), *batch):
        assert isinstance(row, UnusableImageError)


def test_clips_are_a_view_of_their_own(enc, tools, tmp_path):
    clips = [make_clip([RED]), make_clip([RED, GREEN]), make_clip([BLUE]), None, b"torn", make_clip([GREEN])]
    (tmp_path / "last.mp4").write_bytes(clips[0])
    catalogue = Catalogue(pl.DataFrame({"clip": clips, "title": list("abcdef")}))
    plain = ViewsConfig.model_validate(
        {"use": ["clip"], "clip": {"path": str(enc), "scaling": "none", "unit_rows": False}}
    )
    fitted = ViewSet.fit(plain, catalogue, np.ones(6, np.bool_))
    rows = fitted.transform(catalogue)["clip"]
    assert rows.present.tolist() == [True, True, True, False, False, True]
    assert "1 of 6 clips cannot be used" in fitted.problems[0]
    np.testing.assert_allclose(rows.values[1], (rows.values[0] + rows.values[5]) / 2, atol=0.02)
    by_path = fitted.transform(Catalogue(pl.DataFrame({"clip": ["last.mp4"]})), tmp_path)["clip"]
    np.testing.assert_array_equal(by_path.values[0], rows.values[0])
    fitted.save(tmp_path / "views")
    loaded = ViewSet.load(tmp_path / "views")
    assert isinstance(loaded.views["clip"], ClipView)
    np.testing.assert_array_equal(loaded.transform(catalogue)["clip"].values, rows.values)
    ready = FeatureMatrix(np.eye(6, dtype=np.float32), np.ones(6, np.bool_))
    both = ViewSet.fit(
        ViewsConfig.model_validate({"clip": str(enc)}),
        Catalogue(catalogue.items, {"clip": ready}), np.ones(6, np.bool_),
    )  # fmt: skip
    assert both.names == ("clip", "text", "clip-frames")


def test_without_the_extra(enc, monkeypatch):
    monkeypatch.setattr(encoder_module, "installed", lambda extra: False)
    monkeypatch.setitem(sys.modules, "av", None)
    catalogue = Catalogue(pl.DataFrame({"clip": [b"x"], "title": ["cat dog"]}))
    with pytest.raises(MissingExtraError, match=r"firstlight\[video\]"):
        ViewSet.fit(ViewsConfig.model_validate({"clip": str(enc)}), catalogue, np.ones(1, np.bool_))
    assert ViewSet.fit(ViewsConfig(), catalogue, np.ones(1, np.bool_)).names == ("text",)
