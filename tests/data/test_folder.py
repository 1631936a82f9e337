"""The DATASET folder: what is written is what is read, and a changed file is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.core.files import read_json, write_json
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.folder import read_dataset_folder, read_manifest, write_dataset
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.data.interactions import Interactions

IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    users = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    items = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def part() -> Interactions:
        mask = rng.random((len(users), len(items))) < 0.5
        u, i = np.nonzero(mask)
        times = rng.integers(-(10**10), 10**10, len(u)) if draw(st.booleans()) else None
        values = rng.normal(size=len(u)).astype(np.float32) if draw(st.booleans()) else None
        return Interactions.from_pairs(u, i, len(users), len(items), times, values)

    table: dict[str, list[object]] = {}
    if draw(st.booleans()):
        table["title"] = [draw(st.none() | st.text(st.characters(codec="utf-8"), max_size=5)) for _ in items]
    if draw(st.booleans()):
        table["cover"] = [draw(st.none() | st.binary(max_size=4)) for _ in items]
    present = rng.random(len(items)) < 0.5
    values = rng.normal(size=(len(items), 3)).astype(np.float32) * present[:, None]
    features = {"image": FeatureMatrix(values, present, "made up")} if draw(st.booleans()) else {}
    schema = {name: pl.Binary if name == "cover" else pl.String for name in table}
    split = draw(st.booleans())
    return Dataset(
        name="toy",
        user_ids=pl.Series("user", users),
        item_ids=pl.Series("item", items),
        train=part(),
        valid=part() if split and draw(st.booleans()) else None,
        test=part() if split else None,
        catalogue=Catalogue(pl.DataFrame(table, schema=schema), features),
        source="generated",
        split=SplitInfo("random", 7, "0" * 64) if split else None,
        dropped={"duplicate pair": 3},
    )


@settings(deadline=None)
@given(datasets())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> None:
    folder = tmp_path_factory.mktemp("folder") / "toy"
    write_dataset(dataset, folder, extra={"seed": 1})
    back = read_dataset_folder(folder)
    assert back.content_hash == dataset.content_hash
    assert list(back.parts) == list(dataset.parts)
    assert back.catalogue.items.equals(dataset.catalogue.items)
    assert back.catalogue.items.schema == dataset.catalogue.items.schema
    assert back.catalogue.features.keys() == dataset.catalogue.features.keys()
    for name, matrix in back.catalogue.features.items():
        np.testing.assert_array_equal(matrix.values, dataset.catalogue.features[name].values)
        np.testing.assert_array_equal(matrix.present, dataset.catalogue.features[name].present)
        assert matrix.extractor == "made up"
    assert (back.name, back.split, back.dropped) == (dataset.name, dataset.split, dataset.dropped)
    assert back.source == str(folder)
    manifest = read_manifest(folder)
    assert (manifest["source"], manifest["extra"]) == ("generated", {"seed": 1})
    assert manifest["content_hash"] == dataset.content_hash


@pytest.fixture
def toy() -> Dataset:
    train = Interactions.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3, np.array([5, 6, 7]))
    return Dataset(
        name="toy",
        user_ids=pl.Series(["u1", "u2"]),
        item_ids=pl.Series(["a", "b", "c"]),
        train=train,
        test=Interactions.from_pairs(np.array([1]), np.array([2]), 2, 3),
        catalogue=Catalogue(
            pl.DataFrame({"title": ["A", "B", None]}),
            {"image": FeatureMatrix(np.ones((3, 2), np.float32), np.ones(3, np.bool_))},
        ),
        split=SplitInfo("leave-last", None, "x"),
    )


FILES = [
    "interactions.parquet",
    "users.parquet",
    "items.parquet",
    "features/image.safetensors",
    "features/image.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_named(tmp_path: Path, toy: Dataset, name: str) -> None:
    write_dataset(toy, tmp_path / "toy")
    file = tmp_path / "toy" / name
    data = file.read_bytes()
    for broken in (data[:-1], data + b" ", bytes([data[0] ^ 1]) + data[1:]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="not the one that was written") as caught:
            read_dataset(tmp_path / "toy")
        assert caught.value.path == file
    file.unlink()
    with pytest.raises(InputError, match="missing") as caught:
        read_dataset(tmp_path / "toy")
    assert caught.value.path == file


def test_every_file_is_under_a_hash(tmp_path: Path, toy: Dataset) -> None:
    write_dataset(toy, tmp_path / "toy")
    assert sorted(read_manifest(tmp_path / "toy")["files"]) == sorted(FILES)


def test_broken_description(tmp_path: Path, toy: Dataset) -> None:
    folder = tmp_path / "toy"
    write_dataset(toy, folder)
    whole = read_json(folder / "dataset.json")

    def expect(words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            read_dataset(folder)
        assert caught.value.path is not None

    write_json(folder / "dataset.json", whole | {"format_version": 99})
    expect("version 99 is not known")
    write_json(folder / "dataset.json", {key: value for key, value in whole.items() if key != "files"})
    expect("entries are missing: files")
    write_json(folder / "dataset.json", whole | {"parts": {}})
    expect("no part called train")
    wrong = whole["parts"] | {"test": whole["parts"]["test"] | {"pairs": 9}}
    write_json(folder / "dataset.json", whole | {"parts": wrong})
    expect("1 pairs in part test, but")
    (folder / "dataset.json").write_text(json.dumps(whole)[:40])
    expect("cannot be read")
    (folder / "dataset.json").write_text("[]")
    expect("not the description of a dataset")


def test_it_does_not_overwrite(tmp_path: Path, toy: Dataset) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "precious").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        write_dataset(toy, tmp_path / "toy")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file stands"):
        write_dataset(toy, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "toy"]


def test_an_aborted_write_leaves_nothing(tmp_path: Path, toy: Dataset) -> None:
    with pytest.raises(ValueError):
        write_dataset(toy, tmp_path / "toy", extra={"bad": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_items_without_users(tmp_path: Path) -> None:
    items = pl.Series("item", ["n1", "n2"])
    new = Dataset("new", pl.Series([], dtype=pl.String), items, Interactions.empty(0, 2))
    write_dataset(new, tmp_path / "new")
    back = read_dataset(tmp_path / "new")
    assert (back.n_users, back.n_items) == (0, 2)
    assert back.content_hash == new.content_hash
    assert not (tmp_path / "new" / "interactions.parquet").exists()


def test_a_core_of_a_folder(tmp_path: Path, toy: Dataset) -> None:
    write_dataset(toy, tmp_path / "toy")
    core = read_dataset(tmp_path / "toy", ReadOptions(k_core=(1, 2)))
    assert list(core.item_ids) == ["b"]
    assert core.dropped == {"outside the 1,2-core": 2}
    assert core.train.times is not None
    assert core.train.times.tolist() == [6, 7]
    assert core.split is not None
    assert toy.split is not None
    assert core.split.name == "leave-last"
    assert core.split.hash != toy.split.hash
    with pytest.raises(InputError, match="no interaction is left"):
        read_dataset(tmp_path / "toy", ReadOptions(k_core=(2, 2)))


def test_cover_files_come_along(tmp_path: Path, toy: Dataset) -> None:
    home = tmp_path / "home"
    (home / "covers").mkdir(parents=True)
    (home / "covers" / "a.jpg").write_bytes(b"jpeg")
    (home / "interactions.csv").write_text("user,item\nu,a\nu,b\n")
    (home / "items.csv").write_text("item,cover\na,covers/a.jpg\nb,\n")
    dataset = read_dataset(home)
    write_dataset(dataset, tmp_path / "copy")
    copy = read_dataset(tmp_path / "copy")
    assert copy.catalogue.items["cover"].to_list() == ["covers/a.jpg", None]
    assert (Path(copy.source) / "covers" / "a.jpg").read_bytes() == b"jpeg"
    assert "covers/a.jpg" in read_manifest(tmp_path / "copy")["files"]
    (home / "covers" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"covers/a\.jpg' is missing"):
        write_dataset(dataset, tmp_path / "second")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (home / "items.csv").write_text("item,cover\na,../secret.jpg\nb,\n")
    with pytest.raises(InputError, match="leads out of the dataset folder"):
        write_dataset(read_dataset(home), tmp_path / "third")


def test_a_feature_name_that_is_a_path(tmp_path: Path, toy: Dataset) -> None:
    matrix = toy.catalogue.features["image"]
    odd = Dataset(
        "odd", toy.user_ids, toy.item_ids, toy.train, catalogue=Catalogue(features={"../x": matrix})
    )
    with pytest.raises(InputError, match="cannot be a file name"):
        write_dataset(odd, tmp_path / "odd")
