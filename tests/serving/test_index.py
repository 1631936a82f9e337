"""Lists against a plain sort, whatever is filtered; approximate ones against exact ones."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.serving import approximate
from firstlight.serving.approximate import ApproximateIndex, choose, folder_of, open_index
from firstlight.serving.base import parts
from firstlight.serving.bundle import Bundle
from firstlight.serving.index import ExactIndex, Query
from serving.catalogues import N_ITEMS, rows, small_bundle
from worlds import random_log


def plain(bundle: Bundle, query: Query) -> list[tuple[int, float]]:
    """The same by a loop."""
    snapshot = bundle.snapshot
    found = []
    for row, vector in enumerate(snapshot.vectors()):
        score, item = float(vector @ query.vector), snapshot.ids.name(row)
        factor = snapshot.rules.boosts.get(item, 1.0)
        score = score * factor if score > 0 else score / factor
        wanted = query.candidates is None or row in query.candidates
        if snapshot.alive[row] and item not in snapshot.rules.blocked and wanted and row not in query.exclude:
            found.append((row, score))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[: query.k]


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Bundle:
    bundle = small_bundle(tmp_path_factory.mktemp("changed"))
    bundle.add_items(["n1", "n2", "i4"], rows(3))
    bundle.remove_items(["i6", "n2"])
    bundle.block(["i8", "i9"])
    bundle.boost({"i2": 4.0, "n1": 2.0, "i11": 0.1})
    return bundle


items = st.lists(st.integers(0, N_ITEMS + 1), max_size=N_ITEMS, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 11), st.integers(1, 40), items, st.none() | items), min_size=1, max_size=5
    )
)
def test_exact_lists_are_what_a_loop_gives(changed, asked):
    vectors = changed.snapshot.base.user_vectors
    queries = [
        Query(
            vectors[u], k, np.array(sorted(out), np.int64), None if some is None else np.array(some, np.int64)
        )
        for u, k, out, some in asked
    ]
    for query, found in zip(queries, ExactIndex().search(changed.snapshot, queries), strict=True):
        wanted = plain(changed, query)
        assert found.rows.tolist() == [row for row, _ in wanted]
        assert found.scores.tolist() == pytest.approx([score for _, score in wanted], rel=1e-5)


def large(folder, n: int = 3000, dim: int = 8) -> Bundle:
    rng = torch.Generator().manual_seed(3)
    items, users = torch.randn(n, dim, generator=rng), torch.randn(60, dim, generator=rng)
    ids = [pl.Series([f"{kind}{i}" for i in range(m)]) for kind, m in (("u", 60), ("i", n))]
    return Bundle.create(folder / "bundle", parts(*ids, users, items, random_log(60, n, 900, 0)))


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_lists_hold_what_exact_ones_do(tmp_path, monkeypatch, kind):
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "_FEW", 100)
    bundle = large(tmp_path)
    base = bundle.snapshot.base
    index = open_index(base, kind)
    assert isinstance(index, ApproximateIndex)
    about = json.loads((folder_of(base) / "index.json").read_text())
    assert about["kind"] == kind
    assert about["recall@20"] >= about["target"]
    assert about["reached"]
    assert bundle.strays() == []
    stamp = (folder_of(base) / "index.faiss").stat().st_mtime_ns
    assert isinstance(open_index(base, kind), ApproximateIndex)  # the one that stands there
    assert (folder_of(base) / "index.faiss").stat().st_mtime_ns == stamp

    taste = base.user_vectors[0]
    bundle.add_items(["new", "i7"], torch.stack([9 * taste, 8 * taste]))
    best = bundle.recommend("u0", 6)
    bundle.block([best[2].item])
    bundle.remove_items([best[3].item])
    bundle.boost({best[5].item: 50.0, "i9": 0.5})
    snapshot = bundle.snapshot
    queries = [
        Query(base.user_vectors[u], k, base.seen.row(u).astype(np.int64), some)
        for u, k, some in [
            (0, 5, None),
            (1, 20, None),
            (2, 20, np.arange(50)),
            (3, 200, None),
            (4, 3000, None),
        ]
    ]
    hits = total = 0
    for query, exact, found in zip(
        queries, ExactIndex().search(snapshot, queries), index.search(snapshot, queries), strict=True
    ):
        assert len(found.rows) == len(exact.rows)
        assert not np.isin(found.rows, query.exclude).any()
        assert snapshot.shown[found.rows].all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        hits, total = hits + len(np.intersect1d(found.rows, exact.rows)), total + len(exact.rows)
    assert hits / total > 0.97
    first = [snapshot.ids.name(row) for row in index.search(snapshot, queries[:1])[0].rows.tolist()]
    assert first[0] == best[5].item or first[:2] == ["new", "i7"]  # boosted, new and replaced ones are exact
    assert best[2].item not in first
    assert best[3].item not in first


def test_a_filter_that_leaves_few_is_answered_exactly(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    bundle = large(tmp_path)
    index = open_index(bundle.snapshot.base, "hnsw")
    bundle.block([f"i{i}" for i in range(2950)])  # 50 are left, far from each other in the graph
    query = Query(bundle.snapshot.base.user_vectors[0], 20)
    exact = ExactIndex().search(bundle.snapshot, [query])[0]
    assert index.search(bundle.snapshot, [query])[0].rows.tolist() == exact.rows.tolist()
    monkeypatch.setattr(approximate, "_FEW", 10)  # also where the graph is asked: it falls back
    assert index.search(bundle.snapshot, [query])[0].rows.tolist() == exact.rows.tolist()


def test_an_index_that_misses_the_target_is_not_used(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "TARGET", 1.01)
    monkeypatch.setattr(approximate, "_EFFORTS", (16, 32))
    bundle = large(tmp_path)
    assert isinstance(open_index(bundle.snapshot.base, "hnsw"), ExactIndex)
    assert json.loads((folder_of(bundle.snapshot.base) / "index.json").read_text())["reached"] is False


def test_an_index_whose_removal_was_cut_short_is_built_anew(tmp_path):
    """A kill while the old one went must not keep the server from starting."""
    pytest.importorskip("faiss")
    base = large(tmp_path).snapshot.base
    open_index(base, "hnsw")
    (folder_of(base) / "index.json").unlink()
    assert isinstance(open_index(base, "hnsw"), ApproximateIndex)
    assert json.loads((folder_of(base) / "index.json").read_text())["kind"] == "hnsw"


def test_size_chooses_and_changed_files_are_refused(tmp_path):
    assert [choose(n) for n in (10, 250_000, 250_001)] == ["exact", "exact", "ivf"]
    with pytest.raises(InputError, match="no index 'tree'"):
        open_index(small_bundle(tmp_path).snapshot.base, "tree")
    pytest.importorskip("faiss")
    base = large(tmp_path / "large").snapshot.base
    open_index(base, "ivf")
    file = folder_of(base) / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="changed"):
        open_index(base, "ivf")
