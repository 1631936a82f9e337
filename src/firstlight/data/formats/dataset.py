"""firstlight's own DATASET folder; see :mod:`firstlight.data.folder`."""

from __future__ import annotations

from pathlib import Path

from firstlight.data.clean import clean_dataset
from firstlight.data.dataset import Dataset
from firstlight.data.folder import MANIFEST, read_dataset_folder
from firstlight.data.formats.base import Format, Problems, ReadOptions


def detect(path: Path) -> bool:
    """Whether a folder holds ``dataset.json``."""
    return path.is_dir() and (path / MANIFEST).is_file()


def read(path: Path, options: ReadOptions, problems: Problems) -> Dataset:
    """Read a DATASET folder and apply the minimum value and the k-core, if any.

    Args:
        path: The folder.
        options: What counts as an interaction.
        problems: Gets what was odd when the folder was written; the folder itself is verified as a whole.

    Returns:
        The dataset.

    Raises:
        InputError: A file is missing or is not the one that was written.
    """
    dataset = read_dataset_folder(path, pictures=options.pictures)
    for note in dataset.notes:
        problems.note("found when it was converted", path / MANIFEST, note)
    return clean_dataset(dataset, options, path)


FORMAT = Format("dataset", "a folder with dataset.json", detect, read)
