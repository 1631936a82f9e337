"""Words about what was asked for and plays no part, or came to nothing: said, since silence would look like consent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from firstlight.models import MODELS

if TYPE_CHECKING:
    from firstlight.data.dataset import Dataset
    from firstlight.data.split import SplitOptions
    from firstlight.training.config import RunConfig

#: Sections of a run's config that only a training reads, and the one field of them that counts without one.
_OF_TRAINING, _ALWAYS = ("loss", "temperature", "negatives", "training"), "training.threads"
#: A user with fewer pairs keeps them all in training, where a split goes by user.
_SMALLEST_USER = 3


def ignored_by_training(config: RunConfig, given: Iterable[str], fields: Iterable[str]) -> list[str]:
    """What of the options plays no part, since the model has no training.

    Args:
        config: Of the run.
        given: Options that were given and that only a training reads, as the user calls them.
        fields: Fields of the config that were given (``training.lr``, or ``training.lr=0.1``).
    """
    if MODELS.load(config.model.name).trainable:
        return []
    keys = [field.partition("=")[0] for field in fields]
    keys = [key for key in keys if key.partition(".")[0] in _OF_TRAINING and key != _ALWAYS]
    named = list(dict.fromkeys([*given, *keys]))
    if not named:
        return []
    verb = "play" if len(named) > 1 else "plays"
    return [f"{', '.join(named)} {verb} no part: {config.model.name} has no training"]


def without_test(dataset: Dataset) -> list[str]:
    """That a run will have no numbers, if it will not."""
    if dataset.test is not None and dataset.test.n_pairs:
        return []
    return [
        "there is no test part, so there will be no numbers\n"
        "  → hold some pairs out first, with firstlight data split PATH OUT --by random, and train on OUT"
    ]


def of_split(options: SplitOptions, given: Sequence[str], before: Dataset, after: Dataset) -> list[str]:
    """Options of a split that play no part, and parts that came out empty, with the reason.

    Args:
        options: All of them.
        given: Those that were given: ``seed``, ``valid_share``, ``test_share``.
        before: What was split.
        after: Its parts.
    """
    unread = {"leave-last": ("seed", "valid_share", "test_share"), "time": ("seed",)}.get(options.by, ())
    named = [f"--{name.replace('_', '-')}" for name in unread if name in given]
    verb = "plays" if len(named) == 1 else "play"
    notes = [f"{', '.join(named)} {verb} no part in a split by {options.by}"] if named else []
    for part, share in (("test", options.test_share), ("valid", options.valid_share)):
        asked = options.by == "leave-last" or share > 0
        if asked and getattr(after, part) is None:
            notes.append(f"the {part} part is empty: {_why_empty(options, share, before, after)}")
    return notes


def _why_empty(options: SplitOptions, share: float, before: Dataset, after: Dataset) -> str:
    if options.by == "time":
        pairs = sum(part.n_pairs for part in before.parts.values())
        return f"{share:.0%} of {pairs:,} pairs is less than one\n  → choose a larger share"
    most = int(sum(part.user_degrees for part in after.parts.values()).max(initial=0))  # type: ignore[union-attr]
    if most < _SMALLEST_USER:
        return (
            f"no user has {_SMALLEST_USER} pairs, and a user with fewer keeps them all for training\n"
            "  → split by cold-items or by time, which do not go by user"
        )
    return "users have few pairs, and none was drawn\n  → choose a larger share, or another --seed"
