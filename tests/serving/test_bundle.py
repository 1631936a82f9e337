"""Items come and go; everything else stays, bit by bit."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.serving.base import parts
from firstlight.serving.bundle import Bundle, state_segment
from firstlight.serving.lists import recommend_all, similar_items
from firstlight.serving.rows import Rows
from serving.catalogues import DIM, N_ITEMS, N_USERS, TasteEncoder, expected, rows, small_bundle, small_parts


def listed(bundle, user, k=50):
    return [entry.item for entry in bundle.recommend(user, k)]


def test_a_bundle_gives_back_what_it_was_made_of(tmp_path):
    base, bundle = small_parts(), small_bundle(tmp_path)
    assert bundle.version == 1
    assert torch.equal(bundle.item_vectors(), base.item_vectors)
    assert bundle.item_ids().to_list() == base.table["item"].to_list()
    assert bundle.alive.all()
    assert bundle.item("i3") == {"title": "title 3"}
    assert bundle.strays() == []
    everybody = pl.concat(recommend_all(bundle, k=7))
    for user in range(N_USERS):
        wanted = expected(base, dict(zip(base.table["item"], base.item_vectors, strict=True)), user, 7)
        assert listed(bundle, f"u{user}", 7) == wanted
        assert everybody.filter(pl.col("user") == f"u{user}")["item"].to_list() == wanted


def test_adding_changes_no_other_vector(tmp_path):
    bundle = small_bundle(tmp_path)
    before, users = bundle.item_vectors().clone(), bundle.snapshot.base.user_vectors.clone()
    held = bundle.item_vectors()
    for step in range(4):
        bundle.add_items([f"n{step}", f"m{step}"], rows(2, step))
        for opened in (bundle, Bundle.open(bundle.folder)):
            assert torch.equal(opened.item_vectors()[:N_ITEMS], before)
            assert torch.equal(opened.item_vectors()[-2:], rows(2, step))
            assert torch.equal(opened.snapshot.base.user_vectors, users)
    assert torch.equal(held, before)


def test_an_added_item_ranks_first_for_those_who_like_its_content(tmp_path):
    bundle = small_bundle(tmp_path)
    taste = bundle.snapshot.base.user_vectors[4] * 100
    features = FeatureMatrix(taste[None].numpy(), np.ones(1, np.bool_))
    vectors = TasteEncoder().encode(Catalogue(features={"taste": features}), None)
    assert "new" not in listed(bundle, "u4")
    assert bundle.add_items(["new"], vectors, pl.DataFrame({"title": ["made for u4"]})) == 2
    for opened in (bundle, Bundle.open(bundle.folder)):
        assert listed(opened, "u4", 1) == ["new"]
        assert next(recommend_all(opened, ["u4"], 1))["item"].to_list() == ["new"]
        assert opened.item("new") == {"title": "made for u4"}
        assert opened.item("i0") == {"title": "title 0"}


def test_replacing_keeps_the_row_and_what_users_have_seen(tmp_path):
    bundle, base = small_bundle(tmp_path), small_parts()
    seen = int(base.seen.row(3)[0])
    name, held = f"i{seen}", bundle.snapshot
    old = held.vectors().clone()
    bundle.add_items([name, "new"], torch.stack([base.user_vectors[3] * 50, rows(1)[0]]))
    assert torch.equal(held.vectors(), old)  # readers of the old version see the old vector
    assert held.row("new") is None
    vectors = bundle.item_vectors()
    assert torch.equal(vectors[seen], base.user_vectors[3] * 50)
    others = np.delete(np.arange(N_ITEMS), seen)
    assert torch.equal(vectors[others], old[others])
    assert name not in listed(bundle, "u3")
    assert len(bundle.item_ids()) == N_ITEMS + 1
    assert bundle.item(name) == {}


def test_removing_and_coming_back(tmp_path):
    bundle = small_bundle(tmp_path)
    best = listed(bundle, "u0", 3)
    bundle.remove_items([best[0]])
    for opened in (bundle, Bundle.open(bundle.folder)):
        assert listed(opened, "u0", 2) == best[1:]
        assert best[0] not in next(recommend_all(opened, k=50))["item"].to_list()
        assert best[0] not in next(similar_items(opened, k=50))["similar"].to_list()
        assert opened.alive.sum() == N_ITEMS - 1
        with pytest.raises(InputError, match="removed"):
            next(similar_items(opened, [best[0]]))
        with pytest.raises(InputError, match="unknown"):
            opened.item(best[0])
    bundle.add_items([best[0]], bundle.snapshot.base.user_vectors[:1] * 10)
    assert listed(Bundle.open(bundle.folder), "u0", 3) == best


def test_similar_items_include_additions(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["twin"], bundle.item_vectors()[7:8] * 3)
    table = next(similar_items(bundle, ["i7", "twin"], k=1))
    assert table["similar"].to_list() == ["twin", "i7"]
    assert table["score"].to_list() == pytest.approx([1, 1])


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("remove"), st.integers(0, 40)),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("compact"), st.booleans()),
        st.tuples(st.just("read"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None)
@given(steps=operations)
@example(steps=[("compact", True)])  # the new base has the content of the old one, which is gone
def test_any_order_of_changes_gives_what_a_dictionary_gives(tmp_path_factory, steps):
    bundle, base = small_bundle(tmp_path_factory.mktemp("any")), small_parts()
    other = Bundle.open(bundle.folder)  # another reader, that catches up at the end
    items = dict(zip(base.table["item"], base.item_vectors, strict=True))
    for step, (what, value) in enumerate(steps):
        if what == "add":
            new = rows(len(value), step)
            bundle.add_items([f"i{n}" for n in value], new)
            items |= {f"i{n}": new[k] for k, n in enumerate(value)}
        elif what == "remove" and f"i{value}" in items:
            bundle.remove_items([f"i{value}"])
            del items[f"i{value}"]
        elif what == "reopen":
            bundle = Bundle.open(bundle.folder)
        elif what == "compact":
            bundle.compact(prune=value)
        elif what == "read":
            bundle.item_vectors()
    other.reload()
    for opened in (bundle, other, Bundle.open(bundle.folder)):
        assert opened.alive.sum() == len(items)
        ids, vectors = opened.item_ids(), opened.item_vectors()
        for row in np.flatnonzero(opened.alive):
            assert torch.equal(vectors[row], items[ids[int(row)]])
        for user in range(0, N_USERS, 3):
            assert listed(opened, f"u{user}", 6) == expected(base, items, user, 6)


def test_compaction_keeps_answers_and_the_old_version(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.add_items(
        ["a", "b", "i2"], rows(3), pl.DataFrame({"title": ["A", "B", "two"], "plot": ["p", None, "q"]})
    )
    bundle.remove_items(["b", "i5"])
    before = {f"u{u}": bundle.recommend(f"u{u}", 50) for u in range(N_USERS)}
    held = bundle.snapshot
    reader = Bundle.open(bundle.folder)
    manifest = (bundle.folder / "manifest.json").read_bytes()
    assert bundle.compact() == 4
    assert (bundle.folder / "manifest-00000003.json").read_bytes() == manifest
    assert sorted(p.name for p in bundle.folder.glob("base-*")) == ["base-00000001", "base-00000004"]
    assert len(held.vectors()) == N_ITEMS + 2
    assert reader.reload()
    for opened in (bundle, reader, Bundle.open(bundle.folder)):
        for user, entries in before.items():
            after = opened.recommend(user, 50)
            assert [e.item for e in after] == [e.item for e in entries]
            assert [e.score for e in after] == pytest.approx([e.score for e in entries], abs=1e-5)
        assert opened.item("a") == {"title": "A", "plot": "p"}
        assert opened.item("i2") == {"title": "two", "plot": "q"}
        assert opened.item("i3") == {"title": "title 3", "plot": None}
        assert "b" not in opened.item_ids().to_list()  # nobody had seen it
    deleted = bundle.prune()
    assert {path.name for path in deleted} == {
        "base-00000001", "manifest-00000003.json", "00000002.safetensors", "00000003.safetensors"
    }  # fmt: skip
    assert bundle.strays() == []
    assert [e.item for e in Bundle.open(bundle.folder).recommend("u0", 50)] == [e.item for e in before["u0"]]


def test_a_removed_item_that_comes_back_after_compaction_is_still_seen(tmp_path):
    bundle, base = small_bundle(tmp_path), small_parts()
    name = f"i{base.seen.row(6)[0]}"
    bundle.remove_items([name])
    bundle.compact(prune=True)
    bundle.add_items([name], base.user_vectors[6:7] * 50)
    assert name not in listed(Bundle.open(bundle.folder), "u6")


def test_reloading_is_free_without_news_and_sees_news(tmp_path, monkeypatch):
    writer = small_bundle(tmp_path)
    reader = Bundle.open(writer.folder)
    reads = []
    real = reader._journal.read
    monkeypatch.setattr(reader._journal, "read", lambda: reads.append(1) or real())
    assert not reader.reload()
    assert reads == []
    writer.add_items(["new"], rows(1))
    assert reader.version == 1
    assert reader.reload()
    assert reader.version == 2
    assert torch.equal(reader.item_vectors(), writer.item_vectors())


def test_opening_reads_neither_vectors_nor_clicks(tmp_path):
    bundle = small_bundle(tmp_path)
    for name in ("users", "items", "seen"):
        path = bundle.folder / "base-00000001" / f"{name}.safetensors"
        path.write_bytes(bytes(path.stat().st_size))  # as long as it was, and nothing in it
    opened = Bundle.open(bundle.folder)
    opened.add_items(["new"], rows(1))
    with pytest.raises(InputError, match=r"items\.safetensors.*changed"):
        opened.item_vectors()


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "a"], rows(2), "'a' is there twice"),
        ([""], rows(1), "not an item id"),
        (["\ud800"], rows(1), "Unicode"),
        ([7], rows(1), "not an item id"),
        (["a"], rows(1, dim=DIM + 1), r"shape \(1, 6\), the catalogue needs \(1, 5\)"),
        (["a"], rows(2), "shape"),
        (["a", "b"], torch.tensor([[0.0] * 5, [float("nan")] * 5]), "the first is of item 'b'"),
        (["a"], torch.full((1, DIM), float("inf")), "NaN or infinity"),
        (["a"], torch.full((1, DIM), 1e300, dtype=torch.float64), "NaN or infinity"),
    ],
    ids=["twice", "empty", "surrogate", "number", "width", "count", "nan", "infinite", "overflow"],
)
def test_bad_items_are_refused_and_nothing_changes(tmp_path, ids, vectors, message):
    bundle = small_bundle(tmp_path)
    with pytest.raises(InputError, match=message):
        bundle.add_items(ids, vectors)
    assert Bundle.open(bundle.folder).version == bundle.version == 1
    assert bundle.strays() == []


def test_ids_and_vectors_may_be_arrays_and_one_id_is_one(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.add_items(np.array(["a", "b"]), rows(2).numpy())
    assert torch.equal(Bundle.open(bundle.folder).item_vectors()[-2:], rows(2))
    bundle.add_items("n1", rows(1))
    assert bundle.item_ids()[-1] == "n1"
    bundle.block("n1")
    assert Bundle.open(bundle.folder).snapshot.rules.blocked == {"n1"}
    bundle.unblock(pl.Series(["n1"]))
    assert bundle.snapshot.rules.blocked == frozenset()
    bundle.boost({"a": np.float32(2)})
    assert Bundle.open(bundle.folder).snapshot.rules.boosts == {"a": 2.0}
    bundle.remove_items("n1")
    assert "n1" not in listed(bundle, "u0")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda b: b.add_items(["a"], "abc"), "no matrix of numbers"),
        (lambda b: b.add_items(5, rows(1)), "5 is no list of item ids"),
        (lambda b: b.block(None), "no list of item ids"),
        (lambda b: b.block(np.array([1, 2])), "is not an item id"),
        (lambda b: b.boost({"x": "2"}), "the boost of 'x' is '2'"),
        (lambda b: b.boost({"x": None}), "the boost of 'x' is None"),
        (lambda b: b.boost({"x": True}), "the boost of 'x' is True"),
        (lambda b: b.boost({"x": float("nan")}), "the boost of 'x' is nan"),
        (lambda b: b.boost("x"), "does not say which item"),
        (lambda b: b.recommend("u1", 0), "k is 0"),
        (lambda b: b.recommend("u1", 2.5), "k is 2.5"),
        (lambda b: b.recommend("u1", "3"), "k is '3'"),
        (lambda b: b.recommend(["u1"]), "is unknown"),
        (lambda b: next(recommend_all(b, k=0)), "k is 0"),
        (lambda b: next(similar_items(b, k=-1)), "k is -1"),
    ],
)
def test_arguments_of_another_kind_are_told_of(tmp_path, call, told):
    bundle = small_bundle(tmp_path)
    with pytest.raises(InputError, match=told):
        call(bundle)
    assert bundle.version == 1


def test_lists_are_no_longer_than_the_catalogue(tmp_path):
    """They were laid out at the length that was asked for."""
    bundle = small_bundle(tmp_path)
    assert bundle.recommend("u0", 10**9) == bundle.recommend("u0", N_ITEMS)
    for lists in (recommend_all, similar_items):
        assert next(lists(bundle, k=10**9)).equals(next(lists(bundle, k=N_ITEMS)))


@pytest.mark.parametrize(
    "beside",
    [{"contents": [b"{}"]}, {"covers": [b"a"]}, {"covers": [b"a"] * 3}, {"contents": [b"{}", None, b"{}"]}],
    ids=["few contents", "few covers", "many covers", "many contents"],
)
def test_what_does_not_stand_beside_the_items_is_refused(tmp_path, beside):
    """Such a segment was durable, and compaction failed on it for good."""
    bundle = small_bundle(tmp_path)
    ((what, values),) = beside.items()
    with pytest.raises(InputError, match=f"there are {len(values)} {what} for 2 items"):
        bundle.add_items(["n3", "n4"], rows(2), **beside)
    with pytest.raises(InputError, match="covers is str, and bytes were expected"):
        bundle.add_items(["n3", "n4"], rows(2), covers=["a.jpg", None])
    assert bundle.strays() == []
    assert bundle.add_items(["n3", "n4"], rows(2), covers=[b"a", None], contents=[b"{}\n", None]) == 2
    assert [content for _, content in bundle.additions()] == [b"{}\n", b""]
    bundle.compact()
    snapshot = Bundle.open(bundle.folder).snapshot
    assert [snapshot.cover(snapshot.row(item)) for item in ("n3", "n4")] == [b"a", None]


@pytest.mark.parametrize(
    ("written", "found"),
    [((b"a",), (b"a", None)), ((b"a", b"b", b"c"), (b"a", b"b")), ((), (None, None))],
    ids=["few", "many", "none"],
)
def test_what_was_written_beside_the_items_before_it_was_checked_is_filled_up_or_cut(
    tmp_path, written, found
):
    bundle = small_bundle(tmp_path)
    table = pl.DataFrame({"item": ["n3", "n4"]})
    segment = replace(state_segment(DIM), table=table, vectors=rows(2), covers=written, contents=written)
    bundle._journal.append(bundle._manifest, segment)

    def check(opened):
        snapshot = opened.snapshot
        assert tuple(snapshot.cover(snapshot.row(item)) for item in ("n3", "n4")) == found
        assert tuple(content or None for _, content in opened.additions()) == found

    opened = Bundle.open(bundle.folder)
    check(opened)
    opened.compact(prune=True)
    check(Bundle.open(bundle.folder))


def test_other_refusals(tmp_path):
    bundle = small_bundle(tmp_path)
    with pytest.raises(InputError, match="1 of the items are not in the catalogue, the first is 'no'"):
        bundle.remove_items(["i1", "no"])
    with pytest.raises(InputError, match="twice"):
        bundle.remove_items(["i1", "i1"])
    with pytest.raises(InputError, match="rows for 1 items"):
        bundle.add_items(["a"], rows(1), pl.DataFrame({"title": ["x", "y"]}))
    with pytest.raises(InputError, match="user 'nobody'"):
        bundle.recommend("nobody")
    with pytest.raises(InputError, match="unknown"):
        next(recommend_all(bundle, ["nobody"]))
    with pytest.raises(InputError, match="no encoder"):
        bundle.encoder()
    with pytest.raises(InputError, match="not empty"):
        Bundle.create(bundle.folder, small_parts())
    with pytest.raises(InputError, match="not a bundle"):
        Bundle.open(tmp_path)
    assert bundle.version == bundle.add_items([], torch.empty(0, DIM)) == bundle.remove_items([]) == 1


@pytest.mark.parametrize("name", ["ünï/../c ode", "\n", "a\x00b", "🜁", " x ", "i" * 5000])
def test_ids_are_any_text(tmp_path, name):
    bundle = small_bundle(tmp_path)
    if not name.strip():
        with pytest.raises(InputError):
            bundle.add_items([name], rows(1))
        return
    bundle.add_items([name], bundle.snapshot.base.user_vectors[:1] * 100, pl.DataFrame({"title": [name]}))
    opened = Bundle.open(bundle.folder)
    assert listed(opened, "u0", 1) == [name]
    opened.compact()
    assert Bundle.open(bundle.folder).item(name)["title"] == name


def test_parts_that_do_not_fit_are_refused():
    users, items = pl.Series(["u"]), pl.Series(["i", "j"])
    with pytest.raises(InputError, match="vectors"):
        parts(users, items, rows(1), rows(3))
    with pytest.raises(InputError, match="width"):
        parts(users, items, rows(1), rows(2, dim=4))
    with pytest.raises(InputError, match="twice"):
        parts(users, pl.Series(["i", "i"]), rows(1), rows(2))
    with pytest.raises(InputError, match="NaN"):
        parts(users, items, rows(1), rows(2) / 0)


def test_readers_never_see_a_half_made_version(tmp_path):
    """Every version holds the two items of its segment, both or neither, with equal vectors."""
    bundle = small_bundle(tmp_path)
    wrong, done = [], threading.Event()

    def read():
        while not done.is_set():
            snapshot = bundle.snapshot
            vectors = snapshot.vectors()
            if len(vectors) != len(snapshot.alive) or len(vectors) != N_ITEMS + 2 * (snapshot.version - 1):
                wrong.append(snapshot.version)
            if not torch.equal(vectors[N_ITEMS::2], vectors[N_ITEMS + 1 :: 2]):
                wrong.append(snapshot.version)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for step in range(20):
        bundle.add_items([f"a{step}", f"b{step}"], rows(1, step).repeat(2, 1))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_threads_that_write_lose_nothing(tmp_path):
    bundle = small_bundle(tmp_path)
    other = Bundle.open(bundle.folder)  # with its own state, as in another process

    def write(target, name):
        for step in range(5):
            target.add_items([f"{name}{step}"], rows(1, step))

    writers = [
        threading.Thread(target=write, args=(t, n)) for t, n in ((bundle, "a"), (bundle, "b"), (other, "c"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    opened = Bundle.open(bundle.folder)
    assert opened.version == 16
    wanted = {f"{name}{step}" for name in "abc" for step in range(5)}
    assert set(opened.item_ids()[N_ITEMS:]) == wanted
    bundle.reload()
    assert torch.equal(bundle.item_vectors(), opened.item_vectors())


@given(st.lists(st.one_of(st.integers(1, 700), st.just(0)), max_size=12), st.randoms())
@settings(max_examples=25, deadline=None)
def test_rows_grow_and_old_states_stay(steps, chance):
    state = Rows(rows(3))
    states = [(state, state.values.clone())]
    for step, count in enumerate(steps):
        origin, content = chance.choice(states)  # also from states that are not the newest
        if count:
            new, wanted = origin.appended(rows(count, step)), torch.cat([content, rows(count, step)])
        else:
            place = torch.tensor([chance.randrange(len(content))])
            wanted = content.clone()
            wanted[place] = 1
            new = origin.replaced(place, torch.ones(1, DIM))
        states.append((new, wanted))
    for state, content in states:
        assert len(state) == len(content)
        assert torch.equal(state.values, content)
