"""What is printed: JSON values, tables, progress."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.cli.options import integers, names, settings, two_integers
from firstlight.cli.output import Answer, draw_pairs, draw_table, plain, show, text
from firstlight.cli.progress import TrainingProgress, duration, epoch_facts
from firstlight.core import ranks
from firstlight.core.errors import InputError


def test_plain_replaces_what_json_lacks():
    value = {
        "nan": float("nan"),
        "inf": -math.inf,
        "path": Path("a/b"),
        1: np.float32(0.5),
        "array": np.arange(2),
        "series": pl.Series(["x"]),
        "set": {3},
        "nested": [(None, True)],
    }
    expected = {
        "nan": None,
        "inf": None,
        "path": "a/b",
        "1": 0.5,
        "array": [0, 1],
        "series": ["x"],
        "set": [3],
        "nested": [[None, True]],
    }
    assert plain(value) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_everything_printed_is_strict_json(value):
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)


def test_json_is_one_object_and_people_get_the_drawing(capsys):
    answer = Answer({"a": 1}, lambda console: console.print("drawn [bold]as it is[/bold]"))
    show(answer, as_json=True)
    assert capsys.readouterr().out == '{"a": 1}\n'
    show(answer, as_json=False)
    assert capsys.readouterr().out == "drawn [bold]as it is[/bold]\n"


WORDS = {False: ["doctor", "--json"], True: ["data", "inspect", "nowhere", "--json"]}


@pytest.mark.parametrize("wrong", [False, True])
def test_of_several_processes_of_a_group_one_answers(firstlight, monkeypatch, wrong):
    monkeypatch.setattr(ranks, "_joined", (0, 2))
    first = firstlight(*WORDS[wrong])
    assert first.value
    monkeypatch.setattr(ranks, "_joined", (1, 2))
    second = firstlight(*WORDS[wrong])
    assert (second.code, second.out) == (first.code, "")
    assert second.err == first.err


@pytest.mark.parametrize("wrong", [False, True])
def test_the_environment_of_a_scheduler_silences_nobody(firstlight, monkeypatch, wrong):
    alone = firstlight(*WORDS[wrong])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    found = firstlight(*WORDS[wrong])
    assert found.value.keys() == alone.value.keys()
    assert found.code == alone.code


def test_tables_do_not_wrap_where_there_is_no_terminal(capsys):
    long = "x" * 120
    show(
        Answer({}, lambda console: draw_table(console, ["name", "n"], [[long, 1234], ["b", None]])),
        as_json=False,
    )
    shown = capsys.readouterr().out
    assert long in shown
    assert "1,234" in shown
    assert "–" in shown


def test_pairs_line_up(capsys):
    show(Answer({}, lambda console: draw_pairs(console, {"a": 1, "long": True}, title="T")), as_json=False)
    assert capsys.readouterr().out == "T\n  a     1\n  long  yes\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.25, "0.2500"),
        (0.0, "0.0000"),
        (1e-9, "1e-09"),
        (2.5e6, "2.5e+06"),
    ],
)
def test_text(value, shown):
    assert text(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (95, "1:35"), (3725, "1:02:05")])
def test_duration(seconds, shown):
    assert duration(seconds) == shown


EPOCH = {
    "epoch": 2,
    "epochs": 9,
    "phase": "search",
    "loss": 3.5,
    "tau_min": 0.1,
    "tau_mean": 0.15,
    "tau_max": 0.2,
    "metric": "recall@20",
    "metric_value": 0.25,
    "eta_seconds": 61.0,
}


def test_epoch_facts():
    assert epoch_facts(EPOCH) == "loss 3.5000  τ 0.15 (0.1–0.2)  recall@20 0.2500  1:01 left"


@pytest.mark.parametrize("live", [True, False])
def test_progress_goes_to_stderr_only(capsys, live, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars only where it believes in a terminal
    monkeypatch.setenv("TERM", "xterm")
    with TrainingProgress(live=live) as progress:
        progress("run", model="mf", loss="softmax", temperature="fixed", n_users=7, n_items=8, n_pairs=9)
        progress("step", phase="search", epoch=1, step=0, steps=4)
        progress("epoch", **EPOCH)
        progress("epoch", **EPOCH | {"phase": "refit", "epoch": 9})
        progress("something-new", anything=1)
        progress("message", text="a word")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training mf + softmax + fixed on" in shown.err
    assert "a word" in shown.err
    assert "refit 9/9" in shown.err


def test_every_run_has_a_bar_of_its_own():
    with TrainingProgress(live=True) as progress:
        for _run in range(2):
            progress("epoch", **EPOCH)
            progress("done", result={})
            assert progress._bar is not None
            assert progress._bar.tasks == []


def test_quiet_epochs_are_not_all_reported(capsys):
    with TrainingProgress(live=False) as progress:
        for epoch in range(1, 101):
            progress("epoch", epoch=epoch, epochs=100, phase="train", loss=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]


def test_untrained_models_are_not_said_to_have_a_loss(capsys):
    TrainingProgress(live=False)("run", model="popularity", loss="softmax", temperature="fixed", n_users=1)
    assert "softmax" not in capsys.readouterr().err


def test_option_values():
    assert integers("50,10,10", "-k") == [10, 50]
    assert two_integers("5", "--k-core") == (5, 5)
    assert two_integers("5, 3", "--k-core") == (5, 3)
    assert names(" a, b,,c ") == ["a", "b", "c"]
    assert settings(["a=0.5", "b = [1, 2]", "c=x"]) == {"a": 0.5, "b": [1, 2], "c": "x"}


@pytest.mark.parametrize("bad", ["", "a", "0", "1,-2", "1.5"])
def test_bad_lists_of_numbers(bad):
    with pytest.raises(InputError):
        integers(bad, "-k")
