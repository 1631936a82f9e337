"""Sets of images from folders, Parquet files and data folders."""

import io
import pickle

import numpy as np
import polars as pl
import pytest
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.image_set import ImageSet
from firstlight.vision.images import open_images


def picture(shade, size=(10, 8)):
    return Image.new("RGB", size, (shade, 2 * shade % 256, 255 - shade))


def encode(image, kind="PNG"):
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


def shades(images):
    return [images.load(row).getpixel((0, 0))[0] for row in range(len(images))]


def test_a_folder_of_files_with_classes_and_without(tmp_path):
    for name, shade in (("cat/b.png", 20), ("cat/a.PNG", 10), ("dog/deep/c.png", 30), ("dog/.hidden.png", 0)):
        file = tmp_path / "classes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture(shade)))
    (tmp_path / "classes" / "cat" / "notes.txt").write_text("no image")
    found = open_images(tmp_path / "classes")
    assert found.ids == ["cat/a.PNG", "cat/b.png", "dog/deep/c.png"]
    assert shades(found) == [10, 20, 30]
    assert found.classes == ["cat", "dog"]
    assert found.labels.tolist() == [0, 0, 1]
    assert pickle.loads(pickle.dumps(found)).load(2).size == (10, 8)

    (tmp_path / "classes" / "stray.png").write_bytes(encode(picture(40)))
    mixed = open_images(tmp_path / "classes")
    assert mixed.labels is None
    assert mixed.content_hash != found.content_hash
    part = open_images(tmp_path / "classes", split="cat")
    assert part.ids == ["a.PNG", "b.png"]
    with pytest.raises(InputError, match=r"no sub-folder 'test'(.|\n)*cat, dog"):
        open_images(tmp_path / "classes", split="test")


def test_links_in_a_folder_are_followed(tmp_path):
    """To files and to class folders outside; in a ring they end, and what is there already keeps its name."""
    for name, shade in (("pool/a.png", 10), ("pool/b.png", 20), ("cats/c.png", 30), ("set/dog/d.png", 40)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture(shade)))
    home = tmp_path / "set"
    (home / "fox").mkdir()
    (home / "fox" / "x.png").symlink_to(tmp_path / "pool" / "a.png")
    (home / "fox" / "gone.png").symlink_to(tmp_path / "pool" / "nothing.png")
    (home / "cat").symlink_to(tmp_path / "cats")
    (home / "alias").symlink_to(home / "dog")
    (home / "dog" / "up").symlink_to(home)
    (tmp_path / "cats" / "ring").symlink_to(tmp_path / "cats")
    found = open_images(home)
    assert found.ids == ["cat/c.png", "dog/d.png", "fox/x.png"]
    assert found.classes == ["cat", "dog", "fox"]
    assert shades(found) == [30, 40, 10]
    assert pickle.loads(pickle.dumps(found)).load(2).size == (10, 8)
    assert open_images(home, split="cat").ids == ["c.png"]


def test_links_named_by_a_table_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(encode(picture(1)))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link.png").symlink_to(tmp_path / "secret.png")
    found = open_images(table(tmp_path / "home" / "x.parquet", image=["link.png"]), image_column="image")
    with pytest.raises(UnusableImageError, match="leads out of the folder"):
        found.load(0)


def table(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_a_parquet_file(tmp_path):
    path = table(
        tmp_path / "images.parquet",
        split=["train", "valid", "train", "train"],
        label=[7, 3, 3, 11],
        name=["same", "same", "same", "same"],
        file=["a", "b", "c", "d"],
        jpeg=[encode(picture(1)), encode(picture(2)), None, encode(picture(4))],
    )
    found = open_images(path)
    assert found.ids == ["a", "b", "d"]
    assert found.missing == 1
    assert found.classes == ["3", "7", "11"]
    assert found.labels.tolist() == [1, 0, 2]
    assert shades(found) == [1, 2, 4]
    assert open_images(path, split="train").ids == ["a", "d"]
    assert open_images(tmp_path).content_hash == found.content_hash  # a folder that holds it
    assert open_images(path, split="train").content_hash != found.content_hash
    assert open_images(path, label_column="split").classes == ["train", "valid"]


def test_columns_as_others_write_them(tmp_path):
    image = [{"bytes": encode(picture(shade)), "path": f"{shade}.png"} for shade in (5, 6)]
    found = open_images(table(tmp_path / "hub.parquet", image=image, label=["x", "y"]))
    assert found.ids == ["0", "1"]
    assert shades(found) == [5, 6]
    both = table(tmp_path / "two.parquet", left=[b"1"], right=[encode(picture(9))], word=["w"])
    with pytest.raises(InputError, match=r"left, right, word(.|\n)*--image-column"):
        open_images(both)
    assert shades(open_images(both, image_column="right", id_column="word")) == [9]


@pytest.mark.parametrize(
    "cell",
    [
        {"bytes": 7, "path": "a.png"},
        {"bytes": [1, 2], "path": "a.png"},
        {"bytes": b"x", "path": 3},
        {"bytes": "x"},
    ],
)
def test_structs_that_hold_no_picture_are_no_image_column(tmp_path, cell):
    path = table(tmp_path / "x.parquet", image=[cell, cell])
    for options in ({}, {"image_column": "image"}):
        with pytest.raises(InputError, match=r"cannot tell which column|neither bytes nor paths but Struct"):
            open_images(path, **options)


def test_structs_of_paths_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(8)))
    found = open_images(table(tmp_path / "x.parquet", image=[{"bytes": None, "path": "a.png"}]))
    assert shades(found) == [8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "no"}, "no image column 'no'(.|\n)*columns found: key, jpeg, label"),
        ({"id_column": "key"}, "column 'key' has the same id in two rows"),
        ({"id_column": "label"}, "a row without an id"),
        ({"label_column": "label"}, "row 2: column 'label' cannot be the class: it is empty here"),
        ({"label_column": "jpeg"}, "it holds Binary"),
        ({"split": "train"}, "no column 'split'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, options, message):
    path = table(tmp_path / "x.parquet", key=["a", "a"], jpeg=[encode(picture(1))] * 2, label=["u", None])
    with pytest.raises(InputError, match=message):
        open_images(path, **options)


def test_unknown_parts_are_listed(tmp_path):
    path = table(tmp_path / "x.parquet", split=["b", "a"], jpeg=[encode(picture(1))] * 2)
    with pytest.raises(InputError, match=r"part 'c'(.|\n)*parts found: a, b"):
        open_images(path, split="c")


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images here(.|\n)*a folder of image files"):
        open_images(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"torn\.parquet: cannot be read as Parquet"):
        open_images(tmp_path / "torn.parquet")
    with pytest.raises(InputError, match="no row of column 'jpeg'"):
        open_images(table(tmp_path / "x.parquet", jpeg=pl.Series([None, None], dtype=pl.Binary)))
    with pytest.raises(InputError, match="--label-column 'x' needs a Parquet file"):
        open_images(tmp_path / "..", label_column="x")


def test_covers_of_a_data_folder(tmp_path):
    (tmp_path / "covers").mkdir()
    (tmp_path / "covers" / "a.png").write_bytes(encode(picture(50)))
    pl.DataFrame({"user": ["u"], "item": ["i1"]}).write_parquet(tmp_path / "interactions.parquet")
    items = {"item": ["i1", "i2", "i3"], "cover": ["covers/a.png", None, "covers/gone.png"]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    found = open_images(tmp_path)
    assert found.ids == ["i1", "i3"]
    assert found.missing == 1
    assert found.load(0).getpixel((0, 0))[0] == 50
    with pytest.raises(UnusableImageError, match=r"gone\.png' is missing"):
        found.load(1)


def test_large_images_are_shrunk_until_they_just_cover(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).resize((400, 600), 3)
    values = [encode(smooth, kind) for kind in ("JPEG", "PNG")]
    sides = ImageSet(["a", "b"], "here", "hash", values)
    for row in (0, 1):
        assert sides.load(row).size == (400, 600)
        assert sides.load(row, (60, 80)).size == (80, 120)
        assert sides.load(row, (150, 20)).size == (100, 150)
        assert sides.load(row, (700, 10)).size == (400, 600)  # never made larger
        plain = np.asarray(smooth.resize((80, 120), 3)).astype(int)
        assert np.abs(np.asarray(sides.load(row, (60, 80))).astype(int) - plain).mean() < 4


def test_sizes_are_told_by_the_heads_of_files():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    values = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        for turn in (None, 3, 6, 8):
            target, exif = io.BytesIO(), Image.Exif()
            if turn is not None:
                exif[0x0112] = turn
            noise.save(target, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
            values.append(target.getvalue())
    images = ImageSet([str(row) for row in range(len(values))], "here", "hash", values)
    for covers in (None, (40, 30), (500, 20), (7, 90)):
        for row in range(len(values)):
            assert images.size(row, covers) == images.load(row, covers).size[::-1]
    with pytest.raises(UnusableImageError):
        ImageSet(["a"], "here", "hash", [b"torn"]).size(0)


def test_real_images(real_data):
    found = open_images(real_data("imagenette64"), split="train")
    assert len(found) == 9469
    assert len(found.classes) == 10
    assert np.bincount(found.labels).min() > 800
    assert found.load(0).size == (64, 64)
    posters = open_images(real_data("movielens-small"))
    assert (len(posters), posters.missing) == (9517, 225)
