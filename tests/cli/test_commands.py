"""Every command on a small world, end to end, through its JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.data.interactions import Interactions
from firstlight.training.run_folder import load_run


def test_doctor(firstlight):
    found = firstlight("doctor", "--json").value
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["extras"]["plot"]["install"] == "pip install 'firstlight[plot]'"
    assert found["problems"] == []
    drawn = firstlight("doctor").out
    assert "AVX" in drawn or "cpu" in drawn


def test_doctor_tells_what_is_missing(firstlight, monkeypatch):
    monkeypatch.setattr("firstlight.core.extras.find_spec", lambda name: None)
    monkeypatch.setattr("firstlight.cli.system._packages", lambda: {"polars": None})
    shown = firstlight("doctor")
    assert shown.code == 1
    assert "pip install 'firstlight[plot]'" in shown.out
    assert "problem: polars is not installed" in shown.out


def test_simulate_takes_sizes_and_settings(firstlight, tmp_path):
    words = ("--users", 30, "--items", 40, "--seed", 5, "--set", "mean_clicks=6", "--json")
    first = firstlight("simulate", tmp_path / "a", *words).value
    second = firstlight("simulate", tmp_path / "b", *words).value
    assert (first["users"], first["items"]) == (30, 40)
    assert first["content_hash"] == second["content_hash"]
    again = firstlight("simulate", tmp_path / "a", *words)
    assert (again.code, again.value["error"]["kind"]) == (2, "input")


def test_inspect(firstlight, world):
    found = firstlight("data", "inspect", world, "--json").value
    dataset = read_dataset_folder(world)
    assert (found["n_users"], found["n_items"]) == (dataset.n_users, dataset.n_items)
    drawn = firstlight("data", "inspect", world).out
    assert "items with a cover" in drawn
    assert "nothing is wrong" in drawn


def test_inspect_shows_lines_that_are_wrong(firstlight, tmp_path):
    table = tmp_path / "clicks.csv"
    table.write_text("user,item,time\na,x,1\na,y,2\nb,x\nb,y,3\n")
    shown = firstlight("data", "inspect", table)
    assert shown.code == 0
    assert "line 4" in shown.out


def test_reader_options_reach_the_reader(firstlight, tmp_path):
    table = tmp_path / "clicks.csv"
    table.write_text("who,what,stars\na,x,5\na,y,1\nb,x,4\nb,y,4\nb,y,5\nbad\n")
    columns = ("--user", "who", "--item", "what", "--value", "stars")
    refused = firstlight("data", "convert", table, tmp_path / "no", *columns)
    assert refused.code == 2
    assert "line 7" in refused.err
    assert not (tmp_path / "no").exists()
    words = (*columns, "--min-value", 4, "--duplicates", "last", "--on-bad-rows", "skip", "--json")
    made = firstlight("data", "convert", table, tmp_path / "made", *words).value
    assert made["pairs"] == {"train": 3}
    assert sum(made["dropped"].values()) == 3
    dataset = read_dataset_folder(tmp_path / "made")
    assert dataset.train.values is not None
    assert sorted(dataset.train.values.tolist()) == [4.0, 5.0, 5.0]


@pytest.mark.parametrize("by", ["random", "time", "leave-last", "cold-items"])
def test_split(firstlight, world, tmp_path, by):
    made = firstlight("data", "split", world, tmp_path / by, "--by", by, "--seed", 1, "--json").value
    assert made["split"]["name"] == by
    assert made["pairs"].keys() == {"train", "valid", "test"}
    assert read_dataset_folder(tmp_path / by).split.hash == made["split"]["hash"]


def test_split_shares(firstlight, world, tmp_path):
    words = ("--by", "time", "--valid-share", 0, "--test-share", 0.5, "--json")
    made = firstlight("data", "split", world, tmp_path / "half", *words).value
    assert made["pairs"].keys() == {"train", "test"}
    assert abs(made["pairs"]["train"] - made["pairs"]["test"]) <= 1


def test_train_options_reach_the_config(firstlight, split, tmp_path):
    out = tmp_path / "run"
    words = ("--loss", "softmax", "--temperature", "fixed:0.2", "--negatives", "in-batch", "--seed", 4)
    more = ("--epochs", 2, "--threads", 1, "--set", "model.dim=8", "--json")
    shown = firstlight("train", split, "--model", "lightgcn", *words, *more, "--out", out)
    assert shown.code == 0, shown.err
    assert "search 2/2" in shown.err
    config = shown.value["config"]
    assert config["model"]["name"] == "lightgcn"
    assert config["model"]["dim"] == 8
    assert (config["temperature"]["name"], config["temperature"]["tau"]) == ("fixed", 0.2)
    assert (config["negatives"]["name"], config["seed"], config["training"]["epochs"]) == ("in-batch", 4, 2)
    assert load_run(out).config.model_dump(mode="json") == config


def test_train_refuses_a_used_folder_and_resumes(firstlight, split, runs):
    words = ("train", split, "--model", "popularity", "--epochs", 4, "--out", runs["popularity"], "--json")
    assert firstlight(*words).code == 2
    again = firstlight(*words, "--resume")
    assert again.code == 0
    assert again.value["metrics"] == load_run(runs["popularity"]).result["metrics"]


def test_train_draws_its_numbers(firstlight, split, tmp_path):
    shown = firstlight("train", split, "--model", "popularity", "--out", tmp_path / "run")
    assert "recall" in shown.out
    assert "@20" in shown.out


def test_evaluate_repeats_the_numbers_of_the_run(firstlight, runs):
    for out in runs.values():
        found = firstlight("evaluate", out, "--json").value
        assert found["metrics"] == pytest.approx(load_run(out).result["metrics"])
        assert found["unknown_pairs"] == 0


def test_evaluate_on_the_whole_log_leaves_out_what_the_run_has_learned(firstlight, runs, split, tmp_path):
    whole = read_dataset_folder(split)
    log = whole.train
    for name, part in whole.parts.items():
        log = log.union(part) if name != "train" else log
    table = pl.DataFrame({"user": whole.user_ids.gather(log.users), "item": whole.item_ids.gather(log.items)})
    table.write_csv(tmp_path / "log.csv")
    own = load_run(runs["mf"])
    found = firstlight("evaluate", runs["mf"], tmp_path / "log.csv", "--json").value
    assert found["metrics"] == pytest.approx(own.result["metrics"])
    assert found["learned_pairs"] == log.n_pairs - own.parts["test"].n_pairs
    cold = firstlight("evaluate", runs["mf"], tmp_path / "log.csv", "--protocol", "cold")
    assert f"{found['learned_pairs']:,} pairs left out: the run was trained or chosen on them" in cold.out
    table.filter(pl.Series(~log.in_common(own.parts["test"]))).write_csv(tmp_path / "known.csv")
    refused = firstlight("evaluate", runs["mf"], tmp_path / "known.csv")
    assert refused.code == 2
    assert "learned every one of these pairs" in refused.err


def test_evaluate_at_other_cut_offs(firstlight, runs):
    found = firstlight("evaluate", runs["mf"], "-k", "3,1", "--json").value
    assert found["k"] == [1, 3]
    assert found["metrics"]["hit@1"] == found["metrics"]["precision@1"]
    assert "@3" in firstlight("evaluate", runs["mf"], "-k", "3").out


def test_evaluate_on_validation_needs_a_model_that_never_saw_it(firstlight, runs, split, tmp_path):
    refused = firstlight("evaluate", runs["mf"], "--part", "valid")
    assert refused.code == 2
    assert "training.refit=false" in refused.err
    words = (
        "--epochs",
        2,
        "--set",
        "model.dim=8",
        "--set",
        "training.refit=false",
        "--set",
        "training.eval_every=1",
    )
    result = firstlight("train", split, *words, "--out", tmp_path / "run", "--json").value
    found = firstlight("evaluate", tmp_path / "run", "--part", "valid", "--json").value
    assert found["metrics"]["recall@20"] == pytest.approx(result["found"]["best_valid"])


def test_warm_and_cold_targets_share_out_all_pairs(firstlight, world, tmp_path):
    # The world's own split is by time, and items that arrive after the cut are cold.
    out = tmp_path / "run"
    assert firstlight("train", world, "--model", "popularity", "--out", out).code == 0
    found = {
        targets: firstlight("evaluate", out, "--targets", targets, "--json").value
        for targets in ("all", "warm", "cold")
    }
    assert found["warm"]["pairs"] + found["cold"]["pairs"] == found["all"]["pairs"]
    assert found["cold"]["pairs"] > 0
    among_cold = firstlight("evaluate", out, "--targets", "cold", "--pool", "cold", "--json").value
    assert among_cold["unreachable_pairs"] == 0
    among_warm = firstlight("evaluate", out, "--targets", "cold", "--pool", "warm", "--json").value
    assert among_warm["unreachable_pairs"] == among_warm["pairs"]


def test_evaluate_on_another_dataset_matches_ids_and_counts_strangers(firstlight, runs, split, tmp_path):
    dataset = read_dataset_folder(split)
    # The same items in another order, and one user that the run does not know.
    order = np.random.default_rng(0).permutation(dataset.n_items)
    place = np.argsort(order)
    test = dataset.test
    shuffled = Interactions.from_pairs(test.users, place[test.items], dataset.n_users, dataset.n_items)
    ids = dataset.user_ids.to_list()
    stranger = int(np.argmax(test.user_degrees))
    ids[stranger] = "a stranger"
    other = replace(
        dataset,
        user_ids=pl.Series(ids),
        item_ids=dataset.item_ids.gather(order),
        train=Interactions.empty(dataset.n_users, dataset.n_items),
        valid=None,
        test=shuffled,
        catalogue=replace(dataset.catalogue, items=pl.DataFrame(), features={}),
    )
    write_dataset(other, tmp_path / "other")
    found = firstlight("evaluate", runs["mf"], tmp_path / "other", "--json").value
    assert found["unknown_pairs"] == int(test.user_degrees[stranger])
    per_user = load_run(runs["mf"]).per_user
    expected = per_user.filter(pl.col("user") != stranger)["recall@20"].mean()
    assert found["metrics"]["recall@20"] == pytest.approx(expected)


def test_compare(firstlight, runs):
    found = firstlight("compare", runs["popularity"], runs["mf"], "--metrics", "recall@20", "--json").value
    first, second = found["comparison"]
    assert (first["name"], first["difference"]) == ("popularity", None)
    assert second["difference"] == pytest.approx(second["mean"] - first["mean"])
    drawn = firstlight("compare", runs["popularity"], runs["mf"]).out
    assert "reference" in drawn


def test_compare_groups_seeds_of_one_config(firstlight, split, runs, tmp_path):
    words = ["--epochs", 2, "--set", "model.dim=8", "--threads", 1]
    seeds = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, out in enumerate(seeds):
        assert firstlight("train", split, *words, "--seed", seed, "--out", out).code == 0
    found = firstlight("compare", runs["popularity"], *seeds, "--metrics", "ndcg@20", "--json").value
    assert [row["seeds"] for row in found["comparison"]] == [1, 2]


def test_recommend_some_users(firstlight, runs):
    run = load_run(runs["mf"])
    user = run.user_ids[3]
    lists = firstlight(
        "recommend", runs["mf"], "--users", f"{user},{run.user_ids[0]}", "-k", 4, "--json"
    ).value["lists"]
    assert list(lists) == [user, run.user_ids[0]]
    assert [len(entries) for entries in lists.values()] == [4, 4]
    seen = set(run.item_ids.gather(run.seen.row(3)).to_list())
    assert seen.isdisjoint(entry["item"] for entry in lists[user])
    scores = [entry["score"] for entry in lists[user]]
    assert scores == sorted(scores, reverse=True)
    assert user in firstlight("recommend", runs["mf"], "--users", user).out


def test_recommend_from_a_file_of_users(firstlight, runs, tmp_path):
    file = tmp_path / "users.txt"
    ids = load_run(runs["mf"]).user_ids.to_list()[:3]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(ids).encode() + b"\n\n")
    assert list(firstlight("recommend", runs["mf"], "--users-file", file, "--json").value["lists"]) == ids


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_recommend_everybody_to_a_file(firstlight, runs, tmp_path, suffix):
    out = tmp_path / f"recs{suffix}"
    made = firstlight("recommend", runs["mf"], "-k", 5, "--out", out, "--json").value
    if suffix == ".parquet":
        rows = pl.read_parquet(out).to_dicts()
    elif suffix == ".csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert made["rows"] == len(rows) == 5 * len(load_run(runs["mf"]).user_ids)
    assert rows[0].keys() == {"user", "rank", "item", "score", "basis"}


def test_strangers_are_an_error(firstlight, runs, tmp_path):
    assert "nobody" in firstlight("recommend", runs["mf"], "--users", "nobody").err
    assert firstlight("recommend", runs["mf"], "--out", tmp_path / "recs.xlsx").code == 2


def test_similar(firstlight, runs):
    item = load_run(runs["mf"]).item_ids[2]
    lists = firstlight("similar", runs["mf"], "--items", item, "-k", 3, "--json").value["lists"]
    assert list(lists) == [item]
    assert item not in [entry["similar"] for entry in lists[item]]
    assert len(lists[item]) == 3
    assert firstlight("similar", runs["popularity"], "--items", item).code == 2


@pytest.mark.parametrize("way", ["option", "file"])
def test_who_is_named_twice_gets_one_list(firstlight, runs, tmp_path, way):
    users, items = load_run(runs["mf"]).user_ids.to_list(), load_run(runs["mf"]).item_ids.to_list()
    for command, ids, kind in (("recommend", users, "users"), ("similar", items, "items")):
        named = [ids[3], ids[1], ids[3]]
        (tmp_path / "ids.txt").write_text("\n".join(named))
        asked = (
            [f"--{kind}", ",".join(named)] if way == "option" else [f"--{kind}-file", tmp_path / "ids.txt"]
        )
        lists = firstlight(command, runs["mf"], *asked, "-k", 2, "--json").value["lists"]
        assert list(lists) == [ids[3], ids[1]]
        assert [len(entries) for entries in lists.values()] == [2, 2]
        made = firstlight(command, runs["mf"], *asked, "-k", 2, "--out", tmp_path / "l.csv", "--json").value
        assert made["rows"] == 4


@pytest.mark.parametrize(
    ("by", "options", "said"),
    [
        ("leave-last", ["--seed", 3, "--test-share", 0.5], "--seed, --test-share play no part"),
        ("time", ["--seed", 3], "--seed plays no part"),
        ("random", ["--seed", 3, "--test-share", 0.3], ""),
    ],
)
def test_options_that_a_split_does_not_read_are_told_of(firstlight, world, tmp_path, by, options, said):
    done = firstlight("data", "split", world, tmp_path / "out", "--by", by, *options)
    assert done.code == 0
    assert said in done.err if said else done.err == ""


@pytest.mark.parametrize("by", ["random", "leave-last", "time"])
def test_a_part_that_comes_out_empty_is_told_of(firstlight, tmp_path, by):
    rows = "".join(f"u{n // 2},i{n % 3},{n}\n" for n in range(4))
    (tmp_path / "clicks.csv").write_text("user,item,time\n" + rows)
    done = firstlight("data", "split", tmp_path / "clicks.csv", tmp_path / "out", "--by", by)
    assert done.code == 0
    assert "the valid part is empty: " in done.err
    if by == "time":
        assert "10% of 4 pairs is less than one" in done.err
        assert "test part" not in done.err
    else:
        assert "the test part is empty: no user has 3 pairs" in done.err
    more = ["--by", "random", "--valid-share", 0, "--test-share", 0]
    assert firstlight("data", "split", tmp_path / "clicks.csv", tmp_path / "as asked", *more).err == ""


def test_training_says_what_plays_no_part_and_what_is_missing(firstlight, world, split, tmp_path):
    words = ["--loss", "bpr", "--temperature", "learned", "--epochs", 7, "--threads", 1]
    words += ["--set", "training.lr=0.1", "--set", "evaluation.ks=[5]"]
    done = firstlight("train", split, "--model", "item-knn", *words, "--out", tmp_path / "a")
    assert done.code == 0
    assert "--loss, --temperature, --epochs, training.lr play no part: item-knn has no training\n" in done.err
    done = firstlight("train", split, "--model", "item-knn", "--threads", 1, "--out", tmp_path / "b")
    assert "no part" not in done.err
    (tmp_path / "clicks.csv").write_text("user,item\n" + "".join(f"u{n % 5},i{n}\n" for n in range(30)))
    done = firstlight("train", tmp_path / "clicks.csv", "--model", "popularity", "--out", tmp_path / "c")
    assert "no test part" in done.err
    assert "firstlight data split" in done.err


def test_lists_are_no_longer_than_the_catalogue(firstlight, split, runs, tmp_path):
    """Lists of a billion were laid out in full; the computer had no memory for them."""
    known = load_run(runs["mf"])
    n_items = len(known.item_ids)
    for command, option, ids in (
        ("recommend", "--users", known.user_ids),
        ("similar", "--items", known.item_ids),
    ):
        words = (command, runs["mf"], option, ids[0], "--json")
        longest = firstlight(*words, "-k", n_items).value["lists"]
        assert firstlight(*words, "-k", 10**9).value["lists"] == longest
    for words in ((), ("--protocol", "cold")):
        refused = firstlight("evaluate", runs["mf"], "-k", "20,1000000000", *words)
        assert refused.code == 2
        assert f"a list of 1,000,000,000 items is to be measured, and there are {n_items}" in refused.err
    for setting in ("evaluation.ks=[1000000000]", "training.metric=recall@1000000000"):
        refused = firstlight("train", split, "--set", setting, "--out", tmp_path / "run")
        assert refused.code == 2
        assert "a list of 1,000,000,000 items is to be measured" in refused.err
        assert not (tmp_path / "run").exists()
    assert firstlight("evaluate", runs["mf"], "-k", 1000, "--json").value["k"] == [1000]
