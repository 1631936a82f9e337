"""What of a config decides a result: the part that runs are told apart by."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class _AddedLater:
    """Stands among the annotations of a field; see :data:`ADDED_LATER`."""


#: Annotation of a field that came after there were runs without it, and whose default is what they did. At its default
#: such a field does not count, so that a run begun before it can be continued and compared after it::
#:
#:     precision: Annotated[Literal["float32", "bfloat16"], ADDED_LATER] = "float32"
ADDED_LATER = _AddedLater()


def decisive(config: BaseModel) -> dict[str, Any]:
    """A config as JSON values, without fields that were added later and stand at their default.

    Args:
        config: The config; configs inside it are treated alike, those in lists and mappings are not looked into.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            tree[name] = decisive(value)
        elif any(isinstance(mark, _AddedLater) for mark in field.metadata) and value == field.get_default():
            del tree[name]
    return tree
