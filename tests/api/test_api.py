"""The functions of the package give what the commands of the same names give."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import typer

import firstlight as fl
from firstlight.core.errors import InputError
from firstlight.core.values import plain
from firstlight.data.dataset import Dataset
from firstlight.serving.bundle import Bundle

#: Commands that are about the program, not about anyone's data.
NO_FUNCTIONS = {"doctor", "demo"}
#: Functions whose names are not their commands': ``firstlight.pipeline`` is a room.
RENAMED = {"pipeline": "run_pipeline"}
#: Options that are no arguments: files of ids, where Python has lists; where lists and bytes of the answer go.
NO_ARGUMENTS = {"--json", "--users-file", "--items-file", "--token-file"}
#: Options whose names Python keeps for itself, or that are something else there.
RENAMED_OPTIONS = {"--from": "start"}
READER = {
    "--user",
    "--item",
    "--time",
    "--value",
    "--min-value",
    "--k-core",
    "--duplicates",
    "--on-bad-rows",
    "--header",
    "--catalogue-item",
}


def commands() -> dict[str, object]:
    from firstlight.cli.app import app

    program = typer.main.get_command(app)
    own = {name: found for name, found in program.commands.items() if name != "data"}
    return own | program.commands["data"].commands


def function(command: str):
    return getattr(fl, RENAMED.get(command, command.replace("-", "_")))


def test_every_command_is_a_function():
    assert {
        name for name in commands() if name not in NO_FUNCTIONS and not hasattr(fl, _named(name))
    } == set()
    offered = {name for name in fl.__all__ if inspect.isfunction(getattr(fl, name))}
    assert offered - {_named(name) for name in commands()} == {"read"}  # what every command does first


def _named(command: str) -> str:
    return RENAMED.get(command, command.replace("-", "_"))


@pytest.mark.parametrize("name", sorted(commands().keys() - NO_FUNCTIONS))
def test_options_are_arguments_of_the_same_names(name):
    parameters = inspect.signature(function(name)).parameters
    options = {option for found in commands()[name].params for option in found.opts if option.startswith("-")}
    wanted = options - NO_ARGUMENTS - READER  # those of the reader are read's and inspect's, checked below
    if name in ("recommend", "similar"):
        wanted -= {"--out"}  # the lists are a data frame, which writes itself
    missing = {
        option
        for option in wanted
        if RENAMED_OPTIONS.get(option, option.lstrip("-").replace("-", "_")) not in parameters
    }
    assert missing == set()


def test_read_and_inspect_take_the_options_of_the_reader():
    from firstlight.api.data import ReaderOptions

    assert {f"--{name.replace('_', '-')}" for name in ReaderOptions.__annotations__} == READER


def test_all_that_is_offered_is_there_and_documented():
    for name in fl.__all__:
        found = getattr(fl, name)
        assert name == "__version__" or found.__doc__, name
    assert dir(fl) == sorted(fl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = fl.tarin


def test_simulate_and_split(command, world, split, place):
    made = command("simulate", place / "again", "--users", 80, "--items", 60, "--set", "mean_clicks=12")
    dataset = fl.read(world)
    assert dataset.content_hash == made["content_hash"]
    assert repr(dataset).startswith("<Dataset 'simulated': 80 users, 60 items; pairs: train ")
    told = command("data", "split", world, place / "split-again", "--by", "cold-items", "--seed", 3)
    kept = fl.read(split)
    assert {**kept.summary(), "out": told["out"]} == told
    in_memory = fl.split(dataset, by="cold-items", seed=3)
    assert in_memory.content_hash == kept.content_hash
    assert fl.convert(split, place / "converted").content_hash == kept.content_hash


def test_inspect(command, world):
    found = fl.inspect(world)
    assert plain(found.to_dict()) == command("data", "inspect", world)
    assert "items with a cover: 60" in repr(found)
    assert found.table["training pairs per"].to_list() == ["user", "item"]


def test_columns_of_a_table(tmp_path):
    table = tmp_path / "clicks.csv"
    table.write_text("who,what,stars\na,x,5\na,y,1\nb,x,4\nb,y\n")
    with pytest.raises(InputError, match="line 5"):
        fl.read(table, user="who", item="what")
    dataset = fl.read(table, user="who", item="what", value="stars", min_value=4, on_bad_rows="skip")
    assert dataset.train.n_pairs == 2
    with pytest.raises(InputError, match="on_bad_rows 'ignore' is not known"):
        fl.read(table, on_bad_rows="ignore")


def test_train(command, split, runs, tmp_path):
    out = tmp_path / "run"
    words = ("--model", "mf", "--epochs", 3, "--threads", 1, "--seed", 2)
    sets = ("--set", "model.dim=8", "--set", "training.batch_size=256", "--set", "negatives.count=16")
    told, run = command("train", split, *words, *sets, "--out", out), runs["mf"]
    assert run.metrics == told["metrics"]
    assert run.config.model_dump(mode="json") == told["config"]
    assert run.table.filter(pl.col("metric") == "recall")["@20"].item() == told["metrics"]["recall@20"]
    assert "mf on" in repr(run)
    assert "<table" in run._repr_html_()
    assert run.history["epoch"].to_list()[-1] == run.result["found"]["epochs"]
    # A handle from the path, and one from a finished run that is asked for again.
    assert fl.Run(out).metrics == run.metrics
    again = fl.train(fl.read(split), out=run, model="mf", epochs=3, seed=2, set={**QUICK}, resume=True)
    assert again.result == run.result


QUICK = {"model.dim": 8, "training.batch_size": 256, "negatives.count": 16}


def test_training_says_how_far_it_is_on_stderr_or_nothing(split, tmp_path, capfd):
    capfd.readouterr()
    fl.train(split, model="mf", out=tmp_path / "quiet", epochs=1, set=QUICK, progress=False)
    assert capfd.readouterr() == ("", "")
    fl.train(split, model="mf", out=tmp_path / "loud", epochs=1, set=QUICK)
    out, err = capfd.readouterr()
    assert (out, "search 1/1" in err) == ("", True)


def test_training_goes_on_from_a_run(command, split, runs, tmp_path):
    told = command("train", split, "--from", runs["mf"].path, "--epochs", 1, "--out", tmp_path / "a")
    run = fl.train(split, start=runs["mf"], epochs=1, out=tmp_path / "b", progress=False)
    assert run.metrics == told["metrics"]


def test_evaluate(command, split, runs):
    run = runs["mhcr"]
    told = command("evaluate", run.path, "-k", "5,10", "--targets", "cold")
    found = run.evaluate(k=[10, 5], targets="cold")
    assert plain(found.to_dict()) == {k: v for k, v in told.items() if k not in ("run", "data")}
    assert found.table.columns == ["metric", "@5", "@10"]
    assert f"{told['pairs']:,} pairs of {told['users']:,} users" in repr(found)
    elsewhere = fl.evaluate(run, split)
    assert elsewhere.metrics == pytest.approx(run.metrics)
    with pytest.raises(InputError, match="targets 'hot' is not known"):
        run.evaluate(targets="hot")


def test_evaluate_under_the_cold_protocol(command, runs):
    told = command("evaluate", runs["mhcr"].path, "--protocol", "cold", "-k", "5")
    found = runs["mhcr"].evaluate(protocol="cold", k=(5,))
    assert plain(found.to_dict()) == {k: v for k, v in told.items() if k not in ("run", "data")}
    assert found.table["targets"].to_list()[:4] == ["warm", "warm", "cold", "cold"]
    with pytest.raises(InputError, match="every pool"):
        fl.evaluate(runs["mhcr"], protocol="cold", pool="cold")


def test_compare(command, runs):
    told = command("compare", runs["popularity"].path, runs["mf"].path, "--metrics", "recall@10")
    found = fl.compare(runs["popularity"], runs["mf"].path, metrics=["recall@10"])
    assert found.to_dicts() == told["comparison"]


def lists(table: pl.DataFrame, owner: str, listed: str) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for row in table.iter_rows(named=True):
        entry = {name: row[name] for name in (listed, "score", "basis") if name in row}
        found.setdefault(row[owner], []).append(entry)
    return found


def test_recommend_and_similar(command, runs):
    run = runs["mf"]
    told = command("recommend", run.path, "--users", "u00,u07", "-k", 4)["lists"]
    assert lists(run.recommend(["u00", "u07"], k=4), "user", "item") == told
    assert lists(fl.recommend(run.path, "u07", k=4), "user", "item") == {"u07": told["u07"]}
    assert run.recommend(k=4)["user"].n_unique() == 80
    told = command("similar", run.path, "--items", "v00", "-k", 4)["lists"]
    assert lists(run.similar("v00", k=4), "item", "similar") == told
    with pytest.raises(InputError, match="the first is 'nobody'"):
        run.recommend("nobody")
    with pytest.raises(InputError, match="the list of users is empty"):
        run.recommend([])


def test_new_items_and_bundles(command, runs, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text("item,title\nfresh,tango salsa dance\nv00,salsa tango\n")
    first, second = (Path(shutil.copytree(runs["mhcr"], tmp_path / name)) for name in ("first", "second"))
    assert command("add-items", first, table, "--skip-known")["added"] == 1
    told = command("add-items", first, table, "--replace")
    run = fl.Run(second)
    with pytest.raises(InputError, match=r"1 of the 2 items have clicks.*'v00'"):
        run.add_items(table)
    assert run.add_items(table, skip_known=True).skipped == 1
    added = run.add_items(table, replace=True)
    counts = ("version", "added", "replaced", "items")
    assert {name: vars(added)[name] for name in counts} == {name: told[name] for name in counts}
    assert (added.added, added.replaced) == (0, 2)
    lists_of_all = run.recommend(k=61)
    assert "fresh" in lists_of_all["item"].to_list()
    told = command("recommend", first, "--users", "u00", "-k", 61)["lists"]
    assert lists(run.recommend("u00", k=61), "user", "item") == told
    about = command("export", first, tmp_path / "bundle")
    bundle = run.export(tmp_path / "bundle-too")
    assert isinstance(bundle, Bundle)
    assert repr(bundle).endswith("version 1, 80 users, 61 items>")
    assert about["items"] == int(bundle.alive.sum()) == 61
    for target in (bundle, tmp_path / "bundle-too"):
        assert fl.recommend(target, k=61).equals(lists_of_all)
    assert fl.similar(bundle, "fresh", k=3).equals(run.similar("fresh", k=3))


def test_items_that_arrive(command, split, runs, tmp_path):
    told = command("data", "cut", split, tmp_path / "a")
    known, new = fl.cut(split, tmp_path / "b")
    assert (plain(known.summary()), plain(new.summary())) == (told["known"], told["new"])
    assert [part.content_hash for part in fl.cut(fl.read(split))] == [known.content_hash, new.content_hash]
    run = fl.train(known, model="mhcr", out=tmp_path / "run", epochs=1, threads=1, set=QUICK, progress=False)
    assert run.add_items(tmp_path / "b" / "new").added == new.n_items
    told = command("arrivals", run.path, split, "-k", 5)
    found = run.arrivals(split, k=5)
    assert plain(found.to_dict()) == told
    assert plain(fl.arrivals(run.path, fl.read(split), k=5).to_dict()) == told
    assert "items that were added" in repr(found)


def test_numbers_of_the_cold_protocol_stay_with_the_run(runs):
    runs["mf"].evaluate(protocol="cold", k=[7])
    assert (runs["mf"].path / "evaluation" / "cold-7.json").is_file()


def test_report(command, runs, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("--users", "u00", "-k", 10)
    told = command("report", runs["mf"].path, runs["mhcr"].path, "--out", tmp_path / "a.html", *words)
    made = fl.report(runs["mf"], runs["mhcr"], out=tmp_path / "b.html", users="u00", k=10)
    assert (tmp_path / "b.html").is_file()
    assert plain(made)["recall"] == told["recall"]
    with pytest.raises(InputError, match="at least one run"):
        fl.report()


def test_serve(runs):
    """In a process of its own, which a signal ends."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    code = f"import firstlight as fl; fl.serve({str(runs['mf'].path)!r}, port=0, token='secret')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        line = ""
        while "listening at " not in line:
            line = process.stderr.readline()
            assert line, "it ended without listening"
        address = line.split("listening at ")[1].strip()
        deadline = time.monotonic() + 60
        while httpx.get(f"{address}health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answer = httpx.post(f"{address}v1/recommend", json={"user": "u00", "k": 3}).json()
        assert [entry["id"] for entry in answer["items"]] == runs["mf"].recommend("u00", k=3)[
            "item"
        ].to_list()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_run_pipeline(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(
        "name: small\n"
        "data: {simulate: {n_users: 60, n_items: 40, mean_clicks: 10, cover_size: 16}}\n"
        "split: {by: random}\n"
        "train: {popularity: {model: popularity}}\n"
        "evaluate: {k: [5]}\n"
        "export: null\n"
        "report: null\n"
    )
    ahead = fl.run_pipeline(file, dry_run=True)
    told = command("pipeline", file, "--dry-run")
    assert plain(ahead.to_dict()) == told
    assert ahead.table["state"].to_list() == ["to do"] * 4
    done = fl.run_pipeline(file, set={"evaluate.k": [3]})
    assert done.table["step"].to_list() == ["data", "split", "train:popularity", "evaluate:popularity"]
    assert done.numbers["popularity"]["k"] == [3]
    told = command("pipeline", file, "--set", "evaluate.k=[3]")
    assert told["numbers"] == plain(done.numbers)
    assert {row["was"] for row in told["steps"]} == {"done"}
    found = fl.evaluate("small-out/runs/popularity", protocol="cold", k=[3])
    assert plain(found.to_dict())["protocols"] == told["numbers"]["popularity"]["protocols"]


def test_a_dataset_may_be_named_by_its_path_or_given(split):
    from firstlight.api.paths import dataset

    given = fl.read(split)
    assert dataset(given) is given
    assert isinstance(dataset(os.fspath(split)), Dataset)


def test_settings_take_what_python_has():
    import numpy as np

    from firstlight.api.paths import changes
    from firstlight.training.recipes import override

    texts = changes({"a.b": np.float64(0.5), "c": Path("x/y"), "d": (1, 2), "e": 1e-7}, training__epochs=3)
    assert [override(text) for text in texts] == [
        {"a": {"b": 0.5}},
        {"c": "x/y"},
        {"d": [1, 2]},
        {"e": 1e-7},
        {"training": {"epochs": 3}},
    ]
    assert json.dumps(changes(None)) == "[]"


def test_frames_are_read_like_files(tmp_path, runs):
    rows = {"user": [f"u{n % 9}" for n in range(60)], "item": [f"i{n % 20}" for n in range(60)]}
    frame = pl.DataFrame(rows).with_columns(day=pl.int_range(60) * 86_400)
    frame.write_csv(tmp_path / "clicks.csv")
    read, wanted = (
        fl.read(data, user="user", item="item", time="day") for data in (frame, tmp_path / "clicks.csv")
    )
    assert read.content_hash == wanted.content_hash
    assert (
        fl.split(frame, by="random").content_hash
        == fl.split(tmp_path / "clicks.csv", by="random").content_hash
    )
    with pytest.raises(InputError, match=r"^the data frame") as caught:
        fl.read(frame.rename({"item": "thing"}), item="itme")
    assert "firstlight-" not in str(caught.value)
    new = pl.DataFrame({"item": ["framed"], "title": ["tango salsa dance"]})
    run = fl.Run(Path(shutil.copytree(runs["mhcr"].path, tmp_path / "run")))
    assert run.add_items(new).added == 1
    with pytest.raises(InputError, match="one picture"):
        run.add_items(new, title="more")
    assert "framed" in run.recommend(k=200)["item"].to_list()


def test_what_is_no_path_and_no_frame_is_refused():
    for call in (fl.read, lambda given: fl.split(given, by="random")):
        with pytest.raises(InputError, match="neither a path nor a polars data frame"):
            call({"user": ["a"], "item": ["b"]})


def test_lengths_of_lists(runs):
    run = runs["mf"]
    assert run.evaluate(k=5).table.columns == run.evaluate(k=[5]).table.columns
    for k in (0, -1, 2.5, None, "ten", []):
        with pytest.raises(InputError, match="k is"):
            run.evaluate(k=k)
        with pytest.raises(InputError, match="k is"):
            run.recommend("u00", k=k)
        with pytest.raises(InputError, match="k is"):
            run.similar("v00", k=k)
