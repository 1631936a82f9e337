"""What is said of places that cannot be written."""

from __future__ import annotations

import errno

import pytest

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.files import write_text
from firstlight.core.outputs import check_file, check_folder, output


def test_a_file_in_the_way_is_bad_input_with_the_path_that_was_given(tmp_path):
    (tmp_path / "afile").write_text("x")
    for place in (tmp_path / "afile" / "more", tmp_path / "afile"):
        with (
            pytest.raises(InputError, match="a file stands where a folder is needed") as caught,
            output(place),
        ):
            (place / "deeper").mkdir(parents=True)
        assert caught.value.path == place
        assert "choose another place" in str(caught.value)
    with pytest.raises(InputError, match="a file stands"):
        check_folder(tmp_path / "afile")
    check_folder(tmp_path)
    check_folder(tmp_path / "nothing yet")


def test_the_names_of_temporary_files_are_not_shown(tmp_path):
    target = tmp_path / "out.txt"
    for number, words, kind in (
        (errno.EACCES, "permission is denied", InputError),
        (errno.EROFS, "read-only", InputError),
        (errno.ENOSPC, "the disk is full", FirstlightError),
    ):
        with pytest.raises(kind, match=words) as caught, output(target):
            raise OSError(number, "said by the system", str(tmp_path / ".out.17.partial.txt"))
        assert "partial" not in str(caught.value)
        assert isinstance(caught.value, InputError) is (kind is InputError)


def test_errors_of_other_places_pass(tmp_path):
    with pytest.raises(PermissionError), output(tmp_path / "out" / "x"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else/cover.jpg")


def test_a_file_is_looked_at_before_there_is_work(tmp_path):
    check_file(tmp_path / "new" / "lists.csv")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(InputError, match="a folder stands"):
        check_file(tmp_path / "new")
    write_text(tmp_path / "afile", "x")
    with pytest.raises(InputError, match="a file stands"):
        check_file(tmp_path / "afile" / "lists.csv")
    assert (tmp_path / "afile").read_text() == "x"
