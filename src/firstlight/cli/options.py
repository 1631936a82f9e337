"""Options that several commands share, and the decorator that adds them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from firstlight.cli.exits import Interrupted
from firstlight.cli.output import Answer, show
from firstlight.core.choices import one_of
from firstlight.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from firstlight.data.dataset import Dataset
    from firstlight.data.formats import ReadOptions

Config = TypeVar("Config", bound="BaseModel")


def _as_json(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")
    ] = False,
) -> None: ...


def _reader(
    user: Annotated[str | None, typer.Option(help="Name of the user column.")] = None,
    item: Annotated[str | None, typer.Option(help="Name of the item column.")] = None,
    time: Annotated[str | None, typer.Option(help="Name of the time column.")] = None,
    value: Annotated[str | None, typer.Option(help="Name of the rating or strength column.")] = None,
    min_value: Annotated[
        float | None, typer.Option(help="Count a pair only if its value is at least this.")
    ] = None,
    k_core: Annotated[
        str | None,
        typer.Option(metavar="USER,ITEM", help="Keep users and items with at least so many pairs."),
    ] = None,
    duplicates: Annotated[
        str | None, typer.Option(metavar="first|last|sum", help="Which of several equal pairs counts.")
    ] = None,
    on_bad_rows: Annotated[
        str | None, typer.Option(metavar="error|skip", help="Stop at a row that cannot be read, or skip it.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether a table's first line holds names; without, columns are numbered: --user 1.",
        ),
    ] = None,
    catalogue_item: Annotated[
        str | None, typer.Option(help="Name of the item column in the table of items, if it is another one.")
    ] = None,
) -> None: ...


@dataclass(frozen=True)
class Reading:
    """The reader options of the command line, as typed; None where the user said nothing."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    value: str | None = None
    min_value: float | None = None
    k_core: str | None = None
    duplicates: str | None = None
    on_bad_rows: str | None = None
    header: bool | None = None
    catalogue_item: str | None = None

    def options(self) -> ReadOptions:
        """The options as the data room takes them.

        Raises:
            InputError: A value is not one of those allowed.
        """
        from firstlight.data.formats import ReadOptions

        given: dict[str, Any] = {
            name: entry for name, entry in vars(self).items() if entry is not None and name != "k_core"
        }
        for name, allowed in (("duplicates", ("first", "last", "sum")), ("on_bad_rows", ("error", "skip"))):
            if name in given:
                one_of(given[name], allowed, "--" + name.replace("_", "-"))
        if self.k_core is not None:
            given["k_core"] = two_integers(self.k_core, "--k-core")
        return ReadOptions(**given)

    def read(self, path: Path) -> Dataset:
        """Read a dataset of any supported format."""
        from firstlight.data.formats import read_dataset

        return read_dataset(path, self.options())


def command(
    app: typer.Typer, name: str, *, reads: bool = False, interrupted: str | None = None
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function that returns an :class:`Answer` as a command.

    Args:
        app: Where to register.
        name: The command's name.
        reads: Whether to add the reader options; they arrive as the argument ``reading``.
        interrupted: What to tell a user who presses Ctrl-C.

    Returns:
        A decorator; it gives the function back unchanged.
    """

    def register(body: Callable[..., Answer]) -> Callable[..., Answer]:
        own = [parameter for parameter in _parameters(body) if parameter.name != "reading"]
        shared = _parameters(_reader) if reads else []
        parameters = [*own, *shared, *_parameters(_as_json)]

        @functools.wraps(body)
        def run(**values: Any) -> int:
            as_json = values.pop("as_json")
            if reads:
                values["reading"] = Reading(**{p.name: values.pop(p.name) for p in shared})
            try:
                answer = body(**values)
            except KeyboardInterrupt:
                raise Interrupted(interrupted) from None
            show(answer, as_json=as_json)
            return answer.exit_code

        # Typer reads names, types and defaults from the signature; the body's own lacks the shared options.
        del run.__wrapped__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(run)
        return body

    return register


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of ``function`` as keyword-only ones, with annotations resolved."""
    names = {name for name in inspect.signature(function).parameters if name != "reading"}
    bare = {name: hint for name, hint in function.__annotations__.items() if name in names}
    hints = get_type_hints(
        type("Hints", (), {"__annotations__": bare, "__module__": function.__module__}), include_extras=True
    )
    return [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name in names
    ]


def integers(text: str, option: str) -> list[int]:
    """Positive integers from ``10,20,50``.

    Raises:
        InputError: Something else stands there.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(
            f"{option} {text!r} is not a list of positive whole numbers", hint="for example 10,20,50"
        )
    return sorted(set(numbers))


def two_integers(text: str, option: str) -> tuple[int, int]:
    """Two whole numbers from ``5,5``; a single one counts for both.

    Raises:
        InputError: Something else stands there.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise InputError(
            f"{option} {text!r} is not a pair of whole numbers",
            hint="for example 5,5: 5 per user, 5 per item",
        )
    return int(parts[0]), int(parts[-1])


def names(text: str) -> list[str]:
    """Raw ids from ``a,b,c``."""
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def settings(pairs: list[str], option: str = "--set") -> dict[str, Any]:
    """Typed settings from ``key=value``; values are read as YAML, so ``0.1`` is a number.

    Raises:
        InputError: A pair has no ``=``.
    """
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{option} {pair!r} is not of the form key=value")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{option} {pair!r}: the value cannot be read") from error
    return found


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``{"linear.epochs": 1}`` as ``{"linear": {"epochs": 1}}``."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        here = tree
        for name in above:
            here = here.setdefault(name, {})
        here[last] = value
    return tree


def validated(config: type[Config], fields: dict[str, Any], option: str = "--set") -> Config:
    """Build a pydantic config; what it refuses is the user's error, named by field.

    Raises:
        InputError: A field is unknown, or a value does not fit.
    """
    from pydantic import ValidationError

    from firstlight.core.refusals import refusal

    try:
        return config.model_validate(fields)
    except ValidationError as error:
        problem, hint = refusal(error, config)
        raise InputError(f"{option}: {problem}", hint=hint) from error
