"""New items as they come: pictures of every kind, names of every kind, bodies that are none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from firstlight.serving.bundle import Bundle
from serving.server.pictures import BAD, GOOD, STRANGE, halves, saved
from serving.server.running import WRITER, Running, checked, picture, server


class Served(Running):
    """A server, and the folder that it serves."""

    folder: Path


@pytest.fixture(scope="module")
def own(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("uploads") / "bundle"))
    with server(folder, "--set", "poll_seconds=0") as running:
        running.__class__ = Served
        running.folder = folder
        assert running.post("/v1/items", {"id": "first", "title": "Soup"}, **WRITER).status_code == 201
        yield running
        # Whatever came: the process that decodes was never lost, and unpacked no bomb.
        counted = running.client.get("/metrics").text.splitlines()
        assert not [line for line in counted if line.startswith("firstlight_encoder_losses_total")]
        peaks = [peak for peak in map(peak_mb, encoders(running.process.pid)) if peak is not None]
        assert peaks
        assert max(peaks) < 900


def encoders(process: int) -> list[int]:
    """Children of a server that encode."""
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [one for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def peak_mb(process: int) -> float | None:
    """Largest resident size so far."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return None


def upload(
    running: Running, cover: bytes, kind: str = "application/octet-stream", name: str = "c", **data: str
) -> httpx.Response:
    files = {"cover": (name, cover, kind)}
    return running.client.post("/v1/items?replace=true", data=data, files=files, headers=WRITER)


# Pictures


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_shown_is_what_a_person_would_see(own, kind):
    content, left, right = GOOD[kind]
    checked(upload(own, content, id="picture"), 201)
    shown = own.client.get("/v1/items/picture/cover")
    assert shown.headers["content-type"] == "image/jpeg"
    assert shown.headers["x-content-type-options"] == "nosniff"
    with Image.open(io.BytesIO(shown.content)) as image:
        assert image.format == "JPEG"
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}  # no EXIF, no profile
        assert max(image.size) <= 256
        pixels = np.asarray(image).astype(int)
    middle, width = pixels[len(pixels) // 2], pixels.shape[1]
    for found, wanted in ((middle[width // 4], left), (middle[width * 3 // 4], right)):
        assert np.abs(found - wanted).max() < 12
    assert b"script" not in shown.content


@pytest.mark.parametrize("kind", BAD)
def test_pictures_that_are_torn_or_bombs_are_refused(own, kind):
    """A good title does not excuse a bad cover, and nothing is added."""
    before = own.client.get("/version").json()
    checked(upload(own, BAD[kind], id="bad", title="Tango rehearsal"), 422)
    assert own.client.get("/version").json() == before


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_picture_is_refused_whatever_it_is_called(own, kind):
    for told in ("image/png", "image/jpeg", "application/octet-stream", "image/svg+xml", "", "text/html"):
        checked(upload(own, STRANGE[kind], told, name="cover.png", id="strange", title="Soup"), 415)
    checked(own.client.get("/v1/items/strange"), 404)


def test_pictures_in_disguise_are_refused(own):
    kinds = {"JPEG": "jpeg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tiff", "BMP": "bmp"}
    for kind, own_type in kinds.items():
        content = saved(halves(), kind)
        for told in kinds.values():
            wanted = (201,) if told == own_type else (415,)
            checked(upload(own, content, f"image/{told}", id="disguised"), *wanted)
        checked(upload(own, content, f"IMAGE/{own_type.upper()} ; charset=x", id="disguised"), 201)
        checked(upload(own, content, "text/html", id="disguised"), 415)


def test_an_empty_cover_is_refused_like_a_torn_one(own):
    checked(upload(own, b"", "image/png", id="empty"), 422)
    answer = checked(upload(own, b"", "image/png", id="empty", title="Soup"), 422)
    assert answer.json()["detail"] == "the file is empty"
    checked(own.client.get("/v1/items/empty"), 404)


def test_a_form_where_nobody_chose_a_file_has_no_cover(own):
    """Browsers send a part with an empty file name then."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = [(b"id", b"", b"none"), (b"title", b"", b"Soup"), (b"cover", b'; filename=""', b"")]
    body = b"".join(part % field for field in fields) + b"--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b", **WRITER}
    checked(own.client.post("/v1/items?replace=true", content=body, headers=kind), 201)
    checked(own.client.get("/v1/items/none/cover"), 404)


@pytest.mark.slow
def test_spoiled_pictures_are_used_or_refused(own):
    """Bytes changed at random in every kind of file: 201 or 422, and the server goes on."""
    rng = np.random.default_rng(0)
    for content, _, _ in GOOD.values():
        for _ in range(60):
            spoiled = bytearray(content[: rng.integers(16, len(content) + 1)])
            for at in rng.integers(12, len(spoiled), size=rng.integers(1, 12)):
                spoiled[at] = rng.integers(256)
            checked(upload(own, bytes(spoiled), id="spoiled"), 201, 422)


# Names and texts

#: Any text at all: lone surrogates, NUL, text from right to left, emoji, paths.
texts = st.one_of(
    st.text(st.characters(codec=None, exclude_categories=()), max_size=40),
    st.sampled_from(
        [
            "../../x",
            "..",
            ".",
            "/etc/passwd",
            "C:\\con",
            "\u202etxt.exe",
            "\ud800",
            "\x00",
            "👩‍👩‍👧",
            "a\u0301",
            "á",
        ]
    ),
    st.sampled_from(["x", "é", "🎬"]).flatmap(
        lambda one: st.sampled_from([511, 512, 513, 20_001]).map(one.__mul__)
    ),
)


def valid(text: str, longest: int) -> bool:
    return len(text) <= longest and not any("\ud800" <= character <= "\udfff" for character in text)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(item=texts, title=texts)
def test_ids_and_titles_are_kept_to_the_letter_or_refused(own, item, title):
    title = f"Soup {title}"  # a word that the model knows
    body = json.dumps({"id": item, "title": title}).encode()
    kind = {"Content-Type": "application/json", **WRITER}
    made = checked(own.client.post("/v1/items?replace=true", content=body, headers=kind), 201, 422)
    usable = valid(item, 512) and bool(item.strip()) and valid(title, 20_000)
    assert (made.status_code == 201) == usable, (item, title)
    names = sorted(path.name for path in own.folder.parent.iterdir() if not path.name.startswith("serve-"))
    assert names == ["bundle"]
    if not usable:
        return
    path = f"/v1/items/{''.join(f'%{byte:02X}' for byte in item.encode())}"
    assert own.client.get(path).json()["title"] == title
    assert made.json()["id"] == item
    listed = own.post("/v1/similar", {"item": item}).json()
    assert listed["item"] == item
    if len(item) < 300:
        found = own.client.get(f"/v1/items?query={quote(item)}&limit=1000").json()["items"]
        assert item in {entry["id"] for entry in found}
    assert Bundle.open(own.folder).item(item)["title"] == title  # what the disk holds is the same
    checked(own.client.delete(path, headers=WRITER), 200)


def test_texts_of_forms_are_any_bytes(own):
    """What is no UTF-8 is some text all the same; names with paths and NUL stay names."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n%s\r\n%s\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b", **WRITER}
    for fields, statuses in (
        ([(b"id", b"", b"", b"form-1"), (b"title", b"", b"", b"Soup \xff\xfe\x00")], (201,)),
        ([(b"title", b"", b"Content-Type: text/plain; charset=nonsense\r\n", b"Soup")], (201,)),
        ([(b"title", b"", b"", b"Soup"), (b"\xff\x00../x", b"", b"", b"y")], (201,)),
        ([(b"title", b"", b"", b"Soup"), (b"title", b"", b"", b"Bread")], (422,)),
        ([(b"title", b"", b"", b"x" * 30_000)], (400, 422)),
        ([(b"title", b"", b"", b"x" * 200_000)], (400, 422)),
        ([(b"n" * 100, b"", b"", b"y"), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"id", b'; filename="x"', b"", b"form-2"), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"cover", b'; filename="../../../tmp/x\x00.png"', b"", picture())], (201,)),
        ([(b"cover", b'; filename="a.png"', b"", picture())] * 2, (400, 422)),
        ([(b"cover", b"", b"", b"/etc/passwd")], (422,)),
        ([(b"clip", b"", b"", b"/etc/passwd"), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b"[1]"), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b"[" * 100_000), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b'{"clip": [1' + b"0" * 5000 + b"]}")], (422,)),
        ([(b"features", b"", b"", b'{"clip": [NaN]}'), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b'{"clip": [1, 2]}'), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b'{"clip": "../x"}'), (b"title", b"", b"", b"Soup")], (422,)),
        ([(b"features", b"", b"", b'{"clip": [' + b"0.5," * 63 + b"0.5]}")], (201,)),
    ):
        body = b"".join(head % field for field in fields) + b"--b--\r\n"
        checked(own.client.post("/v1/items?replace=true", content=body, headers=kind), *statuses)


@pytest.mark.parametrize(
    "boundary",
    ["", "; boundary=", "; boundary=" + "b" * 300, '; boundary="b', "; boundary=b; boundary=c", "; x"],
)
def test_forms_that_cannot_be_taken_apart(own, boundary):
    part = b'Content-Disposition: form-data; name="title"\r\n\r\nSoup\r\n'
    for body in (
        b"",
        b"--",
        b"--b",
        b"--b\r\n",
        b"--b--",
        b"--b\r\n" + part,  # no end
        b"--b\r\n\r\n\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"x: y\r\n" * 5000 + b"\r\nx\r\n--b--\r\n",
        b"--b\r\nx: " + b"y" * 200_000 + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" * 5000,
        (b"--b\r\n" + part) * 500 + b"--b--\r\n",
        b"--b\n" + part.replace(b"\r", b"") + b"--b--\n",
        b"\x00" * 5000,
    ):
        kind = {"Content-Type": f"multipart/form-data{boundary}", **WRITER}
        checked(own.client.post("/v1/items", content=body, headers=kind), 400, 422)
    for body in (b"%", b"=&=&=", b"title=" + b"%FF" * 10, b"&" * 5000, b"a=b&" * 5000, b";", b"x" * 100_000):
        kind = {"Content-Type": "application/x-www-form-urlencoded", **WRITER}
        checked(own.client.post("/v1/items", content=body, headers=kind), 400, 422)


# JSON

_DEEP = 100_000
#: Texts that are no JSON, or none that can be meant.
NO_JSON = {
    "deep list": b"[" * _DEEP + b"]" * _DEEP,
    "deep object": b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
    "deep value": b'{"title":' + b"[" * 900 + b"]" * 900 + b"}",
    "NaN": b"NaN",
    "NaN inside": b'{"user": "u00", "k": NaN, "title": NaN, "version": NaN, "items": NaN, "v03": NaN, "item": NaN}',
    "infinity": b'{"k": Infinity, "version": -Infinity, "v03": Infinity, "features": {"x": [Infinity]}}',
    "huge number": b'{"user": "u00", "k": 1'
    + b"0" * 4000
    + b', "version": 1'
    + b"0" * 4000
    + b', "v03": 1e99999}',
    "number beyond digits": b'{"k": 1' + b"0" * 10_000 + b"}",
    "number in a text": b'{"user": "u00", "item": "v03", "k": "5", "version": "1", "v03": "2", "title": 3}',
    "truth as a number": b'{"user": "u00", "item": "v03", "k": true, "version": true, "v03": true, "title": true}',
    "half a pair": b'{"user": "\\ud800", "item": "\\udfff", "items": ["\\ud800"], "title": "\\ud800", "\\ud800": 2, '
    b'"version": "\\ud800"}',
    "another coding": '{"title": "Soup"}'.encode("utf-16") + b"\xff",
    "a mark before": b"\xef\xbb\xbf{",
    "cut off": b'{"title": "Sou',
    "two": b"{}{}",
    "nothing": b"",
    "null": b"null",
    "only names": b"{" + b",".join(b'"k%d":{}' % at for at in range(5000)) + b"}",
}
_JSON_PATHS = (
    ("POST", "/v1/recommend"),
    ("POST", "/v1/recommend/batch"),
    ("POST", "/v1/similar"),
    ("POST", "/v1/similar/batch"),
    ("POST", "/v1/items"),
    ("POST", "/v1/block"),
    ("DELETE", "/v1/block"),
    ("POST", "/v1/boost"),
    ("POST", "/v1/rollback"),
)


@pytest.mark.parametrize("kind", NO_JSON)
def test_bodies_that_cannot_be_meant_change_nothing(own, kind):
    before = own.client.get("/version").json()
    for method, path in _JSON_PATHS:
        headers = {"Content-Type": "application/json", **WRITER}
        answer = own.client.request(method, path, content=NO_JSON[kind], headers=headers)
        checked(answer, 400, 422)
        assert len(answer.content) < 20_000  # what was sent is not sent back
    assert own.client.get("/version").json() == before
    assert own.post("/v1/recommend", {"user": "u00"}).status_code == 200


def test_an_item_has_a_limited_number_of_fields(own):
    many = {f"field{at}": "x" for at in range(40)}
    checked(own.post("/v1/items", {"title": "Soup", **many}, **WRITER), 422)
    checked(
        own.post("/v1/items", {"title": "Soup", "features": {name: [1.0] for name in many}}, **WRITER), 422
    )
    checked(own.post("/v1/items", {"title": "Soup", "features": {"x": [1.0] * 70_000}}, **WRITER), 422)


def test_a_form_brings_features_along_with_the_cover(own):
    """A model may read both; JSON and a form with the same content make the same item."""
    features = {"clip": np.linspace(-1, 1, 64).tolist()}
    body = {"title": "Tango rehearsal", "features": features}
    data = {"title": "Tango rehearsal", "features": json.dumps(features)}
    plain = own.post("/v1/items?replace=true", {"id": "by-json", **body}, **WRITER).json()
    same = checked(upload(own, b"", name="", id="by-form", **data), 201).json()  # nobody chose a file
    both = checked(upload(own, picture(), id="with-cover", **data), 201).json()
    scores = [[entry["score"] for entry in made["audience"]] for made in (plain, same, both)]
    assert scores[0] == scores[1] != scores[2]
    assert own.client.get("/v1/items/with-cover").json()["texts"] == {"title": "Tango rehearsal"}
    for name in ("by-json", "by-form", "with-cover"):
        own.client.delete(f"/v1/items/{name}", headers=WRITER)


def test_where_memory_runs_out_the_encoder_goes_first(own):
    for process in encoders(own.process.pid):
        assert Path(f"/proc/{process}/oom_score_adj").read_text().strip() == "1000"
    assert Path(f"/proc/{own.process.pid}/oom_score_adj").read_text().strip() != "1000"
