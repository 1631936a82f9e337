"""Real films, real micro-videos, and the generated world."""

import numpy as np
import pytest

from firstlight.data.catalogue import Catalogue
from firstlight.data.formats import read_dataset
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.views.config import ViewsConfig
from firstlight.views.viewset import ViewSet


def neighbours_agree(rows, labels, warm, cold):
    """Share of cold items whose nearest warm item has the same label."""
    nearest = (rows[cold] @ rows[warm].T).argmax(axis=1)
    return float((labels[warm][nearest] == labels[cold]).mean())


def test_films(real_data):
    data = read_dataset(real_data("movielens-small"))
    warm = np.zeros(data.n_items, np.bool_)
    warm[np.random.default_rng(0).choice(data.n_items, 1200, replace=False)] = True
    fitted = ViewSet.fit(ViewsConfig(), data.catalogue, warm, folder=data.source)
    assert fitted.names == ("text", "cover")
    some = data.catalogue.items[:600]
    rows = fitted.transform(Catalogue(some))
    has_cover = some["cover"].is_not_null().to_numpy()
    np.testing.assert_array_equal(rows["cover"].present, has_cover)
    assert rows["text"].present.all()
    assert fitted.problems == []
    genres = [set((genre or "").split("|")) for genre in some["genres"]]
    similar = rows["text"].values @ rows["text"].values.T
    np.fill_diagonal(similar, -1)
    shared = [len(genres[row] & genres[other]) for row, other in enumerate(similar.argmax(axis=1))]
    by_chance = [len(one & other) for one in genres for other in genres if one is not other]
    assert np.mean(shared) > 1.25 * np.mean(by_chance)


def test_micro_videos(real_data):
    data = read_dataset(real_data("tiktok"))
    warm = data.train.item_degrees > 0
    fitted = ViewSet.fit(ViewsConfig(), data.catalogue, warm)
    assert set(fitted.names) == {"image", "audio"}
    assert fitted.dims == {"image": 128, "audio": 128}
    for name, rows in fitted.transform(data.catalogue).items():
        assert rows.present.sum() <= data.catalogue.features[name].present.sum()
        assert rows.present.mean() > 0.9
        np.testing.assert_allclose(np.linalg.norm(rows.values[rows.present], axis=1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def generated():
    return simulate(SimulationConfig(n_users=150, n_items=400, seed=5))


def test_generated_world(generated):
    data = generated.dataset
    warm = data.train.item_degrees > 0
    assert 0 < warm.sum() < data.n_items
    fitted = ViewSet.fit(ViewsConfig(), data.catalogue, warm)
    rows = fitted.transform(data.catalogue)
    assert {"text", "cover"} < set(fitted.names)
    assert rows["cover"].present.all()
    topics = generated.truth.item_topics
    chance = np.square(np.bincount(topics) / len(topics)).sum()
    assert neighbours_agree(rows["text"].values, topics, warm, ~warm) > 3 * chance
    assert neighbours_agree(rows["cover"].values, topics, warm, ~warm) > 1.2 * chance
