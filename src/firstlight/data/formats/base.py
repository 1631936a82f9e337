"""What the readers share: their options, their list of problems, and what a format is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Duplicates

#: How many examples of each kind of problem are kept.
EXAMPLES_PER_KIND = 20
MEND_HINT = "mend the row, or take it out"
SKIP_HINT = "mend the row, or pass --on-bad-rows skip to leave such rows out (they are counted)"


@dataclass(frozen=True)
class ReadOptions:
    """What counts as an interaction, and where a table keeps it.

    Attributes:
        user: Column of user ids, in a table; guessed by common names if None.
        item: Column of item ids.
        time: Column of timestamps; the empty string means "use none".
        value: Column of strengths (rating, watch time); the empty string means "use none".
        min_value: Pairs with a smaller value (after duplicates are merged) are dropped.
        k_core: Minimum degrees of users and items, applied in turn until both hold.
        duplicates: Which of several equal pairs within a part survives: the first or last (by time
            where there are times, else by input order), or their sum.
        on_bad_rows: Stop at the first row that cannot be used, or leave such rows out and count them.
        header: Whether the first line of a CSV or TSV log holds names. If not, columns are called ``1``, ``2``, …; if
            nobody says, a first line that looks like data is refused.
        catalogue_item: Column of item ids in the item table; guessed if None.
        flags: Whether the user can give these options. If not, as where only the items of a path are wanted, hints
            do not name them.
        pictures: Whether bytes of covers are read. If not, the cover is the place in ``items.parquet`` that has them
            (:data:`firstlight.data.parquet.PLACES`), for those who read them one by one.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    value: str | None = None
    min_value: float | None = None
    k_core: tuple[int, int] | None = None
    duplicates: Duplicates = "first"
    on_bad_rows: Literal["error", "skip"] = "error"
    header: bool | None = None
    catalogue_item: str | None = None
    flags: bool = True
    pictures: bool = True


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input.

    Attributes:
        kind: What is wrong, the same words for all cases of a kind.
        file: The file at fault.
        line: 1-based line of a text file, or row of a table, or None.
        problem: What is wrong in this case.
    """

    kind: str
    file: str
    line: int | None
    problem: str


class Problems:
    """Collects what is wrong with the input; in ``error`` mode the first bad row ends the reading.

    Args:
        policy: ``error`` raises at the first bad row, ``skip`` counts it.
        tolerant: Also list, instead of raise, problems that a dataset cannot be read with; such parts
            are left out. For inspection only.
        flags: As in :class:`ReadOptions`.
    """

    def __init__(
        self, policy: Literal["error", "skip"] = "error", *, tolerant: bool = False, flags: bool = True
    ) -> None:
        self.policy = policy
        self.flags = flags
        self.tolerant = tolerant
        self.totals: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: list[Problem] = []

    def _list(self, kind: str, path: Path, line: int | None, problem: str, count: int) -> None:
        self.totals[kind] += count
        if sum(example.kind == kind for example in self.examples) < EXAMPLES_PER_KIND:
            self.examples.append(Problem(kind, str(path), line, problem))

    def bad_row(self, kind: str, path: Path, line: int | None, problem: str, rows: int = 1) -> None:
        """Report ``rows`` input rows that cannot be used and will be left out.

        Raises:
            InputError: The policy is ``error``.
        """
        if self.policy == "error":
            raise InputError(problem, path=path, line=line, hint=SKIP_HINT if self.flags else MEND_HINT)
        self.dropped[kind] += rows
        self._list(kind, path, line, problem, rows)

    def note(self, kind: str, path: Path, problem: str, count: int = 1, line: int | None = None) -> None:
        """Report something that is odd but does not stop the reading."""
        self._list(kind, path, line, problem, count)

    def fatal(self, problem: str, path: Path, hint: str | None = None) -> None:
        """Report something that makes a whole file unusable.

        Raises:
            InputError: Always, except in a tolerant list.
        """
        if not self.tolerant:
            raise InputError(problem, path=path, hint=hint)
        self._list("unusable file", path, None, problem, 1)


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: Short name.
        looks_for: What a path must hold to be of this format, in words.
        detect: Whether a path is of this format; looks at file names, not into the data.
        read: Reads a path that ``detect`` accepted.
    """

    name: str
    looks_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions, Problems], Dataset]
