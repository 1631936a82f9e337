"""RecBole and MMRec atomic files, with features whose row is the item id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firstlight.core.errors import InputError
from firstlight.data.formats import ReadOptions, detect_format, read_dataset

MMREC = "userID\titemID\tx_label\n0\t0\t0\n0\t1\t2\n1\t1\t0\n1\t2\t1\n"


def save(folder: Path, text: str, name: str = "toy.inter") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_labels_give_the_split(tmp_path: Path) -> None:
    dataset = read_dataset(save(tmp_path, MMREC))
    assert detect_format(tmp_path) == "recbole"
    assert {name: part.n_pairs for name, part in dataset.parts.items()} == {"train": 2, "valid": 1, "test": 1}
    assert dataset.valid is not None
    assert dataset.valid.row(1).tolist() == [2]
    assert dataset.train.values is None


def test_typed_header(tmp_path: Path) -> None:
    text = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t"q\t4.5\t100\n3\tb\t2\t50.0\n'
    dataset = read_dataset(save(tmp_path, text))
    assert list(dataset.user_ids) == ["3", "7"]
    assert list(dataset.item_ids) == ['"q', "b"]
    assert dataset.train.values is not None
    assert dataset.train.values.tolist() == [2.0, 4.5]
    assert read_dataset(tmp_path, ReadOptions(value="rating")).train.values is not None


def test_one_file_a_part(tmp_path: Path) -> None:
    for part, rows in {"train": "1\ta\n2\tb\n", "valid": "1\tb\n", "test": "2\tc\n"}.items():
        save(tmp_path, "user_id:token\titem_id:token\n" + rows, f"toy.{part}.inter")
    dataset = read_dataset(tmp_path)
    assert list(dataset.parts) == ["train", "valid", "test"]
    assert list(dataset.item_ids) == ["a", "b", "c"]
    save(tmp_path, MMREC, "other.inter")
    with pytest.raises(InputError, match=r"several \.inter files"):
        read_dataset(tmp_path)


def test_item_file(tmp_path: Path) -> None:
    save(tmp_path, "user_id:token\titem_id:token\n1\ta\n")
    save(tmp_path, 'item_id:token\tmovie_title:token_seq\tyear:float\na\tThe "A\t1999\nz\t\t\n', "toy.item")
    dataset = read_dataset(tmp_path)
    assert list(dataset.item_ids) == ["a", "z"]
    assert dataset.catalogue.items.to_dict(as_series=False) == {
        "title": ['The "A', None],
        "year": [1999, None],
    }


def test_features_name_the_items(tmp_path: Path) -> None:
    features = np.arange(8, dtype=np.float64).reshape(4, 2) + 1
    np.save(save(tmp_path, MMREC) / "image_feat.npy", features)
    dataset = read_dataset(tmp_path)
    assert list(dataset.item_ids) == ["0", "1", "2", "3"]
    matrix = dataset.catalogue.features["image"]
    assert matrix.values.dtype == np.float32
    np.testing.assert_array_equal(matrix.values, features)
    assert matrix.present.all()


def test_rows_that_say_nothing_are_absent(tmp_path: Path) -> None:
    features = np.ones((5, 3))
    features[0] = 0
    features[1, 2] = np.nan
    features[2, 0] = -np.inf
    features[3, 0] = 1e300
    np.save(save(tmp_path, MMREC) / "text_feat.npy", features)
    dataset = read_dataset(tmp_path)
    matrix = dataset.catalogue.features["text"]
    assert matrix.present.tolist() == [False, False, False, False, True]
    np.testing.assert_array_equal(matrix.values[:4], 0)
    assert dataset.dropped == {"feature text: NaN or infinite row": 3, "feature text: all-zero row": 1}


def test_features_must_fit_the_items(tmp_path: Path) -> None:
    save(tmp_path, MMREC)
    np.save(tmp_path / "image_feat.npy", np.ones((2, 3)))
    with pytest.raises(InputError, match="2 rows, but item ids go up to 2"):
        read_dataset(tmp_path)
    np.save(tmp_path / "image_feat.npy", np.ones((3, 3)))
    np.save(tmp_path / "text_feat.npy", np.ones((4, 3)))
    with pytest.raises(InputError, match=r"4 rows, but image_feat\.npy has 3"):
        read_dataset(tmp_path)
    (tmp_path / "text_feat.npy").unlink()
    save(tmp_path, MMREC.replace("\t2\t1", "\tb\t1"))
    with pytest.raises(InputError, match="'b' is not a row number"):
        read_dataset(tmp_path)


def test_pickled_features_are_refused(tmp_path: Path) -> None:
    save(tmp_path, MMREC)
    np.save(tmp_path / "image_feat.npy", np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="pickled objects are refused"):
        read_dataset(tmp_path)
    np.save(tmp_path / "image_feat.npy", np.ones(3))
    with pytest.raises(InputError, match=r"found shape \(3,\)"):
        read_dataset(tmp_path)
    (tmp_path / "image_feat.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(InputError, match=r"image_feat\.npy"):
        read_dataset(tmp_path)


def test_features_follow_a_core(tmp_path: Path) -> None:
    np.save(save(tmp_path, MMREC) / "image_feat.npy", np.arange(1, 5)[:, None])
    dataset = read_dataset(tmp_path, ReadOptions(k_core=(1, 2)))
    assert list(dataset.item_ids) == ["1"]
    assert dataset.catalogue.features["image"].values.tolist() == [[2.0]]


def test_unknown_label(tmp_path: Path) -> None:
    save(tmp_path, MMREC.replace("\t2\n", "\t3\n"))
    with pytest.raises(InputError, match="'3' is not train, valid or test") as caught:
        read_dataset(tmp_path)
    assert caught.value.line == 3
    assert read_dataset(tmp_path, ReadOptions(on_bad_rows="skip")).dropped == {"unknown part": 1}
