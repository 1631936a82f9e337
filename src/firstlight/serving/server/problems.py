"""Errors as problem JSON (RFC 9457): what is wrong, never where in the code or on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        title: What kind of problem, in a few words.
        detail: What exactly, and what to do about it.
        headers: More headers of the answer.
    """

    def __init__(
        self, status: int, title: str, detail: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(title)
        self.status, self.title, self.detail = status, title, detail
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}


class Json(Response):
    """JSON in ASCII: whatever an id holds, it can be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def response(problem: Problem, **more: Any) -> Response:
    """A problem as an answer."""
    return Json({**problem.body(), **more}, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of ``app`` be answered with a problem."""

    async def own(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return response(error)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = HTTPStatus(error.status_code).phrase
        # Details of the framework stay out: some quote the request.
        return response(Problem(error.status_code, title, "", error.headers))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = [
            {"at": ".".join(str(part) for part in entry["loc"][1:]), "problem": entry["msg"]}
            for entry in error.errors()[:20]
        ]
        first = errors[0]
        detail = f"{first['at']}: {first['problem']}" if first["at"] else first["problem"]
        return response(Problem(422, "The request is not valid", detail), errors=errors)

    app.add_exception_handler(Problem, own)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
