"""What a config refuses, in words for whoever typed it: the setting, what it may be, and which settings there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: Names that pydantic gives to the members of a union: ``constrained-float``, ``literal['auto']``, ``tuple[int, ...]``.
_UNION_MEMBER = re.compile(r"constrained-\w+$|\w+\[.*\]$")
#: Levels of sections in which a misplaced setting is looked for.
_DEPTH = 3

Config = type[BaseModel]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``did you mean 'training.lr'? ``, or nothing if no name is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def refusal(
    error: ValidationError, config: Config, sections: Mapping[str, Config] | None = None
) -> tuple[str, str | None]:
    """The first thing that a config refuses.

    Args:
        error: What pydantic says.
        config: The config's class.
        sections: Classes of sections that the config's own types do not tell, by name.

    Returns:
        The problem and, where there is one, a hint.
    """
    found = error.errors()
    first, where = found[0], _path(found[0]["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no setting {where!r}", _known(where, config, sections or {})
    if not where:
        return _plain(first["msg"]), None
    if first["type"] == "missing":
        return f"config field {where} is missing", None
    # A field that may be several things has an error for each of them.
    wanted = "; or: ".join(dict.fromkeys(_wanted(each) for each in found if _path(each["loc"]) == where))
    examples = getattr(_field(where, config, sections or {}), "examples", None)
    hint = f"for example {', '.join(map(str, examples))}" if examples else None
    return f"config field {where}: {wanted} (got {first['input']!r})", hint


def _wanted(entry: Mapping[str, Any]) -> str:
    if entry["type"] == "string_pattern_mismatch":  # a regular expression helps nobody
        return "this is not of the form that it must have"
    return _plain(entry["msg"])


def _plain(message: str) -> str:
    said = message.removeprefix("Value error, ")
    return f"it {said.removeprefix('Input ')}" if said.startswith("Input should") else said


def _path(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location if not _UNION_MEMBER.match(str(part)))


def _known(where: str, config: Config, sections: Mapping[str, Config]) -> str:
    """What may have been meant, and what there is in that place."""
    *above, last = where.split(".")
    section = _class_at(above, config, sections) or config
    place = "".join(f"{name}." for name in above)
    guess = did_you_mean(where, [f"{place}{name}" for name in section.model_fields])
    if not guess:  # it may stand in another section
        everything = list(_paths(config, sections))
        same = [path for path in everything if path.rpartition(".")[2] == last]
        guess = f"did you mean {same[0]!r}? " if same else did_you_mean(where, everything)
    inside = f" in {'.'.join(above)}" if above else ""
    return f"{guess}known{inside}: {', '.join(section.model_fields)}"


def _field(where: str, config: Config, sections: Mapping[str, Config]) -> Any:
    *above, last = where.split(".")
    section = _class_at(above, config, sections)
    return None if section is None else section.model_fields.get(last)


def _class_at(path: Sequence[str], config: Config, sections: Mapping[str, Config]) -> Config | None:
    """The class of a section, or None where there is none."""
    here: Config | None = config
    for depth, name in enumerate(path):
        if here is None:
            return None
        field = here.model_fields.get(name)
        found = sections.get(name) if depth == 0 else None
        here = found or (None if field is None else _inner(field.annotation))
    return here


def _paths(
    config: Config, sections: Mapping[str, Config], above: str = "", depth: int = _DEPTH
) -> Iterator[str]:
    for name, field in config.model_fields.items():
        yield above + name
        inner = sections.get(name) if not above else None
        inner = inner or _inner(field.annotation)
        if inner is not None and depth > 1:
            yield from _paths(inner, {}, f"{above}{name}.", depth - 1)


def _inner(annotation: Any) -> Config | None:
    """The config class in a type, such as in ``TextConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_inner, get_args(annotation)) if found is not None), None)
