"""Another bundle is served: what was added goes along, what was removed stays out, and nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from firstlight.serving.bundle import Bundle
from firstlight.serving.contents import Kept
from firstlight.serving.server import carry as carrying
from firstlight.serving.server.carry import Carry, StoppedError, pending
from firstlight.serving.server.encoding import Content, Encoded, EncoderLostError, RefusedError
from serving.catalogues import DIM, rows, small_bundle, vector

TITLE = "Tango rehearsal with the dancer"


class Stub:
    """An encoder that makes the vector of the feature ``taste``; it can be told to fail."""

    def __init__(self) -> None:
        self.losses, self.encoded = 0, 0

    def encode(self, content: Content) -> Encoded:
        self.encoded += 1
        if self.losses:
            self.losses -= 1
            raise EncoderLostError("killed")
        if "bad" in content.texts:
            raise RefusedError("there is nothing to go by")
        return Encoded(np.array(content.features["taste"], np.float32), content.cover)


def kept(taste: torch.Tensor, **texts: str) -> bytes:
    return Kept(texts, None, {"taste": taste.tolist()}).to_bytes()


def add(bundle: Bundle, *items: str, seed: int = 1, **texts: str) -> torch.Tensor:
    """Add items, and keep what they are made of; gives what another model will make of them."""
    tastes = rows(len(items), seed)
    table = pl.DataFrame({"title": [f"title of {item}" for item in items]})
    contents = [kept(taste, **texts) for taste in tastes]
    bundle.add_items(items, -tastes, table, contents=contents)
    return tastes


def both(folder: Path) -> tuple[Bundle, Bundle]:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return small_bundle(folder / "a"), small_bundle(folder / "b", seed=7)


def carry(old: Bundle, new: Bundle, encoder: Stub | None = None, **more) -> Carry:
    return Carry(old, new, (old.folder, new.folder), encoder, max_pixels=10**6, **more)  # type: ignore[arg-type]


def carried(old: Bundle, new: Bundle, encoder: Stub | None = None):
    going = carry(old, new, encoder or Stub())
    if not going.needed:
        return None
    going.begin()
    going.items()
    return going.finish()


def test_additions_removals_and_rules_go_along(tmp_path):
    old, new = both(tmp_path)
    tastes = add(old, "n1", "n2", "i3", "gone")
    old.remove_items(["gone", "i4", "i5"])
    old.block(["i6", "n2"])
    old.boost({"i7": 2.0, "i8": 3.0})
    new.block(["i9"])
    new.boost({"i8": 0.5})
    before = vector(new, "i3")
    done = carried(old, new)
    assert (done.items, done.lost) == (2, ())  # i3 is in the catalogue of the new one
    assert torch.equal(vector(new, "i3"), before)
    for place, item in enumerate(("n1", "n2")):
        assert torch.equal(vector(new, item), tastes[place])
        assert Bundle.open(new.folder).item(item) == {"title": f"title of {item}"}
    opened = Bundle.open(new.folder)
    assert [opened.snapshot.row(item) for item in ("gone", "i4", "i5")] == [None] * 3
    assert opened.snapshot.rules.blocked == {"i6", "n2", "i9"}
    assert dict(opened.snapshot.rules.boosts) == {"i7": 2.0, "i8": 0.5}
    assert pending(opened) is None
    assert dict(opened.additions()) == dict(old.additions()) | {"i3": b""} or list(
        opened.additions().ids
    ) == [
        "n1",
        "n2",
    ]
    assert carried(old, new) is None  # all is there
    opened.compact(prune=True)
    assert carried(old, Bundle.open(new.folder)) is None


def test_what_is_carried_can_be_carried_on(tmp_path):
    old, new = both(tmp_path)
    tastes = add(old, "n1", "n2")
    old.compact(prune=True)
    carried(Bundle.open(old.folder), new)
    new.compact(prune=True)
    (tmp_path / "c").mkdir()
    third = small_bundle(tmp_path / "c", seed=9)
    done = carried(Bundle.open(new.folder), third)
    assert (done.items, done.lost) == (2, ())
    assert torch.equal(torch.stack([vector(third, "n1"), vector(third, "n2")]), tastes)


def test_what_cannot_be_carried_is_told(tmp_path, caplog):
    old, new = both(tmp_path)
    old.add_items(["bare"], rows(1))
    add(old, "bad one", bad="yes")
    add(old, "fine")
    done = carried(old, new)
    assert done.items == 1
    assert dict(done.lost) == {
        "bare": "its content was not kept",
        "bad one": "its content cannot be used: there is nothing to go by",
    }
    done.tell(old.folder)
    assert "item 'bare'" in caplog.text
    assert "its content was not kept" in caplog.text
    (tmp_path / "c").mkdir()
    third = small_bundle(tmp_path / "c")
    going = carry(old, third, None)
    going.items()
    assert set(dict(going.finish().lost).values()) == {
        "its content was not kept", "the new model reads no content",
    }  # fmt: skip


def test_a_torn_segment_costs_its_own_items_only(tmp_path, caplog):
    old, new = both(tmp_path)
    add(old, "n1")
    add(old, "n2", seed=2)
    torn = old.folder / "segments" / "00000002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    done = carried(old, new)  # it was whole when the old one was opened
    assert done.items == 1
    assert done.lost == (("n1", "its content cannot be read; see the server's log"),)
    assert "torn" in caplog.text


@pytest.mark.parametrize(("losses", "lost"), [(1, []), (2, ["n1"])])
def test_a_lost_encoder_is_tried_again_once(tmp_path, losses, lost):
    old, new = both(tmp_path)
    add(old, "n1", "n2")
    encoder = Stub()
    encoder.losses = losses
    done = carried(old, new, encoder)
    assert [item for item, _ in done.lost] == lost
    assert done.items == 2 - len(lost)


def test_what_comes_meanwhile_goes_along(tmp_path, monkeypatch):
    monkeypatch.setattr(carrying, "_BATCH", 2)
    old, new = both(tmp_path)
    first = add(old, "n1", "n2", "n3", "n4", "n5")
    encoder = Stub()
    going = carry(old, new, encoder)
    going.items()
    assert new.version == 4  # three batches
    old.remove_items(["n1"])
    second = add(old, "n2", "m1", seed=5)
    going.items()
    done = going.finish()
    assert encoder.encoded == 7  # nothing twice but what was replaced
    assert torch.equal(vector(new, "n2"), second[0])
    assert torch.equal(vector(new, "m1"), second[1])
    assert torch.equal(vector(new, "n5"), first[4])
    assert Bundle.open(new.folder).snapshot.row("n1") is None
    assert done.lost == ()


def test_another_server_on_the_same_bundles_brings_nothing_back(tmp_path):
    old, new = both(tmp_path)
    add(old, "n1", "n2")
    old.block(["i1"])
    carried(old, new)
    new.remove_items(["n1"])
    new.unblock(["i1"])
    assert carried(Bundle.open(old.folder), new) is None  # the second server that is told to reload
    late = add(old, "late", seed=4)
    carried(Bundle.open(old.folder), new)  # but what came through it in between goes along
    assert torch.equal(vector(new, "late"), late[0])
    assert Bundle.open(new.folder).snapshot.row("n1") is None


def test_back_to_the_first_bundle_the_last_word_counts(tmp_path):
    first, second = both(tmp_path)
    add(first, "n1", "n2")
    first.block(["i1", "i2"])
    carried(first, second)
    second.remove_items(["n1", "i3"])
    second.unblock(["i1"])
    late = add(second, "late", seed=4)
    carried(second, first)
    opened = Bundle.open(first.folder)
    assert opened.snapshot.rules.blocked == {"i2"}
    assert [opened.snapshot.row(item) for item in ("n1", "i3")] == [None, None]
    assert torch.equal(vector(first, "late"), late[0])
    first.add_items(["i3"], rows(1, dim=DIM))  # comes back by hand
    carried(Bundle.open(first.folder), Bundle.open(second.folder))
    assert (
        Bundle.open(second.folder).snapshot.row("i3") is None
    )  # its content is not known, and that was told
    assert Bundle.open(second.folder).snapshot.row("late") is not None


def test_a_server_that_ends_leaves_word(tmp_path):
    old, new = both(tmp_path)
    add(old, "n1", "n2")
    going = carry(old, new, Stub(), stopped=lambda: True)
    assert going.needed
    going.begin()
    with pytest.raises(StoppedError):
        going.items()
    assert pending(Bundle.open(new.folder)) == old.folder
    assert Bundle.open(new.folder).strays() == []
    assert pending(old) is None
