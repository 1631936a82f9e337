"""What a client sends as a new item, checked before it goes anywhere."""

from __future__ import annotations

import json
import uuid
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from firstlight.core.errors import InputError
from firstlight.serving.checks import check_ids
from firstlight.serving.server.encoding import Content
from firstlight.serving.server.problems import Problem
from firstlight.serving.server.schemas import RESERVED, Features, NewItem
from firstlight.serving.server.settings import Settings

_FIELDS, _NAME, _TEXT = 32, 64, 20_000
_FEATURES = TypeAdapter(Features)

#: How picture files begin; the decoder has the last word.
_MAGIC = (
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/gif", 0, b"GIF8"),
    ("image/webp", 8, b"WEBP"),
    ("image/bmp", 0, b"BM"),
    ("image/tiff", 0, b"II*\x00"),
    ("image/tiff", 0, b"MM\x00*"),
    ("image/avif", 4, b"ftypavi"),
)
_SAME = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-ms-bmp": "image/bmp",
    "image/x-png": "image/png",
}
_UNTOLD = ("", "application/octet-stream")


async def read_item(request: Request, settings: Settings) -> tuple[str, Content]:
    """The new item of a request: a form with a file, or JSON.

    Raises:
        Problem: It is neither, or something of it cannot be used.
        RequestValidationError: A field does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        item, texts, features, cover = await _json(request)
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        item, texts, features, cover = await _form(request, settings)
    else:
        raise Problem(415, "Unknown content type", "send multipart/form-data or application/json")
    if max(len(texts), len(features)) > _FIELDS:
        raise Problem(422, "Too many fields", f"an item has at most {_FIELDS} texts and {_FIELDS} features")
    for name, text in texts.items():
        if name in RESERVED or not name.strip() or len(name) > _NAME or len(text) > _TEXT:
            raise Problem(422, "A field cannot be used", f"{name[:_NAME]!r} is reserved or too long")
        _encodable(name)
        _encodable(text)
    if not texts and not features and cover is None:
        raise Problem(422, "There is nothing to go by", "give a cover, a title or features")
    item = f"new-{uuid.uuid4().hex[:12]}" if item is None else item
    try:
        check_ids([item])
    except InputError as error:
        raise Problem(422, "The id cannot be used", error.problem) from error
    return item, Content(texts, cover, features, settings.max_pixels)


async def _json(request: Request) -> tuple[str | None, dict[str, str], Features, None]:
    try:
        raw: Any = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Problem(400, "The request is no JSON", "") from error
    try:
        new = NewItem.model_validate(raw)
    except ValidationError as error:
        raise _invalid(error, "body") from error
    texts: dict[str, str] = {} if new.title is None else {"title": new.title}
    for name, value in (new.model_extra or {}).items():
        if not isinstance(value, str):
            raise Problem(422, "A field cannot be used", f"{name[:_NAME]!r} is no text")
        texts[name] = value
    return new.id, texts, dict(new.features), None


def _invalid(error: ValidationError, *where: str) -> RequestValidationError:
    return RequestValidationError([{**entry, "loc": (*where, *entry["loc"])} for entry in error.errors()])


async def _form(
    request: Request, settings: Settings
) -> tuple[str | None, dict[str, str], Features, bytes | None]:
    try:
        form = await request.form(max_files=1, max_fields=_FIELDS, max_part_size=settings.max_json_bytes)
    except (HTTPException, ValueError) as error:
        raise Problem(
            400, "The form cannot be read", "it is torn, or has too many or too long fields"
        ) from error
    texts: dict[str, str] = {}
    cover: bytes | None = None
    async with form_closing(form):
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "cover":
                    raise Problem(422, "Unknown file", "the only file is called cover")
                cover = checked_picture(await value.read(), value.content_type or "")
                if cover is None and value.filename:  # without a name it is a form where nobody chose a file
                    raise Problem(422, "The cover cannot be used", "the file is empty")
            elif name in texts:
                raise Problem(422, "A field is there twice", f"{name[:_NAME]!r}")
            elif name == "cover":
                if value:  # browsers send an empty field where no file was chosen
                    raise Problem(422, "The cover is no file", "send it as a file")
            else:
                texts[name] = value
    item = texts.pop("id", None) or None
    if item is not None and len(item) > 512:
        raise Problem(422, "The id cannot be used", "it has more than 512 characters")
    features = _features(texts.pop("features", ""))
    return item, {name: text for name, text in texts.items() if text}, features, cover or None


def _features(text: str) -> Features:
    """Features as a form has them: one field of JSON."""
    if not text:
        return {}
    try:
        return _FEATURES.validate_python(json.loads(text))
    except ValidationError as error:
        raise _invalid(error, "body", "features") from error
    except (ValueError, RecursionError) as error:
        raise Problem(
            422, "The features cannot be used", "send a JSON object of lists of numbers, by name"
        ) from error


def form_closing(form: Any) -> Any:
    """The form's temporary files go with it."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def closing() -> Any:
        try:
            yield
        finally:
            await form.close()

    return closing()


def checked_picture(content: bytes, told: str) -> bytes | None:
    """A picture whose content is what it is said to be; None if it is empty.

    Raises:
        Problem: It is not.
    """
    if not content:
        return None
    told = told.partition(";")[0].strip().lower()
    told = _SAME.get(told, told)
    found = next((kind for kind, at, magic in _MAGIC if content[at : at + len(magic)] == magic), None)
    if found is None:
        raise Problem(415, "The cover is no picture", "send JPEG, PNG, GIF, WebP, AVIF, BMP or TIFF")
    if told not in (*_UNTOLD, found):
        raise Problem(415, "The cover is not what it says", f"it is {found}")
    return content


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(422, "A field cannot be used", "a text is no valid Unicode") from error
