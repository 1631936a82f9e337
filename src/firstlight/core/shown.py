"""How results look where Python shows them: a line or two of words, and a table below."""

from __future__ import annotations

from html import escape

import polars as pl

#: Rows of a table that are shown; all of them are in ``table``.
_ROWS = 40


class Shown:
    """A result that says what it is when it is printed, and is a table in a notebook.

    A subclass gives :attr:`heading` and :attr:`table`; a dataclass needs ``repr=False``, or its own representation
    would go before this one.
    """

    @property
    def heading(self) -> str:
        """What it is, in words; may have several lines."""
        raise NotImplementedError

    @property
    def table(self) -> pl.DataFrame:
        """Its numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        with _style():
            return f"{self.heading}\n{self.table}"

    def _repr_html_(self) -> str:
        heading = "<br>".join(escape(line) for line in self.heading.splitlines())
        with _style():
            return f"<p>{heading}</p>{self.table._repr_html_()}"


def _style() -> pl.Config:
    return pl.Config(
        tbl_rows=_ROWS,
        tbl_cols=-1,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        fmt_str_lengths=60,
    )
