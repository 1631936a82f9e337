"""Going back, blocking, boosting, and small covers: durable, and the same in every list."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.serving.base import parts
from firstlight.serving.bundle import Bundle
from firstlight.serving.lists import recommend_all
from firstlight.serving.pictures import SIDE, pictures_of, thumbnail
from serving.catalogues import N_USERS, rows, small_bundle, small_parts


def scores(bundle: Bundle) -> dict[str, dict[str, float]]:
    """All lists; their order is that of the dictionaries."""
    found: dict[str, dict[str, float]] = {f"u{u}": {} for u in range(N_USERS)}
    for user, _, item, score in pl.concat(recommend_all(bundle, k=50)).iter_rows():
        found[user][item] = score
    for user, entries in found.items():  # the two ways to a list agree
        other = bundle.recommend(user, 50)
        assert [entry.item for entry in other] == list(entries)
        assert [entry.score for entry in other] == pytest.approx(list(entries.values()), abs=1e-5)
    return found


def lists(bundle: Bundle) -> dict[str, list[str]]:
    return {user: list(entries) for user, entries in scores(bundle).items()}


def test_every_version_can_be_gone_back_to(tmp_path):
    bundle = small_bundle(tmp_path)
    states = {1: lists(bundle)}

    def note(version: int) -> None:
        states[version] = lists(bundle)

    note(bundle.add_items(["n1"], rows(1, 1), pl.DataFrame({"title": ["first"]})))
    note(bundle.remove_items(["i3"]))
    note(bundle.compact())
    note(bundle.add_items(["n2", "i5"], rows(2, 2)))
    note(bundle.rollback(2))
    note(bundle.add_items(["n3"], rows(1, 3)))
    assert bundle.versions() == [1, 2, 3, 4, 5, 6, 7]
    assert states[6] == states[2]
    for version in (5, 1, 4, 3, 7, 2):
        bundle.rollback(version)
        assert lists(bundle) == states[version], version
        again = Bundle.open(bundle.folder)
        assert lists(again) == states[version]
        assert again.version == bundle.version
    assert bundle.item("n1") == {"title": "first"}
    assert bundle.rollback(bundle.version) == bundle.version


def test_what_was_pruned_is_refused_and_nothing_changes(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["n1"], rows(1))
    bundle.compact(prune=True)
    before = lists(bundle), bundle.version
    for version in (0, 1, 2, 4, 99, -1):
        with pytest.raises(InputError, match=f"version {version} is not kept"):
            bundle.rollback(version)
    assert (lists(bundle), bundle.version) == before
    assert bundle.strays() == []


def test_going_back_to_a_torn_file_changes_nothing(tmp_path):
    bundle = small_bundle(tmp_path)
    bundle.add_items(["n1"], rows(1))
    bundle.add_items(["n2"], rows(1, 2))
    bundle.rollback(1)
    torn = bundle.folder / "segments" / "00000002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    before = lists(bundle), bundle.version
    with pytest.raises(InputError, match="torn"):
        bundle.rollback(3)
    assert (lists(bundle), bundle.version) == before
    assert lists(Bundle.open(bundle.folder)) == before[0]


def test_blocked_items_are_in_no_list_and_stay_out(tmp_path):
    bundle = small_bundle(tmp_path)
    free = lists(bundle)
    bundle.block(["i1", "../later", "i2"])
    expected = {user: [e for e in entries if e not in ("i1", "i2")] for user, entries in free.items()}
    assert lists(bundle) == expected
    assert lists(Bundle.open(bundle.folder)) == expected
    bundle.add_items(["../later"], 100 * bundle.snapshot.base.user_vectors[:1])
    assert lists(bundle) == expected  # blocked before it came
    bundle.rollback(1)
    assert lists(bundle) == expected  # an old catalogue does not bring it back,
    bundle.compact(prune=True)
    assert lists(bundle) == expected  # nor does a new base
    bundle.unblock(["i1", "i2", "never blocked"])
    assert lists(bundle) == free
    assert bundle.snapshot.rules.blocked == {"../later"}
    version = bundle.version
    assert bundle.unblock(["i1"]) == version  # nothing changed, nothing written


def test_boosts_lift_whatever_the_sign(tmp_path):
    bundle = small_bundle(tmp_path)
    free = scores(bundle)
    bundle.boost({"i4": 3.0, "i7": 0.5, "not yet": 2.0})
    shown = scores(bundle)
    assert shown == scores(Bundle.open(bundle.folder))
    signs = set()
    for user, entries in shown.items():
        wanted = dict(free[user])
        for item, factor in (("i4", 3.0), ("i7", 0.5)):
            if item in wanted:
                signs.add(wanted[item] > 0)
                wanted[item] = wanted[item] * factor if wanted[item] > 0 else wanted[item] / factor
        assert entries == pytest.approx(wanted, abs=1e-5)
        assert list(entries.values()) == sorted(entries.values(), reverse=True)
    assert signs == {True, False}
    bundle.compact()
    assert scores(bundle) == shown
    bundle.boost({"i4": 1, "i7": 1})
    assert scores(bundle) == free
    for factor in (0, -1, 1e9, float("nan")):
        with pytest.raises(InputError, match="boost"):
            bundle.boost({"i4": factor})


def picture(colour: tuple[int, int, int], size=(300, 600), kind="PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def test_covers_are_kept_small_and_follow_their_items(tmp_path):
    made = small_parts()
    covers = pl.Series([picture((200, 0, 0)), None, b"no picture", *[None] * 27], dtype=pl.Binary)
    base = parts(made.user_ids, made.table["item"], made.user_vectors, made.item_vectors, made.seen)
    base = type(base)(**{**vars(base), "pictures": pictures_of(covers, None)})
    bundle = Bundle.create(tmp_path / "bundle", base)
    kept = bundle.snapshot.cover(0)
    assert kept is not None
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.format, image.size) == ("JPEG", (SIDE // 2, SIDE))
        assert np.abs(np.asarray(image)[9, 9].astype(int) - (200, 0, 0)).max() < 8
    assert [bundle.snapshot.cover(row) for row in (1, 2)] == [None, None]
    blue, green = thumbnail(picture((0, 0, 200))), thumbnail(picture((0, 200, 0)))
    bundle.add_items(["n1", "n2", "i0", "i1"], rows(4), covers=[blue, None, None, green])
    bundle.remove_items(["n2"])

    def shown(opened: Bundle) -> list[bytes | None]:
        return [opened.snapshot.cover(opened.snapshot.row(item)) for item in ("i0", "i1", "n1", "i9")]

    assert shown(bundle) == shown(Bundle.open(bundle.folder)) == [None, green, blue, None]
    bundle.compact()
    assert shown(bundle) == shown(Bundle.open(bundle.folder)) == [None, green, blue, None]
    bundle.rollback(1)
    assert shown_first(bundle) == kept
    torch.testing.assert_close(bundle.item_vectors(), made.item_vectors)


def shown_first(bundle: Bundle) -> bytes | None:
    return bundle.snapshot.cover(0)
