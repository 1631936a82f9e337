"""All views together: what fitting may see, what a row may depend on, what is saved."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.config import CoverConfig, FeatureConfig, ScaleConfig, TextConfig, ViewsConfig
from firstlight.views.viewset import ViewSet

#: Every step switched on: reduction, n-grams.
FULL = ViewsConfig(
    text=TextConfig(ngrams=2, dim=6), cover=CoverConfig(size=16), features=FeatureConfig(reduce=3)
)


def assert_equal(one, two, rows=slice(None)):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].values[rows], two[name].values[rows])
        np.testing.assert_array_equal(one[name].present[rows], two[name].present[rows])


@pytest.fixture(scope="module")
def fitted(world):
    return ViewSet.fit(FULL, *world, seed=3)


def test_every_view_that_the_catalogue_has(world, fitted):
    assert fitted.names == ("clip", "text", "cover")
    rows = fitted.transform(world[0])
    assert list(rows) == list(fitted.names)
    absent = {"clip": [5], "text": [3], "cover": [4]}
    for name, matrix in rows.items():
        assert matrix.values.shape == (40, fitted.dims[name])
        assert matrix.values.dtype == np.float32
        assert np.flatnonzero(~matrix.present).tolist() == absent[name]
        assert not matrix.values[~matrix.present].any()
        np.testing.assert_allclose(np.linalg.norm(matrix.values[matrix.present], axis=1), 1, rtol=1e-5)
    assert fitted.problems == []


def test_fitting_sees_no_cold_item(world, fitted, tools, tmp_path):
    catalogue, warm = world
    other = tools.make(seed=9)
    items = pl.concat([catalogue.items[:30], other.items[30:].with_columns(title=pl.lit("unheard of words"))])
    clip = catalogue.features["clip"]
    values = clip.values.copy()
    values[30:] = 1e6
    changed = Catalogue(items, {"clip": FeatureMatrix(values, clip.present, clip.extractor)})
    again = ViewSet.fit(FULL, changed, warm, seed=3)
    fitted.save(tmp_path / "one")
    again.save(tmp_path / "two")
    names = [sorted(path.name for path in (tmp_path / side).iterdir()) for side in ("one", "two")]
    assert names[0] == names[1]  # the arrays' file is named by its content
    assert (tmp_path / "one" / "views.json").read_bytes() == (tmp_path / "two" / "views.json").read_bytes()
    assert_equal(fitted.transform(catalogue), again.transform(changed), slice(0, 30))
    # ... and no cold item needs to be there at all.
    assert_equal(
        fitted.transform(catalogue), ViewSet.fit(FULL, tools.take(catalogue, range(30)), warm[:30], seed=3)
        .transform(catalogue),
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=8))
def test_a_row_depends_on_its_item_only(world, fitted, tools, rows):
    everything = fitted.transform(world[0])
    some = fitted.transform(tools.take(world[0], rows))
    for name, matrix in some.items():
        np.testing.assert_array_equal(matrix.values, everything[name].values[rows])
        np.testing.assert_array_equal(matrix.present, everything[name].present[rows])


def test_no_items_and_other_columns(world, fitted, tools):
    for rows in fitted.transform(tools.take(world[0], np.zeros(0, int))).values():
        assert rows.values.shape[0] == 0
    for catalogue in (Catalogue(), Catalogue(pl.DataFrame({"year": [1, 2]}))):
        for name, rows in fitted.transform(catalogue).items():
            assert rows.values.shape == (catalogue.items.height, fitted.dims[name])
            assert not rows.present.any()


def test_saved_and_loaded_bit_by_bit(world, fitted, tmp_path):
    fitted.save(tmp_path / "views")
    loaded = ViewSet.load(tmp_path / "views")
    assert (loaded.names, loaded.dims, loaded.config) == (fitted.names, fitted.dims, fitted.config)
    assert_equal(fitted.transform(world[0]), loaded.transform(world[0]))
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "views").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_saving_over_an_older_state(world, fitted, tmp_path):
    ViewSet.fit(ViewsConfig(use=("clip",)), *world).save(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    fitted.save(tmp_path)
    assert ViewSet.load(tmp_path).names == fitted.names
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_state(world, fitted, tmp_path, monkeypatch):
    old = ViewSet.fit(ViewsConfig(use=("clip",)), *world)
    old.save(tmp_path)

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("firstlight.views.viewset.write_json", fail)
    with pytest.raises(OSError, match="full"):
        fitted.save(tmp_path)
    assert ViewSet.load(tmp_path).names == ("clip",)


def edit(folder, change):
    manifest = json.loads((folder / "views.json").read_text())
    change(manifest)
    (folder / "views.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "views.json").unlink(),
        lambda folder: (folder / "views.json").write_text("{"),
        lambda folder: (folder / "views.json").write_text("[]"),
        lambda folder: edit(folder, lambda m: m.update(format_version=99)),
        lambda folder: edit(folder, lambda m: m.update(config={"nonsense": 1})),
        lambda folder: edit(folder, lambda m: m["views"][1]["vocabulary"].pop()),
        lambda folder: edit(folder, lambda m: m["views"][0].update(kind="magic")),
        lambda folder: edit(folder, lambda m: m["views"][0].update(dim=99)),
        lambda folder: edit(folder, lambda m: m["views"][2]["cover"].update(grid=2)),
        lambda folder: edit(folder, lambda m: m.update(file="../elsewhere.safetensors")),
        lambda folder: next(folder.glob("*.safetensors")).unlink(),
        lambda folder: os.truncate(next(folder.glob("*.safetensors")), 100),
    ],
)
def test_damage_is_noticed(fitted, tmp_path, damage):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError):
        ViewSet.load(tmp_path)


def test_choosing_views(world):
    assert ViewSet.fit(ViewsConfig(use=("cover", "clip")), *world).names == ("cover", "clip")
    with pytest.raises(InputError, match="did you mean 'cover'"):
        ViewSet.fit(ViewsConfig(use=("covers",)), *world)
    with pytest.raises(InputError, match="no view 'text'"):
        ViewSet.fit(ViewsConfig(use=("text",)), Catalogue(pl.DataFrame({"cover": [b"x"]})), np.array([True]))


def test_a_feature_called_text_keeps_its_name(world):
    catalogue, warm = world
    features = {"text": catalogue.features["clip"], "cover": catalogue.features["clip"]}
    fitted = ViewSet.fit(ViewsConfig(), Catalogue(catalogue.items, features), warm)
    assert fitted.names == ("text", "cover", "text-words", "cover-pixels")
    assert fitted.dims["text"] == 6


def test_what_cannot_be_fitted_is_left_out_or_refused():
    items = pl.DataFrame({"title": ["a b", "b c", "c d"], "cover": [b"torn", None, None]})
    constant = FeatureMatrix(np.ones((3, 2), np.float32), np.ones(3, np.bool_))
    catalogue, warm = Catalogue(items, {"flat": constant}), np.array([True, True, False])
    fitted = ViewSet.fit(ViewsConfig(), catalogue, warm)
    assert fitted.names == ("text",)
    assert len(fitted.problems) == 2
    assert "flat is left out: it is the same for all warm items" in fitted.problems[0]
    assert "row 0" in fitted.problems[1]
    with pytest.raises(InputError, match="flat"):
        ViewSet.fit(ViewsConfig(use=("flat", "text")), catalogue, warm)
    with pytest.raises(InputError, match="no view can be fitted"):
        ViewSet.fit(ViewsConfig(), Catalogue(items.select("cover"), {"flat": constant}), warm)


@pytest.mark.parametrize("items", [pl.DataFrame(), pl.DataFrame({"year": [1, 2], "role": ["warm", "warm"]})])
def test_nothing_to_tell_items_apart(items):
    with pytest.raises(InputError, match=r"no text, no cover and no feature[\s\S]*title"):
        ViewSet.fit(
            ViewsConfig(), Catalogue(items), np.ones(items.height, np.bool_) if items.width else [True]
        )


@pytest.mark.parametrize("warm", [np.ones(7, np.bool_), np.ones(40), np.zeros(40, np.bool_)])
def test_masks_that_do_not_fit(world, warm):
    with pytest.raises(InputError):
        ViewSet.fit(ViewsConfig(), world[0], warm)


def test_rows_that_do_not_fit(world):
    short = FeatureMatrix(np.ones((3, 2), np.float32), np.ones(3, np.bool_))
    with pytest.raises(InputError, match="item table: 40"):
        ViewSet.fit(ViewsConfig(), Catalogue(world[0].items, {"clip": short}), world[1])


def test_seeds(world, fitted):
    same = ViewSet.fit(FULL, *world, seed=3)
    assert_equal(fitted.transform(world[0]), same.transform(world[0]))


def test_problems_are_those_of_the_last_call(world, fitted, tools):
    torn = world[0].items.head(2).with_columns(cover=pl.Series([b"torn", b"torn"]))
    fitted.transform(Catalogue(torn))
    assert len(fitted.problems) == 1
    fitted.transform(tools.take(world[0], [0]))
    assert fitted.problems == []


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_catalogues(tools, n):
    catalogue = tools.make(6, seed=1)
    small = tools.take(catalogue, range(n))
    fitted = ViewSet.fit(ViewsConfig(), small, np.ones(n, np.bool_))
    for rows in fitted.transform(catalogue).values():
        assert np.isfinite(rows.values).all()
        assert rows.present[:n].all()


def test_config():
    config = ViewsConfig.model_validate({"use": ["text"], "text": {"dim": 8}})
    assert ViewsConfig.model_validate_json(config.model_dump_json()) == config
    for wrong in ({"use": []}, {"use": ["a", "a"]}, {"text": {"dims": 3}}, {"cover": {"size": 1}}):
        with pytest.raises(ValidationError):
            ViewsConfig.model_validate(wrong)
    assert {ScaleConfig().unit_rows, TextConfig().unit_rows, CoverConfig().unit_rows} == {True}


def test_the_config_is_light():
    script = "import sys, firstlight.views.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "sklearn", "scipy", "numpy", "polars", "PIL"} & set(loaded.split())


def test_serving_needs_no_sklearn_and_no_torch(fitted, tmp_path):
    fitted.save(tmp_path)
    script = (
        "import sys, polars as pl; from firstlight.views.viewset import ViewSet; "
        "from firstlight.data.catalogue import Catalogue; "
        f"rows = ViewSet.load({str(tmp_path)!r}).transform(Catalogue(pl.DataFrame({{'title': ['cat now']}}))); "
        "assert rows['text'].present.all(); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "sklearn"} & set(loaded.split())
