"""The routes. Each takes a request apart, asks, and puts the answer together; what is asked is elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPBearer
from starlette.staticfiles import StaticFiles

import firstlight
from firstlight.serving.approximate import ApproximateIndex
from firstlight.serving.bundle import Bundle
from firstlight.serving.server import metrics, problems, schemas
from firstlight.serving.server.guards import Guard, check_token
from firstlight.serving.server.problems import Json, Problem
from firstlight.serving.server.served import OpenBundle
from firstlight.serving.server.settings import Settings
from firstlight.serving.server.state import State
from firstlight.serving.server.uploads import read_item

_BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with.")
Responses = dict[int | str, dict[str, Any]]


def _problems(texts: dict[int, str]) -> Responses:
    content: dict[str, Any] = {problems.MEDIA_TYPE: {}}
    return {
        status: {"model": schemas.ProblemBody, "content": content, "description": text}
        for status, text in texts.items()
    }


SELDOM = _problems({408: "Too slow", 413: "Too large", 503: "Busy, or not ready"})
WRONG = SELDOM | _problems({400: "Not readable", 404: "Unknown", 422: "Not valid"})
WRONG_WRITE = WRONG | _problems({401: "No token", 403: "Writing is off", 409: "In the way", 415: "Type"})
Words = Annotated[str, Query(max_length=512, description="What an id or a title must hold.")]
Limit = Annotated[int, Query(ge=1, le=1000)]


async def _authorised(request: Request, _: Annotated[Any, Depends(_BEARER)]) -> None:
    """Look at the token once more: what is routed here is a write, whatever the guard took its path for."""
    check_token(request.scope, state_of(request).settings)


read = APIRouter(prefix="/v1", responses=WRONG, tags=["read"])
write = APIRouter(prefix="/v1", responses=WRONG_WRITE, tags=["write"], dependencies=[Depends(_authorised)])
about = APIRouter(responses=SELDOM, tags=["about"])


def create_app(open_bundle: OpenBundle, path: Path, settings: Settings | None = None) -> FastAPI:
    """The application; the catalogue is opened here, so that what is wrong with it is told at once.

    Args:
        open_bundle: Opens a bundle or a run; a function of a module.
        path: What is served.
        settings: Limits, token, index.

    Raises:
        InputError: It cannot be opened.
    """
    settings = settings or Settings()
    state = State(open_bundle, path, settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await state.start()
        try:
            yield
        finally:
            await state.stop()

    app = FastAPI(
        title="firstlight",
        version=firstlight.__version__,
        summary="Recommendations that work for items nobody has clicked yet.",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
    )
    app.state.firstlight = state
    problems.install(app)
    for router in (about, read, write):
        app.include_router(router)
    page = Path(str(files("firstlight.serving"))) / "page"
    if page.is_dir():
        app.mount("/page", StaticFiles(directory=page), name="page")
    app.add_middleware(Guard, settings=settings, metrics=state.metrics)
    return app


def state_of(request: Request) -> State:
    """What the server holds."""
    state: State = request.app.state.firstlight
    return state


def _id(encoded: str) -> str:
    """An id as it stands in a path."""
    try:
        return unquote(encoded, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem(422, "The id cannot be used", "it is no valid UTF-8") from error


# About


@about.get("/", include_in_schema=False)
def index() -> Response:
    """The page."""
    page = files("firstlight.serving") / "page" / "index.html"
    if not page.is_file():
        raise Problem(404, "No page", "this server has an API only; see /openapi.json")
    return Response(page.read_bytes(), media_type="text/html; charset=utf-8")


@about.get("/health/live")
async def live() -> Response:
    """Whether the process answers at all."""
    return Json({"status": "ok"})


@about.get("/health/ready")
async def ready(request: Request) -> Response:
    """Whether lists can be made."""
    state = state_of(request)
    if not state.ready:
        raise Problem(503, "Not ready")
    return Json({"status": "ok", "version": state.served.bundle.version})


@about.get("/version", response_model=schemas.About)
async def version(request: Request) -> Response:
    """What is running, and on what."""
    state = state_of(request)
    snapshot = state.served.bundle.snapshot
    on = state.catalogue.on(snapshot)
    used, reasons = on.index, snapshot.base.reasons
    return Json(
        {
            "firstlight": firstlight.__version__,
            "version": snapshot.version,
            "items": int(snapshot.alive.sum()),
            "users": len(snapshot.base.user_ids),
            "index": used.about["kind"] if isinstance(used, ApproximateIndex) else "exact",
            "takes_new_items": state.served.encoder is not None,
            "histories": "model" if on.new_users.by_model else "fold-in",
            "views": [view.name for view in reasons.views] if reasons else [],
            "hyperedges": reasons is not None and reasons.hyperedges,
        }
    )


@about.get("/metrics", response_class=Response)
async def prometheus(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    state = state_of(request)
    return Response(state.metrics.text(state.gauges()), media_type=metrics.MEDIA_TYPE)


# Reading


@read.post("/recommend", response_model=schemas.RecommendAnswer)
async def recommend(request: Request, asked: schemas.RecommendRequest) -> Response:
    """The best items of a user, or of somebody with a history."""
    return Json(await state_of(request).lists.ask(asked))


@read.post("/recommend/batch", response_model=schemas.RecommendAnswers)
async def recommend_batch(request: Request, asked: schemas.RecommendBatch) -> Response:
    """Lists of several; one that cannot be made is a problem in its place."""
    return Json(await _several(state_of(request), asked.requests))


@read.post("/similar", response_model=schemas.SimilarAnswer)
async def similar(request: Request, asked: schemas.SimilarRequest) -> Response:
    """The items most like an item."""
    return Json(await state_of(request).lists.ask(asked))


@read.post("/similar/batch", response_model=schemas.SimilarAnswers)
async def similar_batch(request: Request, asked: schemas.SimilarBatch) -> Response:
    """Lists of several; one that cannot be made is a problem in its place."""
    return Json(await _several(state_of(request), asked.requests))


async def _several(state: State, asks: Any) -> dict[str, Any]:
    found = await asyncio.gather(*(state.lists.ask(ask) for ask in asks), return_exceptions=True)
    answers = []
    for entry in found:
        if isinstance(entry, BaseException) and not isinstance(entry, Problem):
            raise entry
        answers.append(entry.body() if isinstance(entry, Problem) else entry)
    return {"answers": answers}


@read.get("/users", response_model=schemas.Users)
def users(request: Request, query: Words = "", limit: Limit = 20) -> Response:
    """Users by a part of their id."""
    return Json({"users": state_of(request).catalogue.find_users(query, limit)})


@read.get("/users/{user}", response_model=schemas.History)
def user(request: Request, user: str, limit: Limit = 100) -> Response:
    """A user and what they have clicked."""
    return Json(state_of(request).catalogue.user(_id(user), limit))


@read.get("/items", response_model=schemas.Items)
def items(request: Request, query: Words = "", limit: Limit = 20) -> Response:
    """Items by a part of their id or title; what was added last comes first."""
    return Json({"items": state_of(request).catalogue.find_items(query, limit)})


@read.get("/items/{item}", response_model=schemas.ItemDetails)
def item(request: Request, item: str) -> Response:
    """An item."""
    return Json(state_of(request).catalogue.details(_id(item)))


@read.get(
    "/items/{item}/cover",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "As before"}},
)
def cover(request: Request, item: str) -> Response:
    """A small picture of an item, encoded anew by this server."""
    found = state_of(request).catalogue.cover(_id(item))
    tag = f'"{hashlib.sha256(found).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=60"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(found, media_type="image/jpeg", headers=headers)


@read.get("/map", response_model=schemas.Map)
def catalogue_map(request: Request, limit: Annotated[int, Query(ge=1, le=5000)] = 2000) -> Response:
    """Items in two dimensions."""
    return Json(state_of(request).catalogue.map(limit))


# Writing

_CONTENT = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "cover": {"type": "string", "format": "binary"},
                        "title": {"type": "string"},
                        "id": {"type": "string"},
                        "features": {"type": "string", "description": "JSON: name to list of numbers."},
                    },
                    "additionalProperties": {"type": "string"},
                }
            },
            "application/json": {"schema": schemas.NewItem.model_json_schema()},
        },
    }
}


@write.post("/items", status_code=201, response_model=schemas.Added, openapi_extra=_CONTENT)
async def add_item(request: Request, replace: bool = False) -> Response:
    """Make an item recommendable by its content. When this answers, it is on the disk and in everybody's ranking."""
    state = state_of(request)
    name, content = await read_item(request, state.settings)
    return Json(await state.add(name, content, replace=replace), 201)


@write.delete("/items/{item}", response_model=schemas.Version)
async def remove_item(request: Request, item: str) -> Response:
    """Take an item out of the catalogue."""
    state, name = state_of(request), _id(item)
    state.catalogue.row(state.served.bundle.snapshot, name)
    return Json(await state.change(lambda bundle: bundle.remove_items([name])))


@write.post("/block", response_model=schemas.Ruled)
async def block(request: Request, asked: schemas.ItemList) -> Response:
    """Keep items out of every list, whether they are in the catalogue or come later."""
    return await _ruled(request, asked.items, lambda bundle: bundle.block(asked.items))


@write.delete("/block", response_model=schemas.Ruled)
async def unblock(request: Request, asked: schemas.ItemList) -> Response:
    """Let items into lists again."""
    return await _ruled(request, asked.items, lambda bundle: bundle.unblock(asked.items))


@write.post("/boost", response_model=schemas.Ruled)
async def boost(request: Request, asked: dict[schemas.Id, schemas.Finite]) -> Response:
    """Lift items by a factor above one, or lower them; one takes a boost back."""
    if len(asked) > schemas.MAX_IDS:
        raise Problem(422, "Too many items", f"at most {schemas.MAX_IDS} at once")
    return await _ruled(request, asked, lambda bundle: bundle.boost(asked))


async def _ruled(request: Request, items: Iterable[str], change: Callable[[Bundle], int]) -> Response:
    """Change rules, and tell of items that are not there: a mistyped id must not look like a rule that works."""
    state = state_of(request)
    done = await state.change(change)
    snapshot = state.served.bundle.snapshot
    return Json({**done, "unknown": [item for item in items if snapshot.row(item) is None]})


@write.post("/reload", response_model=schemas.Reloaded)
async def reload(request: Request) -> Response:
    """Serve what stands in the bundle's place now; no request is dropped.

    What was added to the old bundle is encoded again by the new one; what was removed stays out; blocks and boosts
    stay.
    """
    return Json(await state_of(request).reload())


@write.post("/rollback", response_model=schemas.Version)
async def rollback(request: Request, asked: schemas.RollbackRequest) -> Response:
    """Go back to an older version; blocked items and boosts stay."""
    return Json(await state_of(request).change(lambda bundle: bundle.rollback(asked.version)))
