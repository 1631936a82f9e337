"""The pipeline: what is made again and what is not, after changes, failures and kills; and what its errors say."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from firstlight.cli.app import call
from firstlight.core.errors import DivergenceError, InputError
from firstlight.core.hashing import hash_file
from firstlight.pipeline.config import list_pipelines, read_pipeline
from firstlight.pipeline.plan import Step, plan
from firstlight.pipeline.run import run_pipeline, states
from firstlight.serving.bundle import Bundle
from firstlight.training.run_folder import load_run

WORLD = {"n_users": 120, "n_items": 80, "mean_clicks": 16.0, "cover_size": 16}
RUN = {
    "model": "mhcr",
    "negatives": "all",
    "epochs": 2,
    "threads": 1,
    "set": {"model.dim": 8, "training.batch_size": 512, "training.eval_every": 2},
}
TINY = {
    "data": {"simulate": WORLD},
    "train": {"popularity": {"model": "popularity"}, "mhcr": RUN},
    "evaluate": {"k": [10, 20]},
    "report": None,
}
ENCODER = {
    "pretrain": {
        "epochs": 2,
        "threads": 1,
        "set": {
            "encoder.dim": 16,
            "encoder.depth": 2,
            "encoder.heads": 2,
            "encoder.image_size": [16, 16],
            "encoder.patch_size": 8,
            "mae.decoder_dim": 16,
            "mae.decoder_depth": 1,
            "mae.decoder_heads": 2,
            "training.batch_size": 32,
        },
    }
}


def write(folder: Path, tree: dict, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def planned(folder: Path, tree: dict, out: Path) -> list[Step]:
    config, source = read_pipeline(write(folder, tree))
    return plan(config, out, source)


def plan_of(path: Path) -> list[Step]:
    config, source = read_pipeline(path)
    return plan(config, Path("out"), source)


def was(results) -> dict[str, str]:
    return {result.step.name: result.state for result in results}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    steps = planned(folder, TINY, folder / "out")
    return folder, steps, run_pipeline(steps, folder / "out", call)


def test_a_pipeline_leaves_everything_from_data_to_bundle(made):
    folder, steps, results = made
    names = [
        "data",
        "split",
        "train:popularity",
        "train:mhcr",
        "evaluate:popularity",
        "evaluate:mhcr",
        "export",
    ]
    assert [step.name for step in steps] == names
    assert set(was(results).values()) == {"to do"}
    numbers = json.loads((folder / "out" / "evaluation" / "mhcr.json").read_text())
    assert {"warm/warm", "cold/all"} <= numbers["protocols"].keys()
    assert numbers["protocols"] == results[5].answer["protocols"]
    answer = call(["recommend", str(folder / "out" / "bundle"), "--users", "u000", "-k", "3"])
    assert len(answer["lists"]["u000"]) == 3


def test_what_is_there_is_not_made_again(made):
    folder, steps, _ = made

    def never(words):
        raise AssertionError(words)

    again = run_pipeline(steps, folder / "out", never)
    assert set(was(again).values()) == {"done"}
    assert set(states(steps, folder / "out").values()) == {"done"}


def test_the_commands_of_the_dry_run_make_the_same(made, tmp_path, monkeypatch):
    folder, _, _ = made
    monkeypatch.chdir(tmp_path)
    shown = call(["pipeline", str(folder / "tiny.yaml"), "--dry-run", "--out", "alone"])
    assert not (tmp_path / "alone").exists()
    assert {row["state"] for row in shown["steps"]} == {"to do"}
    assert all(row["seconds"] > 0 and row["size"] for row in shown["steps"])
    for line in [line for row in shown["steps"][:4] for line in row["commands"]]:
        program, *words = shlex.split(line)
        assert program == "firstlight"
        call(words)
    for name in ("data/items.parquet", "split/interactions.parquet", "runs/mhcr/model.safetensors"):
        assert hash_file(tmp_path / "alone" / name) == hash_file(folder / "out" / name)


def test_runs_keep_the_command_that_made_them(made):
    folder, steps, _ = made
    kept = json.loads((folder / "out" / "runs" / "mhcr" / "environment.json").read_text())
    assert kept["command"] == ["firstlight", *steps[3].commands[0]]


def test_a_change_is_followed_to_its_end_and_no_further(made, tmp_path):
    folder, _, _ = made
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    changed = {**TINY, "train": {**TINY["train"], "mhcr": {**RUN, "seed": 5}}}
    steps = planned(tmp_path, changed, out)
    found = {name: state for name, state in states(steps, out).items() if state != "done"}
    assert found == {"train:mhcr": "to do", "evaluate:mhcr": "to do", "export": "to do"}
    results = run_pipeline(steps, out, call)
    assert {name for name, state in was(results).items() if state != "done"} == found.keys()
    assert (out / "bundle" / "manifest.json").exists()
    assert (out / "bundle-before-1" / "manifest.json").exists()  # it may be served


def test_a_deleted_output_is_made_again_and_what_follows_is_kept(made, tmp_path):
    folder, _, _ = made
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    shutil.rmtree(out / "split")
    steps = planned(tmp_path, TINY, out)
    results = run_pipeline(steps, out, call)
    # The same split came out, so the runs on it still stand.
    assert {name for name, state in was(results).items() if state != "done"} == {"split"}


class Stub:
    """Plays the commands: writes what tells that they were there, and can fail."""

    def __init__(self) -> None:
        self.calls, self.fail = [], None

    def __call__(self, words):
        self.calls.append(words)
        if words[0] == "add-items":
            return {"added": 3}
        target = Path({"export": words[2], "simulate": words[1]}.get(words[0]) or words[3])
        if words[0] in ("train", "pretrain", "refine", "embed"):
            target = Path(words[words.index("--out") + 1])
        if words[0] in ("evaluate", "arrivals"):
            return {"words": list(words)}
        if words[0] == "recommend":
            Path(words[-1]).write_text("user,rank,item,score\n")
            return {}
        if words[:2] == ("data", "cut"):
            for name in ("known", "new"):
                (target / name).mkdir(parents=True, exist_ok=True)
                (target / name / "dataset.json").write_text("{}")
            return {}
        target.mkdir(parents=True, exist_ok=True)
        if self.fail is not None and words[0] == self.fail:
            (target / "half").write_text("x")
            raise DivergenceError("the loss became nan")
        for name in (
            "dataset.json",
            "result.json",
            "manifest.json",
            "model.safetensors",
            "encoder.safetensors",
        ):
            (target / name).write_text("{}")
        return {}


def test_a_failed_step_is_named_and_goes_on_where_it_stopped(tmp_path):
    steps, stub = planned(tmp_path, {**TINY, "encoder": ENCODER}, tmp_path / "out"), Stub()
    stub.fail = "train"
    with pytest.raises(DivergenceError, match="step train:popularity: the loss became nan"):
        run_pipeline(steps, tmp_path / "out", stub)
    assert states(steps, tmp_path / "out")["train:popularity"] == "cut"
    stub.fail, stub.calls = None, []
    results = run_pipeline(steps, tmp_path / "out", stub)
    assert was(results)["train:popularity"] == "cut"
    assert (tmp_path / "out" / "runs" / "popularity" / "half").exists()  # its checkpoint would be there
    assert [words[0] for words in stub.calls] == ["train", "train", "evaluate", "evaluate", "export"]


def test_what_was_cut_under_another_config_begins_anew(tmp_path):
    out, stub = tmp_path / "out", Stub()
    stub.fail = "train"
    with pytest.raises(DivergenceError):
        run_pipeline(planned(tmp_path, TINY, out), out, stub)
    stub.fail = None
    other = {**TINY, "train": {"popularity": {"model": "popularity", "seed": 9}}}
    results = run_pipeline(planned(tmp_path, other, out), out, stub)
    assert was(results)["train:popularity"] == "to do"
    assert not (out / "runs" / "popularity" / "half").exists()


def test_an_embedding_that_was_cut_keeps_its_copy(tmp_path):
    tree = {**TINY, "encoder": {**ENCODER, "use": "embed"}}
    out, stub = tmp_path / "out", Stub()
    steps = planned(tmp_path, tree, out)
    stub.fail = "embed"
    with pytest.raises(DivergenceError, match="step embed"):
        run_pipeline(steps, out, stub)
    stub.fail, stub.calls = None, []
    run_pipeline(steps, out, stub)
    assert [words[0] for words in stub.calls[:2]] == ["embed", "data"]
    assert stub.calls[1][1] == "split"


ARRIVALS = {
    **TINY,
    "split": {"by": "time"},
    "encoder": ENCODER,
    "arrivals": {"k": 7, "label": "ours"},
    "recommend": {"k": 3},
    "report": None,
}


def test_what_arrives_is_kept_from_everything_and_then_added(tmp_path):
    out, stub = tmp_path / "out", Stub()
    steps = planned(tmp_path, ARRIVALS, out)
    assert [step.name for step in steps] == [
        *("data", "split", "cut", "pretrain", "train:popularity", "train:mhcr"),
        *("evaluate:popularity", "evaluate:mhcr", "export", "arrivals", "recommend"),
    ]
    by = {step.name: step for step in steps}
    assert by["cut"].commands == (("data", "cut", str(out / "split"), str(out / "cut")),)
    known = str(out / "cut" / "known")
    assert {by[name].commands[0][1] for name in ("pretrain", "train:mhcr")} == {known}
    added = ("add-items", str(out / "bundle"), str(out / "cut" / "new"))
    assert [words[0] for words in by["export"].commands] == ["export", "add-items"]
    assert by["export"].commands[1] == added
    asked = ("arrivals", str(out / "bundle"), str(out / "split"), "-k", "7", "--label", "ours")
    assert by["arrivals"].commands == (asked,)
    results = run_pipeline(steps, out, stub)
    assert set(was(results).values()) == {"to do"}
    assert {result.step.name: result.answer for result in results}["export"] == {"added": 3}
    again = run_pipeline(steps, out, stub)
    assert set(was(again).values()) == {"done"}
    shutil.rmtree(out / "cut" / "new")
    assert states(steps, out)["cut"] == "to do"


def test_another_model_is_measured_anew_though_the_bundle_tells_nothing(tmp_path):
    out, stub = tmp_path / "out", Stub()
    run_pipeline(planned(tmp_path, ARRIVALS, out), out, stub)
    tree = {**ARRIVALS, "train": {**TINY["train"], "mhcr": {**RUN, "seed": 5}}}
    steps = planned(tmp_path, tree, out)
    todo = {name for name, state in states(steps, out).items() if state != "done"}
    assert todo == {"train:mhcr", "evaluate:mhcr", "export", "arrivals", "recommend"}


def test_a_bundle_that_was_cut_while_items_joined_it_is_made_anew(tmp_path):
    out, stub = tmp_path / "out", Stub()
    steps = planned(tmp_path, ARRIVALS, out)

    def failing(words):
        if words[0] == "add-items":
            raise DivergenceError("the power went")
        return stub(words)

    with pytest.raises(DivergenceError, match="step export: the power went"):
        run_pipeline(steps, out, failing)
    (out / "bundle" / "half").write_text("x")
    stub.calls = []
    results = run_pipeline(steps, out, stub)
    assert [words[0] for words in stub.calls] == ["export", "add-items", "arrivals", "recommend"]
    assert was(results)["export"] == "to do"
    assert not (out / "bundle" / "half").exists()
    assert not (out / "bundle-before-1").exists()  # nobody can have served half a bundle


def test_messages_say_how_much_there_is_to_go(tmp_path):
    out, said = tmp_path / "out", []
    steps = planned(tmp_path, TINY, out)
    expected = {step.name: 60.0 for step in steps}
    run_pipeline(steps, out, Stub(), expected=expected, emit=lambda _, **values: said.append(values["text"]))
    assert said[0] == f"[1/{len(steps)}] data: simulate, about 1:00 of {len(steps)}:00 to go"
    assert said[-1] == f"[{len(steps)}/{len(steps)}] export: export, about 1:00 of 1:00 to go"


def test_other_content_outside_is_other_input(tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item\na,b\n")
    tree = {**TINY, "data": {"path": str(tmp_path / "clicks.csv")}}
    out = tmp_path / "out"
    steps = planned(tmp_path, tree, out)
    run_pipeline(steps, out, Stub())
    assert set(states(steps, out).values()) == {"done"}
    (tmp_path / "clicks.csv").write_text("user,item\na,c\n")
    assert set(states(steps, out).values()) == {"to do"}


def test_files_behind_a_link_are_content_too(tmp_path):
    from firstlight.pipeline.run import _content

    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.png").write_bytes(b"one")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "pool")
    before = _content(tmp_path / "images")
    (tmp_path / "pool" / "a.png").write_bytes(b"two")
    assert _content(tmp_path / "images") != before


def test_where_a_link_leads_is_content_too(tmp_path):
    """Both versions lie in the folder, so all files are met whichever is the current one."""
    from firstlight.core.hashing import hash_file, hash_strings
    from firstlight.pipeline.run import _content

    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.png").write_bytes(version.encode())
    files = [f"{version}/a.png" for version in ("v1", "v2")]
    without = hash_strings(text for file in files for text in (file, hash_file(tmp_path / file)))
    assert _content(tmp_path) == without  # as it was before links were looked at
    current, found = tmp_path / "current", set()
    for version in ("v1", "v2"):
        current.unlink(missing_ok=True)
        current.symlink_to(version)
        found.add(_content(tmp_path))
        assert _content(tmp_path) in found
    assert len(found | {without}) == 3


def test_what_is_exported_knows_the_test_part_after_a_refit(tmp_path):
    tree = {**TINY, "export": {"run": "mhcr", "refit": True}, "recommend": {"k": 5}}
    steps = planned(tmp_path, tree, tmp_path / "out")
    assert [step.name for step in steps][-3:] == ["refit", "export", "recommend"]
    assert was(run_pipeline(steps, tmp_path / "out", call))["refit"] == "to do"
    measured, refitted = (load_run(tmp_path / "out" / name) for name in ("runs/mhcr", "refit"))
    pairs = sum(part.n_pairs for part in measured.parts.values())
    assert measured.seen.n_pairs < refitted.seen.n_pairs == pairs
    assert Bundle.open(tmp_path / "out" / "bundle").snapshot.base.seen.n_pairs == pairs
    assert set(was(run_pipeline(steps, tmp_path / "out", call)).values()) == {"done"}
    with pytest.raises(InputError, match=r"export\.refit would learn"):
        planned(tmp_path, {**tree, "arrivals": {}}, tmp_path / "out")


def test_one_step_alone(tmp_path):
    out, stub = tmp_path / "out", Stub()
    steps = planned(tmp_path, TINY, out)
    with pytest.raises(InputError, match="step split reads what step data makes"):
        run_pipeline(steps, out, stub, only="split")
    with pytest.raises(InputError, match="there is no step 'trian'"):
        run_pipeline(steps, out, stub, only="trian")
    for name in ("data", "split", "train"):
        results = run_pipeline(steps, out, stub, only=name)
    assert list(was(results)) == ["train:popularity", "train:mhcr"]
    assert [words[0] for words in stub.calls] == ["simulate", "data", "train", "train"]


def test_nothing_of_others_is_overwritten(tmp_path):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="no pipeline made"):
        run_pipeline(planned(tmp_path, TINY, out), out, Stub())
    assert (out / "data" / "mine.txt").read_text() == "precious"


def test_two_pipelines_do_not_fill_one_folder(tmp_path):
    out = tmp_path / "out"
    steps = planned(tmp_path, TINY, out)

    def meddling(words):
        run_pipeline(steps, out, Stub())

    with pytest.raises(InputError, match="another pipeline is at work"):
        run_pipeline(steps, out, meddling)


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_end(tmp_path):
    """kill -9 while an encoder, then a recommender is trained; what comes out is as without."""
    tree = {**TINY, "encoder": ENCODER, "train": {"mhcr": {**RUN, "epochs": 6}}}
    tree["encoder"]["pretrain"]["epochs"] = 6
    config = write(tmp_path, tree)
    words = [sys.executable, "-m", "firstlight", "pipeline", str(config), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "whole"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    out, cut = tmp_path / "cut", []
    for sign in ("data", "encoders/pretrain/checkpoint", "runs/mhcr/checkpoint/state.safetensors"):
        process = subprocess.Popen([*words, "cut"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (out / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = planned(tmp_path, tree, out)
        cut += [name for name, state in states(steps, out).items() if state == "cut"]
    subprocess.run([*words, "cut"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert cut  # at least one of the kills hit a step that had begun to train
    for name in (
        "data/items.parquet",
        "encoders/pretrain/encoder.safetensors",
        "runs/mhcr/model.safetensors",
    ):
        assert hash_file(tmp_path / "whole" / name) == hash_file(out / name), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {}}, "step data: give either path or simulate"),
        (
            {"data": {"path": "nowhere.csv"}},
            "step data, field path: there is no file or folder 'nowhere.csv'",
        ),
        ({"data": {"simulate": {"n_userz": 3}}}, "step data, field simulate.n_userz"),
        ({"data": {"simulate": WORLD, "read": {"kcore": 5}}}, "step data, field read.kcore"),
        ({"splt": {}}, "there is no step 'splt'"),
        ({"split": {"by": "astrology"}}, "step split, field by"),
        ({"split": {"by": "random", "test_share": "much"}}, "step split, field test_share"),
        ({"encoder": {"refine": {}}}, "step encoder: give an encoder"),
        ({"encoder": {"pretrain": {"epochs": "many"}}}, "step pretrain, field epochs"),
        ({"encoder": {"pretrain": {"recipe": "pretrain-huge"}}}, "step pretrain, there is no recipe"),
        (
            {"encoder": {"pretrain": {"set": {"training.lr": 1}}}},
            "step pretrain, there is no setting 'training.lr'",
        ),
        ({"encoder": {"given": "nowhere"}}, "step encoder, field given"),
        ({"train": {}}, "step train: "),
        ({"train": {"a": {"model": "oracle"}}}, "step train:a, "),
        ({"train": {"a": {"modle": "mf"}}}, "step train:a, field modle: there is no such field"),
        ({"train": {"a": {"set": {"training.epochs": "many"}}}}, "step train:a, field training.epochs"),
        ({"train": {"a/b": {}}}, "run name 'a/b'"),
        ({"export": {"run": "b"}}, "export.run 'b' is none of the runs: popularity, mhcr"),
        ({"evaluate": {"k": [0]}}, "step evaluate, field k"),
        ({"arrivals": {"k": 0}}, "step arrivals, field k"),
        ({"arrivals": {}, "export": None}, "arrivals needs the bundle that export makes"),
        ({"recommend": {}, "export": None}, "recommend needs the bundle that export makes"),
        ({"arrivals": {}, "encoder": {**ENCODER, "use": "embed"}}, "it needs encoder.use: views"),
        (
            {"arrivals": {}, "export": {"run": "popularity"}},
            "run 'popularity', the bundle's, reads no content",
        ),
    ],
)
def test_bad_configs_are_refused_by_file_step_and_field(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {**TINY, **change})
    with pytest.raises(InputError) as refused:
        plan_of(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.yaml"]


def test_files_that_are_no_pipelines(tmp_path):
    (tmp_path / "torn.yaml").write_text("data: {path: x\ntrain: [")
    with pytest.raises(InputError, match=r"torn\.yaml, line 2: the pipeline is not YAML"):
        read_pipeline(tmp_path / "torn.yaml")
    (tmp_path / "list.yaml").write_text("- data\n")
    with pytest.raises(InputError, match="does not hold a mapping"):
        read_pipeline(tmp_path / "list.yaml")
    with pytest.raises(InputError, match="did you mean 'world'"):
        read_pipeline("wrold")
    with pytest.raises(InputError, match="cannot be read"):
        read_pipeline(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", list_pipelines())
def test_shipped_pipelines_are_sound(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("movielens-small").mkdir()
    config, source = read_pipeline(name)
    steps = plan(config, Path("out"), source)
    assert steps[-1].name == "report"
    assert "export" in [step.name for step in steps]
    assert Path(source).read_text().startswith(f"# firstlight pipeline {name}")


def test_real_films_are_planned_from_a_look_at_them(real_data):
    folder = real_data("movielens-small")
    shown = call(["pipeline", "movielens-small", "--dry-run", "--set", f"data.path={folder}"])
    rows = {row["step"]: row for row in shown["steps"]}
    assert rows["data"]["size"] == "610 users, 9,742 items, 100,836 pairs"
    assert rows["pretrain"]["size"].startswith("9,517 covers")
    assert "--set views.encoder.path=movielens-small-out/encoders/refine" in rows["train:mhcr"]["commands"][0]


def test_a_dry_run_looks_at_the_chosen_step_alone(made):
    folder, _, _ = made
    words = ["pipeline", str(folder / "tiny.yaml"), "--dry-run", "--out", str(folder / "out")]
    shown = call([*words, "--only", "evaluate"])
    assert [row["step"] for row in shown["steps"]] == ["evaluate:popularity", "evaluate:mhcr"]
    assert shown["seconds_left"] == 0
    with pytest.raises(InputError, match="there is no step 'evalaute'"):
        call([*words, "--only", "evalaute"])
    words[-1] = str(folder / "nowhere")
    with pytest.raises(InputError, match="step train:mhcr reads what step split makes"):
        call([*words, "--only", "train:mhcr"])


def test_sizes_of_a_dry_run_follow_the_data(tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item\n" + "".join(f"u{n % 7},i{n}\n" for n in range(21)))
    tree = {"data": {"path": str(tmp_path / "clicks.csv")}, "split": {"by": "random"}, "evaluate": None}
    tree |= {"train": {"popularity": {"model": "popularity"}}, "export": None, "report": None}
    file = write(tmp_path, tree)
    words = ["pipeline", str(file), "--out", str(tmp_path / "out")]
    call(words)
    assert "21 pairs" in call([*words, "--dry-run"])["steps"][0]["size"]
    with (tmp_path / "clicks.csv").open("a") as more:
        more.write("u8,i40\nu9,i41\n")
    shown = call([*words, "--dry-run"])["steps"][0]
    assert shown["state"] == "to do"
    assert "23 pairs" in shown["size"]
