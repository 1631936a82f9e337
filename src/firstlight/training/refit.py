"""A measured run once more, on everything: what goes to people must not lack the newest clicks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from firstlight.core.errors import InputError
from firstlight.data.dataset import Dataset
from firstlight.training.config import RunConfig
from firstlight.training.run_folder import Run


def refuse_settings(given: Iterable[object]) -> None:
    """Refuse settings beside a run whose own are taken.

    Args:
        given: Values of the options that a training takes otherwise; None or empty where one was not given.

    Raises:
        InputError: One was.
    """
    if any(value is not None and value != [] for value in given):
        raise InputError(
            "a refit takes all settings from its run", hint="leave the other settings out, but for threads"
        )


def refit_config(run: Run, threads: int | None = None) -> RunConfig:
    """A finished run's config with what its search found in place of the search: epochs, and where cold items stand.

    The schedule spans as many epochs as before, so that training ends where it ended.

    Args:
        run: A finished run.
        threads: CPU threads; None leaves PyTorch's choice.
    """
    training = run.config.training.model_dump() | {"threads": threads}
    found = run.result["found"]
    if run.config.training.selection != "none" and found.get("epochs"):
        training |= {"selection": "none", "stop_after": found["epochs"]}
        place = found.get("calibration") or {}
        if place.get("fitted"):
            training |= {"cold_scale": place["scale"], "cold_offset": place["offset"]}
    changed = type(run.config.training).model_validate(training)
    return run.config.model_copy(update={"training": changed})


def everything(dataset: Dataset) -> Dataset:
    """The dataset with all of its parts in the training part."""
    log = dataset.train
    for name, part in dataset.parts.items():
        log = log if name == "train" else log.union(part)
    return replace(dataset, train=log, valid=None, test=None, split=None)
