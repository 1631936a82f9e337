"""The same fault of an output's place has the same exit code and words in every command."""

from __future__ import annotations

import pytest


@pytest.fixture
def blocked(tmp_path):
    """A path below a file, where nothing can be written."""
    (tmp_path / "afile").write_text("x")
    return tmp_path / "afile" / "out"


@pytest.mark.parametrize(
    "command",
    ["simulate", "convert", "split", "train", "export", "recommend", "report", "pipeline", "similar"],
)
def test_a_place_below_a_file(firstlight, world, split, runs, blocked, tmp_path, command):
    (tmp_path / "p.yaml").write_text(
        "data: {simulate: {n_users: 60, n_items: 40}}\ntrain: {popularity: {model: popularity}}\n"
    )
    words = {
        "simulate": ["simulate", blocked, "--users", 30, "--items", 30],
        "convert": ["data", "convert", world, blocked],
        "split": ["data", "split", world, blocked, "--by", "random"],
        "train": ["train", split, "--model", "popularity", "--out", blocked],
        "export": ["export", runs["mf"], blocked],
        "recommend": ["recommend", runs["mf"], "--out", blocked.with_suffix(".csv")],
        "similar": ["similar", runs["mf"], "--out", blocked.with_suffix(".csv")],
        "report": ["report", runs["mf"], "--out", blocked.with_suffix(".html")],
        "pipeline": ["pipeline", tmp_path / "p.yaml", "--out", blocked],
    }[command]
    done = firstlight(*words)
    assert done.code == 2, done.err
    assert f"error: {blocked}" in done.err
    assert "annot be written" in done.err
    assert "Errno" not in done.err
    assert ".partial" not in done.err


def test_a_file_where_a_folder_should_go(firstlight, world, split, runs, tmp_path):
    (tmp_path / "afile").write_text("x")
    for words in (
        ["data", "convert", world, tmp_path / "afile"],
        ["train", split, "--model", "popularity", "--out", tmp_path / "afile"],
        ["export", runs["mf"], tmp_path / "afile"],
    ):
        done = firstlight(*words)
        assert done.code == 2
        assert "a file stands where" in done.err
    assert (tmp_path / "afile").read_text() == "x"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_pipeline_keeps_out_of_foreign_folders(firstlight, world, tmp_path, dry):
    import shutil

    data = shutil.copytree(world, tmp_path / "data")
    before = sorted(data.rglob("*"))
    file = tmp_path / "p.yaml"
    file.write_text(f"data: {{path: {data}}}\ntrain: {{popularity: {{model: popularity}}}}\nreport: null\n")
    done = firstlight("pipeline", file, "--out", data, *dry)
    assert done.code == 2
    assert "no pipeline made" in done.err
    assert "--out" in done.err
    assert sorted(data.rglob("*")) == before
