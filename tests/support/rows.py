"""The rows of a table, cleaned: what is kept of them, and what is not."""

from typing import Any

from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record, Rejection, clean_row
from toolkit.prepare.columns import Columns
from toolkit.prepare.table import Table


def clean(table: Table, columns: Columns, instruction: str, **settings: Any) -> tuple[list[Record], list[Rejection]]:
    """Return the records and the rejections of a table, in the order of its rows."""
    found = [clean_row(row, columns, instruction, DataSettings(**settings)) for row in table.rows]
    return [one for one in found if isinstance(one, Record)], [one for one in found if isinstance(one, Rejection)]
