"""A feature added to a dataset folder block by block is as if it had been there from the start."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.feature_file import add_feature, feature_origin, folder_items
from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.data.interactions import Interactions

VALUES = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
PRESENT = np.array([1, 1, 0, 1, 1, 1, 0], np.bool_)


@pytest.fixture
def folder(tmp_path):
    features = {"old": FeatureMatrix(np.ones((7, 2), np.float32), np.ones(7, np.bool_), "hand")}
    dataset = Dataset(
        "d", pl.Series(["u", "v"]), pl.Series(list("abcdefg")),
        Interactions.from_pairs(np.array([0, 1]), np.array([2, 3]), 2, 7),
        catalogue=Catalogue(pl.DataFrame({"title": list("ABCDEFG")}), features),
    )  # fmt: skip
    write_dataset(dataset, tmp_path / "d")
    return tmp_path / "d"


def add(folder, name="new", sizes=(3, 0, 4), **changes):
    bounds = np.cumsum([0, *sizes])
    blocks = [(VALUES[a:b], PRESENT[a:b]) for a, b in pairwise(bounds)]
    options = {"extractor": "test", "origin": {"a": 1}} | changes
    add_feature(folder, name, iter(blocks), (7, 3), **options)


@pytest.mark.parametrize("sizes", [(7,), (3, 0, 4), (1,) * 7])
def test_read_back(folder, sizes):
    before = read_dataset_folder(folder)
    add(folder, sizes=sizes)
    after = read_dataset_folder(folder)
    assert list(after.catalogue.features) == ["old", "new"]
    new = after.catalogue.features["new"]
    np.testing.assert_array_equal(new.values, VALUES)
    np.testing.assert_array_equal(new.present, PRESENT)
    assert new.extractor == "test"
    assert after.content_hash == before.content_hash
    assert after.catalogue.items.equals(before.catalogue.items)
    assert feature_origin(folder, "new") == {"a": 1}
    assert feature_origin(folder, "old") == {}
    assert feature_origin(folder, "other") is None
    assert folder_items(folder) == list("abcdefg")


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="already"):
        add(folder, name="old")
    with pytest.raises(InputError, match="file name"):
        add(folder, name="../new")
    with pytest.raises(InputError, match="5 rows for 7 items"):
        add_feature(folder, "new", [], (5, 3), extractor="", origin={})
    with pytest.raises(ValueError, match="6 rows were given"):
        add(folder, sizes=(3, 3))
    wide = (np.ones((7, 4), np.float32), PRESENT)
    with pytest.raises(ValueError, match="block"):
        add_feature(folder, "new", [wide], (7, 3), extractor="", origin={})
    assert not (folder / "features" / "new.safetensors").exists()
    with pytest.raises(InputError):
        add(tmp_path / "nothing")
    assert list(read_dataset_folder(folder).catalogue.features) == ["old"]


def test_killed_before_the_manifest_the_dataset_is_as_it_was(folder, monkeypatch):
    original = (folder / "dataset.json").read_bytes()

    def fail(path, value):
        raise OSError("the disk is full")

    monkeypatch.setattr("firstlight.data.feature_file.write_json", fail)
    with pytest.raises(OSError, match="full"):
        add(folder)
    assert (folder / "dataset.json").read_bytes() == original
    assert list(read_dataset_folder(folder).catalogue.features) == ["old"]
    monkeypatch.undo()
    add(folder)  # and it can be done again
    assert list(read_dataset_folder(folder).catalogue.features) == ["old", "new"]
