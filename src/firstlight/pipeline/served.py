"""What is ranked from a folder: a finished run, a run that items were added to, or a bundle; and what is done with it.

Training writes runs and serving writes bundles, and neither knows of the other. Here a folder, whichever it is, is
opened, asked for lists, added to and exported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.files import read_json
from firstlight.serving import lists
from firstlight.serving.adding import add_new_items, refuse_clicked, without_known
from firstlight.serving.bundle import ADDITIONS, Bundle
from firstlight.serving.export import export_run
from firstlight.serving.journal import MANIFEST
from firstlight.serving.new_items import NewItems, read_new_items, with_features
from firstlight.serving.popular import POPULAR, Popular, with_popular
from firstlight.training import recommend as trained
from firstlight.training.run_folder import Run, load_run

#: A folder, or what was opened of one.
Target = Path | Run | Bundle


@dataclass(frozen=True)
class Added:
    """What became of items that were added.

    Attributes:
        version: The version of the catalogue that holds them.
        added: Items that are new.
        replaced: Items whose ids were there already.
        skipped: Items that were left as they are, since they were there already.
        items: Items that there are now.
        seconds: From the items' files on disk until they were durable: reading, content, vectors, writing.
    """

    version: int
    added: int
    replaced: int
    skipped: int
    items: int
    seconds: float


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return (path / MANIFEST).exists()


def has_additions(path: Path) -> bool:
    """Whether a folder is a bundle, or a run that items were added to."""
    return is_bundle(path) or is_bundle(path / ADDITIONS)


def open_served(target: Target, emit: Emit = silent) -> Bundle:
    """A bundle, or a run together with what was added to it.

    Args:
        target: Either; one that is open already takes over what other processes have written since.
        emit: Told of files that interrupted writes left.

    Raises:
        InputError: It is neither, or a file of it is missing, torn or changed.
    """
    if isinstance(target, Bundle):
        target.reload()
        return target
    if isinstance(target, Run):
        bundle = Bundle.open_run(target)
    elif is_bundle(target):
        bundle = Bundle.open(target)
    elif (target / "config.yaml").exists():
        bundle = Bundle.open_run(load_run(target))
    else:
        raise InputError(
            "this folder is neither a run nor a bundle",
            path=target,
            hint="give the --out folder of firstlight train, or the BUNDLE of firstlight export",
        )
    left = bundle.interrupted()
    if left:
        emit("message", text=f"left of interrupted writes and not read: {', '.join(map(str, left))}")
    return bundle


def open_shown(path: Path, emit: Emit = silent) -> Bundle:
    """What a server shows, with titles and covers: a bundle holds them, a run's are with its dataset.

    Args:
        path: A bundle or a run.
        emit: Told why there are no titles and covers.

    Raises:
        InputError: It is neither, or a file of it is missing, torn or changed.
    """
    if is_bundle(path):
        return open_served(path, emit)
    run = load_run(path)
    return Bundle.open_run(run, *_content(run, None, emit))


def recommend(
    target: Target, users: Sequence[str] | None = None, k: int = 20, emit: Emit = silent
) -> Iterator[pl.DataFrame]:
    """The k best unseen items of users, items that were added included.

    Args:
        target: A run or a bundle.
        users: Raw user ids, of which one that is named again gets one list; all users if None.
        k: Length of the lists; users with fewer items left get fewer.
        emit: Receives messages.

    Yields:
        Tables with columns ``user``, ``rank`` (from 1), ``item``, ``score``, ``basis``; raw ids. The basis is
        ``model``, or ``popular`` for users without a click in what the model was trained on: they get the items with
        the most clicks, and the score is the number of these.

    Raises:
        InputError: It is neither a run nor a bundle, or an id is unknown.
    """
    opened, users = _opened(target, emit), _once(users)
    if isinstance(opened, Run):
        _withheld(opened, emit)
        tables, ids = trained.recommend(opened, users, k), (opened.user_ids, opened.item_ids)
        known = opened.seen.user_degrees > 0
        seen = opened.seen.union(opened.parts["valid"]) if "valid" in opened.parts else opened.seen
        popular = Popular(seen.item_degrees.astype(np.float32))
    else:
        snapshot = opened.snapshot
        tables = lists.recommend_all(opened, users, k)
        ids = (snapshot.base.user_ids, snapshot.ids.names(snapshot.n_rows))
        known, seen, popular = snapshot.base.trained, snapshot.seen(), Popular.of(snapshot)
    return _told(with_popular(tables, ids, known, seen, popular, k), emit)


def _told(tables: Iterator[pl.DataFrame], emit: Emit) -> Iterator[pl.DataFrame]:
    """The tables as they come; at the end a word about users whose lists are not the model's."""
    strangers = 0
    for table in tables:
        yield table
        strangers += table.filter(pl.col("basis") == POPULAR)["user"].n_unique()
    if strangers:
        who = (
            "1 user without a training click gets"
            if strangers == 1
            else (f"{strangers:,} users without a training click get")
        )
        emit("message", text=f"{who} the most popular items (basis: {POPULAR})")


def similar(
    target: Target, items: Sequence[str] | None = None, k: int = 10, emit: Emit = silent
) -> Iterator[pl.DataFrame]:
    """The k items whose vectors point most nearly the same way, items that were added included.

    Args:
        target: A run or a bundle.
        items: Raw item ids, of which one that is named again gets one list; all items if None.
        k: Length of the lists.
        emit: Receives messages.

    Yields:
        Tables with columns ``item``, ``rank``, ``similar``, ``score`` (cosine).

    Raises:
        InputError: It is neither a run nor a bundle, its model has no vectors, or an id is unknown.
    """
    opened, items = _opened(target, emit), _once(items)
    if isinstance(opened, Run):
        return trained.similar_items(opened, items, k)
    return lists.similar_items(opened, items, k)


def _withheld(run: Run, emit: Emit) -> None:
    """Tell of clicks that a measured run has never seen, and so may recommend again."""
    if "test" in run.parts:
        emit(
            "message",
            text=f"the run does not know the {run.parts['test'].n_pairs:,} clicks of its test part: lists may hold "
            f"them; to serve people, train on everything with train DATA --refit {run.path}",
        )


def _once(ids: Sequence[str] | None) -> Sequence[str] | None:
    """Each id where it stands first: whoever is named twice wants one list, with ranks from one."""
    return None if ids is None else list(dict.fromkeys(ids))


def _opened(target: Target, emit: Emit) -> Run | Bundle:
    """A run that nothing was added to as it is, since its model need not have vectors; all else as a bundle."""
    path = target.path if isinstance(target, Run) else target
    if isinstance(path, Bundle) or has_additions(path):
        return open_served(target, emit)
    return target if isinstance(target, Run) else load_run(path)


def add_items(
    target: Target,
    new_items: Path | NewItems,
    *,
    title: str | None = None,
    item: str | None = None,
    features: Mapping[str, Path] | None = None,
    replace: bool = False,
    skip_known: bool = False,
    emit: Emit = silent,
) -> Added:
    """Make items without clicks recommendable, by their content; nothing is retrained.

    An item that is there already is replaced if nobody has clicked it. One that has clicks is refused, since training
    knows more of it than its content tells, unless ``replace`` or ``skip_known`` says what to do.

    Args:
        target: A run or a bundle whose model reads content.
        new_items: A dataset, a table of items, or one picture; or what was read of it.
        title: Title of the item of a picture.
        item: Its id; the file's name without suffix if None.
        features: Name → file of features of the items, row by row.
        replace: Replace items that have clicks, too.
        skip_known: Add only items that the catalogue never held, and leave all others as they are.
        emit: Told of what a reader left out and of content that could not be used.

    Returns:
        What was added. It is durable.

    Raises:
        InputError: Something cannot be read, the model reads no content, or an item has clicks already. Nothing is
            added then.
    """
    if replace and skip_known:
        raise InputError("known items cannot be both replaced and skipped", hint="choose one of the two")
    bundle = open_served(target, emit)
    encoder = bundle.encoder()
    started = time.perf_counter()
    encoder.reads.check_features(list(features or {}))
    if not isinstance(new_items, NewItems):
        new = read_new_items(new_items, title=title, item=item, features=features)
    elif title is not None or item is not None:
        raise InputError("a title and an id go with one picture; tables bring their own")
    else:
        new = with_features(new_items, features or {})
    for note in (
        *new.notes,
        *encoder.reads.unread(new.catalogue.items.columns, list(new.catalogue.features)),
    ):
        emit("message", text=note)
    given = len(new.ids)
    if skip_known:
        new = without_known(bundle, new)
    elif not replace:
        refuse_clicked(bundle, new)
    replaced = sum(bundle.snapshot.row(name) is not None for name in new.ids)
    version, problems = add_new_items(bundle, new, encoder) if new.ids else (bundle.version, [])
    for problem in problems:
        emit("message", text=problem)
    taken = round(time.perf_counter() - started, 3)
    skipped = given - len(new.ids)
    return Added(version, len(new.ids) - replaced, replaced, skipped, int(bundle.alive.sum()), taken)


def export(run: Run, out: Path, items: Path | None = None, emit: Emit = silent) -> Bundle:
    """Write a bundle that can be served without the run and its data.

    Args:
        run: A finished run; what was added to it is merged in.
        out: A folder that does not exist yet.
        items: Dataset or table with the items' titles and covers; the run's own dataset if None and it is still where
            it was.
        emit: Told why there are no titles and covers, and of clicks that the run does not know.

    Raises:
        InputError: The run's model has no vectors, or ``out`` holds something.
    """
    bundle = export_run(run, out, *_content(run, items, emit))
    _withheld(run, emit)
    return bundle


def exported(bundle: Bundle) -> dict[str, Any]:
    """What a bundle holds, as JSON values: what ``firstlight export --json`` prints."""
    base = bundle.snapshot.base
    return {
        "version": bundle.version,
        "users": len(base.user_ids),
        "items": int(bundle.alive.sum()),
        "texts": [name for name in base.table.columns if name != "item"],
        "takes_new_items": getattr(base, "encoder", None) is not None,
    }


def _content(run: Run, given: Path | None, emit: Emit) -> tuple[pl.DataFrame | None, Path | None]:
    """Texts and covers of the run's items, and where paths of covers start.

    They come from the given place, or from where the run's data came, if that still works.
    """
    recorded = read_json(run.path / "dataset.json")["path"]
    source = given or Path(recorded)
    if given is None and not (recorded and source.is_dir()):
        emit(
            "message",
            text="the run's dataset is not where it was: no titles and covers (name them with --items)",
        )
        return None, None
    try:
        known = read_new_items(source)
    except InputError as error:
        if given is not None:
            raise
        emit("message", text=f"no titles and covers (name them with --items): {error}")
        return None, None
    if given is not None:
        _matched(run, known.ids, given, emit)
    # A catalogue without any column has no rows either.
    columns = known.catalogue.items.drop("item", strict=False).get_columns()
    return pl.DataFrame([pl.Series("item", known.ids, pl.String), *columns]), known.folder


def _matched(run: Run, ids: Sequence[str], given: Path, emit: Emit) -> None:
    """Tell how many of the run's items the table of titles and covers knows.

    Raises:
        InputError: It knows none.
    """
    own = run.item_ids.cast(pl.String)
    missing = own.filter(~own.is_in(pl.Series(ids, dtype=pl.String).implode()))
    if len(missing) == len(own):
        raise InputError(
            f"no item of the run is here: its ids are such as {own[0]!r}, and here they are such as {ids[0]!r}"
            if ids else "there are no items here",
            path=given, hint="the column of ids must hold the ids that the run was trained with",
        )  # fmt: skip
    if len(missing):
        told = f"{len(missing):,} of {len(own):,} items of the run are not in {given}, such as {missing[0]!r}"
        emit("message", text=f"{told}: no titles and covers for them")
