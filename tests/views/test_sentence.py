"""The sentence encoder: a stand-in library everywhere, the real one where the extra is installed."""

import importlib
import json
import os
import shutil
import sys

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError, MissingExtraError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views import sentence
from firstlight.views.config import ViewsConfig
from firstlight.views.viewset import ViewSet, outside_hashes

#: Reads a folder with ``words.json`` (word → row) as the library would read a real encoder; the longest text of a
#: batch moves all its rows, as padding does in a real one, but more.
STAND_IN = """
import json, pathlib
import numpy as np

class SentenceTransformer:
    loads = []

    def __init__(self, path, device, local_files_only, model_kwargs):
        assert local_files_only and model_kwargs == {"use_safetensors": True}
        self.words = json.loads((pathlib.Path(path) / "words.json").read_text())
        self.loads.append(path)
        self.calls = []

    def encode(self, texts, batch_size, show_progress_bar, convert_to_numpy):
        self.calls += texts
        dim = len(next(iter(self.words.values())))
        rows = []
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            padding = 1e-3 * max(map(len, batch))
            for text in batch:
                found = [self.words[w] for w in text.lower().replace(",", " ").replace(".", " ").split() if w in self.words]
                rows.append(np.sum(found, axis=0) + padding if found else np.full(dim, np.nan))
        return np.array(rows, np.float32)
"""  # noqa: E501
TITLES = ["cat purring", "goal keeper", "cat goal", None, "keeper", "purring goal", "cat", "cat keeper"]


@pytest.fixture
def library(tmp_path, monkeypatch):
    package = tmp_path / "site" / "sentence_transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    importlib.invalidate_caches()
    sentence._loaded.cache_clear()
    yield importlib.import_module("sentence_transformers")
    sentence._loaded.cache_clear()
    sys.modules.pop("sentence_transformers", None)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    words = {
        word: rng.normal(size=4).round(3).tolist() for word in ("cat", "purring", "goal", "keeper", "league")
    }
    (tmp_path / "encoder" / ".cache").mkdir(parents=True)
    (tmp_path / "encoder" / "words.json").write_text(json.dumps(words))
    (tmp_path / "encoder" / "README.md").write_text("about it")
    (tmp_path / "encoder" / ".cache" / "stamp").write_text("1")
    return tmp_path / "encoder"


def config(folder, **fields) -> ViewsConfig:
    return ViewsConfig.model_validate({"sentence": {"path": str(folder), **fields}, "use": ["sentence"]})


def catalogue(titles=TITLES) -> Catalogue:
    return Catalogue(pl.DataFrame({"title": pl.Series(titles, dtype=pl.String)}))


WARM = np.arange(len(TITLES)) < 6


def test_rows_and_presence(library, folder):
    views = ViewSet.fit(config(folder), catalogue(), WARM)
    rows = views.transform(catalogue([*TITLES, "unheard"]))["sentence"]
    assert rows.values.shape == (9, 4)
    assert np.flatnonzero(~rows.present).tolist() == [3, 8]
    assert "1 of 9 rows are NaN" in views.problems[0]
    np.testing.assert_allclose(np.linalg.norm(rows.values[rows.present], axis=1), 1, rtol=1e-6)
    assert "encoder" in rows.extractor
    assert library.SentenceTransformer.loads == [str(folder)]  # once for fitting and transforming


def test_scaled_by_warm_items_only(library, folder):
    one = ViewSet.fit(config(folder), catalogue(), WARM).views["sentence"]
    two = ViewSet.fit(config(folder), catalogue([*TITLES[:6], "league", "league"]), WARM).views["sentence"]
    np.testing.assert_array_equal(one.scaler.mean, two.scaler.mean)
    raw = sentence._loaded(folder, one.digest).rows([t for t in TITLES[:6] if t])
    np.testing.assert_allclose(one.scaler.mean, raw.mean(axis=0), rtol=1e-6)


def test_an_item_alone_gives_the_same_bits(library, folder):
    views = ViewSet.fit(config(folder), catalogue(), WARM)
    whole = views.transform(catalogue())["sentence"]
    for row in range(len(TITLES)):
        sentence._loaded.cache_clear()  # nothing remembered: the text goes through the encoder on its own
        alone = views.transform(catalogue([TITLES[row]]))["sentence"]
        np.testing.assert_array_equal(alone.values[0], whole.values[row])
        assert alone.present[0] == whole.present[row]


def test_equal_texts_are_encoded_once(library, folder):
    views = ViewSet.fit(config(folder), catalogue(["cat", "cat", "goal", "cat"]), np.ones(4, np.bool_))
    encoder = sentence._loaded(folder, views.views["sentence"].digest)
    views.transform(catalogue(["goal", "keeper"]))
    assert encoder._model.calls == ["cat", "goal", "keeper"]


def test_memory_is_bounded(library, folder, monkeypatch):
    monkeypatch.setattr(sentence, "_REMEMBERED_BYTES", 3 * 16)  # three rows of four floats
    encoder = sentence._loaded(folder, sentence.encoder_hash(folder))
    first = encoder.rows(["cat", "goal"])
    np.testing.assert_array_equal(encoder.rows(["keeper", "cat", "league"])[1], first[0])
    assert set(encoder._known) == {"cat", "goal"}


def test_columns_are_joined_in_order():
    items = pl.DataFrame(
        {"title": ["A film", None, "null", " "], "tags": [["x", "y"], ["z"], [], None], "year": 1}
    )
    assert sentence.sentences(items, ("title", "tags")) == ["A film. x, y", "z", None, None]
    assert sentence.sentences(items, ("tags", "missing", "year"))[0] == "x, y. 1"


def test_saved_and_loaded(library, folder, tmp_path):
    views = ViewSet.fit(config(folder), catalogue(), WARM)
    views.save(tmp_path / "views")
    sentence._loaded.cache_clear()
    library.SentenceTransformer.loads.clear()
    loaded = ViewSet.load(tmp_path / "views")
    assert library.SentenceTransformer.loads == []  # not before a text comes
    np.testing.assert_array_equal(
        loaded.transform(catalogue())["sentence"].values, views.transform(catalogue())["sentence"].values
    )
    about = json.loads((tmp_path / "views" / "views.json").read_text())["views"][0]
    assert (about["folder"], about["sha256"]) == (str(folder), sentence.encoder_hash(folder))


def test_another_encoder_is_refused(library, folder, tmp_path):
    ViewSet.fit(config(folder), catalogue(), WARM).save(tmp_path / "views")
    before = outside_hashes(config(folder))
    (folder / "README.md").write_text("other words about it")
    (folder / ".cache" / "stamp").write_text("2")
    assert outside_hashes(config(folder)) == before
    sentence._loaded.cache_clear()
    ViewSet.load(tmp_path / "views").transform(catalogue())
    words = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps({**words, "cat": [9.0, 9, 9, 9]}))
    assert outside_hashes(config(folder)) != before
    sentence._loaded.cache_clear()
    with pytest.raises(InputError, match="another one than in training"):
        ViewSet.load(tmp_path / "views").transform(catalogue())
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no folder of a sentence encoder"):
        ViewSet.load(tmp_path / "views").transform(catalogue())


def test_nothing_to_encode_needs_no_encoder(library, folder):
    views = ViewSet.fit(config(folder), catalogue(), WARM)
    sentence._loaded.cache_clear()
    shutil.rmtree(folder)
    for texts in (Catalogue(), Catalogue(pl.DataFrame({"year": [1]})), catalogue([None, " "])):
        rows = views.transform(texts)["sentence"]
        assert rows.values.shape == (texts.items.height, 4)
        assert not rows.present.any()


def test_what_is_refused(library, folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nothing is fetched by name"):
        ViewSet.fit(config("all-minilm-l6-v2"), catalogue(), WARM)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no encoder in this folder"):
        ViewSet.fit(config(tmp_path / "empty"), catalogue(), WARM)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.bin").write_text("")
    with pytest.raises(InputError, match="cannot be loaded"):
        ViewSet.fit(config(tmp_path / "other"), catalogue(), WARM)
    with pytest.raises(InputError, match="no text column 'plot'"):
        ViewSet.fit(config(folder, columns=["plot"]), catalogue(), WARM)
    with pytest.raises(InputError, match="no warm item has a text"):
        ViewSet.fit(config(folder), catalogue(["cat", None]), np.array([False, True]))
    with pytest.raises(InputError, match=r"no view 'sentence'[\s\S]*views\.sentence\.path"):
        ViewSet.fit(ViewsConfig(use=("sentence",)), catalogue(), WARM)


def test_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("firstlight.core.extras.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"firstlight\[text\]"):
        ViewSet.fit(config(folder), catalogue(), WARM)


def test_beside_words_and_features(library, folder):
    given = ViewsConfig.model_validate({"sentence": {"path": str(folder)}})
    assert ViewSet.fit(given, catalogue(), WARM).names == ("text", "sentence")
    feature = FeatureMatrix(np.eye(8, dtype=np.float32), np.ones(8, np.bool_))
    both = Catalogue(catalogue().items, {"sentence": feature})
    assert ViewSet.fit(given, both, WARM).names == ("sentence", "text", "sentence-encoder")


def test_the_environment_is_as_before(library, folder, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    ViewSet.fit(config(folder), catalogue(), WARM)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["TRANSFORMERS_OFFLINE"] == "0"


def test_the_real_library(tmp_path):
    """A tiny transformer, saved and read by the library itself: load, encode, and one by one as together."""
    library = pytest.importorskip("sentence_transformers", reason="the extra 'text' is not installed")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "purring", "goal", "keeper", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    # A plain transformer: the library adds the mean over tokens.
    library.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save_pretrained(
        str(tmp_path / "encoder")
    )
    sentence._loaded.cache_clear()
    views = ViewSet.fit(config(tmp_path / "encoder"), catalogue(), WARM)
    whole = views.transform(catalogue())["sentence"]
    assert whole.values.shape == (len(TITLES), 16)
    assert whole.present.tolist() == [title is not None for title in TITLES]
    sentence._loaded.cache_clear()
    for row in (0, 6):
        alone = views.transform(catalogue([TITLES[row]]))["sentence"]
        np.testing.assert_allclose(alone.values[0], whole.values[row], atol=1e-6)
    sentence._loaded.cache_clear()
