import shlex
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import config_file
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import described, lost_meaning, unused, wanted_names
from toolkit.prepare.read import read_table
from toolkit.prepare.table import Row, Table


def table(row: dict[str, Any], name: str = "x.jsonl", columns: list[str] | None = None) -> Table:
    return Table(Path(name), columns or list(row), [Row(1, 1, row)], "")


def warnings(row: dict[str, Any], **settings: str) -> list[str]:
    source = table(row)
    columns = find_columns(source, DataSettings.model_validate(settings))
    return list(lost_meaning(columns, unused(source, columns)))


def line(source: Table, **settings: str) -> str:
    columns = find_columns(source, DataSettings.model_validate(settings))
    return described(columns, unused(source, columns))


def refusal(source: Table, **settings: str) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        find_columns(source, DataSettings.model_validate(settings))
    return caught.value


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        (
            {"context": "c", "Question": "q", "Answer": "a", "system": "s"},
            {},
            "question ← Question, answer ← Answer; not used: context, system",
        ),
        ({"AnswerID": "1", "Answer": "Question: q\nAnswer: a"}, {}, "question and answer ← Answer, id ← AnswerID"),
        (
            {"instruction": "do", "input": "q", "output": "a", "note": ""},
            {},
            "instruction ← instruction, question ← input, answer ← output",
        ),
        ({"instruction": "q", "context": "c", "response": "a"}, {"context_column": "Context"}, None),
        ({"q": "q", "Long Answer": "a", "note": 0}, {"question_column": "Q", "answer_column": "long answer"}, None),
    ],
)
def test_one_line_says_what_is_taken_and_left(row: dict[str, Any], settings: dict[str, str], said: str | None) -> None:
    found = line(table(row), **settings)
    if said is not None:
        assert found == said
    elif "context" in row:
        assert found == "context ← context, question ← instruction, answer ← response"
    else:
        assert found == "question ← q, answer ← Long Answer; not used: note"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("context", "c"),
        ("Passages", ["one", "two"]),
        ("background", "c"),
        ("system_prompt", "s"),
        ("history", [["q", "a", "b"]]),
        ("Options", {"A": "yes"}),
        ("choices", ["yes", "no"]),
    ],
)
def test_a_column_that_carries_meaning_is_warned_of(name: str, cell: object) -> None:
    found = warnings({"question": "q", "answer": "a", name: cell})
    assert len(found) == 1 and f"`{name}`" in found[0]
    assert warnings({"question": "q", "answer": "a", name: ""}) == []
    assert warnings({"question": "q", "answer": "a", name: []}) == []
    assert warnings({"question": "q", "answer": "a", "url": cell, "id": "1"}) == []


def test_choices_of_several_columns_are_one_warning() -> None:
    found = warnings({"question": "q", "opa": "1", "opb": "2", "opc": "3", "answer": "a"})
    assert len(found) == 1 and "`opa`, `opb`, `opc`" in found[0]


def test_the_hint_for_a_system_column_works() -> None:
    row = {"instruction": "q", "input": "c", "output": "a", "system": "s"}
    found = warnings(row)
    hinted = dict(setting.split("=") for setting in found[0].split("`")[3].replace("--set data.", "").split())
    columns = find_columns(table(row), DataSettings.model_validate(hinted))
    assert (columns.instruction, columns.question, columns.context, columns.answer) == (
        "system",
        "instruction",
        "input",
        "output",
    )
    alone = warnings({"prompt": "q", "output": "a", "system": "s"})
    assert "`--set data.instruction_column=system`" in alone[0]


def test_an_instruction_that_is_left_is_warned_of() -> None:
    row = {"instruction": "q", "input": "c", "output": "a", "system": "s"}
    found = warnings(row, instruction_column="system")
    assert len(found) == 1 and "data.question_column=instruction --set data.context_column=input" in found[0]


@pytest.mark.parametrize(
    "content",
    ["question,answer,answer\nq,a,b\n", "question,answer,Answer \nq,a,b\n", "Ques tion,question,answer\nq,a,b\n"],
)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    error = refusal(read_table(path, wanted_names(DataSettings())))
    assert "more than one column with the" in error.message and error.hint


def test_two_keys_of_one_object_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "q", "answer": "a", "answer": "b"}\n')
    assert "`answer` and `answer`" in refusal(read_table(path, ())).message
    path.write_text('{"question": "q", "answer": "a", "note": 1, "note": 2, "more": {"answer": 1, "answer": 2}}\n')
    assert line(read_table(path, ())) == "question ← question, answer ← answer; not used: note, more"


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["q"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["question", "answer", "answer"]), tmp_path / "x.parquet")
    assert "`answer` and `answer`" in refusal(read_table(tmp_path / "x.parquet", ())).message


@pytest.mark.parametrize(
    ("row", "role"),
    [
        ({"question": "q", "answer": "a", "response": "b"}, "answer"),
        ({"question": "q", "prompt": "p", "answer": "a"}, "question"),
        ({"instruction": "i", "input": "q", "query": "p", "output": "a"}, "question"),
        ({"question": "q", "An swer": "a", "re'sponse": "", "Response": "b"}, "answer"),
    ],
)
def test_two_columns_of_one_role_are_refused_until_one_is_named(row: dict[str, str], role: str) -> None:
    error = refusal(table(row))
    assert f"more than one column with the {role}" in error.message
    for choice in error.hint.split("`")[1::2]:
        settings = config_file.build({}, [shlex.split(choice)[1]]).data
        name = getattr(settings, f"{role}_column")
        assert name in row and getattr(find_columns(table(row), settings), role) == name


def test_a_name_that_changes_from_row_to_row_is_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"Question": "r", "answer": "b"}\n')
    assert "give them the same name" in refusal(read_table(path, ())).hint


def test_an_empty_column_is_no_second_one() -> None:
    assert find_columns(table({"question": "q", "prompt": " ", "answer": "a"}), DataSettings()).question == "question"


def test_a_setting_names_one_of_two_by_its_exact_name() -> None:
    source = table({"question": "q", "answer": "a", "Answer": "b"})
    assert find_columns(source, DataSettings(answer_column="Answer")).answer == "Answer"
    assert "more than one" in refusal(source, answer_column="ANSWER").message


def test_one_column_for_two_roles_is_refused() -> None:
    error = refusal(table({"question": "q", "answer": "a"}), answer_column="answer", context_column="Answer")
    assert "data.answer_column and data.context_column both name `answer`" in error.message.replace(
        "data.context_column and data.answer_column", "data.answer_column and data.context_column"
    )


@pytest.mark.parametrize(
    ("names", "name", "hint"),
    [
        (["What helps?", "Rest and drink water."], "x.csv", "no header?"),
        (
            ["wie hilft man gegen Fieber", "Ruhe und viel Wasser, und wenn es nicht besser wird ein Arzt"],
            "x.csv",
            "no header?",
        ),
        (["1", "fever", "rest"], "x.tsv", "no header?"),
        (["frage", "antwort"], "x.csv", "--set data.answer_column=NAME"),
        (["messages"], "x.jsonl", "one list of objects with `role` and `content`"),
        (["id", "conversations"], "x.json", "parts of chats"),
        (["title", "text", "chat", "url"], "x.json", "--set data.answer_column=NAME"),
        ([], "x.jsonl", "write each row as an object"),
        (["What helps?", "Rest."], "x.parquet", "--set data.answer_column=NAME"),
        (["questiontext", "patientanswer"], "x.csv", "--set data.answer_column=patientanswer"),
        (["questiontext", "answer"], "x.csv", "--set data.question_column=questiontext"),
        (["Question Text", "answer_id", "Doctor Response"], "x.jsonl", "'data.answer_column=Doctor Response'"),
    ],
)
def test_the_hint_fits_what_was_found(names: list[str], name: str, hint: str) -> None:
    assert hint in refusal(table(dict.fromkeys(names, "x"), name)).hint


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("context,context", "context"),
        ("Context,context ", "context"),
        ("Passage Text,passage text", "context"),
        ("options,options", "context"),
        ("system_prompt,System_Prompt", "instruction"),
    ],
)
def test_two_left_columns_of_one_name_are_refused_where_a_setting_could_take_one(
    tmp_path: Path, header: str, role: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"question,answer,{header}\nq,a,x,y\n")
    source = read_table(path, wanted_names(DataSettings()))
    error = refusal(source)
    assert f"more than one column with the {role}" in error.message
    for choice in error.hint.split("`")[1::2]:
        settings = config_file.build({}, [shlex.split(choice)[1]]).data
        assert getattr(find_columns(source, settings), role) in source.columns
    path.write_text(f"question,answer,{header}\nq,a,x,\n")
    source = read_table(path, ())
    if len(set(source.columns)) < 4:
        assert f"more than one column with the {role}" in refusal(source).message
    else:
        assert find_columns(source, DataSettings()).answer == "answer"


def test_two_left_columns_without_meaning_may_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,answer,note,note,context\nq,a,x,y,c\n")
    assert line(read_table(path, ())) == "question ← question, answer ← answer; not used: note, context"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clinical_context", "in front of the question"),
        ("patient_history", "in front of the question"),
        ("Passage Text", "in front of the question"),
        ("ctx", "in front of the question"),
        ("caseDescription", "in front of the question"),
        ("Source-Document", "in front of the question"),
        ("answer_choices", "will not see the choices"),
        ("answerOptions", "will not see the choices"),
        ("choice_text", "will not see the choices"),
        ("system_prompt_text", "makes it the instruction"),
        ("System Instructions", "makes it the instruction"),
        ("chat_history", "earlier turns"),
        ("previous messages", "earlier turns"),
        ("supporting_facts", "in front of the question"),
        ("patienthistory", "in front of the question"),
        ("answeroptions", "will not see the choices"),
        ("priordialogue", "earlier turns"),
    ],
)
def test_a_word_in_a_name_carries_meaning(name: str, said: str) -> None:
    found = warnings({"question": "q", "answer": "a", name: "x"})
    assert len(found) == 1 and f"`{name}`" in found[0] and said in found[0]


@pytest.mark.parametrize(
    "name",
    [
        "question_id",
        "history_id",
        "document url",
        "contextLength",
        "choice_type",
        "num_turns",
        "has_context",
        "correct_option",
        "edit_history",
        "operating_system",
        "evidence_level",
        "conversation_id",
        "error_message",
        "adoption",
        "optional",
    ],
)
def test_a_name_about_a_text_is_no_text(name: str) -> None:
    assert warnings({"question": "q", "answer": "a", name: "x"}) == []
