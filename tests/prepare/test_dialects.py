import io
import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_table
from toolkit.prepare.table import Table

WANTED = wanted_names(DataSettings())


def reading(tmp_path: Path, name: str, content: bytes | str) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return read_table(path, WANTED)


def cells(table: Table) -> list[list[Any]]:
    assert not any(row.problem for row in table.rows)
    return [list(row.values.values()) for row in table.rows]


@pytest.mark.parametrize("delimiter", [";", ",", "|", "\t", "^"])
@pytest.mark.parametrize("first", ["sep={}", "SEP={}", '"sep={}"', "sep={};;"])
def test_sep_is_obeyed(tmp_path: Path, delimiter: str, first: str) -> None:
    text = f"{first.format(delimiter)}\r\nquestion{delimiter}answer\r\na, b; c?{delimiter}d\r\n".replace(
        "a, b; c?", "q" if delimiter in ",;" else "a, b; c?"
    )
    table = reading(tmp_path, "x.csv", text)
    assert table.columns == ["question", "answer"]
    assert table.rows[0].line == 3 and cells(table)[0][1] == "d"


@pytest.mark.parametrize("mark", ["\ufeff\ufeff", "\u200b", "\ufeff\u2060"])
def test_marks_in_front_of_a_file_are_none(tmp_path: Path, mark: str) -> None:
    for name, text in (("x.csv", '"question","answer"\nq,a'), ("x.jsonl", '{"question": "q", "answer": "a"}')):
        assert reading(tmp_path, name, mark + text).rows[0].values == {"question": "q", "answer": "a"}


def test_a_column_called_sep_is_a_column(tmp_path: Path) -> None:
    assert reading(tmp_path, "x.csv", "sepsis,question,answer\ns,q,a\n").columns == ["sepsis", "question", "answer"]


def test_pipes_are_found(tmp_path: Path) -> None:
    assert cells(reading(tmp_path, "x.csv", "question|answer\nq, really; q|a\n")) == [["q, really; q", "a"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('q\t"Rest" is best.\n', [["q", '"Rest" is best.']]),
        ('"Rest"\t"Rest"\nq\ta\n', [['"Rest"', '"Rest"'], ["q", "a"]]),
        ('q\t5" tube\n"half\ta\n', [["q", '5" tube'], ['"half', "a"]]),
        ('q\t"said ""so"""\n', [["q", 'said "so"']]),
        ('q\t"two\nlines"\nr\tb\n', [["q", "two\nlines"], ["r", "b"]]),
        ('q\t"a\ttab"\n', [["q", "a\ttab"]]),
        ('q\t""\n\tb\n', [["q", '""'], ["", "b"]]),
        ('q\ta "" b\r\n\r\nr\tb\r\n', [["q", 'a "" b'], ["r", "b"]]),
    ],
)
def test_a_quote_in_a_tsv_is_text_unless_the_file_doubles_it(
    tmp_path: Path, text: str, expected: list[list[str]]
) -> None:
    assert cells(reading(tmp_path, "x.tsv", "question\tanswer\n" + text)) == expected


def test_two_stray_quotes_in_a_tsv_swallow_no_rows(tmp_path: Path) -> None:
    table = reading(tmp_path, "x.tsv", 'question\tanswer\nq\t"Rest is\nr\tb\nonly one\ns\tand sleep"\nt\tc\n')
    assert [row.values.get("question") for row in table.rows] == ["q", "r", None, "s", "t"]
    assert [bool(row.problem) for row in table.rows] == [False, False, True, False, False]


def test_a_tsv_that_quotes_every_name_quotes_every_cell(tmp_path: Path) -> None:
    assert cells(reading(tmp_path, "x.tsv", '"question"\t"answer"\n"q"\t"a"\n')) == [["q", "a"]]


def test_a_tsv_that_doubles_quotes_and_never_closes_one_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="truncated"):
        reading(tmp_path, "x.tsv", 'question\tanswer\nq\t"said ""so"""\nr\t"breaks off\n')


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("question;answer;;\nq;a;;\n;;;\n;;\n", ["question", "answer"]),
        (" , ,\nquestion,answer,,\nq,a\n\n , \nr,b,,,\n", ["question", "answer"]),
        ("question,answer,\nq,a,note\nr,b\n", ["question", "answer", "column 3"]),
        (",question,answer\n0,q,a\n1,r,b\n", ["column 1", "question", "answer"]),
        ("question,answer\nq,a\u200b\n\u200b,\ufeff\n", ["question", "answer"]),
    ],
)
def test_empty_rows_and_columns_are_none(tmp_path: Path, text: str, columns: list[str]) -> None:
    table = reading(tmp_path, "x.csv", text)
    assert table.columns == columns and not any(row.problem for row in table.rows)
    assert [row.number for row in table.rows] == list(range(1, len(table.rows) + 1))
    assert table.rows[0].values["question"] == "q"


def test_a_filled_cell_behind_the_last_column_is_a_problem(tmp_path: Path) -> None:
    rows = reading(tmp_path, "x.csv", "question,answer\nq,a,b\nq\nq,a\n").rows
    assert [row.problem for row in rows] == [
        "wrong number of columns: 3 instead of 2",
        "wrong number of columns: 1 instead of 2",
        "",
    ]


@pytest.mark.parametrize(
    "name", ["\u200bquestion", "question\u00a0", "\ufeffquestion", "  question\u2060 ", "ques\u00adtion"]
)
def test_invisible_characters_leave_names(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {name: "q\u200b", "answer": "a"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    for table in (
        reading(tmp_path, "x.csv", f"{name},answer\nq\u200b,a\n"),
        reading(tmp_path, "x.tsv", f"{name}\tanswer\nq\u200b\ta\n"),
        reading(tmp_path, "x.jsonl", json.dumps(row)),
        read_table(tmp_path / "x.parquet", WANTED),
    ):
        assert table.columns == ["question", "answer"] and table.rows[0].values["question"] == "q\u200b"


ROWS = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\ufeff" + json.dumps(ROWS, indent=1),
        json.dumps({"data": ROWS}, indent=1),
        json.dumps({"data": ROWS}),
        "\n".join(json.dumps(row) for row in ROWS),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        ",\n".join(json.dumps(row) for row in ROWS),
        " ".join(json.dumps(row) for row in ROWS),
        json.dumps({"question": {"0": "q", "1": "r"}, "answer": {"0": "a", "1": "b"}}),
        json.dumps({"question": {"7": "q", "9": "r"}, "answer": {"7": "a", "9": "b"}}, indent=1),
        json.dumps({"question": ["q", "r"], "answer": ["a", "b"]}),
    ],
)
def test_json_is_read_however_it_is_laid_out(tmp_path: Path, name: str, text: str) -> None:
    table = reading(tmp_path, name, text)
    assert table.columns == ["question", "answer"] and [row.values for row in table.rows] == ROWS


def test_pandas_writes_what_is_read(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(ROWS)
    for orient in ("columns", "records", "table", "split", "index"):
        frame.to_json(tmp_path / "x.json", orient=orient)
        assert cells(read_table(tmp_path / "x.json", WANTED))[1][-2:] == ["r", "b"]


@pytest.mark.parametrize(
    "rows",
    [
        {"5a7b": {"question": "q", "answer": "a"}, "5a7c": {"question": "r", "answer": "b"}},
        {"9": {"question": "q", "answer": ["a"]}},
    ],
)
def test_rows_by_number_or_name_are_rows(tmp_path: Path, rows: dict[str, dict[str, Any]]) -> None:
    for name in ("x.json", "x.jsonl"):
        assert [row.values for row in reading(tmp_path, name, json.dumps(rows)).rows] == [*rows.values()]


def test_one_row_with_lists_beside_question_and_answer_is_a_row(tmp_path: Path) -> None:
    """As HotpotQA's."""
    row = {"question": "q", "answer": "a", "supporting_facts": [["T", 0]], "context": [["T", ["one", "two"]]]}
    for name in ("x.json", "x.jsonl"):
        assert [one.values for one in reading(tmp_path, name, json.dumps(row)).rows] == [row]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("| question | answer |\n|---|:--:|\n| q | a |\n| r | b |\n", [["q", "a"], ["r", "b"]]),
        ("question | answer\n--- | ---\nq | a\nr | b\n", [["q", "a"], ["r", "b"]]),
        ("|question|answer|\n|q|a|\n", [["", "q", "a", ""]]),
    ],
)
def test_lines_that_draw_a_table_are_no_rows(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    found = cells(reading(tmp_path, "x.csv", text))
    assert [[cell.strip() for cell in row] for row in found] in (expected, [row[:3] for row in expected])


def test_one_row_of_lists_is_a_row(tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        table = reading(tmp_path, name, '{"question": "q", "answer": ["a"]}')
        assert [row.values for row in table.rows] == [{"question": "q", "answer": ["a"]}]


def test_objects_of_nothing_are_no_rows(tmp_path: Path) -> None:
    buffer = io.StringIO()
    for row in ({"question": "", "answer": None}, {}, ROWS[0], {"question": " ", "answer": []}):
        buffer.write(json.dumps(row) + "\n")
    table = reading(tmp_path, "x.jsonl", buffer.getvalue())
    assert [(row.number, row.line) for row in table.rows] == [(3, 3)]


def test_a_broken_line_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="line 2 is not JSON"):
        reading(tmp_path, "x.jsonl", json.dumps(ROWS[0]) + '\n{"question": "r", "ans')


def test_a_data_frame_with_two_columns_of_one_name_loses_none(tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        split = {"columns": ["question", "answer", "answer"], "index": [0], "data": [["q", "a", "b"]]}
        assert reading(tmp_path, name, json.dumps(split)).columns.count("answer") == 2
        split = {"columns": [1, "1", "answer"], "index": [0, 1], "data": [["q", "r", "b"], ["q", "r", "b"]]}
        assert reading(tmp_path, name, json.dumps(split, indent=1)).columns == ["1", "answer", "1"]


@pytest.mark.parametrize(("names", "expected"), [([0, 1], ["0", "1"]), ([1.5, "answer"], ["1.5", "answer"])])
def test_a_data_frame_whose_columns_are_numbers_has_names(
    tmp_path: Path, names: list[float | str], expected: list[str]
) -> None:
    split = {"columns": names, "index": [0], "data": [["q", "a"]]}
    table = reading(tmp_path, "x.json", json.dumps(split))
    assert table.columns == expected and cells(table) == [["q", "a"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('question, answer\n"q", "a"\n"r", "b"\n', [["q", "a"], ["r", "b"]]),
        ('"question", "answer"\n"q, so",  "a, b ""c"""\n', [["q, so", 'a, b "c"']]),
        ('question; answer\n "q"; "two\n""lines"""\nr; b\n', [["q", 'two\n"lines"'], ["r", "b"]]),
        ('question,answer\n"q","said, ""so"""\nr, b\n', [["q", 'said, "so"'], ["r", "b"]]),
    ],
)
def test_blanks_in_front_of_a_quoted_cell_are_none(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    table = reading(tmp_path, "x.csv", text)
    assert table.columns == ["question", "answer"]
    assert [[cell.strip() for cell in row] for row in cells(table)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('q, "Rest" is best.\nr,b\n', [["q", ' "Rest" is best.'], ["r", "b"]]),
        ('q, "half\nr, and half"\n', [["q", ' "half'], ["r", ' and half"']]),
        ('q, "half\nr,b\n', [["q", ' "half'], ["r", "b"]]),
    ],
)
def test_a_quote_inside_a_cell_swallows_no_rows(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    assert cells(reading(tmp_path, "x.csv", "question,answer\n" + text)) == expected


def test_a_file_with_blanks_before_its_quotes_that_breaks_off_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"truncated: the quoted cell of the row at line 3"):
        reading(tmp_path, "x.csv", 'question, answer\n"q", "a"\n"r", "breaks off\n')
