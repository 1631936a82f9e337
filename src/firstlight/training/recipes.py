"""Configs from recipes and single settings: what the runs of recommenders and of encoders share."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from firstlight.core.errors import InputError
from firstlight.core.refusals import did_you_mean, refusal
from firstlight.core.values import plain

Config = TypeVar("Config", bound=BaseModel)

#: Recipes of encoders begin with the command that they are for; all others are for ``train``.
_COMMANDS = ("pretrain", "refine")


def list_recipes(command: str = "train") -> list[str]:
    """Names of the recipes that come with the package for ``train``, ``pretrain`` or ``refine``."""
    folder = resources.files("firstlight") / "recipes"
    names = sorted(Path(str(entry)).stem for entry in folder.iterdir() if str(entry).endswith(".yaml"))
    prefix = command if command in _COMMANDS else "train"
    return [name for name in names if _command_of(name) == prefix]


def _command_of(name: str) -> str:
    start = name.partition("-")[0]
    return start if start in _COMMANDS else "train"


def read_recipe(recipe: str | Path, command: str = "train") -> dict[str, Any]:
    """The content of a recipe.

    Args:
        recipe: Name of a shipped recipe, or a path ending in ``.yaml`` or ``.yml``.
        command: The command that it is for.

    Raises:
        InputError: There is no such recipe, or it is not YAML.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(resources.files("firstlight") / "recipes" / f"{recipe}.yaml"))
        known = list_recipes(command)
        if str(recipe) not in known:
            guess = did_you_mean(str(recipe), known)
            raise InputError(f"there is no recipe {str(recipe)!r}", hint=f"{guess}known: {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the recipe cannot be read: {error.strerror}", path=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe is not YAML: {error}", path=path) from error
    if not isinstance(content, dict):
        keys = "model, loss, …" if command == "train" else "encoder, training, …"
        raise InputError("the recipe does not hold a mapping", path=path, hint=f"its top keys are {keys}")
    return content


def merge(base: dict[str, Any], change: Mapping[str, Any]) -> None:
    """Lay ``change`` over ``base`` in place; another ``name`` drops what belonged to the old one."""
    for key, value in change.items():
        held = base.get(key)
        if isinstance(value, Mapping) and isinstance(held, dict):
            if "name" in value and held.get("name", value["name"]) != value["name"]:
                base[key] = dict(value)
            else:
                merge(held, value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def override(text: str) -> dict[str, Any]:
    """``model.dim=128`` as a nested mapping; the value is YAML.

    Raises:
        InputError: It is not of that form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError(f"--set {text!r} is not of the form key.path=value", hint="e.g. --set model.dim=128")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(
            f"--set {key}: {value!r} is not a YAML value", hint="e.g. --set model.dim=128"
        ) from error
    for name in reversed(key.split(".")):
        nested = {name: nested}
    result: dict[str, Any] = nested
    return result


def setting_texts(fields: Mapping[str, Any]) -> list[str]:
    """``key.path=value`` texts as :func:`override` reads them, from keys and Python values.

    Args:
        fields: Such as ``{"model.dim": 128}``.
    """
    texts = []
    for key, value in fields.items():
        try:
            text = _one_line(value)
        except yaml.YAMLError:  # a path, a number of numpy
            text = _one_line(plain(value))
        texts.append(f"{key}={text}")
    return texts


def _one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()


def validated(
    config: type[Config],
    tree: Mapping[str, Any],
    recipe: str | Path | None = None,
    sections: Mapping[str, type[BaseModel]] | None = None,
) -> Config:
    """Build a config; what it refuses is the user's error, named by field.

    Args:
        config: Its class.
        tree: Its fields.
        recipe: Where they stand, for the message.
        sections: Classes of sections that the config's own types do not tell.

    Raises:
        InputError: A field is unknown, or a value does not fit.
    """
    try:
        return config.model_validate(tree)
    except ValidationError as error:
        problem, hint = refusal(error, config, sections)
        raise InputError(problem, path=None if recipe is None else str(recipe), hint=hint) from error


def config_yaml(config: BaseModel) -> str:
    """The resolved config as YAML, enough to repeat the run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
