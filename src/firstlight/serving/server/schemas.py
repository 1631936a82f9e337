"""What the API takes and gives. Ids are raw strings with any Unicode."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_IDS, MAX_K, MAX_BATCH = 10_000, 1000, 256

Id = Annotated[str, Field(min_length=1, max_length=512)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]
#: Numbers of a body are numbers: "2" and true are refused.
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Length = Annotated[int, Field(ge=1, le=MAX_K, strict=True)]
#: Ready-made features of an item, by the names that training knew.
Features = dict[str, Annotated[list[Finite], Field(max_length=65_536)]]
#: Fields that content may not be named by: they mean something else to a catalogue.
RESERVED = frozenset({"item", "id", "row", "cover", "clip", "role", "arrived", "features", "replace"})


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


class RecommendRequest(BaseModel):
    """Who the list is for, and what may be in it."""

    model_config = _example(user="u000", k=20, only_new=False)

    user: Id | None = Field(default=None, description="A user of the log; what they have seen is left out.")
    history: Ids | None = Field(
        default=None, description="Items that somebody else has clicked; left out, too."
    )
    k: Length = 20
    exclude: Ids = Field(default=[], description="Items that must not be in the list.")
    candidates: Ids | None = Field(default=None, description="Items that alone may be in the list.")
    only_new: bool = Field(default=False, strict=True, description="Only items that nobody has clicked.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.user is None) == (self.history is None):
            raise ValueError("name a user or a history, and not both")
        return self


class RecommendBatch(BaseModel):
    """Several lists at once."""

    model_config = _example(requests=[{"user": "u000"}, {"history": ["v003", "v010"], "k": 5}])

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=MAX_BATCH)]


class SimilarRequest(BaseModel):
    """An item of the catalogue."""

    model_config = _example(item="v003", k=10)

    item: Id
    k: Length = 10


class SimilarBatch(BaseModel):
    """Several lists at once."""

    model_config = _example(requests=[{"item": "v003", "k": 10}])

    requests: Annotated[list[SimilarRequest], Field(min_length=1, max_length=MAX_BATCH)]


class Item(BaseModel):
    """An item as lists show it."""

    id: str
    title: str | None
    cover: str | None = Field(description="Address of a small picture on this server.")
    new: bool = Field(description="Nobody has clicked it.")


class Named(BaseModel):
    """An item, by id and title."""

    id: str
    title: str | None


class Hyperedge(BaseModel):
    """A group of items that training found in a view."""

    number: int = Field(description="Its place among those of the view.")
    weight: float = Field(description="How much of the item is in it: 1 is all.")
    items: list[Named] = Field(description="The clicked items that weigh most in it.")


class Why(BaseModel):
    """The item of the history that is most like the recommended one, and what they have in common."""

    item: str
    title: str | None
    view: str | None = Field(
        description="The view in which they are most alike; null: in none more than two items at random, or the "
        "model reads no content."
    )
    hyperedge: Hyperedge | None = Field(
        description="The item's hyperedge in that view, where the model has learned some that count in the score, and "
        "this one has at least twice the weight that all would have if they had the same."
    )


class Recommended(Item):
    """An item of a list."""

    score: float
    why: Why | None


_RECOMMENDED: dict[str, Any] = {
    "id": "v017",
    "title": "Tango rehearsal with the dancer",
    "cover": "/v1/items/v017/cover",
    "new": True,
    "score": 0.61,
    "why": {
        "item": "v003",
        "title": "Salsa night",
        "view": "text",
        "hyperedge": {
            "number": 4,
            "weight": 0.71,
            "items": [{"id": "v003", "title": "Salsa night"}, {"id": "v029", "title": "Dance class"}],
        },
    },
}


class RecommendAnswer(BaseModel):
    """A list, and the version of the catalogue that it was made from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"version": 1, "user": "u000", "basis": "model", "unknown": [], "items": [_RECOMMENDED]}
            ]
        }
    )

    version: int
    user: str | None
    basis: Literal["model", "popular"] = Field(
        description="popular: training saw no click of the user, so these are the items with most clicks."
    )
    unknown: list[str] = Field(description="Items of the history that are not known, and so play no part.")
    items: list[Recommended]


class RecommendAnswers(BaseModel):
    """Lists, or problems, in the order of the requests."""

    answers: list[RecommendAnswer | dict[str, Any]]


class Similar(Item):
    """An item and the cosine of its vector with the other's."""

    score: float


class SimilarAnswer(BaseModel):
    """A list."""

    version: int
    item: str
    items: list[Similar]


class SimilarAnswers(BaseModel):
    """Lists, or problems, in the order of the requests."""

    answers: list[SimilarAnswer | dict[str, Any]]


class User(BaseModel):
    """A user of the log."""

    id: str
    clicks: int


class Users(BaseModel):
    """Users."""

    users: list[User]


class History(BaseModel):
    """A user and what the log holds of them."""

    id: str
    clicks: int
    history: list[Item]


class Items(BaseModel):
    """Items."""

    items: list[Item]


class ItemDetails(Item):
    """An item with all its texts."""

    texts: dict[str, str | None]
    blocked: bool
    boost: float


class NewItem(BaseModel):
    """A new item without a file: texts as further fields, features by the names that training knew."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"id": "fresh-1", "title": "Tango rehearsal", "features": {"sound": [0.1, 0.2]}}]
        },
    )

    id: Id | None = None
    title: Annotated[str, Field(max_length=20_000)] | None = None
    features: Features = {}


class Listener(BaseModel):
    """Somebody who would like an item."""

    user: str
    score: float


class Added(BaseModel):
    """A new item: durable, and in everybody's ranking from this version on."""

    id: str
    version: int
    similar: list[Similar]
    audience: list[Listener]


class Version(BaseModel):
    """A version of the catalogue."""

    version: int


class Ruled(Version):
    """A version of the catalogue, and named items that are not in it."""

    unknown: list[str] = Field(
        description="Items that are not in the catalogue; what was said of them counts should they come."
    )


class Lost(BaseModel):
    """An item that is in the old bundle only."""

    id: str
    reason: str


class Reloaded(Version):
    """What is served now, and what went along."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": 2,
                    "carried": 12,
                    "lost": [{"id": "clip-7", "reason": "its content was not kept"}],
                }
            ]
        }
    )

    carried: int = Field(
        description="Items that had been added to the old bundle and are in the new one now."
    )
    lost: list[Lost] = Field(
        description="Items that had been added to the old bundle and could not go along."
    )


class ItemList(BaseModel):
    """Items to block, or to let in again."""

    model_config = _example(items=["v003"])

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_IDS)]


class RollbackRequest(BaseModel):
    """A version to go back to."""

    model_config = _example(version=1)

    version: Annotated[int, Field(ge=0, lt=1 << 53, strict=True)]


class Point(BaseModel):
    """An item on the map."""

    id: str
    x: float
    y: float
    topic: int
    new: bool
    title: str | None


class Map(BaseModel):
    """Items in two dimensions, near each other where their vectors are."""

    version: int
    items: list[Point]


class About(BaseModel):
    """What is running, and on what."""

    firstlight: str
    version: int
    items: int
    users: int
    index: str
    takes_new_items: bool
    histories: str = Field(
        description="How users are made of histories: by the model's own rule (`model`), or `fold-in`."
    )
    views: list[str] = Field(description="Views that explain lists.")
    hyperedges: bool = Field(description="Whether hyperedges explain lists, too.")


class ProblemBody(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
