"""Out of space, read-only, torn, two at once: what was accepted stays, what was not leaves no trace."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from firstlight.core.errors import FirstlightError, InputError
from firstlight.serving.bundle import Bundle
from serving.catalogues import N_ITEMS, rows, run_script, small_bundle


@pytest.mark.parametrize("what", ["write_bytes", "write_text", "replace"])
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, what):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["first"], rows(1))

    def full(path, *arguments, **_):
        if what != "replace":
            Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, what, full)
    with pytest.raises(FirstlightError, match=r"disk is full.*unharmed(.*\n)*.*free some space"):
        bundle.add_items(["second"], rows(1, 2))
    monkeypatch.undo()
    assert bundle.version == Bundle.open(bundle.folder).version == 2
    assert bundle.strays() == []
    assert bundle.add_items(["second"], rows(1, 2)) == 3
    assert Bundle.open(bundle.folder).item_ids()[N_ITEMS:].to_list() == ["first", "second"]


def test_a_full_disk_while_compacting_or_exporting(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["first"], rows(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("firstlight.serving.base.save_file", full)
    with pytest.raises(FirstlightError, match="could not be compacted"):
        bundle.compact()
    with pytest.raises(FirstlightError, match="could not be written"):
        Bundle.create(tmp_path / "other", bundle.snapshot.merged())
    monkeypatch.undo()
    assert not (tmp_path / "other").exists()
    assert bundle.version == Bundle.open(bundle.folder).version == 2
    assert bundle.strays() == []


def test_an_interruption_right_after_the_manifest_loses_nothing(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path)
    real = Path.replace

    def interrupted(path, target):
        real(path, target)
        if Path(target).name == "manifest.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.add_items(["new"], rows(1))
    monkeypatch.undo()
    assert Bundle.open(bundle.folder).version == 2
    assert bundle.add_items(["newer"], rows(1)) == 3
    assert bundle.item_ids()[N_ITEMS:].to_list() == ["new", "newer"]


LIMITED = """
import resource, sys
from pathlib import Path
from firstlight.core.errors import FirstlightError
from firstlight.serving.bundle import Bundle
from serving.catalogues import rows
bundle = Bundle.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    bundle.add_items([f"n{k}" for k in range(500)], rows(500))
except FirstlightError as error:
    print(error)
"""


def test_a_write_that_the_system_refuses_is_a_message(tmp_path):
    bundle = small_bundle(tmp_path)
    assert "could not be written" in run_script(LIMITED, bundle.folder)
    assert Bundle.open(bundle.folder).version == 1
    assert bundle.strays() == []


READ_ONLY = """
import os, tempfile
from pathlib import Path
from firstlight.core.errors import FirstlightError
from firstlight.serving.bundle import Bundle
from serving.catalogues import rows, small_bundle
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    path = small_bundle(Path(folder)).folder
    os.chmod(path, 0o555)
    if os.getuid() == 0:  # the administrator may write everywhere
        os.seteuid(65534)
    bundle = Bundle.open(path)
    assert len(bundle.recommend("u0", 3)) == 3
    for write in (lambda: bundle.add_items(["new"], rows(1)), bundle.compact):
        try:
            write()
        except FirstlightError as error:
            print(error)
    os.seteuid(os.getuid())
    os.chmod(path, 0o755)
"""


def test_a_read_only_folder_is_read_and_not_written(tmp_path):
    told = run_script(READ_ONLY)
    assert told.count("cannot be written: Permission denied") == 2


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "missing"])
@pytest.mark.parametrize(
    "name", ["segments/00000002.safetensors", "manifest.json", "base-00000001/base.json"]
)
def test_damage_is_named(tmp_path, name, how):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["a"], rows(1))
    bundle.add_items(["b"], rows(1))
    damaged(bundle.folder / name, how)
    with pytest.raises(InputError) as found:
        Bundle.open(bundle.folder)
    named = bundle.folder if (name, how) == ("manifest.json", "missing") else bundle.folder / name
    assert found.value.path == named


@pytest.mark.parametrize("how", ["torn", "flipped", "missing"])
@pytest.mark.parametrize(
    "name", ["users.safetensors", "items.safetensors", "seen.safetensors", "items.parquet"]
)
def test_a_damaged_base_is_named_when_it_is_read(tmp_path, name, how):
    folder = small_bundle(tmp_path).folder
    damaged(folder / "base-00000001" / name, how)
    with pytest.raises(InputError) as found:
        Bundle.open(folder).recommend("u0")
    assert found.value.path == folder / "base-00000001" / name


@pytest.mark.parametrize(
    "content", ["null", "[]", "{}", '{"checksum": 1}', '{"checksum": 1, "format_version": 1}', "\ufeff{"]
)
def test_a_manifest_that_is_none(tmp_path, content):
    bundle = small_bundle(tmp_path)
    (bundle.folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        Bundle.open(bundle.folder)
    with pytest.raises(InputError, match=r"manifest\.json"):
        bundle.reload()
    assert len(bundle.recommend("u0", 3)) == 3  # what was loaded is still served


def test_a_newer_format_says_so(tmp_path):
    bundle = small_bundle(tmp_path)
    path = bundle.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(InputError, match="newer firstlight"):
        Bundle.open(bundle.folder)


def test_unknown_files_are_ignored_and_reported(tmp_path):
    bundle = small_bundle(tmp_path)
    orphan = bundle.folder / "segments" / "00000002.safetensors"
    torn = bundle.folder / "segments" / ".00000002.77.partial.safetensors"
    orphan.parent.mkdir()
    for path in (orphan, torn, bundle.folder / "notes.txt"):
        path.write_bytes(b"half")
    opened = Bundle.open(bundle.folder)
    assert opened.strays() == sorted([orphan, torn, bundle.folder / "notes.txt"])
    assert opened.interrupted() == sorted([orphan, torn])
    assert opened.add_items(["new"], rows(1)) == 2  # takes the orphan's place
    assert torch.equal(Bundle.open(bundle.folder).item_vectors()[-1:], rows(1))
    assert orphan not in opened.strays()
    opened.prune()
    assert opened.strays() == []


HOLDER = """
import sys, time
from pathlib import Path
from firstlight.serving.journal import Journal
with Journal(Path(sys.argv[1])).lock(0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_writers_take_turns_and_a_dead_one_lets_go(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.wait = 0.1
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, bundle.folder], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FirstlightError, match=rf"another process \(process {holder.pid}\)"):
            bundle.add_items(["new"], rows(1))
        assert Bundle.open(bundle.folder).version == 1
        assert len(bundle.recommend("u0", 3)) == 3  # readers do not wait
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert bundle.add_items(["new"], rows(1)) == 2


def test_a_reader_survives_a_pruning_compaction_under_its_feet(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["a"], rows(1))
    reader = Bundle.open(bundle.folder)
    bundle.add_items(["b"], rows(1, 2))
    real, stale = reader._journal.read, []

    def slow():
        found = real()
        if not stale:  # between the manifest and the segments that it names
            stale.append(found)
            bundle.compact(prune=True)
            time.sleep(0.01)
        return found

    monkeypatch.setattr(reader._journal, "read", slow)
    assert reader.reload()
    assert reader.version == 4
    assert reader.item_ids()[N_ITEMS:].to_list() == ["a", "b"]
