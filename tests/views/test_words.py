"""Texts to words."""

import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.views.words import cells, pieces, text_columns, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Toy Story (1995)", ["toy", "story", "1995"]),
        ("#FYP #cat_lovers 😂", ["fyp", "cat", "lovers", "😂"]),
        ("ﬁne ＦＵＬＬ Straße", ["fine", "full", "strasse"]),
        ("हिन्दी गाना", ["हिन्दी", "गाना"]),
        ("❤️❤️", ["❤", "❤"]),
        ("猫の歌", ["猫", "の", "歌", "猫の", "の歌"]),
        ("iPhone手机", ["iphone", "手", "机", "手机"]),
        ("แมว", ["แ", "ม", "ว", "แม", "มว"]),
        ("고양이 영상", ["고양이", "영상"]),
        ("", []),
        ("!!! --- ___ \x00\u200b", []),
    ],
)
def test_words_of_any_script(text, expected):
    assert list(words(text)) == expected


def test_neighbouring_words():
    assert list(words("a b c", ngrams=3)) == ["a", "b", "a b", "c", "b c", "a b c"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Action|Science Fiction", ["Action", "Science Fiction"]),
        (["cat", None, "", "N/A", "dog|bird"], ["cat", "dog", "bird"]),
        ("N/A", []),
        (" nan ", []),
        (None, []),
        (float("nan"), []),
        (1995.0, ["1995"]),
        (2.5, ["2.5"]),
        (7, ["7"]),
        (b"\xff\xd8", []),
        ([], []),
        ({"a": "b"}, []),
    ],
)
def test_pieces_of_a_cell(cell, expected):
    assert list(pieces(cell)) == expected


def test_huge_texts_are_cut():
    assert sum(map(len, pieces("word " * 1_000_000, 100))) == 100


def test_columns_that_are_texts():
    table = pl.DataFrame(
        {
            "title": ["a"],
            "cover": ["c.jpg"],
            "role": ["warm"],
            "clip": ["c.mp4"],
            "arrived": [1],
            "year": [1995],
            "genre": pl.Series(["x"], dtype=pl.Categorical),
            "kind": pl.Series(["x"], dtype=pl.Enum(["x"])),
            "tags": [["a", "b"]],
            "nested": [[["a"]]],
            "scores": [[1, 2]],
            "hashtags": pl.Series([["a", "b"]], dtype=pl.Array(pl.String, 2)),
            "blob": [b"x"],
            "empty": [None],
            "mixed": pl.Series([["a", 1]], dtype=pl.Object),
        }
    )
    assert text_columns(table) == ["title", "genre", "kind", "tags", "nested", "hashtags", "mixed"]
    with pytest.raises(InputError, match="blob"):
        cells(table, "blob")
