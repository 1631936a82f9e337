"""What may enter the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from firstlight.core.errors import InputError


def id_list(ids: str | Iterable[str]) -> list[str]:
    """Ids as a list, checked; one alone is a list of one.

    Raises:
        InputError: As :func:`check_ids`, or they are no list of ids.
    """
    if not isinstance(ids, Iterable):
        raise InputError(f"{ids!r} is no list of item ids")
    # Texts of numpy are texts, too, but nothing behind this need know of them.
    found = [ids] if isinstance(ids, str) else [str(i) if isinstance(i, str) else i for i in ids]
    check_ids(found)
    return found


def check_factors(factors: Mapping[str, float]) -> dict[str, float]:
    """Boosts by item, as plain numbers.

    Raises:
        InputError: An id cannot be used, or a factor is not a number between 0.01 and 100.
    """
    if not isinstance(factors, Mapping):
        raise InputError(f"{factors!r} does not say which item has which factor", hint="such as {'i7': 1.5}")
    ids = id_list(factors)
    for item, factor in factors.items():
        if not isinstance(factor, Real) or isinstance(factor, bool) or not 0.01 <= factor <= 100:
            raise InputError(
                f"the boost of {item!r} is {factor!r}", hint="factors are numbers between 0.01 and 100"
            )
    return dict(zip(ids, map(float, factors.values()), strict=True))


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that cannot be used.

    Raises:
        InputError: An id is empty, no text, not to be held by UTF-8, or there twice.
    """
    for item in ids:
        if not isinstance(item, str) or not item.strip():
            raise InputError(f"{item!r} is not an item id", hint="ids are text, and not empty")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the id {item!r} is no valid Unicode") from error
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        again = next(item for item in ids if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise InputError(f"item {again!r} is there twice", hint="name every item once")


def check_beside(n: int, what: str, values: Sequence[bytes | None]) -> None:
    """Refuse covers or contents that do not stand one beside each item.

    Args:
        n: Number of items.
        what: The argument, for the message.
        values: ``(n,)``, or nothing at all.

    Raises:
        InputError: There are more or fewer, or one is not bytes.
    """
    if len(values) not in (0, n):
        raise InputError(
            f"there are {len(values)} {what} for {n} items",
            hint="give one for each item, in the same order, or none at all",
        )
    odd = next((value for value in values if not isinstance(value, bytes | None)), None)
    if odd is not None:
        raise InputError(f"one of the {what} is {type(odd).__name__}, and bytes were expected")


def check_vectors(ids: Sequence[str], vectors: Tensor, dim: int) -> Tensor:
    """A float32 copy of new vectors: the caller's tensor may change later, what is served may not.

    Args:
        ids: ``(n,)`` raw ids of the new items.
        vectors: ``(n, dim)``, any float type and device, or a numpy array.
        dim: Width of the catalogue's vectors.

    Raises:
        InputError: The shape is another one, or a value is not finite.
    """
    try:
        rows = torch.as_tensor(vectors).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the new vectors are no matrix of numbers ({error})") from error
    if tuple(rows.shape) != (len(ids), dim):
        raise InputError(
            f"the new vectors have shape {tuple(rows.shape)}, the catalogue needs {(len(ids), dim)}"
        )
    bad = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(f"{len(bad)} new vectors hold NaN or infinity, the first is of item {ids[bad[0]]!r}")
    return rows
