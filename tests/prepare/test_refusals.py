"""A file without a usable row: each reason has a hint of its own, and the hint works."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import config_file
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.prepare import prepare
from toolkit.prompt.tokenizer import Tokenizer

Preparing = Callable[..., Outcome]


@pytest.fixture
def preparing(tmp_path: Path, tokenizer: Tokenizer) -> Preparing:
    """Prepare a file of this content under these settings."""

    def run(content: list[Any] | bytes, *settings: str, name: str = "x.jsonl") -> Outcome:
        source = tmp_path / name
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else ""
        source.write_bytes(content if isinstance(content, bytes) else lines.encode())
        folder = RunFolder(tmp_path / "exports/x", "x")
        return prepare(config_file.build({}, settings), folder, source, tokenizer)

    return run


def refusal(preparing: Preparing, content: list[Any] | bytes, *settings: str, name: str = "x.jsonl") -> ToolkitError:
    with pytest.raises(ToolkitError, match="no usable row") as caught:
        preparing(content, *settings, name=name)
    return caught.value


def settings_of(hint: str) -> list[str]:
    return re.findall(r"--set ([\w.]+=\S+?)`", hint)


ROWS = [{"question": f"What is {n}?", "answer": f"a {n}"} for n in range(20)]


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([{**row, "answer": ""} for row in ROWS], "column `answer` is empty"),
        ([{**row, "question": None} for row in ROWS], "column `question` is empty"),
        ([{**row, "answer": ["a", "b"]} for row in ROWS], "write a row for each text of a list"),
        ([{**row, "answer": {"text": "a"}} for row in ROWS], "a column for each part of an object"),
        ([{"question": "question", "answer": "Answer"}] * 3, "the file has no other rows"),
        ([{"answer": "Question: q"} for row in ROWS], "put `Answer:` in front"),
        ([{**row, "answer": "a\x01"} for row in ROWS], "control characters"),
        ([{**row, "answer": "\ud800"} for row in ROWS], "halves of characters"),
    ],
)
def test_each_reason_has_its_hint(preparing: Preparing, rows: list[Any], hint: str) -> None:
    found = refusal(preparing, rows).hint
    assert hint in found and "UTF-8" not in found


def test_an_empty_column_names_the_filled_ones(preparing: Preparing) -> None:
    rows = [{**row, "answer": "", "reply": "r", "note": ""} for row in ROWS]
    assert "(with text: `reply`)" in refusal(preparing, rows).hint


def test_rows_of_too_many_cells(preparing: Preparing) -> None:
    error = refusal(preparing, b"question,answer\nq,a, and more\nr,b, and more\n", name="x.csv")
    assert "3 instead of 2" in error.message and "quote a cell that holds the delimiter" in error.hint


def test_rows_in_another_encoding(preparing: Preparing) -> None:
    error = refusal(
        preparing, "question,answer\nO que é febre?,É água\nÉ gota?,Não é\n".encode("latin-1"), name="x.csv"
    )
    assert "iconv -f WINDOWS-1252" in error.hint


def test_bytes_in_parquet(preparing: Preparing) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": ["q", "r"], "answer": [b"\xff", b"\xe9"]}), buffer)
    assert "write them as text" in refusal(preparing, buffer.getvalue(), name="x.parquet").hint


@pytest.mark.parametrize("words", [["None"], ["nan", "#N/A", "-", "null", "n/a", "."]])
def test_null_words_name_their_setting(preparing: Preparing, words: list[str]) -> None:
    rows = [{**row, "answer": words[n % len(words)]} for n, row in enumerate(ROWS)]
    error = refusal(preparing, rows)
    assert f"`{words[0]}`" in error.hint
    assert preparing(rows, *settings_of(error.hint)).figures["kept"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_too_long_names_the_lengths_that_fit(preparing: Preparing, policy: str) -> None:
    # With "truncate" only a question that leaves no room is too long; with "drop" an answer is, too.
    rows = [
        {
            "question": f"{n} " + "long " * (100 + 10 * n if policy == "truncate" else 1),
            "answer": "word " * (9 * n + 90),
        }
        for n in range(20)
    ]
    error = refusal(preparing, rows, "train.max_length=64", f"data.on_too_long={policy}")
    most, whole = (
        int(number) for number in re.findall(r"max_length=(\d+)` fits 90 % of the rows, (\d+)", error.hint)[0]
    )
    assert 64 < most < whole
    for length, fits in ((whole, 20), (whole - 1, 19), (most, 18), (most - 1, 17)):
        figures = preparing(rows, f"train.max_length={length}", "data.on_too_long=drop").figures
        assert figures["kept"] == fits


def test_all_equally_long_name_one_length(preparing: Preparing) -> None:
    rows = [{"question": f"{n:03}", "answer": "word " * 99} for n in range(20)]
    hint = refusal(preparing, rows, "train.max_length=64", "data.on_too_long=drop").hint
    assert len(settings_of(hint)) == 1 and preparing(rows, *settings_of(hint)).figures["truncated"] == 0


def test_the_commonest_reason_is_the_one_that_is_answered(preparing: Preparing) -> None:
    rows = [{**row, "answer": "" if n else ["a", "b"]} for n, row in enumerate(ROWS)]
    error = refusal(preparing, rows)
    assert "19 of them for: empty answer" in error.message and "is empty there" in error.hint
