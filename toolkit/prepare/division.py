"""From a data file to its splits, as prepare writes them and as doctor tries them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record, Rejection, clean
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import Columns, wanted_names
from toolkit.prepare.groups import with_groups
from toolkit.prepare.read import read_table
from toolkit.prepare.refusals import no_usable_row
from toolkit.prepare.split import Splits, drop_duplicates, split, ways_out
from toolkit.prepare.table import Table
from toolkit.prepare.thoughts import refuse_thoughts

Fit = Callable[[list[Record]], tuple[list[Record], list[Rejection]]]


@dataclass(frozen=True)
class Rows:
    """A data file's rows: the records that can be used, duplicates among them, and the rows that cannot."""

    table: Table
    columns: Columns
    records: list[Record]
    rejected: list[Rejection]


@dataclass(frozen=True)
class Division:
    """Records in splits; `rejected` are all rows that cannot be used, `too_long` those of them that do not fit."""

    splits: Splits
    records: list[Record]
    duplicates: int
    rejected: list[Rejection]
    too_long: list[Rejection]


def read_rows(source: Path, config: Config) -> Rows:
    """Read and clean a data file; raises ToolkitError if it cannot be read or has no usable row."""
    return rows_of(read_table(source, wanted_names(config.data)), config)


def rows_of(table: Table, config: Config) -> Rows:
    """Clean the rows of a table and name their groups; raises ToolkitError if none can be used."""
    columns = find_columns(table, config.data)
    records, rejected = clean(
        table, columns, config.prompt.instruction, null_words=config.data.null_words, repairs=config.data.clean
    )
    if not records:
        raise no_usable_row(table, columns, rejected)
    refuse_thoughts(records, config.prompt)
    return Rows(table, columns, with_groups(records, config.prompt.instruction), rejected)


def divide(rows: Rows, config: Config, fit: Fit) -> Division:
    """Drop duplicates, fit the records into the context and split them.

    Raises ToolkitError if no record fits or a split stays empty; its hint names settings that were tried.
    """
    try:
        return _divide(rows, config.data, fit)
    except _NoSplit as exc:
        hint = ways_out(config.data, lambda settings: _divide(rows, settings, fit).splits)
        raise ToolkitError(exc.message, hint=hint) from None


class _NoSplit(ToolkitError):
    """The rows can be used, but a split stays empty."""


def _divide(rows: Rows, settings: DataSettings, fit: Fit) -> Division:
    records, duplicates = drop_duplicates(rows.records)
    if settings.split == "random":
        if len(records) == 1:  # only copies: each held-out row would be a training row, word for word
            raise _NoSplit(f"all {len(rows.records)} usable rows are the same question with the same answer")
        records, duplicates = rows.records, 0
    # Before the split, so that each split has its share of what can really be trained on.
    records, too_long = fit(records)
    rejected = sorted([*rows.rejected, *too_long], key=lambda rejection: rejection.number)
    if not records:
        raise no_usable_row(rows.table, rows.columns, rejected)
    try:
        splits = split(records, settings)
    except ToolkitError as exc:
        raise _NoSplit(exc.message) from None
    return Division(splits, records, duplicates, rejected, too_long)
