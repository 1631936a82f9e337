"""Runs: trained, measured, compared, asked for lists, added to, exported, served and reported on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import polars as pl

from firstlight.api.paths import (
    Data,
    Place,
    changes,
    dataset,
    folder_of,
    ids,
    length,
    lengths,
    listener,
    optional,
)
from firstlight.api.paths import new_items as read_items
from firstlight.core.choices import one_of
from firstlight.core.errors import InputError
from firstlight.core.outputs import check_folder
from firstlight.core.shown import Shown
from firstlight.evaluation.compare import compare as compare_runs
from firstlight.evaluation.ranking import metric_table
from firstlight.pipeline import served
from firstlight.pipeline.arrivals import ArrivalReport, measure_arrivals
from firstlight.pipeline.served import Added
from firstlight.serving.bundle import Bundle
from firstlight.training.assess import (
    Assessment,
    ColdAssessment,
    Part,
    Warmth,
    assess,
    run_result,
)
from firstlight.training.config import RunConfig, build_config
from firstlight.training.recorded import evaluate_cold
from firstlight.training.refit import everything, refit_config, refuse_settings
from firstlight.training.run import train as train_run
from firstlight.training.run_folder import Run as LoadedRun
from firstlight.training.run_folder import load_run


class Run(Shown, os.PathLike[str]):
    """A finished run. Its folder holds all of it, and whatever takes a run takes its path as well.

    Args:
        path: The folder that :func:`firstlight.train` filled.

    Attributes:
        path: The same.

    Raises:
        InputError: It is no run, or the run did not finish.
    """

    def __init__(self, path: Place) -> None:
        self.path = Path(path)
        _ = self.loaded  # so that what is wrong with it is said here

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def loaded(self) -> LoadedRun:
        """The parts of the run: model, scorer, ids, split."""
        return load_run(self.path)

    @property
    def config(self) -> RunConfig:
        """Everything that decided it."""
        return self.loaded.config

    @property
    def result(self) -> dict[str, Any]:
        """What training found: what ``firstlight train --json`` prints."""
        return self.loaded.result

    @property
    def metrics(self) -> dict[str, float]:
        """``"recall@20"`` and so on → value on the test part; empty if there is none."""
        metrics: dict[str, float] = self.result["metrics"]
        return metrics

    @property
    def history(self) -> pl.DataFrame:
        """One row an epoch: loss, temperatures, the metric where it was measured."""
        return pl.DataFrame(self.loaded.metrics, infer_schema_length=None)

    @property
    def heading(self) -> str:
        """Where it is, and what it is of."""
        config, found, protocol = self.config, self.result["found"], self.result["protocol"]
        lines = [f"run {self.path}: {config.model.name} on {self.result['dataset']['name']}"]
        if found.get("epochs"):
            lines.append(f"{found['epochs']} epochs; {protocol['meaning']}")
        if not self.metrics:
            lines.append("there is no test part, so there are no numbers")
        return "\n".join(lines)

    @property
    def table(self) -> pl.DataFrame:
        """:attr:`metrics`: ``metric``, then one column a cut-off (``@10``)."""
        return metric_table(self.metrics)

    @overload
    def evaluate(
        self,
        data: Data | None = None,
        *,
        targets: Warmth = "all",
        pool: Warmth = "all",
        k: int | Iterable[int] = (10, 20, 50),
        part: Part = "test",
        protocol: Literal["ranking"] = "ranking",
    ) -> Assessment: ...

    @overload
    def evaluate(
        self,
        data: Data | None = None,
        *,
        k: int | Iterable[int] = (10, 20, 50),
        part: Part = "test",
        protocol: Literal["cold"],
    ) -> ColdAssessment: ...

    def evaluate(self, data: Data | None = None, **options: Any) -> Assessment | ColdAssessment:
        """Rank all items for all users and measure; see :func:`firstlight.evaluate`."""
        found: Assessment | ColdAssessment = evaluate(self, data, **options)
        return found

    def recommend(self, users: str | Iterable[object] | None = None, k: int = 20) -> pl.DataFrame:
        """The k best unseen items of users; see :func:`firstlight.recommend`."""
        return recommend(self, users, k)

    def similar(self, items: str | Iterable[object] | None = None, k: int = 10) -> pl.DataFrame:
        """The k items most like items; see :func:`firstlight.similar`."""
        return similar(self, items, k)

    def add_items(
        self,
        new_items: Place | pl.DataFrame,
        *,
        title: str | None = None,
        id: str | None = None,
        features: Mapping[str, Place] | None = None,
        replace: bool = False,
        skip_known: bool = False,
    ) -> Added:
        """Make items without clicks recommendable; see :func:`firstlight.add_items`."""
        how = {"replace": replace, "skip_known": skip_known}
        return add_items(self, new_items, title=title, id=id, features=features, **how)

    def arrivals(self, data: Data, *, label: str | None = None, k: int = 20) -> ArrivalReport:
        """Whether people find the items that were added; see :func:`firstlight.arrivals`."""
        return arrivals(self, data, label=label, k=k)

    def export(self, bundle: Place, *, items: Place | None = None) -> Bundle:
        """Write a bundle that can be served; see :func:`firstlight.export`."""
        return export(self, bundle, items=items)


#: Something with vectors: a run or a bundle, or the folder of one.
Target = Run | Bundle | Place


def _run(run: Run | Place) -> LoadedRun:
    return run.loaded if isinstance(run, Run) else load_run(Path(run))


def _target(target: Target) -> served.Target:
    if isinstance(target, Bundle):
        return target
    return target.loaded if isinstance(target, Run) else Path(target)


def train(
    data: Data,
    *,
    out: Place,
    model: str | None = None,
    loss: str | None = None,
    temperature: str | None = None,
    negatives: str | None = None,
    recipe: Place | None = None,
    set: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    start: Run | Place | None = None,
    refit: Run | Place | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a model on a dataset and evaluate it on the test part.

    Args:
        data: A dataset, or where one is.
        out: Folder of the run.
        model: The recommender; ``mf`` if neither this nor a recipe says.
        loss: ``bpr``, ``softmax``, ``bsl``, ``adap-tau`` or ``adap-tau0``.
        temperature: ``fixed:0.1``, ``learned``, ``learned-user``, ``adaptive`` or ``adaptive-user``.
        negatives: ``uniform``, ``shared``, ``in-batch`` or ``all``.
        recipe: Name of a shipped recipe, or a YAML file; all else goes over it.
        set: Any fields of :class:`~firstlight.training.config.RunConfig`: ``{"model.dim": 128}``.
        epochs: Most epochs.
        seed: Seed of every random stream of the run.
        threads: CPU threads.
        start: A run to start from, with its config unless a recipe is named (``--from`` of the command).
        refit: A run whose model is trained again on all parts of the data, as long as its search found; all settings
            but ``threads`` are those of the run.
        resume: Go on where an interrupted run stopped; a finished one is returned as it is.
        progress: Say on stderr how far it is.

    Raises:
        InputError: A name or value is not valid, the data cannot be trained on, or ``out`` holds something else.
        DivergenceError: The numbers blew up; the last good checkpoint is kept.
    """
    from firstlight.training.notes import ignored_by_training, without_test

    check_folder(out)
    if refit is not None:
        refuse_settings([model, loss, temperature, negatives, recipe, set, epochs, seed, start])
        with listener(progress) as emit:
            config = refit_config(_run(refit), threads)
            train_run(everything(dataset(data)), config, Path(out), resume=resume, emit=emit)
        return Run(out)
    config = build_config(
        recipe=None if recipe is None else os.fspath(recipe),
        model=model,
        loss=loss,
        temperature=temperature,
        negatives=negatives,
        overrides=changes(set, training__epochs=epochs, training__threads=threads),
        seed=seed,
        start=optional(start),
    )
    yesterday = None if start is None else _run(start)
    read = dataset(data)
    named = {"loss": loss, "temperature": temperature, "negatives": negatives, "epochs": epochs}
    given = [name for name, value in named.items() if value is not None]
    with listener(progress) as emit:
        for note in (*ignored_by_training(config, given, set or {}), *without_test(read)):
            emit("message", text=note)
        train_run(read, config, Path(out), start=yesterday, resume=resume, emit=emit)
    return Run(out)


@overload
def evaluate(
    run: Run | Place,
    data: Data | None = None,
    *,
    targets: Warmth = "all",
    pool: Warmth = "all",
    k: int | Iterable[int] = (10, 20, 50),
    part: Part = "test",
    protocol: Literal["ranking"] = "ranking",
) -> Assessment: ...


@overload
def evaluate(
    run: Run | Place,
    data: Data | None = None,
    *,
    k: int | Iterable[int] = (10, 20, 50),
    part: Part = "test",
    protocol: Literal["cold"],
) -> ColdAssessment: ...


def evaluate(
    run: Run | Place,
    data: Data | None = None,
    *,
    targets: Warmth = "all",
    pool: Warmth = "all",
    k: int | Iterable[int] = (10, 20, 50),
    part: Part = "test",
    protocol: Literal["ranking", "cold"] = "ranking",
) -> Assessment | ColdAssessment:
    """Rank all items for all users and measure.

    Warm items have clicks in what the model was trained on, cold items have none.

    Args:
        run: A finished run.
        data: Another dataset to test on, whose ids are matched; the run's own if None.
        targets: Count held-out pairs on ``all``, ``warm`` or ``cold`` items.
        pool: Rank ``all``, ``warm`` or ``cold`` items.
        k: Lengths of the list, or one.
        part: Which part is held out, ``valid`` or ``test``.
        protocol: ``ranking``: one ranking; ``cold``: warm and cold targets side by side, each in its own pool and in
            the whole one. What this finds on the run's own test part stays in the run's folder, where :func:`report`
            reads it.

    Raises:
        InputError: There is no such part, or nothing in it to rank.
    """
    one_of(protocol, ("ranking", "cold"), "protocol")
    loaded, other, cuts = _run(run), None if data is None else dataset(data), lengths(k)
    if protocol == "ranking":
        return assess(loaded, other, part=part, targets=targets, pool=pool, ks=cuts)
    if (targets, pool) != ("all", "all"):
        raise InputError(
            "protocol 'cold' reports every kind of target in every pool", hint="leave out targets and pool"
        )
    from firstlight.cli.output import tell

    return evaluate_cold(loaded, other, part=part, ks=cuts, emit=tell)


def compare(
    *runs: Run | Place, metrics: Sequence[str] = ("recall@20", "ndcg@20"), different_data: bool = False
) -> pl.DataFrame:
    """Test runs against the first one, paired over users and, where there are several, over seeds.

    Args:
        *runs: Finished runs.
        metrics: Per-user metrics.
        different_data: Allow runs on other data, paired by user row.

    Returns:
        One row a metric and configuration; p-values are Holm-corrected. See
        :func:`firstlight.evaluation.compare.compare`.

    Raises:
        InputError: Fewer than two configurations, a missing metric, or runs that cannot be compared.
    """
    return compare_runs([run_result(_run(run)) for run in runs], metrics, allow_different_data=different_data)


def recommend(target: Target, users: str | Iterable[object] | None = None, k: int = 20) -> pl.DataFrame:
    """The k best unseen items of users, items that were added included.

    Args:
        target: A run or a bundle.
        users: Raw user ids; all users if None. For more lists than memory holds, ``firstlight recommend --out``
            writes them to a file.
        k: Length of the lists; users with fewer items left get fewer.

    Returns:
        ``user``, ``rank`` (from 1), ``item``, ``score``, ``basis``: ``model``, or ``popular`` for users without a click
        in what the model was trained on, whose scores are clicks.

    Raises:
        InputError: It is neither a run nor a bundle, or an id is unknown.
    """
    from firstlight.cli.output import tell

    return pl.concat(served.recommend(_target(target), ids(users, "users"), length(k), tell))


def similar(target: Target, items: str | Iterable[object] | None = None, k: int = 10) -> pl.DataFrame:
    """The k items most like items, by the cosine of their vectors.

    Args:
        target: A run or a bundle.
        items: Raw item ids; all items if None.
        k: Length of the lists.

    Returns:
        ``item``, ``rank`` (from 1), ``similar``, ``score``.

    Raises:
        InputError: It is neither a run nor a bundle, its model has no vectors, or an id is unknown.
    """
    from firstlight.cli.output import tell

    return pl.concat(served.similar(_target(target), ids(items, "items"), length(k), tell))


def add_items(
    target: Target,
    new_items: Place | pl.DataFrame,
    *,
    title: str | None = None,
    id: str | None = None,
    features: Mapping[str, Place] | None = None,
    replace: bool = False,
    skip_known: bool = False,
) -> Added:
    """Make items without clicks recommendable, by their content; nothing is retrained.

    Items that are there already are replaced if nobody has clicked them, and refused if somebody has. What was added is
    durable when this returns.

    Args:
        target: A run or a bundle whose model reads content.
        new_items: A dataset, a table of items (also as a polars data frame), or one picture.
        title: Title of the item of a picture.
        id: Its id; the file's name if None.
        features: Name → file of features of the items (.npy, .safetensors, .parquet), row by row; by id where a Parquet
            file has a column of ids.
        replace: Replace items that have clicks, too: content ranks them from now on.
        skip_known: Add only items that were never there, and leave all others as they are.

    Raises:
        InputError: Something cannot be read, the model reads no content, or an item has clicks already. Nothing is
            added then.
    """
    from firstlight.cli.output import tell

    files = {name: Path(file) for name, file in (features or {}).items()}
    how = {"replace": replace, "skip_known": skip_known}
    return served.add_items(
        _target(target), read_items(new_items), title=title, item=id, features=files, **how, emit=tell
    )


def arrivals(target: Target, data: Data, *, label: str | None = None, k: int = 20) -> ArrivalReport:
    """Measure whether people find the items that were added to a run or a bundle.

    Every item is ranked for every user who clicked something in the test part of ``data``. Beside the target stand
    content nearest neighbours on the same views, popularity and chance; for a generated world the truth, too.

    Args:
        target: What items were added to.
        data: Its test part holds the clicks to look for; ids are matched.
        label: What to call the target; its model's name if None.
        k: Length of the lists.

    Raises:
        InputError: Nothing was added, or there is no click to look for.
    """
    from firstlight.cli.output import tell

    later = dataset(data)
    bundle = served.open_served(_target(target), tell)
    return measure_arrivals(bundle, later, label=label, k=length(k), folder=folder_of(later))


def export(run: Run | Place, bundle: Place, *, items: Place | None = None) -> Bundle:
    """Write a bundle that can be served: vectors, ids, titles, small covers, clicks, the encoder of new items.

    Args:
        run: A finished run; what was added to it is merged in.
        bundle: A folder that does not exist yet.
        items: Dataset or table with the items' titles and covers; the run's own dataset if None and it is still where
            it was.

    Raises:
        InputError: The run's model has no vectors, or ``bundle`` holds something.
    """
    from firstlight.cli.output import tell

    return served.export(_run(run), Path(bundle), optional(items), emit=tell)


def serve(
    target: Target,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    index: str = "auto",
    set: Mapping[str, Any] | None = None,
) -> None:
    """Serve recommendations, new items and a page over HTTP, until Ctrl-C or SIGTERM.

    Args:
        target: A bundle or a run.
        host: Address to listen at; ``0.0.0.0`` is every one.
        port: Port; 0 takes a free one.
        token: What writers must show. None: as ``FIRSTLIGHT_TOKEN`` says, and without that nobody may write.
        index: How lists are made: ``exact``, ``hnsw``, ``ivf``, or ``auto``, which goes by size.
        set: Limits of the server, fields of :class:`firstlight.serving.server.settings.Settings`.

    Raises:
        InputError: There is nothing to serve, or a limit is not one.
        MissingExtraError: The extra ``serve`` is not installed.
    """
    from firstlight.cli.serving import checked_token, serve_until_stopped

    path = target.folder if isinstance(target, Bundle) else Path(target)
    serve_until_stopped(path, host, port, checked_token(token), index, set or {})


def report(
    *runs: Run | Place,
    out: Place = "report.html",
    data: Place | None = None,
    users: str | Iterable[object] | None = None,
    probe: Place | None = None,
    arrivals: Place | None = None,
    k: int = 20,
    title: str | None = None,
) -> dict[str, Any]:
    """Write one self-contained HTML page about runs, and its pictures as PNGs beside it.

    Args:
        *runs: Finished runs; the others are compared with the first.
        out: The HTML file.
        data: Dataset with titles and covers; the first run's own if None and it is where it was.
        users: Raw ids of users whose lists are shown; some by chance if None.
        probe: What ``firstlight probe --out`` wrote: adds the encoder's depth.
        arrivals: File of what ``firstlight arrivals --json`` printed: adds whether people find items that came later.
        k: Length of the lists.
        title: Title of the report.

    Returns:
        What ``firstlight report --json`` prints: the file, its pictures, the users, recall by run and protocol.

    Raises:
        InputError: A run, the dataset or the probe cannot be read, or ``out`` is no HTML file.
        MissingExtraError: The extra ``plot`` is not installed.
    """
    from firstlight.cli.output import tell
    from firstlight.reports.sources import report as write

    if not runs:
        raise InputError("a report needs at least one run")
    return write(
        [Path(run) for run in runs],
        Path(out),
        data=optional(data),
        users=ids(users, "users"),
        probe=optional(probe),
        arrivals=optional(arrivals),
        k=length(k),
        title=title,
        emit=tell,
    )
