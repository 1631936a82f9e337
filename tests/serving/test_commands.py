"""``add-items`` and ``export`` on real runs: trained, exported, added to, ranked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from firstlight.cli.app import run as command
from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.data.interactions import Interactions
from firstlight.pipeline.served import has_additions, open_served
from firstlight.serving.bundle import Bundle
from firstlight.serving.lists import recommend_all, similar_items
from firstlight.serving.new_items import read_new_items
from firstlight.training.recommend import recommend as recommend_run
from firstlight.training.run_folder import load_run

N_USERS, N_ITEMS, TOPICS = 60, 40, 4
WORDS = [f"{a} {b}" for a, b in (("tango", "salsa"), ("soup", "bread"), ("cat", "kitten"), ("goal", "ball"))]


def topical() -> Dataset:
    """User and item rows modulo four are topics; users click their topic; titles and features tell the topic."""
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(N_USERS) for i in range(u % TOPICS, N_ITEMS, TOPICS) if rng.random() < 0.6]
    users, items = np.array(pairs).T
    log = Interactions.from_pairs(users, items, N_USERS, N_ITEMS)
    titles = [f"{WORDS[i % TOPICS]} {i}" for i in range(N_ITEMS)]
    values = np.eye(TOPICS, 8, dtype=np.float32)[np.arange(N_ITEMS) % TOPICS]
    values += 0.05 * rng.standard_normal(values.shape).astype(np.float32)
    sound = FeatureMatrix(values, np.ones(N_ITEMS, np.bool_), "made")
    return Dataset(
        "topical",
        pl.Series([f"u{u}" for u in range(N_USERS)]),
        pl.Series([f"i{i}" for i in range(N_ITEMS)]),
        log,
        catalogue=Catalogue(pl.DataFrame({"title": titles}), {"sound": sound}),
    )


def call(capfd, *words: object) -> tuple[int, dict, str]:
    capfd.readouterr()
    code = command([str(word) for word in (*words, "--json")])
    shown = capfd.readouterr()
    return code, json.loads(shown.out), shown.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind, on the topical world."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(topical(), folder / "data")
    found = {"data": folder / "data"}
    quick = ["training.batch_size=128", "training.selection=none", "model.dim=8"]
    # Cold and warm items learn in one ranking, so that they share a scale without a validation part.
    joint = [*("model.cold_share=0.5", "model.cold_loss=0", "model.user_content=1", "model.user_dropout=0")]
    joint += ["model.init=xavier", "model.init_norm=null", "model.content_dropout=0", "model.layers=2"]
    for model, sets in (("mhcr", [*quick, *joint]), ("popularity", []), ("mf", quick)):
        found[model] = folder / model
        words = ["train", folder / "data", "--model", model, "--out", found[model], "--threads", 1]
        words += ["--epochs", 30] if sets else []
        assert command([str(w) for w in [*words, *(x for s in sets for x in ("--set", s))]]) == 0
    return found


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the content model's run, to be added to."""
    import shutil

    return Path(shutil.copytree(trained["mhcr"], tmp_path / "run"))


def new_dataset(folder: Path, topic: int = 2) -> Path:
    """A DATASET without interactions: two items, the second of the topic."""
    chosen = [(topic + 1) % TOPICS, topic]
    values = np.eye(TOPICS, 8, dtype=np.float32)[chosen]
    items = pl.DataFrame({"title": [f"{WORDS[t]} fresh" for t in chosen]})
    features = {"sound": FeatureMatrix(values, np.ones(2, np.bool_), "made")}
    nobody = pl.Series([], dtype=pl.String)
    ids = pl.Series(["other", "fresh"])
    write_dataset(
        Dataset("new", nobody, ids, Interactions.empty(0, 2), catalogue=Catalogue(items, features)), folder
    )
    return folder


def topic_of_lists(bundle: Bundle, item: str) -> dict[int, int]:
    """Topic of users → the number of them that find ``item`` among their first three."""
    table = pl.concat(recommend_all(bundle, k=3)).filter(pl.col("item") == item)
    topics = table["user"].str.slice(1).cast(pl.Int64) % TOPICS
    return dict(topics.value_counts().iter_rows())


@pytest.mark.parametrize("target", ["run", "bundle"])
def test_new_items_reach_those_who_like_their_content(run, tmp_path, capfd, target):
    before = load_run(run).scorer.vectors()
    place = run
    if target == "bundle":
        place = tmp_path / "bundle"
        code, made, _ = call(capfd, "export", run, place)
        assert (code, made["items"], made["texts"], made["takes_new_items"]) == (0, N_ITEMS, ["title"], True)
        assert not has_additions(run)
    code, told, _ = call(capfd, "add-items", place, new_dataset(tmp_path / "new"))
    assert (code, told["added"], told["replaced"], told["items"]) == (0, 2, 0, N_ITEMS + 2)
    assert has_additions(place)
    bundle = open_served(place)
    assert torch.equal(bundle.item_vectors()[:N_ITEMS], before[1])
    assert torch.equal(bundle.snapshot.base.user_vectors, before[0])
    assert bundle.item("fresh") == {"title": "cat kitten fresh"}
    reached = topic_of_lists(bundle, "fresh")
    assert reached.get(2, 0) > 0.8 * N_USERS / TOPICS
    assert sum(reached.values()) == reached[2]
    near = next(similar_items(bundle, ["fresh"], k=5))["similar"].str.slice(1)
    assert [int(n) % TOPICS for n in near if n.isdecimal()] == [2] * sum(n.isdecimal() for n in near)
    # The same again replaces, and alone or together an item gets the same vector.
    code, told, _ = call(capfd, "add-items", place, tmp_path / "new")
    assert (told["added"], told["replaced"], told["version"]) == (0, 2, bundle.version + 1)
    assert torch.equal(open_served(place).item_vectors(), bundle.item_vectors())


def test_the_encoder_of_a_bundle_is_that_of_the_run(run, tmp_path):
    new = read_new_items(new_dataset(tmp_path / "new"))
    wanted = Bundle.open_run(load_run(run)).encoder().encode(new.catalogue, new.folder)
    assert command(["export", str(run), str(tmp_path / "bundle")]) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert torch.equal(bundle.encoder().encode(new.catalogue, new.folder), wanted)
    bundle.compact(prune=True)
    assert torch.equal(Bundle.open(bundle.folder).encoder().encode(new.catalogue, new.folder), wanted)


def test_without_additions_a_run_and_its_bundle_rank_alike(trained, tmp_path):
    run = load_run(trained["mhcr"])
    assert command(["export", str(trained["mhcr"]), str(tmp_path / "bundle")]) == 0
    wanted = pl.concat(recommend_run(run, k=10))
    for bundle in (Bundle.open(tmp_path / "bundle"), Bundle.open_run(run)):
        assert pl.concat(recommend_all(bundle, k=10)).equals(wanted)
    assert not (trained["mhcr"] / "additions").exists()


def test_exporting_merges_additions(run, tmp_path, capfd):
    call(capfd, "add-items", run, new_dataset(tmp_path / "new"))
    code, made, _ = call(capfd, "export", run, tmp_path / "bundle", "--items", trained_items(run))
    assert (code, made["items"], made["version"]) == (0, N_ITEMS + 2, 1)
    bundle, added = Bundle.open(tmp_path / "bundle"), Bundle.open_run(load_run(run))
    assert pl.concat(recommend_all(bundle)).equals(pl.concat(recommend_all(added)))
    assert bundle.item("fresh")["title"] == "cat kitten fresh"
    assert bundle.item("i3")["title"] == f"{WORDS[3]} 3"
    with pytest.raises(InputError, match="firstlight export"):
        added.compact()


def trained_items(run: Path) -> str:
    return json.loads((run / "dataset.json").read_text())["path"]


def test_a_table_with_feature_files(run, tmp_path, capfd):
    (tmp_path / "items.csv").write_text("item,title\nfresh,cat kitten\nsilent,\n")
    np.save(tmp_path / "sound.npy", np.eye(TOPICS, 8, dtype=np.float32)[[2, 1]])
    words = ("add-items", run, tmp_path / "items.csv", "--features", f"sound={tmp_path / 'sound.npy'}")
    code, told, _ = call(capfd, *words)
    assert (code, told["added"]) == (0, 2)
    bundle = open_served(run)
    assert topic_of_lists(bundle, "fresh").keys() == {2}
    present = np.array([True, False])
    save_file({"values": np.ones((2, 8), np.float32), "present": present}, tmp_path / "sound.safetensors")
    words = (
        "add-items",
        run,
        tmp_path / "items.csv",
        "--features",
        f"sound={tmp_path / 'sound.safetensors'}",
    )
    code, told, _ = call(capfd, *words)
    assert code == 2
    assert "1 of the new items have no content" in told["error"]["message"]
    assert open_served(run).version == bundle.version


def test_features_of_new_items_may_be_parquet(run, tmp_path, capfd):
    """By id or row by row from a file, and as a column of the table of items: all give the vector that .npy gives."""
    values = np.eye(TOPICS, 8, dtype=np.float32)[[2, 1]]
    table, ids = (
        pl.DataFrame({"item": ["fresh", "other"], "title": ["cat kitten", "soup"]}),
        ["fresh", "other"],
    )
    table.write_csv(tmp_path / "items.csv")
    table.with_columns(sound=pl.Series(values.tolist())).write_parquet(tmp_path / "both.parquet")
    np.save(tmp_path / "sound.npy", values)
    pl.DataFrame({"x": values.tolist()}).write_parquet(tmp_path / "rows.parquet")
    named = pl.DataFrame({"item": ["nobody", *reversed(ids)], "x": [[9.0] * 8, *values[::-1].tolist()]})
    named.write_parquet(tmp_path / "named.PARQUET")
    features = {name: f"sound={tmp_path / name}" for name in ("sound.npy", "rows.parquet", "named.PARQUET")}
    found = []
    for words in (*(("items.csv", "--features", one) for one in features.values()), ("both.parquet",)):
        code, told, _ = call(capfd, "add-items", run, tmp_path / words[0], *words[1:])
        assert code == 0, told
        found.append(open_served(run).item_vectors()[-2:])
    assert all(torch.equal(one, found[0]) for one in found)
    assert topic_of_lists(open_served(run), "fresh").keys() == {2}
    pl.DataFrame({"x": [[1.0] * 8]}).write_parquet(tmp_path / "rows.parquet")
    code, told, _ = call(
        capfd, "add-items", run, tmp_path / "items.csv", "--features", features["rows.parquet"]
    )
    assert code == 2
    assert "for 2 new items" in told["error"]["message"]


def test_one_picture_with_a_title(run, tmp_path, capfd):
    sink = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(sink, "PNG")
    (tmp_path / "red cat.png").write_bytes(sink.getvalue())
    code, told, _ = call(capfd, "add-items", run, tmp_path / "red cat.png", "--title", "cat kitten")
    assert (code, told["added"]) == (0, 1)
    bundle = open_served(run)
    assert bundle.item("red cat") == {"title": "cat kitten"}
    assert topic_of_lists(bundle, "red cat").keys() == {2}
    code, told, _ = call(
        capfd, "add-items", run, tmp_path / "red cat.png", "--title", "goal ball", "--id", "x"
    )
    assert open_served(run).item("x") == {"title": "goal ball"}


@pytest.mark.parametrize("model", ["mf", "popularity"])
def test_models_of_clicks_alone_say_which_models_can(trained, tmp_path, capfd, model):
    code, told, _ = call(capfd, "add-items", trained[model], new_dataset(tmp_path / "new"))
    assert code == 2
    assert "mhcr" in told["error"]["hint"]
    assert "content-knn" not in told["error"]["hint"]
    code, told, _ = call(capfd, "export", trained[model], tmp_path / "bundle")
    if model == "popularity":
        assert (code, told["error"]["problem"]) == (2, "the model of this run has no vectors")
        assert not (tmp_path / "bundle").exists()
        return
    assert (code, told["takes_new_items"]) == (0, False)
    code, told, _ = call(capfd, "add-items", tmp_path / "bundle", tmp_path / "new")
    assert (code, "carries no encoder" in told["error"]["message"]) == (2, True)


def test_bad_new_items_are_messages(run, tmp_path, capfd):
    (tmp_path / "items.csv").write_text("item,title\na,cat\n")
    np.save(tmp_path / "sound.npy", np.ones((3, 8), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((1, 9), np.float32))
    for words, message in (
        ([tmp_path / "nowhere"], "no such file"),
        ([tmp_path / "items.csv", "--title", "x"], "go with one picture"),
        ([tmp_path / "items.csv", "--features", "sound"], "NAME=FILE"),
        ([tmp_path / "items.csv", "--features", f"sound={tmp_path / 'sound.npy'}"], "for 1 new items"),
        ([tmp_path / "items.csv", "--features", f"sound={tmp_path / 'wide.npy'}"], "9"),
        ([tmp_path / "items.csv", "--features", f"sound={tmp_path / 'items.csv'}"], "cannot be read"),
    ):
        code, told, _ = call(capfd, "add-items", run, *words)
        assert (code, message in told["error"]["message"]) == (2, True), told
    assert call(capfd, "add-items", tmp_path, tmp_path / "items.csv")[0] == 2
    assert call(capfd, "export", tmp_path, tmp_path / "bundle")[0] == 2
    assert not (run / "additions").exists()


def test_additions_of_another_model_are_refused(run, tmp_path, capfd):
    call(capfd, "add-items", run, new_dataset(tmp_path / "new"))
    model = run / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="another model"):
        open_served(run)


def test_clicks_of_new_items_are_told_of_and_not_read(trained):
    dataset = read_dataset_folder(trained["data"])
    new = read_new_items(trained["data"])
    assert f"{dataset.train.n_pairs:,} clicks" in new.notes[0]
    assert len(new.ids) == N_ITEMS


def clicks_of(run: Path) -> np.ndarray:
    return load_run(run).seen.item_degrees


@pytest.mark.parametrize("target", ["run", "bundle"])
def test_the_whole_catalogue_every_night_keeps_what_training_made(run, trained, tmp_path, capfd, target):
    place = run
    if target == "bundle":
        place = tmp_path / "bundle"
        assert call(capfd, "export", run, place)[0] == 0
    before = open_served(place).item_vectors().clone()
    clicked = int((clicks_of(run) > 0).sum())
    code, told, _ = call(capfd, "add-items", place, trained["data"])
    assert code == 2
    assert f"{clicked} of the {N_ITEMS} items have clicks" in told["error"]["problem"]
    assert "'i0'" in told["error"]["problem"]
    assert "--skip-known" in told["error"]["hint"]
    assert "--replace" in told["error"]["hint"]
    assert torch.equal(open_served(place).item_vectors(), before)
    (tmp_path / "all.csv").write_text("item,title\ni0,soup bread\nnew,cat kitten\ni1,goal ball\n")
    code, told, _ = call(capfd, "add-items", place, tmp_path / "all.csv", "--skip-known")
    assert (code, told["added"], told["replaced"], told["skipped"]) == (0, 1, 0, 2)
    code, told, _ = call(capfd, "add-items", place, tmp_path / "all.csv", "--skip-known")
    assert (code, told["added"], told["skipped"], told["version"]) == (0, 0, 3, open_served(place).version)
    assert torch.equal(open_served(place).item_vectors()[:N_ITEMS], before)
    open_served(place).remove_items(["new"])
    code, told, _ = call(capfd, "add-items", place, tmp_path / "all.csv", "--skip-known")
    assert (told["added"], told["items"]) == (0, N_ITEMS)  # what somebody took out stays out
    code, told, _ = call(capfd, "add-items", place, tmp_path / "all.csv", "--replace")
    assert (code, told["added"], told["replaced"]) == (0, 1, 2)
    assert not torch.equal(open_served(place).item_vectors()[:N_ITEMS], before)
    assert call(capfd, "add-items", place, tmp_path / "all.csv", "--replace", "--skip-known")[0] == 2


def test_what_cannot_be_placed_is_named_with_the_reason(run, tmp_path, capfd):
    table, picture = tmp_path / "items.csv", tmp_path / "torn.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0corrupt")
    np.save(tmp_path / "sound.npy", np.eye(1, 8, dtype=np.float32))
    for content, more, wanted in (
        ("item,title\na,cat\nb,\n", [], ["item 'b' (row 2)", "items.csv", "text (column title)", "sound"]),
        ("item,title\na,cat\nb,xyzzy\n", [], ["item 'b' (row 2)", "no word that training knew"]),
        ("item\nonly\n", [], ["1 of the new items", "item 'only' (row 1)", "text (column title)"]),
        ("item,title\na,cat\n", ["--features", f"snd={tmp_path / 'sound.npy'}"], ["'snd'", "are: sound"]),
    ):
        table.write_text(content)
        code, told, _ = call(capfd, "add-items", run, table, *more)
        assert code == 2
        for words in wanted:
            assert words in told["error"]["message"], told["error"]["message"]
    assert not (run / "additions").exists()


def test_what_is_passed_over_is_told(run, tmp_path, capfd):
    (tmp_path / "items.csv").write_text("item,title,colour\na,cat,red\na,dog,blue\n")
    code, told, err = call(capfd, "add-items", run, tmp_path / "items.csv")
    assert (code, told["added"]) == (0, 1)
    assert "repeated item: 1 (item 'a' again; the first counts" in err
    assert "columns not read by the model: colour (it reads: sound (a feature), text (column title))" in err


def test_a_picture_that_cannot_be_decoded_is_said_to_be_so(tmp_path, capfd):
    """With a model that reads covers: alone it is refused by name, in a table the item has its title."""
    world, made = tmp_path / "world", tmp_path / "run"
    for words in (
        ["simulate", world, "--users", 40, "--items", 40, "--set", "cover_size=16"],
        ["train", world, "--model", "vbpr", "--epochs", 1, "--out", made, "--threads", 1],
    ):
        assert command([str(word) for word in words]) == 0
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0corrupt")
    code, told, _ = call(capfd, "add-items", made, tmp_path / "torn.jpg")
    assert code == 2
    assert "item 'torn'" in told["error"]["message"]
    assert "cannot be used" in told["error"]["message"]
    assert "decode" in told["error"]["message"] or "picture" in told["error"]["message"]
    title = pl.read_parquet(world / "items.parquet")["title"][0]
    (tmp_path / "two.csv").write_text(f'item,title,cover\nx,"{title}",torn.jpg\n')
    code, told, err = call(capfd, "add-items", made, tmp_path / "two.csv")
    assert code == 0, told
    assert (code, told["added"]) == (0, 1)
    assert "item 'x'" in err
