"""Splits: which pairs are learned from, which choose the model, which give the final numbers.

Every split is a function of the pooled pairs, the options and the seed alone: equal input gives equal
parts. The parts are disjoint and their union is the input; timestamps and values travel with their pair.

==============  ==========================================================================================
``random``      Per user at random. A user with ``d >= 3`` pairs gives ``d * share`` of them, rounded up or
                down at random such that the share holds on average, and keeps at least one; a user with
                fewer pairs gives none.
``time``        Two global cuts: all pairs in order of time (ties by user row, then item row); the first
                ``1 - valid_share - test_share`` of them train, the last ``test_share`` test. Users and
                items that appear only after a cut are absent from training, as they are in life.
``leave-last``  Each user's last pair tests, the one before it validates (ties by item row); users with
                fewer than three pairs stay in training. The shares are not used.
``cold-items``  ``test_share`` and ``valid_share`` of the items, drawn uniformly and without replacement
                among the items with at least one pair, leave training with *all* their pairs. Popularity
                plays no part in the draw, so cold items are as popular as others on average. The
                remaining (warm) pairs are split per user as in ``random`` with the same shares, so that
                valid and test hold warm targets beside the cold ones. A user whose every pair is on a
                cold item has no training pair.
==============  ==========================================================================================

Roles: ``cold-items`` and ``time`` write the column ``role`` of the catalogue. Under ``cold-items`` it is
the draw, and items without any pair are ``warm`` (they are in the pool and never a target). Under
``time`` an item without a training pair is ``cold-valid`` if it has a valid pair, else ``cold-test`` if it
has a test pair. The other two splits hold no item cold on purpose, so they remove an older ``role``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_strings
from firstlight.core.seeds import numpy_stream
from firstlight.data.catalogue import Catalogue
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.interactions import Interactions

SplitName = Literal["random", "time", "leave-last", "cold-items"]

_TRAIN, _VALID, _TEST = 0, 1, 2
_ROLES = ("warm", "cold-valid", "cold-test")
_SMALLEST_SPLIT_USER = 3
_Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class SplitOptions:
    """How to split a dataset.

    Attributes:
        by: The kind of split; see the module's table.
        seed: Seed of ``random`` and ``cold-items``; the other two draw nothing.
        valid_share: Share of pairs (``cold-items``: of items, and of warm pairs) for validation, in [0, 1).
        test_share: The same for the test part; the two shares together stay below 1.

    Raises:
        InputError: An unknown kind of split, or shares out of range.
    """

    by: SplitName
    seed: int = 0
    valid_share: float = 0.1
    test_share: float = 0.2

    def __post_init__(self) -> None:
        if self.by not in get_args(SplitName):
            raise InputError(
                f"there is no split {self.by!r}", hint=f"known: {', '.join(get_args(SplitName))}"
            )
        _check_shares(self.valid_share, self.test_share)


def carve_validation(train: Interactions, share: float, seed: int) -> tuple[Interactions, Interactions]:
    """Take a validation part out of a training log, per user at random.

    Args:
        train: The log to carve from.
        share: Share of pairs to take, in [0, 1); holds on average over users.
        seed: Seed of the draw.

    Returns:
        ``(rest, valid)``: disjoint, with union ``train`` and the shape of ``train``. Every user with a
        pair keeps at least one in ``rest``; users with fewer than three pairs give none.

    Raises:
        InputError: ``share`` is out of range.
    """
    _check_shares(share, 0.0)
    rng = numpy_stream(seed, "carve-validation")
    codes = _per_user_random(train, valid_share=share, test_share=0.0, rng=rng)
    return train.select(codes == _TRAIN), train.select(codes == _VALID)


def split_dataset(dataset: Dataset, options: SplitOptions) -> Dataset:
    """Pool the parts that a dataset has and split them anew.

    Args:
        dataset: Split or not; its own parts and split are forgotten.
        options: How to split.

    Returns:
        The same users, items and catalogue (but for the column ``role``) with new parts and a new
        :class:`~firstlight.data.dataset.SplitInfo`. A part without pairs is None. A pair that stood in
        several parts is kept once, from the earliest of them, and counted in ``dropped``.

    Raises:
        InputError: The split needs timestamps and the dataset has none, or there are too few items for
            the shares of ``cold-items``.
    """
    pooled = _pool(dataset)
    role: pl.Series | None = None
    if options.by == "random":
        rng = numpy_stream(options.seed, "split", "random")
        codes = _per_user_random(pooled, options.valid_share, options.test_share, rng)
    elif options.by == "time":
        codes = _by_time(pooled, _times(dataset, pooled, options.by), options)
        role = _role_series(_first_part(pooled, codes))
    elif options.by == "leave-last":
        codes = _leave_last(pooled, _times(dataset, pooled, options.by))
    else:
        codes, item_codes = _cold_items(pooled, options)
        role = _role_series(item_codes)

    train, valid, test = (pooled.select(codes == code) for code in (_TRAIN, _VALID, _TEST))
    parts = {"train": train, "valid": valid, "test": test}
    dropped = dict(dataset.dropped)
    repeated = sum(part.n_pairs for part in dataset.parts.values()) - pooled.n_pairs
    if repeated:
        dropped["pair in several parts"] = dropped.get("pair in several parts", 0) + repeated
    draws = options.by in ("random", "cold-items")
    return replace(
        dataset,
        train=train,
        valid=valid if valid.n_pairs else None,
        test=test if test.n_pairs else None,
        catalogue=_with_role(dataset.catalogue, role),
        split=SplitInfo(options.by, options.seed if draws else None, hash_parts(parts)),
        dropped=dropped,
    )


def hash_parts(parts: Mapping[str, Interactions | None]) -> str:
    """SHA-256 over named parts, for :class:`~firstlight.data.dataset.SplitInfo`.

    A part without pairs counts as absent, so the hash survives a file format that cannot tell the two
    apart. ``train`` always counts.
    """
    return hash_strings(
        f"{name}={part.content_hash()}"
        for name, part in parts.items()
        if part is not None and (part.n_pairs or name == "train")
    )


def _check_shares(valid_share: float, test_share: float) -> None:
    """Refuse shares that are no shares or that leave nothing to train on."""
    if not (0 <= valid_share < 1 and 0 <= test_share < 1 and valid_share + test_share < 1):
        raise InputError(
            f"shares must lie in [0, 1) and leave something to train on; "
            f"got valid {valid_share} and test {test_share}",
            hint="for example 0.1 and 0.2",
        )


def _pool(dataset: Dataset) -> Interactions:
    """All pairs of all parts; parts without pairs are left out, since they may lack times and values."""
    parts = [part for part in dataset.parts.values() if part.n_pairs]
    if not parts:
        return dataset.train
    pooled = parts[0]
    for part in parts[1:]:
        pooled = pooled.union(part)
    return pooled


def _times(dataset: Dataset, pooled: Interactions, by: str) -> npt.NDArray[np.int64]:
    """The timestamps of the pooled pairs, or an error that says which part has none."""
    if pooled.times is not None:
        return pooled.times
    without = [name for name, part in dataset.parts.items() if part.times is None]
    raise InputError(
        f"the split {by!r} needs timestamps, and dataset {dataset.name!r} has none in: {', '.join(without)}",
        hint="use --by random or --by cold-items, or convert the data with its timestamp column",
    )


def _per_user_random(
    log: Interactions, valid_share: float, test_share: float, rng: np.random.Generator
) -> _Codes:
    """``(n_pairs,)`` part codes: each user's pairs in random order, test first, then valid, then train."""
    degrees = log.user_degrees
    test_quota = _quota(degrees, test_share, rng)
    valid_quota = _quota(degrees, valid_share, rng)
    # One pair stays in training: the test part has the first claim on the others.
    test_quota = np.minimum(test_quota, np.maximum(degrees - 1, 0))
    valid_quota = np.minimum(valid_quota, np.maximum(degrees - 1 - test_quota, 0))
    users = log.users
    order = np.lexsort((rng.random(log.n_pairs), users))
    # Pairs are grouped by user in ascending order, so a shuffled pair's position within its user is:
    position = np.arange(log.n_pairs) - log.indptr[:-1][users]
    codes = np.zeros(log.n_pairs, np.int8)
    held_out = np.where(
        position < test_quota[users],
        _TEST,
        np.where(position < (test_quota + valid_quota)[users], _VALID, _TRAIN),
    )
    codes[order] = held_out
    return codes


def _quota(degrees: npt.NDArray[np.int64], share: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """``(n_users,)`` pairs to take: ``degree * share`` rounded at random without bias; 0 for small users."""
    rounded = np.floor(degrees * share + rng.random(len(degrees))).astype(np.int64)
    return np.where(degrees >= _SMALLEST_SPLIT_USER, rounded, 0)


def _by_time(log: Interactions, times: npt.NDArray[np.int64], options: SplitOptions) -> _Codes:
    """``(n_pairs,)`` part codes by two global cuts in time."""
    # Pairs already ascend by (user, item), so a stable sort breaks ties that way.
    order = np.argsort(times, kind="stable")
    n_test = round(options.test_share * log.n_pairs)
    n_valid = round(options.valid_share * log.n_pairs)
    codes = np.zeros(log.n_pairs, np.int8)
    codes[order[log.n_pairs - n_test - n_valid :]] = _VALID
    codes[order[log.n_pairs - n_test :]] = _TEST
    return codes


def _leave_last(log: Interactions, times: npt.NDArray[np.int64]) -> _Codes:
    """``(n_pairs,)`` part codes: each user's last pair tests, the one before it validates."""
    order = np.lexsort((times, log.users))  # stable: ties stay in item order
    large = np.flatnonzero(log.user_degrees >= _SMALLEST_SPLIT_USER)
    ends = log.indptr[1:][large]
    codes = np.zeros(log.n_pairs, np.int8)
    codes[order[ends - 1]] = _TEST
    codes[order[ends - 2]] = _VALID
    return codes


def _cold_items(log: Interactions, options: SplitOptions) -> tuple[_Codes, _Codes]:
    """Part codes of pairs ``(n_pairs,)`` and of items ``(n_items,)`` (warm = the train code)."""
    clicked = np.flatnonzero(log.item_degrees)
    # A share above zero must yield an item: a cold test part without cold items would mislead.
    n_test = max(round(options.test_share * len(clicked)), options.test_share > 0)
    n_valid = max(round(options.valid_share * len(clicked)), options.valid_share > 0)
    if n_test + n_valid >= len(clicked):
        raise InputError(
            f"{len(clicked)} items have pairs; the shares ask for {n_test} cold test items and "
            f"{n_valid} cold valid items, which leaves no warm item",
            hint="lower --test-share and --valid-share, or use --by random",
        )
    drawn = numpy_stream(options.seed, "split", "cold-items").permutation(clicked)
    item_codes = np.zeros(log.n_items, np.int8)
    item_codes[drawn[:n_test]] = _TEST
    item_codes[drawn[n_test : n_test + n_valid]] = _VALID
    codes = item_codes[log.items]
    warm = codes == _TRAIN
    rng = numpy_stream(options.seed, "split", "cold-items", "warm")
    codes[warm] = _per_user_random(log.select(warm), options.valid_share, options.test_share, rng)
    return codes, item_codes


def _first_part(log: Interactions, codes: _Codes) -> _Codes:
    """``(n_items,)``: the earliest part that an item has a pair in; items without pairs count as train."""
    first = np.full(log.n_items, _TRAIN, np.int8)
    for code in (_TEST, _VALID, _TRAIN):
        first[log.items[codes == code]] = code
    return first


def _role_series(item_codes: _Codes) -> pl.Series:
    """The column ``role`` ``(n_items,)`` from part codes."""
    return pl.Series("role", np.array(_ROLES)[item_codes].tolist(), dtype=pl.String)


def _with_role(catalogue: Catalogue, role: pl.Series | None) -> Catalogue:
    """The catalogue with its column ``role`` replaced, or removed where ``role`` is None."""
    if role is not None and not catalogue.items.width:  # a catalogue without any column has no rows either
        return replace(catalogue, items=role.to_frame())
    if role is not None:
        return replace(catalogue, items=catalogue.items.with_columns(role))
    return replace(catalogue, items=catalogue.items.drop("role", strict=False))
