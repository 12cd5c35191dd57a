"""From data files to their splits, as prepare writes them and as doctor tries them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.cells import name_key
from toolkit.prepare.clean import Record, Rejection, clean
from toolkit.prepare.column_choice import ROLES, find_columns
from toolkit.prepare.columns import ReadTable, unused
from toolkit.prepare.groups import with_groups
from toolkit.prepare.near import drop_across, drop_near
from toolkit.prepare.personal import Personal, look, refuse_personal, together
from toolkit.prepare.read import read_source
from toolkit.prepare.refusals import no_usable_row
from toolkit.prepare.source import Source
from toolkit.prepare.split import Splits, check_filled, drop_duplicates, split, ways_out
from toolkit.prepare.table import Row, Table
from toolkit.prepare.thoughts import refuse_thoughts, without_earlier_thoughts

Fit = Callable[[list[Record]], tuple[list[Record], list[Rejection]]]


@dataclass(frozen=True)
class Rows:
    """The rows of all sources: the records that can be used, duplicates among them, and the rows that cannot."""

    tables: list[ReadTable]
    records: list[Record]
    rejected: list[Rejection]
    personal: Personal = field(default_factory=Personal)

    @property
    def count(self) -> int:
        """The number of rows in all sources."""
        return sum(len(one.table.rows) for one in self.tables)


@dataclass(frozen=True)
class Division:
    """Records in splits; `rejected` are all rows that are not used, `too_long` those of them that do not fit."""

    splits: Splits
    records: list[Record]
    duplicates: int
    rejected: list[Rejection]
    too_long: list[Rejection]


def read_rows(sources: Sequence[Source], config: Config) -> Rows:
    """Read and clean all sources; raises ToolkitError if one cannot be read, or none has a usable row."""
    return rows_of([read_source(source, config.data) for source in sources], config)


def rows_of(tables: Sequence[Table], config: Config) -> Rows:
    """Clean the rows of tables, look for personal data, and name their groups, over all tables.

    Raises ToolkitError if no row can be used, or as `data.personal` says.
    Each table gets its own columns. A setting that names a column counts where a table has that column.
    """
    read, records, rejected, personal = [], [], [], []
    for table in tables:
        columns = find_columns(table, _settings_for(table, tables, config.data))
        if len(tables) > 1:
            named = [replace(row, file=_file_of(row, table)) for row in table.rows]
            table = replace(table, rows=named)
        read.append(ReadTable(table, columns, unused(table, columns)))
        kept, others = clean(
            table,
            columns,
            config.prompt.instruction,
            null_words=config.data.null_words,
            repairs=config.data.clean,
            merge=config.data.merge_messages,
        )
        kept, others, found = look(kept, others, columns, table.name, config)
        personal.append(found)
        records += kept
        rejected += others
    if not records:
        raise no_usable_row(read, rejected, config.data)
    whole = together(personal)
    refuse_personal(whole)
    refuse_thoughts(records, config.prompt)
    records = without_earlier_thoughts(records, config.train)
    return Rows(read, with_groups(records, config.prompt.instruction), rejected, whole)


def _file_of(row: Row, table: Table) -> str:
    """Name a row's file among several sources; two folders may each have a document of one name."""
    return table.name if row.file in ("", table.name) else f"{table.name}/{row.file}"


def _settings_for(table: Table, tables: Sequence[Table], settings: DataSettings) -> DataSettings:
    """Leave out the names of columns that other tables have, and this one does not."""
    absent = {}
    for role in (*ROLES, "group"):
        setting = f"{role}_column"
        key = name_key(getattr(settings, setting))
        there = [key in map(name_key, other.columns) for other in tables]
        if key and any(there) and key not in map(name_key, table.columns):
            absent[setting] = ""
    return settings.model_copy(update=absent) if absent else settings


def divide(rows: Rows, config: Config, fit: Fit) -> Division:
    """Drop duplicates, fit the records into the context and split them; near-duplicates as `data` says.

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
    near: list[Rejection] = []
    if settings.near_duplicates == "drop":
        records, near = drop_near(records, settings.near_duplicate)
    elif settings.split == "random":
        if len(records) == 1:  # only copies: each held-out row would be a training row, word for word
            raise _NoSplit(f"all {len(rows.records)} usable rows are the same question with the same answer")
        records, duplicates = rows.records, 0
    # Before the split, so that each split has its share of what can really be trained on.
    records, too_long = fit(records)
    place = {row.file: number for number, one in enumerate(rows.tables) for row in one.table.rows}

    def in_order(*parts: list[Rejection]) -> list[Rejection]:
        return sorted(chain(rows.rejected, *parts), key=lambda one: (place.get(one.file, 0), one.number))

    if not records:
        raise no_usable_row(rows.tables, in_order(too_long), settings)
    try:
        splits = split(records, settings)
        if settings.near_duplicates == "drop-across":
            splits, near = drop_across(splits, settings.near_duplicate)
            check_filled(splits, settings)
            dropped = {(one.file, one.number) for one in near}
            records = [record for record in records if (record.file, record.number) not in dropped]
    except ToolkitError as exc:
        raise _NoSplit(exc.message) from None
    return Division(splits, records, duplicates, in_order(too_long, near), too_long)
