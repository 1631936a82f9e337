"""Timestamps: numbers and ISO dates alone, the same on the fast way and on the careful one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.data.formats.times import iso_seconds, looks_like_date, parse_time
from firstlight.data.inspect import inspect_path

MOMENTS = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30))
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def save(folder: Path, *cells: object) -> Path:
    path = folder / "log.csv"
    path.write_text("user,item,date\n" + "".join(f"u{n},i{n},{cell}\n" for n, cell in enumerate(cells)))
    return path


def by_column(cells: list[str]) -> list[int | None]:
    return pl.DataFrame({"time": cells}).select(t=iso_seconds(pl.col("time")))["t"].to_list()


@given(st.lists(st.tuples(MOMENTS, ZONES), min_size=1, max_size=5))
def test_both_ways_read_what_python_writes(moments: list[tuple[datetime, timezone]]) -> None:
    there = [moment.replace(tzinfo=zone) for moment, zone in moments]
    cells = [moment.isoformat() for moment in there]
    seconds = [int(moment.replace(microsecond=0).timestamp()) for moment in there]
    assert [parse_time(cell) for cell in cells] == by_column(cells) == seconds


@pytest.mark.parametrize(
    "cell",
    [
        "2024-03-05", "2024-03-05 17:30", "2024-03-05T17:30:01Z", " 2024-03-05 17:30:01.25 ", "2024-03-05 17:30:00 UTC",
        "2024-03-05T17:30+0530", "2024-03-05T17:30-03", "2024-02-29", "2024-03-05T17:30:00,5+01:00",
    ],
)  # fmt: skip
def test_forms_of_iso(cell: str) -> None:
    assert parse_time(cell) is not None
    assert by_column([cell]) == [parse_time(cell)]


@pytest.mark.parametrize(
    "cell",
    [
        "05/03/2024", "2024/03/05", "05-03-2024", "5.3.2024", "2024-3-5", "2023-02-29", "2024-13-01", "March 5, 2024",
        "2024-W10-2", "20240305T173000", "2024-03-05 25:00", "2024-03-05 17:30 CET", "２０２４-03-05", "1_000", "",
        "99999999999999999999",
    ],
)  # fmt: skip
def test_nothing_else_is_guessed(tmp_path: Path, cell: str) -> None:
    assert parse_time(cell) is None
    assert by_column([cell]) == [None]
    path = save(tmp_path, f'"{cell}"', "2024-01-31")
    with pytest.raises(
        InputError, match=r"not a number or an ISO date such as 2024-01-31|is missing"
    ) as caught:
        read_dataset(path)
    assert caught.value.line == 2
    left = read_dataset(path, ReadOptions(on_bad_rows="skip"))
    assert left.train.times is not None
    assert left.train.times.tolist() == [int(datetime(2024, 1, 31, tzinfo=UTC).timestamp())]


@pytest.mark.parametrize("cells", [["2024-01-31", "1706659200"], ["1706659200", "2024-01-31"]])
def test_numbers_and_dates_may_stand_together(tmp_path: Path, cells: list[str]) -> None:
    path = save(tmp_path, *cells)
    pl.read_csv(path, infer_schema=False).write_parquet(tmp_path / "log.parquet")
    for file in (path, tmp_path / "log.parquet"):
        times = read_dataset(file).train.times
        assert times is not None
        assert times.tolist() == [1706659200, 1706659200]


@pytest.mark.parametrize("day", [20240131, 202401311730, 20240131173059])
@pytest.mark.parametrize("kind", ["csv", "int", "str"])
def test_dates_without_dashes_are_refused(tmp_path: Path, day: int, kind: str) -> None:
    path = save(tmp_path, day, day - 1)
    if kind != "csv":
        frame = pl.read_csv(path, schema_overrides={"date": pl.Int64 if kind == "int" else pl.String})
        path = tmp_path / "log.parquet"
        frame.write_parquet(path)
    with pytest.raises(InputError, match=f"such as {day} are dates without dashes") as caught:
        read_dataset(path)
    assert "2024-01-31" in str(caught.value)
    assert "--time ''" in str(caught.value)
    assert read_dataset(path, ReadOptions(time="")).train.times is None
    found = inspect_path(path)
    assert found.time_range is None
    assert "dates without dashes" in found.problems[0].problem


@pytest.mark.parametrize("kind", ["csv", "int", "str", "float"])
def test_bare_years_are_refused(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, 2021, 1999, 2021)
    if kind != "csv":
        types = {"int": pl.Int64, "str": pl.String, "float": pl.Float64}
        frame = pl.read_csv(path, schema_overrides={"date": types[kind]})
        path = tmp_path / "log.parquet"
        frame.write_parquet(path)
    with pytest.raises(InputError, match="timestamps from 1999 to 2021 are years") as caught:
        read_dataset(path)
    assert "2021-01-01, or leave times out with --time ''" in str(caught.value)
    assert read_dataset(path, ReadOptions(time="")).train.times is None
    found = inspect_path(path)
    assert found.time_range is None
    assert "are years" in found.problems[0].problem


def test_a_number_that_is_no_year_makes_all_of_them_seconds(tmp_path: Path) -> None:
    for other in (1899, 2101, 5):
        times = read_dataset(save(tmp_path, 2021, other)).train.times
        assert times is not None
        assert times.tolist() == [2021, other]


def save_split(folder: Path, *starts: int) -> Path:
    """A split by time into files, a hundred steps in each part from these on."""
    for part, start in zip(("train", "valid", "test"), starts, strict=True):
        rows = "".join(f"u{t % 7}\ti{t % 5}\t{t}\n" for t in range(start, start + 100))
        head = "user_id:token\titem_id:token\ttimestamp:float\n"
        (folder / f"log.{part}.inter").write_text(head + rows, encoding="utf-8")
    return folder


def test_steps_of_a_split_are_no_years_because_one_part_of_them_could_be(tmp_path: Path) -> None:
    found = read_dataset(save_split(tmp_path, 1800, 1900, 2000), ReadOptions(duplicates="last"))
    assert found.train.times is not None
    assert found.train.times.max() == 1899
    assert found.valid is not None
    assert found.valid.times is not None
    assert found.valid.times.max() == 1999
    assert not inspect_path(tmp_path).problem_totals


def test_years_in_all_parts_of_a_split_are_refused(tmp_path: Path) -> None:
    save_split(tmp_path, 1900, 1901, 2000)
    with pytest.raises(InputError, match="timestamps from 1900 to 2099 are years"):
        read_dataset(tmp_path)
    found = inspect_path(tmp_path)
    assert found.time_range is None
    assert found.problem_totals == {"unusable file": 1}


def test_counters_and_seconds_are_no_dates() -> None:
    times = [*range(0, 2000, 7), 964982703, 1706659200, 1706659200000, 1706659200000000, 20001301, 20240132]
    assert not pl.DataFrame({"t": times}).select(looks_like_date(pl.col("t")).any()).item()


def test_a_few_dates_without_dashes_are_told_of(tmp_path: Path) -> None:
    found = inspect_path(save(tmp_path, 20240131, 1706659200, 1706659300))
    assert found.problem_totals == {"timestamp like a date without dashes": 1}
    assert "20240131" in found.problems[0].problem
