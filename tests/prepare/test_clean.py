from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rows import clean
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import (
    EMPTY_ANSWER,
    EMPTY_QUESTION,
    NO_ANSWER_MARK,
    NO_QUESTION_MARK,
    NOT_TEXT,
    WRONG_TYPE,
    Record,
    Rejection,
    normalise,
    split_cell,
)
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import Columns
from toolkit.prepare.table import Row, Table


def table(*rows: dict[str, Any]) -> Table:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(Path("x.jsonl"), columns, [Row(n, n, row) for n, row in enumerate(rows, 1)], "")


def cleaned(row: dict[str, Any], **settings: Any) -> Record | Rejection:
    source = table(row)
    records, rejected = clean(source, find_columns(source, DataSettings(**settings)), "Explain:")
    assert len(records) + len(rejected) == 1
    found: list[Record | Rejection] = [*records, *rejected]
    return found[0]


def record(row: dict[str, Any], **settings: Any) -> Record:
    result = cleaned(row, **settings)
    assert isinstance(result, Record), result
    return result


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Rest.) \n", "Rest."),
        ("Rest (a lot).) \n", "Rest (a lot)."),
        ("Rest (a lot)) \n", "Rest (a lot)"),
        ("Rest (a lot)", "Rest (a lot)"),
        ("Rest ((a) lot)", "Rest ((a) lot)"),
        ("1) Rest (a lot)", "1) Rest (a lot)"),
        ("Rest:) 1) sleep (long) 2) wait) \n", "Rest:) 1) sleep (long) 2) wait"),
        ("Rest.)) \n", "Rest.)"),
        ("Rest. ) \n", "Rest."),
        ("Rest.", "Rest."),
    ],
)
def test_one_unbalanced_final_parenthesis_goes(answer: str, kept: str) -> None:
    assert split_cell(f"Question: What ? (Also called: That)\nURL: https://x.org/Answer\nAnswer: {answer}") == (
        "What ? (Also called: That)",
        kept,
    )


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Question: q ?\nAnswer: a", ("q ?", "a")),
        ("Question: q ?\nURL: -\nAnswer: a\n\nAnswer: more) ", ("q ?", "a\n\nAnswer: more")),
        ("\n Question: two\nlines\nURL:\nAnswer:a", ("two\nlines", "a")),
        ("Question: q ? URL: https://x.org Answer: a)", ("q ?", "a")),
        ("Question: q ?\nURL: -\nReply: a", NO_ANSWER_MARK),
        ("", NO_ANSWER_MARK),
        ("URL: -\nAnswer: a", NO_QUESTION_MARK),
        ("Question:\nURL: -\nAnswer: a", ("", "a")),
        ("Question: q\nURL: -\nAnswer: ) \n", ("q", "")),
    ],
)
def test_cells(cell: str, expected: object) -> None:
    assert split_cell(cell) == expected


@given(st.text(st.sampled_from("()ab ."), max_size=30).map(str.strip).filter(bool))
def test_the_wrapping_is_undone(answer: str) -> None:
    """Whatever is balanced comes back unchanged from the file's own wrapping."""
    depth = 0
    for char in answer:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            return
    if depth == 0:
        assert split_cell(f"Question: q\nURL: u\nAnswer: {answer}) \n") == ("q", answer)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"Answer": "Question: q\nURL: -\n"}, NO_ANSWER_MARK),
        ({"Answer": "Question: \nURL: -\nAnswer: a)"}, EMPTY_QUESTION),
        ({"Answer": "Question: q\nURL: -\nAnswer: ) \n"}, EMPTY_ANSWER),
        ({"question": " ", "answer": "a"}, EMPTY_QUESTION),
        ({"question": None, "answer": "a"}, EMPTY_QUESTION),
        ({"question": "q", "answer": "\r\n"}, EMPTY_ANSWER),
        ({"question": "q", "answer": float("nan")}, EMPTY_ANSWER),
        ({"question": "q", "answer": "a\0"}, NOT_TEXT),
        ({"question": "q\x1b[0m", "answer": "a"}, NOT_TEXT),
        ({"question": "q", "answer": "a\udce9"}, NOT_TEXT),
        ({"instruction": "\x02", "question": "q", "answer": "a"}, NOT_TEXT),
        ({"question": "q", "answer": ["a", "b"]}, WRONG_TYPE),
        ({"question": {"text": "q"}, "answer": "a"}, WRONG_TYPE),
    ],
)
def test_rejections(row: dict[str, Any], reason: str) -> None:
    # A good MedQuAD row goes first, so that a bad one is told from a file of another shape.
    good = {"Answer": "Question: q\nURL: -\nAnswer: a)"} if "Answer" in row else {"question": "q", "answer": "a"}
    source = table(good, row)
    records, rejected = clean(source, find_columns(source, DataSettings()), "Explain:")
    assert len(records) == 1
    assert [(item.number, item.line, item.reason) for item in rejected] == [(2, 2, reason)]
    rejected[0].text.encode("utf-8")


def test_the_text_shown_is_short() -> None:
    result = cleaned({"question": "q" * 500, "answer": ""})
    assert isinstance(result, Rejection) and result.text == "q" * 200


def test_text_stays_as_it_is_but_for_line_ends_and_blanks() -> None:
    text = "a\tb  c\n\n### Response:\n<|end_of_text|> \f é e\u0301 ﬁ ()"
    found = record({"question": " q\r\nr\rs ", "answer": f"\n{text} \n", "id": 7})
    assert (found.id, found.question, found.answer, found.instruction) == ("7", "q\nr\ns", text, "Explain:")


@pytest.mark.parametrize(
    ("row", "expected", "moved"),
    [
        ({"instruction": "Do", "input": "q", "output": "a"}, ("Do", "q"), False),
        ({"instruction": "What ?", "input": "", "output": "a"}, ("Explain:", "What ?"), True),
        ({"instruction": "What ?", "output": "a"}, ("Explain:", "What ?"), True),
        ({"instruction": "", "input": "q", "output": "a"}, ("Explain:", "q"), False),
        ({"prompt": "q", "completion": "a"}, ("Explain:", "q"), False),
        ({"prompt": "q", "response": "a"}, ("Explain:", "q"), False),
        ({"QUESTION": "q", "Answer": "a"}, ("Explain:", "q"), False),
        ({"question": "q", "answer": "a", "input": " "}, ("Explain:", "q"), False),
        ({"question": "q", "answer": ["a"]}, ("Explain:", "q"), False),
    ],
)
def test_column_names(row: dict[str, str], expected: tuple[str, str], moved: bool) -> None:
    found = record(row)
    assert (found.instruction, found.question, found.answer) == (*expected, "a")
    assert found.instruction_as_question is moved


def test_named_columns_win() -> None:
    row = {"question": "no", "answer": "no", "Ask": "q", "Say": "a", "How": "Do"}
    found = record(row, question_column="ask", answer_column="Say", instruction_column="How")
    assert (found.instruction, found.question, found.answer) == ("Do", "q", "a")
    found = record({"instruction": "q", "output": "a"}, question_column="instruction")
    assert (found.instruction, found.question) == ("Explain:", "q")


@pytest.mark.parametrize(
    ("row", "settings", "message", "hint"),
    [
        ({"text": "x", "label": "y"}, {}, "wanted `answer` or `output`", "data.answer_column"),
        ({"text": "x", "Answer": "y"}, {}, "found `text`, `Answer`", "data.question_column"),
        ({"question": "x", "answer": "y"}, {"question_column": "Frage"}, "wanted `Frage`", "data.question_column"),
    ],
)
def test_missing_columns(row: dict[str, str], settings: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        find_columns(table(row), DataSettings(**settings))
    assert message in caught.value.message and hint in caught.value.hint


def test_medquad_shape_is_recognised() -> None:
    source = table({"AnswerID": "1", "Answer": "junk"}, {"AnswerID": "2", "Answer": "Question: q\nAnswer: a"})
    assert find_columns(source, DataSettings()) == Columns(None, "Answer", None, "AnswerID")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is (are) Noonan  syndrome ?", "what is are noonan syndrome", True),
        ("What's that?", "WHATS THAT", True),
        ("Straße ﬁt", "STRASSE fit", True),
        ("snake_case", "snake case", True),
        ("कि", "की", False),
        ("+", "-", False),
        ("type 1", "type 2", False),
    ],
)
def test_normalise(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_normalise_is_stable(text: str) -> None:
    assert normalise(text) == normalise(normalise(text)) == normalise(f" {text}\n")
