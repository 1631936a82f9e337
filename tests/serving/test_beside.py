"""What stands beside the vectors: reasons and histories are in the bundle, and say what the model says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from firstlight.cli.app import run as command
from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_file
from firstlight.data.catalogue import Catalogue
from firstlight.data.folder import write_dataset
from firstlight.data.interactions import Interactions
from firstlight.models.content import content_rows
from firstlight.models.histories import FoldRule, fold_in
from firstlight.serving.adding import add_new_items
from firstlight.serving.bundle import Bundle
from firstlight.serving.contents import Kept, contents_of
from firstlight.serving.extras import KINDS
from firstlight.serving.histories import NewUsers
from firstlight.serving.journal import Manifest
from firstlight.serving.new_items import NewItems, read_new_items
from firstlight.serving.reasons import WIDTH, Reasons, ViewLevel, reduced
from firstlight.training.run_folder import Run, load_run
from serving.catalogues import rows, small_bundle
from serving.test_commands import N_ITEMS, new_dataset, topical

QUICK = ["training.batch_size=128", "training.selection=none", "model.dim=8"]
MODELS = {
    "mhcr": QUICK,
    "hypergraphs": [*QUICK, "model.hyper_weight=0.3", "model.hyperedges=6"],
    "vbpr": QUICK,
    "dropoutnet": QUICK,
    "ials": ["model.dim=8"],
    "content-knn": [],
    "mf": QUICK,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind on the topical world; nobody changes them."""
    folder = tmp_path_factory.mktemp("beside")
    write_dataset(topical(), folder / "data")
    found = {}
    for name, sets in MODELS.items():
        model = "mhcr" if name == "hypergraphs" else name
        words = ["train", folder / "data", "--model", model, "--out", folder / name, "--threads", 1]
        words += ["--epochs", 6] if sets == QUICK or len(sets) > 2 else []
        assert command([str(w) for w in [*words, *(x for s in sets for x in ("--set", s))]]) == 0
        found[name] = folder / name
    return found


def exported(path: Path, folder: Path, *, alone: bool = False) -> tuple[Run, Bundle]:
    """A run and its bundle; ``alone``: the run's folder is gone when the bundle is opened."""
    copy = Path(shutil.copytree(path, folder / "run"))
    run = load_run(copy)
    assert run.model is not None  # read before it goes
    assert command(["export", str(copy), str(folder / "bundle")]) == 0
    if alone:
        shutil.rmtree(copy)
    return run, Bundle.open(folder / "bundle")


def some_histories(n: int = 9, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [sorted(rng.choice(N_ITEMS, size, replace=False).tolist()) for size in rng.integers(1, 9, n)]


def expected_users(run: Run, histories: list[list[int]]) -> torch.Tensor:
    users = np.repeat(np.arange(len(histories)), [len(one) for one in histories])
    log = Interactions.from_pairs(users, np.concatenate(histories), len(histories), N_ITEMS)
    return run.model.encode_users(log)


def served_users(bundle: Bundle, histories: list[list[str]]) -> torch.Tensor:
    snapshot = bundle.snapshot
    made = NewUsers(snapshot.base)
    assert made.by_model
    return torch.stack([made.vector(snapshot, np.array(snapshot.rows_of(one))) for one in histories])


def named(histories: list[list[int]]) -> list[list[str]]:
    return [[f"i{row}" for row in one] for one in histories]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mf"])
def test_a_bundle_makes_the_users_of_its_run(runs, tmp_path, name):
    run, bundle = exported(runs[name], tmp_path, alone=True)
    histories = some_histories()
    expected = expected_users(run, histories)
    assert torch.allclose(served_users(bundle, named(histories)), expected, atol=1e-5)
    bundle.remove_items(["i3", "i17"])  # in the middle of a log: rows of unseen ones go with the next base
    bundle.compact(prune=True)
    again = Bundle.open(bundle.folder)
    assert torch.allclose(served_users(again, named(histories)), expected, atol=1e-5)


def test_a_run_is_served_with_its_own_rule(runs):
    run = load_run(runs["hypergraphs"])
    histories = some_histories()
    found = served_users(Bundle.open_run(run), named(histories))
    assert torch.allclose(found, expected_users(run, histories), atol=1e-5)


def test_a_model_without_a_rule_folds_histories_in(runs, tmp_path):
    run, bundle = exported(runs["mf"], tmp_path)
    base, snapshot = bundle.snapshot.base, bundle.snapshot
    assert base.rule is base.reasons is None
    assert base.extras == {}
    made = NewUsers(base)
    assert not made.by_model
    users, items = run.scorer.vectors()
    for history in some_histories():
        log = Interactions.from_pairs([0] * len(history), history, 1, N_ITEMS)
        wanted = F.normalize(fold_in(items, users, run.seen, log), dim=1)[0]
        assert torch.allclose(made.vector(snapshot, np.array(history)), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["mhcr", "hypergraphs", "vbpr"])
def test_new_items_count_in_histories_as_cold_ones_of_the_catalogue_do(runs, tmp_path, name):
    """An item that is added, and a second bundle in whose catalogue it has always been."""
    run, bundle = exported(runs[name], tmp_path)
    add_new_items(bundle, read_new_items(new_dataset(tmp_path / "new")))
    history = ["i2", "fresh", "i9", "other"]
    found = served_users(bundle, [history])[0]
    model = run.model
    views = bundle.encoder()._rows(read_new_items(tmp_path / "new").catalogue, None)
    handed = model.histories().handed
    rule = model.histories().rule
    if rule.reads == "handed":
        more = model.handing(content_rows(views, model.view_dims))[1]
    else:
        more = model.encode_items(views)
    received = torch.cat([handed[[2, 9]], more])
    wanted = rule.users(Interactions.from_pairs([0] * 4, range(4), 1, 4), received)[0]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, served_users(bundle, [["i2", "i9"]])[0], atol=1e-2)
    bundle.compact()
    assert torch.allclose(served_users(Bundle.open(bundle.folder), [history])[0], found, atol=1e-5)


def test_an_item_of_which_only_a_vector_is_known_is_folded_in(runs, tmp_path):
    _, bundle = exported(runs["mhcr"], tmp_path)
    bundle.add_items(["bare"], bundle.item_vectors()[7:8] * 0.9)
    snapshot, made = bundle.snapshot, NewUsers(bundle.snapshot.base)
    at = np.array(snapshot.rows_of(["i7", "bare"]))
    found = made.vector(snapshot, at)
    fold = made._fold
    assert isinstance(fold, FoldRule)
    mean = snapshot.vectors()[torch.from_numpy(at)].mean(dim=0)[:-1]
    wanted = F.normalize(mean @ fold.weights[:-1] + fold.weights[-1], dim=0)
    assert torch.allclose(found, torch.cat([wanted, torch.ones(1)]), atol=1e-5)


def levels_by_hand(run: Run, items: list[int], past: list[int]) -> list[str]:
    """The strongest view from whole rows, by a loop."""
    out = []
    for a, b in zip(items, past, strict=True):
        best = {}
        for values, (name, dim) in zip(run.model.content.values, run.model.view_dims.items(), strict=True):
            assert dim <= WIDTH
            unit = F.normalize(values, dim=1)
            both = unit @ unit.T
            others = both[~torch.eye(len(unit), dtype=torch.bool)]
            best[name] = float((both[a, b] - others.mean()) / others.std())
        out.append(max(best, key=lambda name: best[name]))
    return out


def test_the_strongest_view_is_that_of_whole_rows(runs, tmp_path):
    run, bundle = exported(runs["vbpr"], tmp_path)
    base, snapshot = bundle.snapshot.base, bundle.snapshot
    assert {name: array.dtype for name, array in base.extras.items()} == {"views": KINDS["views"].dtype}
    items, past = [3, 8, 21, 30, 4, 12], [7, 16, 1, 2, 36, 13]
    pairs = (snapshot.extra("views", np.array(one)) for one in (items, past))
    found = base.reasons.strongest(*pairs)
    names = [view.name for view in base.reasons.views]
    wanted = levels_by_hand(run, items, past)
    assert [names[place] for place in found if place is not None] == [
        name for name, place in zip(wanted, found, strict=True) if place is not None
    ]
    # The items of a topic are alike, those of different ones are not.
    assert [place is not None for place in found] == [True, True, True, True, True, False]


def test_no_view_is_stronger_than_chance_or_than_none():
    reasons = Reasons((ViewLevel("a", 2, 0.5, 0.1), ViewLevel("b", 2, 0.0, 0.5)))
    one = np.array([[127, 0, 127, 0]] * 5, np.int8)
    other = np.array(
        [[127, 0, 0, 127], [90, 90, 127, 0], [0, 127, 0, 127], [0, 0, 0, 127], [0, 0, 127, 0]], np.int8
    )
    assert reasons.strongest(one, other) == [0, 0, None, None, 1]
    assert reasons.strongest(one[:0], other[:0]) == []


def test_reduced_rows_keep_cosines():
    wide = torch.randn(60, 1400, generator=torch.Generator().manual_seed(0))
    wide[30:] = wide[:30] + 0.4 * torch.randn(30, 1400, generator=torch.Generator().manual_seed(1))
    wide[7] = 0
    for values, tolerance in ((wide, 0.18), (wide[:, :WIDTH], 0.01)):
        small = torch.from_numpy(reduced(values)).float()
        assert small.shape == (60, WIDTH)
        assert not small[7].any()
        exact, found = (F.normalize(part, dim=1) @ F.normalize(part, dim=1).T for part in (values, small))
        assert float((exact - found).abs().max()) < tolerance
    assert np.array_equal(reduced(wide)[3:5], reduced(wide[3:5]))  # alone as in company


def test_hyperedges_are_told_by_what_weighs_most_in_them(runs, tmp_path):
    run, bundle = exported(runs["hypergraphs"], tmp_path)
    base, model = bundle.snapshot.base, run.model
    members = model.hyperedges(model.content)  # (n_items, n_views, 6)
    edges = bundle.snapshot.extra("edges", np.arange(N_ITEMS))
    weights = bundle.snapshot.extra("edge-weights", np.arange(N_ITEMS))
    assert np.array_equal(edges, members.argmax(dim=2).numpy())
    assert np.allclose(weights, members.max(dim=2).values.numpy(), atol=1e-3)
    for place, view in enumerate(base.reasons.views):
        assert len(view.members) == 6
        for edge, ids in enumerate(view.members):
            of_edge = members[:, place, edge]
            assert len(ids) == 8
            lowest = min(float(of_edge[int(item[1:])]) for item in ids)
            others = [i for i in range(N_ITEMS) if f"i{i}" not in ids]
            assert lowest >= float(of_edge[others].max())
    assert base.reasons.hyperedges


@pytest.mark.parametrize("target", ["bundle", "run"])
def test_added_items_have_their_rows_through_compaction_and_export(runs, tmp_path, target):
    run, bundle = exported(runs["hypergraphs"], tmp_path)
    place = bundle if target == "bundle" else Bundle.open_run(run)
    new = read_new_items(new_dataset(tmp_path / "new"))
    add_new_items(place, new)
    placed = place.encoder().place(new.catalogue, new.folder)
    assert set(placed.extras) == {"views", "edges", "edge-weights", "handed"}

    def check(opened: Bundle) -> None:
        snapshot = opened.snapshot
        at = np.array(snapshot.rows_of(["other", "fresh"]))
        for name, values in placed.extras.items():
            assert np.allclose(snapshot.extra(name, at), values, atol=1e-5), name
        first = np.array(snapshot.rows_of(["i0"]))
        assert np.array_equal(snapshot.extra("views", first), reduced_of(run, 0))

    check(place)
    if target == "bundle":
        check(Bundle.open(place.folder))
        place.compact(prune=True)
        check(Bundle.open(place.folder))
    else:
        check(Bundle.open_run(load_run(run.path)))
        assert command(["export", str(run.path), str(tmp_path / "merged")]) == 0
        check(Bundle.open(tmp_path / "merged"))
        ids = Bundle.open(tmp_path / "merged").additions().ids
        assert list(ids) == ["other", "fresh"]


def reduced_of(run: Run, row: int) -> np.ndarray:
    return np.concatenate([reduced(values[row : row + 1]) for values in run.model.content.values], axis=1)


def test_contents_of_additions_are_kept_whole(runs, tmp_path):
    _, bundle = exported(runs["vbpr"], tmp_path)
    new = read_new_items(new_dataset(tmp_path / "new"))
    add_new_items(bundle, new)
    bundle.add_items(["bare"], bundle.item_vectors()[:1])
    bundle.remove_items(["other", "i5"])

    def check(opened: Bundle) -> None:
        found = dict(opened.additions())
        assert list(found) == ["fresh", "bare"]
        kept = Kept.from_bytes(found["fresh"])
        assert kept.texts == {"title": new.catalogue.items["title"][1]}
        assert kept.features == {"sound": new.catalogue.features["sound"].values[1].tolist()}
        assert kept.cover is None
        assert found["bare"] == b""
        assert opened.snapshot.removed == {"other", "i5"}

    check(bundle)
    check(Bundle.open(bundle.folder))
    bundle.compact(prune=True)
    check(Bundle.open(bundle.folder))
    bundle.add_items(["i5"], bundle.item_vectors()[:1])  # comes back
    assert bundle.snapshot.removed == Bundle.open(bundle.folder).snapshot.removed == {"other"}


def test_kept_content_survives_its_bytes():
    kept = Kept({"title": "ü\n", "genres": ["a", "b"], "year": 3}, b"\n{}\x00picture", {"x": [0.5, -1.0]})
    assert Kept.from_bytes(kept.to_bytes()) == kept
    assert Kept.from_bytes(Kept().to_bytes()) == Kept()


def test_covers_texts_and_lists_are_kept_and_clips_are_not():
    table = pl.DataFrame({
        "item": ["a", "b", "c"],
        "cover": [b"picture", None, None],
        "clip": [None, None, "clip.mp4"],
        "genres": [["x", "y"], [], None],
        "arrived": [1, 2, 3],
    })  # fmt: skip
    blobs, notes = contents_of(NewItems(["a", "b", "c"], Catalogue(table.drop("item"))))
    first, second = (Kept.from_bytes(blob) for blob in blobs[:2])
    assert (first.cover, first.texts["genres"]) == (b"picture", ["x", "y"])
    assert (second.cover, second.features) == (None, {})
    assert blobs[2] == b""
    assert "1 items is not kept" in notes[0]


def test_a_bundle_of_before_has_neither_and_is_served_all_the_same(tmp_path):
    bundle = small_bundle(tmp_path)
    about = bundle.folder / "base-00000001" / "base.json"
    content = json.loads(about.read_text())
    for key in ("extras", "removed"):
        del content[key]
    about.write_text(json.dumps(content))
    manifest = bundle.folder / "manifest.json"
    manifest.write_text(Manifest(1, "base-00000001", hash_file(about)).to_json())
    old = Bundle.open(bundle.folder)
    base = old.snapshot.base
    assert base.extras == {}
    assert base.reasons is base.rule is None
    assert old.snapshot.removed == frozenset()
    assert list(old.additions()) == []
    old.add_items(["n"], rows(1), extras={"views": np.zeros((1, 4), np.int8)})  # no place for it
    old.compact(prune=True)
    assert Bundle.open(old.folder).item_ids().to_list()[-1] == "n"


def test_rows_of_another_number_or_width_do_not_get_in(runs, tmp_path):
    _, bundle = exported(runs["vbpr"], tmp_path)
    with pytest.raises(InputError, match="for 1 items"):
        bundle.add_items(["n"], bundle.item_vectors()[:1], extras={"views": np.zeros((2, 4), np.int8)})
    bundle.add_items(["n"], bundle.item_vectors()[:1], extras={"views": np.zeros((1, 4), np.int8)})
    row = np.array(bundle.snapshot.rows_of(["n"]))
    assert not bundle.snapshot.extra("views", row).any()


@pytest.mark.parametrize("file", ["rows.views.bin", "reasons.json", "histories.safetensors"])
def test_damage_is_named_when_it_is_read(runs, tmp_path, file):
    _, bundle = exported(runs["vbpr"], tmp_path)
    path = bundle.folder / "base-00000001" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    base = Bundle.open(bundle.folder).snapshot.base
    with pytest.raises(InputError, match="changed") as found:
        assert base.extras is base.reasons is base.rule
    assert found.value.path == path
