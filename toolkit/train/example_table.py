"""Records as token ids and labels, in a table in memory or on the disk."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from toolkit.core.records import spread

IGNORED = -100  # the label that PyTorch's cross entropy leaves out

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One record as training sees it: `input_ids` and `labels` of equal length, and the record's own row number.

    `answers` says where each answer that is learned begins, and one behind where it ends: of a chat one or several. It
    is empty where the whole text is learned.
    """

    input_ids: list[int]
    labels: list[int]
    row: int
    truncated: bool
    answers: tuple[Span, ...] = ()

    @property
    def learned(self) -> int:
        """The labels that are learned; the first token's is not: nothing inside the record predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """Records as training sees them, in a table of `datasets`: `rows` are in memory, or in a file on the disk."""

    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return map(_example, self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return _example(self.rows[range(len(self))[index]])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens of each."""
        import pyarrow.compute as pc

        return np.asarray(pc.list_value_length(self.rows.with_format("arrow")[:]["input_ids"]), dtype=np.int64)

    def few(self, count: int) -> "Examples":
        """Return at most `count` of them, spread evenly."""
        return Examples(self.rows.select(spread(range(len(self)), count))) if count < len(self) else self


def _example(row: dict[str, Any]) -> Example:
    return Example(**{**row, "answers": tuple((first, end) for first, end in row["answers"])})


def features() -> Any:
    """Return the types of the table's columns."""
    from datasets import Features, List, Value

    ids = List(Value("int32"))
    return Features({"input_ids": ids, "labels": ids, "row": Value("int64"), "truncated": Value("bool"),
                     "answers": List(ids)})  # fmt: skip


def examples_of(found: Iterable[Example]) -> Examples:
    """Put records into a table in memory."""
    from datasets import Dataset

    records = [*found]
    columns = {name: [getattr(record, name) for record in records] for name in features()}
    return Examples(Dataset.from_dict(columns, features=features()))


def dataset(records: Sequence[Example], *, multiple: int = 1) -> Any:
    """Return records as a `datasets.Dataset` with the columns `input_ids` and `labels`.

    Copies fill it up to a multiple of `multiple` records. Nothing is learned from these: accelerate would repeat
    records there, and they would count twice.
    """
    from datasets import concatenate_datasets

    table = (records if isinstance(records, Examples) else examples_of(records)).rows
    if missing := -len(records) % multiple:
        copy = replace(records[0], labels=[IGNORED] * len(records[0].labels))
        table = concatenate_datasets([table, examples_of([copy] * missing).rows])
    return table.select_columns(["input_ids", "labels"])
