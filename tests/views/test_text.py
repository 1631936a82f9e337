"""TF-IDF and SVD."""

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.views.base import NothingToFitError
from firstlight.views.config import TextConfig
from firstlight.views.text import TextView

DEFAULT = TextConfig()
RAW = TextConfig(scaling="none", unit_rows=False)


def fit(titles, config=DEFAULT, warm=None, seed=0, **columns):
    catalogue = Catalogue(pl.DataFrame({"title": titles, **columns}, strict=False))
    warm = np.ones(len(titles), np.bool_) if warm is None else np.asarray(warm)
    view = TextView.fit(config, catalogue, warm, seed)
    return view, view.transform(catalogue, len(titles), None, [])


def test_inner_products_are_those_of_tf_idf():
    # With as many axes as words nothing is lost; scikit-learn's weights are the yardstick.
    titles = ["red cat", "red red dog", "blue dog plays", "cat and dog", "a blue a day"]
    config = RAW.model_copy(update={"sublinear": False})
    view, rows = fit(titles, config)
    theirs = TfidfVectorizer(token_pattern=r"\w+").fit(titles)
    assert view.vocabulary == theirs.get_feature_names_out().tolist()
    exact = theirs.transform(titles)
    np.testing.assert_allclose(rows.values @ rows.values.T, (exact @ exact.T).toarray(), atol=1e-5)


def test_like_titles_are_near():
    titles = [
        "cat purring",
        "kitten cat",
        "cat kitten purring",
        "goal league",
        "striker goal",
        "league striker goal",
    ]
    _, rows = fit(titles * 3)
    similar = rows.values[:6] @ rows.values[:6].T
    assert similar[:3, :3].min() > similar[:3, 3:].max()


@pytest.mark.parametrize(
    "titles", [["a cat"], ["a cat", "a dog"], ["x y", "x z", "w"], ["cat", None, "", "N/A", "dog"]]
)
def test_a_handful_of_items_works(titles):
    view, rows = fit(titles)
    assert 1 <= view.dim <= len(titles)
    assert rows.present.tolist() == [bool(title) and title != "N/A" for title in titles]
    assert np.isfinite(rows.values).all()


def test_no_words_at_all():
    for titles in ([None, "", "N/A"], ["!!!", "..."]):
        with pytest.raises(NothingToFitError):
            fit(titles)
    with pytest.raises(NothingToFitError):
        fit(["the same", "the same"])


def test_an_item_without_a_known_word_is_absent():
    _, rows = fit(["cat food", "dog food", "zebra"], warm=[True, True, False])
    assert rows.present.tolist() == [True, True, False]
    assert not rows.values[2].any()


def test_rare_words_count_only_in_small_catalogues():
    titles = [f"word{row % 7} unique{row}" for row in range(120)]
    view, _ = fit(titles)
    assert view.vocabulary == [f"word{number}" for number in range(7)]
    assert len(fit(titles[:60])[0].vocabulary) == 67
    with pytest.raises(NothingToFitError, match="2 warm items"):
        fit([f"unique{row}" for row in range(120)])


def test_most_frequent_words_are_kept():
    view, _ = fit(["b c", "b c", "b a", "b d"], TextConfig(max_features=2))
    assert view.vocabulary == ["b", "c"]


def test_lists_and_joined_lists_are_the_same():
    genres = ["Action|Science Fiction", "Science Fiction", "Action|Drama", "Drama"]
    _, joined = fit(genres, TextConfig(ngrams=2))
    _, listed = fit(["N/A"] * 4, TextConfig(ngrams=2), tags=[genre.split("|") for genre in genres])
    np.testing.assert_array_equal(joined.values, listed.values)


def test_neighbours_do_not_cross_pieces():
    view, _ = fit(["red cat|blue dog", "red|cat"], TextConfig(ngrams=2))
    assert "red cat" in view.vocabulary
    assert "cat blue" not in view.vocabulary


def test_weights():
    titles, tags = ["cat", "cat", "dog", "dog"], ["x", "y", "x", "y"]
    for weights, near in (({"tags": 0.01}, 1), ({"title": 0.01}, 2)):
        _, rows = fit(titles, TextConfig(weights=weights), tags=tags)
        assert (rows.values[0] @ rows.values.T).argsort()[-2] == near
    view, _ = fit(titles, TextConfig(weights={"tags": 0}), tags=tags)
    assert view.vocabulary == ["cat", "dog"]
    with pytest.raises(ValueError, match="finite"):
        TextConfig(weights={"title": float("nan")})


def test_named_columns():
    years = [1995.0, 1995.0, 2001.0]
    view, _ = fit(["a", "b", "c"], TextConfig(columns=("year",)), year=years)
    assert view.vocabulary == ["1995", "2001"]
    with pytest.raises(InputError, match="plot"):
        fit(["a"], TextConfig(columns=("plot",)))


def test_mixed_cells():
    mixed = pl.Series("tags", ["red|cat", ["red", "dog"], None, 3, float("nan"), b"\xff"], dtype=pl.Object)
    catalogue = Catalogue(pl.DataFrame({"tags": mixed}))
    view = TextView.fit(TextConfig(), catalogue, np.ones(6, np.bool_), 0)
    assert view.vocabulary == ["3", "cat", "dog", "red"]
    assert view.transform(catalogue, 6, None, []).present.tolist() == [True, True, False, True, False, False]


def test_a_column_that_is_gone_or_of_another_type_later():
    view, rows = fit(["cat", "dog", "cat dog"], tags=["x", "y", "z"])
    only = view.transform(Catalogue(pl.DataFrame({"tags": [["x"], ["q"]]})), 2, None, [])
    assert only.present.tolist() == [True, False]
    assert not view.transform(Catalogue(pl.DataFrame({"year": [1]})), 1, None, []).present.any()
    assert rows.values.shape[1] == view.dim


def test_huge_texts():
    long = "cat " * 2_000_000
    _, rows = fit([long, "dog", "cat"])
    assert rows.present.all()


def test_width_and_determinism():
    rng = np.random.default_rng(0)
    titles = [" ".join(f"w{word}" for word in rng.integers(60, size=6)) for _ in range(200)]
    one, rows = fit(titles, TextConfig(dim=10), seed=4)
    two, again = fit(titles, TextConfig(dim=10), seed=4)
    assert one.dim == 10
    np.testing.assert_array_equal(rows.values, again.values)
    np.testing.assert_array_equal(one.axes, two.axes)
    np.testing.assert_allclose(one.axes.T @ one.axes, np.eye(10), atol=1e-5)


def test_a_single_word():
    """Rows have length one, so all that have the word are alike: said in a sentence, not by a crash of the SVD."""
    with pytest.raises(NothingToFitError, match="the same for all"):
        fit(["cat", "", "cat cat"])
