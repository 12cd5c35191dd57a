"""From data files to their splits, as prepare writes them and as doctor tries them."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from toolkit.core import console, hardware
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.files import size_of_folder
from toolkit.core.input_settings import DataSettings
from toolkit.core.pool import shared
from toolkit.core.spool import Spool
from toolkit.prepare.cells import name_key
from toolkit.prepare.clean import Record, Rejection, clean_row
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import ROLES, Columns, ReadTable, unused
from toolkit.prepare.groups import with_groups
from toolkit.prepare.near import drop_across, drop_near
from toolkit.prepare.personal import Personal, looker, refuse_personal
from toolkit.prepare.read import read_source
from toolkit.prepare.refusals import no_usable_row
from toolkit.prepare.source import Source
from toolkit.prepare.split import Splits, check_filled, drop_duplicates, split, ways_out
from toolkit.prepare.spoiled import Damage, find_damage
from toolkit.prepare.table import Row, Table
from toolkit.prepare.thoughts import refuse_thoughts, without_earlier_thoughts

Fit = Callable[[Sequence[Record]], tuple[Sequence[Record], Sequence[Rejection]]]
BATCH = 2048  # records that are measured at once
PIECE = 512  # rows that are cleaned at once
OF_MODEL = 1 << 30  # bytes of the libraries of a model that finds names, which each process loads
MANY = 20_000  # rows of a table from which on several processes clean them: they need two seconds to begin


@dataclass(frozen=True)
class Seen:
    """What was seen in records: damage and repairs, by kind, and how many chats lack their last answer.

    `chats` and `instructions` say whether a record has earlier turns, or an instruction of its own.
    """

    damage: dict[str, Damage] = field(default_factory=dict)
    repaired: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    chats: bool = False
    instructions: bool = False

    def __add__(self, later: "Seen") -> "Seen":
        """Join what was seen in later records."""
        damage = {**later.damage, **self.damage}
        for kind in self.damage.keys() & later.damage.keys():
            damage[kind] = replace(self.damage[kind], count=self.damage[kind].count + later.damage[kind].count)
        return Seen(
            damage,
            self.repaired + later.repaired,
            self.unanswered + later.unanswered,
            self.chats or later.chats,
            self.instructions or later.instructions,
        )


@dataclass(frozen=True)
class Rows:
    """The rows of all sources: the records that can be used, duplicates among them, and the rows that cannot."""

    tables: list[ReadTable]
    records: Sequence[Record]
    rejected: Sequence[Rejection]
    personal: Personal = field(default_factory=Personal)
    seen: Seen = field(default_factory=Seen)

    @property
    def count(self) -> int:
        """The number of rows in all sources."""
        return sum(len(one.table.rows) for one in self.tables)


@dataclass(frozen=True)
class Division:
    """Records in splits; `rejected` are all rows that are not used, `too_long` those of them that do not fit."""

    splits: Splits
    records: Sequence[Record]
    duplicates: int
    rejected: Sequence[Rejection]
    too_long: Sequence[Rejection]


def read_rows(sources: Sequence[Source], config: Config) -> Rows:
    """Read and clean all sources; raises ToolkitError if one cannot be read, or none has a usable row."""
    return rows_of([read_source(source, config.data) for source in sources], config)


def rows_of(tables: Sequence[Table], config: Config) -> Rows:
    """Clean the rows of tables, look for personal data, and name their groups, over all tables.

    Raises ToolkitError if no row can be used, or as `data.personal` says.
    Each table gets its own columns. A setting that names a column counts where a table has that column.
    """
    read, records, rejected = [], Spool[Record](), Spool[Rejection]()
    personal, seen = Personal(config.data.personal, bool(config.data.personal_model)), Seen()
    for table in tables:
        columns = find_columns(table, _settings_for(table, tables, config.data))
        files: dict[str, None] = {}
        rows: Iterable[Row] = table.rows
        if len(tables) > 1:
            rows = (replace(row, file=_file_of(row, table)) for row in rows)
        work, pieces = partial(_cleaned, columns, table.name, config), _pieces(rows, files)
        most = _processes(config.data) if len(table.rows) >= MANY else 1
        with closing(shared(work, pieces, most)) as done:
            for kept, others, found, more in done:
                records.extend(kept)
                rejected.extend(others)
                personal.add(found)
                seen += more
        read.append(ReadTable(table, columns, unused(table, columns), files))
    if not records:
        raise no_usable_row(read, rejected, config.data)
    refuse_personal(personal)
    refuse_thoughts(records, config.prompt)
    whole = without_earlier_thoughts(records, config.train) if seen.chats else records
    named = with_groups(whole, config.prompt.instruction) if seen.instructions else whole
    return Rows(read, named, rejected, personal, seen)


def _processes(settings: DataSettings) -> int:
    """Return how many processes may clean rows: one for each core, or as many as hold `data.personal_model`."""
    if settings.personal == "off" or not settings.personal_model:
        return hardware.cores()
    each = 2 * size_of_folder(Path(settings.personal_model).expanduser()) + OF_MODEL  # twice while it is loaded
    room = hardware.available_memory()
    count = hardware.cores() if room is None else max(1, min(hardware.cores(), room // each))
    if count < hardware.cores():
        console.info(
            f"{count} of {hardware.cores()} cores look for names: each takes {each / 2**30:.1f} GiB for its model"
        )
    return count


def _pieces(rows: Iterable[Row], files: dict[str, None]) -> Iterator[list[Row]]:
    """Yield rows, some at a time, and note the files that they name."""
    left = iter(rows)
    while piece := list(islice(left, PIECE)):
        files.update(dict.fromkeys(row.file for row in piece))
        yield piece


def _cleaned(
    columns: Columns, file: str, config: Config, rows: Sequence[Row]
) -> tuple[list[Record], list[Rejection], Personal, Seen]:
    """Clean some rows of a table, and look for personal data and damage in them."""
    personal, data = Personal(config.data.personal, bool(config.data.personal_model)), config.data
    look = looker(personal, columns, file, config)
    kept, others = list[Record](), list[Rejection]()
    for row in rows:
        result = look(clean_row(row, columns, config.prompt.instruction, data))
        if isinstance(result, Record):
            kept.append(result)
        else:
            others.append(result)
    return kept, others, personal, _seen(kept, config.prompt.instruction)


def _seen(records: Sequence[Record], instruction: str) -> Seen:
    return Seen(
        {found.kind: found for found in find_damage((record.where, record.texts) for record in records)},
        Counter(kind for record in records for kind in record.repaired),
        sum(record.unanswered for record in records),
        any(record.history for record in records),
        any(record.instruction != instruction for record in records),
    )


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
    records, too_long = _fitted(records, fit)
    place = {file: number for number, one in enumerate(rows.tables) for file in one.files}

    def in_order(*parts: Iterable[Rejection]) -> Spool[Rejection]:
        """Merge what is in the order of the tables and rows."""
        return Spool(heapq.merge(rows.rejected, *parts, key=lambda one: (place.get(one.file, 0), one.number)))

    if not records:
        raise no_usable_row(rows.tables, in_order(too_long), settings)
    try:
        splits = split(records, settings)
        if settings.near_duplicates == "drop-across":
            splits, near = drop_across(splits, settings.near_duplicate)
            check_filled(splits, settings)
            dropped = {(one.file, one.number) for one in near}
            records = Spool(record for record in records if (record.file, record.number) not in dropped)
    except ToolkitError as exc:
        raise _NoSplit(exc.message) from None
    of_near = sorted(near, key=lambda one: (place.get(one.file, 0), one.number))
    return Division(splits, records, duplicates, in_order(too_long, of_near), too_long)


def _fitted(records: Sequence[Record], fit: Fit) -> tuple[Sequence[Record], Sequence[Rejection]]:
    """Fit records into the context, some at a time."""
    fitting, too_long = Spool[Record](), Spool[Rejection]()
    whole = iter(records)
    with console.progress("measuring records", len(records), "records") as bar:
        while some := list(islice(whole, BATCH)):
            kept, others = fit(some)
            fitting.extend(kept)
            too_long.extend(others)
            bar.advance(len(some))
    return fitting, too_long
