"""The contract of every command: exit codes, one JSON object, messages on stderr."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from firstlight.cli import app as cli
from firstlight.cli import exits
from firstlight.core.errors import DivergenceError, FirstlightError, InputError


def commands(group: typer.Typer, *above: str) -> list[tuple[str, ...]]:
    own = [(*above, info.name) for info in group.registered_commands]
    nested = [name for info in group.registered_groups for name in commands(info.typer_instance, info.name)]
    return own + nested


def test_all_commands_of_the_contract_are_there():
    wanted = ["doctor", "demo", "simulate", "train", "evaluate", "compare", "recommend", "similar"]
    wanted += [
        "add-items",
        "arrivals",
        "export",
        "pretrain",
        "refine",
        "embed",
        "probe",
        "pipeline",
        "report",
        "serve",
    ]
    expected = {(name,) for name in wanted} | {
        ("data", name) for name in ("inspect", "convert", "split", "cut")
    }
    assert set(commands(cli.app)) == expected


@pytest.mark.parametrize("words", commands(cli.app), ids=" ".join)
def test_every_command_explains_itself_and_knows_json(firstlight, words):
    shown = firstlight(*words, "--help")
    assert shown.code == 0
    assert "--json" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["train"],
        ["train", "somewhere", "--no-such-option"],
        ["data", "split", "somewhere", "out", "--seed", "three", "--by", "random"],
        ["data", "split", "somewhere", "out", "--by", "astrology"],
        ["data", "inspect", "somewhere", "--duplicates", "most"],
        ["data", "inspect", "somewhere", "--k-core", "5,x"],
        ["data", "inspect", "somewhere-that-is-not"],
        ["simulate", "out", "--set", "n_userz=3"],
        ["simulate", "out", "--set", "n_users"],
        ["simulate", "out", "--users", "0"],
        ["train", "somewhere", "--out", "x", "--model", "oracle"],
        ["train", "somewhere", "--out", "x", "--set", "training.epochs=many"],
        ["evaluate", "somewhere", "-k", "0"],
        ["evaluate", "somewhere", "--targets", "hot"],
        ["evaluate", "somewhere"],
        ["compare", "somewhere"],
        ["recommend", "somewhere"],
        ["similar", "somewhere", "--items", "a", "--items-file", "b"],
    ],
    ids=" ".join,
)
def test_bad_input_exits_with_2_and_says_so(firstlight, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = firstlight(*words)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.startswith("error: ")
    assert "Traceback" not in plain.err
    as_json = firstlight(*words, "--json")
    assert as_json.code == 2
    assert as_json.value["error"]["kind"] in ("input", "usage")
    assert as_json.value["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_suggests_the_right_one(firstlight):
    assert "did you mean 'n_users'?" in firstlight("simulate", "out", "--set", "n_userz=3").err


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (InputError("broken", path="a.csv", line=3, hint="mend it"), 2, "input"),
        (FirstlightError("no"), 1, "failure"),
        (DivergenceError("loss became nan"), 1, "failure"),
        (OSError(28, "No space left on device", "x"), 1, "failure"),
        (ZeroDivisionError("division by zero"), 1, "bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (exits.Interrupted("resume with --resume"), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_map_to_exit_codes(capsys, error, code, kind):
    assert exits.report(error, as_json=True) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["kind"] == kind
    assert shown.err.startswith("error: ")


def test_input_error_carries_its_place(capsys):
    exits.report(InputError("broken", path="a.csv", line=3, hint="mend it"), as_json=True)
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["path"], error["line"], error["hint"]) == ("a.csv", 3, "mend it")


def test_a_bug_is_one_line_and_shows_its_traceback_on_request(firstlight, monkeypatch):
    def broken() -> dict:
        raise RuntimeError("the sky fell\nin two lines")

    monkeypatch.setattr("firstlight.cli.system._packages", broken)
    short = firstlight("doctor")
    assert short.code == 1
    assert "RuntimeError: the sky fell in two lines" in short.err
    assert "this is a bug" in short.err
    assert "Traceback" not in short.err
    monkeypatch.setenv("FIRSTLIGHT_TRACEBACK", "1")
    assert "Traceback" in firstlight("doctor").err


def test_interrupting_training_says_how_to_go_on(firstlight, split, tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("firstlight.training.run.train", interrupted)
    shown = firstlight("train", split, "--out", tmp_path / "run")
    assert shown.code == 130
    assert "resume with --resume" in shown.err


def test_version_and_module_entry():
    done = subprocess.run([sys.executable, "-m", "firstlight", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "firstlight 0.1.0", "")


def test_a_reader_that_goes_away_is_no_bug():
    done = subprocess.run(
        f"{sys.executable} -m firstlight doctor | true", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
