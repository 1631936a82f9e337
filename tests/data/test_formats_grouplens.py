"""MovieLens folders, new and old."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from firstlight.data.formats import ReadOptions, detect_format, read_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n2,10,4.0,100\n1,2,0.5,90\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n2,Two (1999),Drama|Comedy\n10,"Ten, The",(no genres listed)\n30,Thirty,Crime\n'
    )
    return tmp_path


def test_every_film_is_an_item(folder: Path) -> None:
    assert detect_format(folder) == "grouplens"
    dataset = read_dataset(folder)
    assert list(dataset.item_ids) == ["2", "10", "30"]
    assert dataset.catalogue.items.to_dict(as_series=False) == {
        "title": ["Two (1999)", "Ten, The", "Thirty"],
        "genres": ["Drama|Comedy", None, "Crime"],
    }
    assert dataset.train.times is not None
    assert dataset.train.times.tolist() == [90, 100]
    liked = read_dataset(folder, ReadOptions(min_value=3.5))
    assert liked.n_users == 1
    assert liked.n_items == 3


def test_tags_and_links(folder: Path) -> None:
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,2,dark,5\n2,2,dark,6\n2,2,slow,7\n")
    (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n2,0114709,862\n40,1,2\n")
    dataset = read_dataset(folder)
    assert list(dataset.item_ids) == ["2", "10", "30", "40"]
    assert dataset.catalogue.items["tags"].to_list() == ["dark|slow", None, None, None]
    assert dataset.catalogue.items["imdbId"].to_list() == ["0114709", None, None, "1"]


def test_posters_and_plots(folder: Path) -> None:
    pl.DataFrame(
        {
            "movieId": [10, 2],
            "title": ["other", "other"],
            "plot": ["N/A", "A plot"],
            "poster_jpeg": [b"\xff\xd8", None],
        }
    ).write_parquet(folder / "items.parquet")
    items = read_dataset(folder).catalogue.items
    assert items["title"].to_list()[0] == "Two (1999)"
    assert items["plot"].to_list() == ["A plot", None, None]
    assert items["cover"].to_list() == [None, b"\xff\xd8", None]


def test_old_files(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::1193::5::978300760\n2::661::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes(
        '661::James and the Giant Peach::Animation\n1193::Les Misérables "x (1995)::Drama\n'.encode("latin-1")
    )
    dataset = read_dataset(tmp_path)
    assert dataset.catalogue.items["title"].to_list() == [
        "James and the Giant Peach",
        'Les Misérables "x (1995)',
    ]
    assert dataset.train.values is not None
    assert dataset.train.values.tolist() == [5.0, 3.0]
    (tmp_path / "ratings.dat").write_bytes(b"1::1193::5::978300760\n2::661::3\n")
    assert read_dataset(tmp_path, ReadOptions(on_bad_rows="skip")).dropped == {"wrong number of fields": 1}
