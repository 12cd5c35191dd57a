"""Cells that no model can use, in every format: of ten million characters, and lists of objects that nobody knows."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.prepare.clean import ENDLESS, LONGEST, WRONG_TYPE
from toolkit.prepare.division import Rows, read_rows
from toolkit.prepare.refusals import hints_for_some
from toolkit.prepare.source import find_sources

FORMATS = ["csv", "tsv", "json", "jsonl", "parquet", "arrow", "csv.gz"]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"x.{kind}"
    if kind in ("csv", "tsv", "csv.gz"):
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        text = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(text, 1) if kind == "csv.gz" else text)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


def reading(path: Path) -> Rows:
    config = build({"data": {"source": str(path)}})
    return read_rows(find_sources(config.data), config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("role", ["question", "answer"])
def test_a_cell_of_ten_million_characters_is_one_rejected_row(tmp_path: Path, kind: str, role: str) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b", role: "word " * 2 * 10**6}]
    found = reading(written(tmp_path, kind, rows))
    (rejected,) = found.rejected
    assert (rejected.number, rejected.reason) == (2, ENDLESS) and len(found.records) == 1
    assert rejected.detail == f"`{role}` has 9,999,999" and len(rejected.text) <= 200
    assert any("a quote that is never closed" in hint for hint in hints_for_some(found.tables, found.rejected))


def test_the_longest_cell_that_is_kept(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a" * LONGEST}, {"question": "r", "answer": "a" * (LONGEST + 1)}]
    found = reading(written(tmp_path, "jsonl", rows))
    assert [one.number for one in found.records] == [1] and [one.number for one in found.rejected] == [2]


ODD: list[Any] = [[{"x": 1, "y": [2]}], [{"x": 1}, {"x": 2}], [[1], [2]], {"text": {"x": 1}}, [{"text": "a"}], []]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow"])
def test_lists_of_unknown_objects_are_rejected_in_one_line(tmp_path: Path, kind: str, value: Any) -> None:
    path = written(tmp_path, kind, [{"question": "q", "answer": value}, {"question": "r", "answer": value}])
    with pytest.raises(ToolkitError, match="no usable row: 2 of 2 rejected") as caught:
        reading(path)
    assert "\n" not in caught.value.message + caught.value.hint and len(caught.value.message) < 300 + len(str(path))
    if value:
        assert WRONG_TYPE in caught.value.message and "`answer` is a" in caught.value.message


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_in_a_column_that_nobody_wants_they_are_no_matter(tmp_path: Path, kind: str, value: Any) -> None:
    found = reading(written(tmp_path, kind, [{"question": "q", "answer": "a", "more": value}] * 3))
    assert len(found.records) == 3 and found.tables[0].left == (["more"] if value else [])
