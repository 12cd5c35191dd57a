"""Files of chats, as OpenAI, ShareGPT, Alpaca and TRL write them: found by their form, read into turns, or refused."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from tests.support.settings import problems
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.prepare import prepare
from toolkit.prepare.cells import is_blank
from toolkit.prepare.clean import ENDLESS, Record, Rejection
from toolkit.prepare.columns import described, lost_meaning
from toolkit.prepare.division import Rows, rows_of
from toolkit.prepare.messages import (
    ASSISTANT_FIRST,
    ASSISTANT_TWICE,
    EMPTIED_TURN,
    EMPTY_TURN,
    IMAGE,
    NO_MESSAGES,
    NO_REPLY,
    NOT_MESSAGES,
    OTHER_PART,
    TOOL_CALL,
    UNKNOWN_ROLE,
    USER_TWICE,
)
from toolkit.prepare.read import read_source, read_table
from toolkit.prepare.refusals import hints_for_some
from toolkit.prepare.source import Source
from toolkit.prepare.stage import STAGE
from toolkit.prompt.tokenizer import Tokenizer

TURNS = (("What is a fever?", "A high temperature."), ("From when on?", "From 38 °C."))
ROLES = {"role": ("user", "assistant", "system"), "from": ("human", "gpt", "system")}


def messages(
    turns: Sequence[tuple[str, str]] = TURNS, system: str = "", who: str = "role", what: str = "content"
) -> Any:
    user, assistant, instruct = ROLES[who]
    said = [{who: instruct, what: system}] if system else []
    for question, answer in turns:
        said += [{who: user, what: question}, {who: assistant, what: answer}]
    return said


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, *overrides: str) -> Rows:
    config = build({}, [f"data.source={path}", *overrides])
    return rows_of([read_source(Source(path), config.data)], config)


def turns_of(record: Record) -> tuple[tuple[str, str], ...]:
    return (*record.history, (record.question, record.answer))


def said_of(rows: Rows) -> str:
    return described(rows.tables[0].columns, rows.tables[0].left)


PLAIN = {"question": "What is a cold?", "answer": "An infection."}
FORMS: dict[str, tuple[Any, str]] = {
    "OpenAI": ({"messages": messages()}, "chat ← messages"),
    "ShareGPT": ({"id": "a", "conversations": messages(who="from", what="value")}, "chat ← conversations, id ← id"),
    "another name": ({"dialog": messages(who="role", what="value")}, "chat ← dialog"),
    "text parts": (
        {"messages": [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages()]},
        "chat ← messages",
    ),
    "lists of datasets": (
        {"conversations": {"from": ["human", "gpt"] * 2, "value": [text for turn in TURNS for text in turn]}},
        "chat ← conversations",
    ),
    "prompt and completion": (
        {"prompt": messages()[:3], "completion": messages()[3:]},
        "chat ← prompt, end of the chat ← completion",
    ),
    "prompt of messages, completion of text": (
        {"prompt": messages()[:3], "completion": TURNS[1][1]},
        "chat ← prompt, end of the chat ← completion",
    ),
    "history of pairs": (
        {"instruction": TURNS[1][0], "input": "", "output": TURNS[1][1], "history": [list(TURNS[0])]},
        "context ← instruction, earlier turns ← history, question ← input, answer ← output",
    ),
    "history of messages": (
        {"question": TURNS[1][0], "answer": TURNS[1][1], "chat_history": messages(TURNS[:1])},
        "earlier turns ← chat_history, question ← question, answer ← answer",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_chat_is_found_by_its_form_and_named(form: str, tmp_path: Path) -> None:
    row, said = FORMS[form]
    rows = read(write(tmp_path / "x.jsonl", [row, row]))
    assert [turns_of(record) for record in rows.records] == [TURNS, TURNS] and not rows.rejected
    assert said_of(rows) == said
    assert all(record.normalised == "what is a fever" for record in rows.records)
    assert {record.instruction for record in rows.records} == {"Explain:"}


def test_prompt_and_completion_as_texts_are_question_and_answer(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "x.jsonl", [{"prompt": "What?", "completion": "That."}]))
    assert said_of(rows) == "question ← prompt, answer ← completion" and turns_of(rows.records[0]) == (
        ("What?", "That."),
    )


@pytest.mark.parametrize(("said", "beside"), [("null", "null"), ('"quoted"', '{"n": 1}'), ("[1]", "[1]")])
def test_a_text_beside_a_column_of_json_is_no_json(tmp_path: Path, said: str, beside: str) -> None:
    extra = pa.ExtensionArray.from_storage(pa.json_(), pa.array([beside, None]))
    parts = [pa.array(["user", "assistant"]), pa.array([said, "a"]), extra]
    messages = pa.StructArray.from_arrays(parts, ["role", "content", "extra"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 2], messages)}), tmp_path / "x.parquet")
    [row] = read_table(tmp_path / "x.parquet", ()).rows
    first, last = row.values["messages"]
    assert (first["content"], first["extra"]) == (said, json.loads(beside)) and last["extra"] is None


@pytest.mark.parametrize("extension", ["json", "csv", "tsv", "parquet", "bare.jsonl", "object.json", "columns.json"])
def test_a_chat_is_read_from_every_format(extension: str, tmp_path: Path) -> None:
    rows, path = [{"messages": messages()}, {"messages": messages(TURNS[:1])}], tmp_path / f"x.{extension}"
    if extension == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif extension in ("csv", "tsv"):  # in a cell of text, as JSON
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="," if extension == "csv" else "\t")
            table.writerow(["messages"])
            table.writerows([json.dumps(row["messages"], ensure_ascii=False)] for row in rows)
    elif extension == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif extension == "bare.jsonl":
        write(path, [row["messages"] for row in rows])
    elif extension == "object.json":
        path.write_text(json.dumps({"version": 1, "data": rows}))
    else:
        path.write_text(json.dumps({"messages": [row["messages"] for row in rows], "id": ["a", "b"]}))
    assert [turns_of(record) for record in read(path).records] == [TURNS, TURNS[:1]]


@pytest.mark.parametrize("text", ['{"messages": %s}', "[%s]", '{"chats": [{"messages": %s}]}'])
def test_a_file_of_one_chat_is_one_row(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text % json.dumps(messages()))
    assert [turns_of(record) for record in read(path).records] == [TURNS]


def test_a_chat_of_one_turn_is_the_record_of_its_question_and_answer(tmp_path: Path) -> None:
    of_chat = read(write(tmp_path / "x.jsonl", [{"messages": messages(((PLAIN["question"], PLAIN["answer"]),))}]))
    assert [*of_chat.records] == [*read(write(tmp_path / "y.jsonl", [PLAIN])).records]


SYSTEM = "Answer a parent."


@pytest.mark.parametrize(
    ("row", "instruction"),
    [
        ({"messages": messages(system=SYSTEM)}, SYSTEM),
        ({"messages": [{"role": "developer", "content": SYSTEM}, *messages()]}, SYSTEM),
        ({"messages": [*messages(), {"role": "system", "content": SYSTEM}]}, SYSTEM),
        ({"messages": messages(system=""), "system": SYSTEM}, SYSTEM),
        ({"messages": messages(system="Be brief."), "system": SYSTEM}, "Be brief."),
        ({"messages": [{"role": "system", "content": "One."}, *messages(system="Two.")]}, "One.\n\nTwo."),
        ({"conversations": messages(system=SYSTEM, who="from", what="value")}, SYSTEM),
        ({"input": "From when on?", "output": "From 38.", "history": [["q", "a"]], "system": SYSTEM}, SYSTEM),
        ({"instruction": "q", "input": "", "output": "a", "history": [["q", "a"]], "system": SYSTEM}, SYSTEM),
        ({"question": "q", "answer": "a", "history": messages(system=SYSTEM)}, SYSTEM),
    ],
)
def test_system_messages_fill_the_instruction(row: dict[str, Any], instruction: str, tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "x.jsonl", [row])).records
    assert record.instruction == instruction and record.history


def test_instruction_and_input_of_alpaca_are_the_last_question_together(tmp_path: Path) -> None:
    row = {"instruction": "Translate", "input": "febre", "output": "fever", "history": [["Hi", "Hello"]]}
    plain = {"instruction": "Translate", "input": "tosse", "output": "cough", "history": []}
    rows = read(write(tmp_path / "x.jsonl", [row, plain]))
    assert [turns_of(record) for record in rows.records] == [
        (("Hi", "Hello"), ("Translate\n\nfebre", "fever")),
        (("Translate\n\ntosse", "cough"),),
    ]
    named = read(tmp_path / "x.jsonl", "data.instruction_column=instruction").records
    assert [(record.instruction, record.question) for record in named] == [
        ("Translate", "febre"),
        ("Translate", "tosse"),
    ]


def test_a_context_stands_before_the_first_question(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"messages": messages(), "leaflet": "Paracetamol"}])
    (record,) = read(path, "data.context_column=leaflet").records
    assert turns_of(record) == (("Paracetamol\n\nWhat is a fever?", TURNS[0][1]), TURNS[1])


def user(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "dose"}}]}
BAD: dict[str, tuple[Any, str, str]] = {
    "tool call": ([*messages(), *user("Dose?"), CALL], TOOL_CALL, "message 6"),
    "function call": ([*user("Dose?"), {**CALL, "tool_calls": None, "function_call": {"name": "dose"}}], TOOL_CALL, ""),
    "tool": ([*messages(), {"role": "tool", "content": "3"}, *messages()], TOOL_CALL, "message 5"),
    "ShareGPT's tool": (
        [{"from": "human", "value": "?"}, {"from": "observation", "value": "3"}],
        TOOL_CALL,
        "message 2",
    ),
    "tool part": ([*user([{"type": "tool_result", "content": "3"}]), *messages()[1:]], TOOL_CALL, "message 1"),
    "image": ([*user([{"type": "image_url", "image_url": {"url": "x"}}]), *messages()[1:]], IMAGE, "`image_url`"),
    "image and text": ([*user([{"type": "text", "text": "?"}, {"type": "input_image"}]), *messages()[1:]], IMAGE, ""),
    "sound": ([*user([{"type": "input_audio"}]), *messages()[1:]], OTHER_PART, "`input_audio`"),
    "Ollama's image": ([{**user("See?")[0], "images": ["iVBORw0"]}, *messages()[1:]], IMAGE, "message 1: `images`"),
    "OpenAI's sound": ([*user("?"), {"role": "assistant", "content": "x", "audio": {"id": "1"}}], IMAGE, "message 2"),
    "LLaVA's image": ([*user("<image>\nWhat is it?"), *messages()[1:]], IMAGE, "message 1: `<image>`"),
    "a video behind the text": ([*user("What is it?\n <video> "), *messages()[1:]], IMAGE, "message 1: `<video>`"),
    "object": ([*user({"a": 1}), *messages()[1:]], OTHER_PART, "message 1"),
    "empty turn": ([*messages()[:3], {"role": "assistant", "content": " "}], EMPTY_TURN, "message 4 (assistant)"),
    "null": ([*user(None), *messages()[1:]], EMPTY_TURN, "message 1 (user)"),
    "invisible": ([*user("\u200b\ufeff"), *messages()[1:]], EMPTY_TURN, "message 1 (user)"),
    "two users": ([*user("Hello"), *messages()], USER_TWICE, "message 1 and the next"),
    "two assistants": ([*messages(), {"role": "assistant", "content": "More."}], ASSISTANT_TWICE, "message 4"),
    "assistant first": ([{"role": "assistant", "content": "Hello"}, *messages()], ASSISTANT_FIRST, "message 1"),
    "assistant behind system": ([*messages(system="s")[:1], *messages()[1:]], ASSISTANT_FIRST, "message 2"),
    "user alone": (user("Hello"), NO_REPLY, ""),
    "system alone": (messages(system="s")[:1], NO_REPLY, ""),
    "unknown role": ([{"role": "patient", "content": "Hello"}, *messages()], UNKNOWN_ROLE, "`patient`"),
    "role that is a text": ([{"role": "a" * 41, "content": "Hello"}, *messages()], UNKNOWN_ROLE, "41 characters"),
    "part that is a text": ([*user([{"type": "a" * 41}]), *messages()[1:]], OTHER_PART, "41 characters"),
    "no role": ([*messages(), {"content": "Hello"}], NOT_MESSAGES, "message 5"),
    "text in the list": ([*messages(), "Hello"], NOT_MESSAGES, "message 5"),
    "text": ("Hello", NOT_MESSAGES, ""),
    "broken JSON": ('[{"role": "user", "content": "Hello"}', NOT_MESSAGES, ""),
    "as Python writes it": ("[{'role': 'user', 'content': 'Hello'}]", NOT_MESSAGES, ""),
    "nothing": ([], NO_MESSAGES, ""),
    "no value": (None, NO_MESSAGES, ""),
}


def test_half_a_character_in_a_role_is_said_as_text(tmp_path: Path) -> None:
    chats = ([{"role": "a\ud800", "content": "Hello"}], messages())
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    assert [one.detail for one in read(path).rejected] == ["message 1 is of `a\ufffd`"]


@pytest.mark.parametrize("kind", BAD)
def test_a_chat_that_cannot_be_trained_is_rejected_with_its_reason(kind: str, tmp_path: Path) -> None:
    cell, reason, detail = BAD[kind]
    path = write(tmp_path / "x.jsonl", [{"messages": messages(), "id": 1}, {"messages": cell, "id": 2}])
    rows = read(path)
    assert len(rows.records) == 1 and rows.count == 2
    (rejected,) = rows.rejected
    assert (rejected.number, rejected.reason) == (2, reason) and detail in rejected.detail
    with pytest.raises(ToolkitError, match="no usable row") as caught:
        read(write(tmp_path / "y.jsonl", [{"messages": cell, "id": 2}] * 2), "data.messages_column=messages")
    assert reason in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    "message",
    [
        {"content": "What is it?", "images": [], "audio": None},
        {"content": "Is <image> a tag of HTML?"},
        {"content": "<image>x.png</image>\nWhat does this XML say?"},
    ],
)
def test_a_chat_that_only_speaks_of_a_picture_is_kept(message: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", **message}, *messages()[1:]]}]
    assert len(read(write(tmp_path / "x.jsonl", rows)).records) == 1


@pytest.mark.parametrize("column", ["image", "images", "videos", "attachments"])
def test_a_chat_about_a_picture_is_rejected(column: str, tmp_path: Path) -> None:
    rows = [{"messages": messages(), column: []}, {"messages": messages(), column: ["x.png"]}]
    found = read(write(tmp_path / "x.jsonl", rows))
    assert len(found.records) == 1 and [one.reason for one in found.rejected] == [IMAGE]


@pytest.mark.parametrize(
    ("said", "turns"),
    [
        (user("Hello", "What helps?"), (("Hello\n\nWhat helps?", "Rest."),)),
        (user("", "What helps?"), (("What helps?", "Rest."),)),
        ([*user("Hello"), {"role": "assistant", "content": ""}, *user("What helps?")],
         (("Hello\n\nWhat helps?", "Rest."),)),
        ([*messages(), {"role": "assistant", "content": "More."}, *user("What helps?")],
         (TURNS[0], (TURNS[1][0], "From 38 °C.\n\nMore."), ("What helps?", "Rest."))),
    ],
)  # fmt: skip
def test_turns_of_one_role_in_a_row_are_joined_where_that_is_asked_for(
    said: list[Any], turns: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", [{"messages": [*said, {"role": "assistant", "content": "Rest."}]}])
    (record,) = read(path, "data.merge_messages=true").records
    assert turns_of(record) == turns
    with pytest.raises(ToolkitError) as caught:
        read(path)
    assert "data.merge_messages=true" in caught.value.hint


@pytest.mark.parametrize("kind", ["tool call", "image", "assistant first", "unknown role", "user alone"])
def test_joining_mends_nothing_else(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"messages": messages()}, {"messages": BAD[kind][0]}])
    assert [one.reason for one in read(path, "data.merge_messages=true").rejected] == [BAD[kind][1]]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([["q"]], NOT_MESSAGES),
        (["q", "a"], NOT_MESSAGES),
        ("She smokes", NOT_MESSAGES),
        ([["q", ""]], EMPTY_TURN),
        ([[None, "a"]], EMPTY_TURN),
        (user("Hello"), USER_TWICE),
        ([{"role": "assistant", "content": "Hello"}], ASSISTANT_FIRST),
    ],
)
def test_a_history_that_cannot_be_read_rejects_its_row(history: Any, reason: str, tmp_path: Path) -> None:
    good, row = {**PLAIN, "history": [["q", "a"]]}, {**PLAIN, "history": history}
    rows = read(write(tmp_path / "x.jsonl", [good, row, {**PLAIN, "history": []}]))
    assert [one.reason for one in rows.rejected] == [reason] and len(rows.records) == 2


def test_a_last_question_without_an_answer_is_left_out(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "x.jsonl", [{"messages": [*messages(), *user("Thanks!")]}])).records
    assert turns_of(record) == TURNS and record.unanswered


def test_words_that_stand_for_nothing_in_a_cell_are_said_in_a_chat(tmp_path: Path) -> None:
    turns = (("Any allergies?", "None"), ("-", "n/a"))
    assert turns_of(read(write(tmp_path / "x.jsonl", [{"messages": messages(turns)}])).records[0]) == turns


@pytest.mark.parametrize("word", ["N/A", "null", "#N/A", "nan"])
@pytest.mark.parametrize("form", ["messages", "history"])
def test_words_that_stand_for_nothing_beside_a_chat_are_no_context_and_no_instruction(
    form: str, word: str, tmp_path: Path
) -> None:
    chat = {"messages": messages()} if form == "messages" else {**PLAIN, "history": [list(TURNS[0])]}
    path = write(
        tmp_path / "x.jsonl", [{**chat, "context": word, "system": word}, {**chat, "context": "c", "system": "s"}]
    )
    named = ("data.context_column=context", "data.instruction_column=system")
    first, second = read(path, *named).records
    assert first.instruction == Config().prompt.instruction and word not in " ".join(first.texts)
    assert second.instruction == "s" and any(text.startswith("c\n") for text in second.texts)
    kept, _ = read(path, *named, "data.null_words=text").records
    assert kept.instruction == word and any(text.startswith(f"{word}\n") for text in kept.texts)


def test_every_turn_is_repaired(tmp_path: Path) -> None:
    turns = (("<p>What is a fever?</p>", "A &amp; B"), ("From <b>when</b> on?", "38 Â°C"))
    path = write(tmp_path / "x.jsonl", [{"messages": messages(turns)}, {"messages": messages((("<br>", "x"), *turns))}])
    rows = read(path, 'data.clean=["html", "mojibake"]')
    assert turns_of(rows.records[0]) == (("What is a fever?", "A & B"), ("From when on?", "38 °C"))
    assert [one.reason for one in rows.rejected] == [EMPTIED_TURN]
    (hint,) = hints_for_some(rows.tables, rows.rejected)
    assert "merge_messages" not in hint and "remove these rows" in hint  # which would not leave it out


def test_question_and_answer_go_before_messages_unless_these_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{**PLAIN, "messages": messages()}])
    rows = read(path)
    assert said_of(rows) == "question ← question, answer ← answer; not used: messages"
    (warned,) = lost_meaning(rows.tables[0].columns, rows.tables[0].left)
    assert "`--set data.messages_column=messages`" in warned
    assert turns_of(read(path, "data.messages_column=messages").records[0]) == TURNS


def test_of_two_columns_of_chats_one_must_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"chosen": messages(), "rejected": messages(TURNS[:1])}])
    with pytest.raises(ToolkitError, match="more than one column with the messages") as caught:
        read(path)
    assert "--set data.messages_column=chosen" in caught.value.hint
    assert turns_of(read(path, "data.messages_column=rejected").records[0]) == TURNS[:1]
    said = problems({}, "data.messages_column=chosen", "data.question_column=question")
    assert "messages_column has questions and answers" in said


def test_of_preferences_the_chosen_answers_are_taken_by_the_hint(tmp_path: Path) -> None:
    """TRL's form: what is asked in one column, a good and a bad answer in two others."""
    asked, answer = messages()[:3], messages()[3:]
    bad = [{"role": "assistant", "content": "No idea."}]
    path = write(tmp_path / "x.jsonl", [{"prompt": asked, "chosen": answer, "rejected": bad}])
    with pytest.raises(ToolkitError) as caught:
        read(path)
    settings = re.findall(r"`--set (\S+)`", caught.value.hint)
    assert settings == ["data.messages_column=chosen", "data.messages_column=rejected"]
    assert [turns_of(record) for record in read(path, settings[0]).records] == [TURNS]
    whole = write(tmp_path / "y.jsonl", [{"chosen": messages(), "rejected": [*asked, *bad]}])
    assert [turns_of(record) for record in read(whole, "data.messages_column=chosen").records] == [TURNS]


def test_what_messages_hold_beside_role_and_text_is_named(tmp_path: Path) -> None:
    said = [{**one, "name": "Ana", "weight": 0, "tool_calls": None} for one in messages()]
    rows = read(write(tmp_path / "x.jsonl", [{"messages": said, "score": 3}]))
    assert said_of(rows) == "chat ← messages; not used: score, messages.name, messages.weight"
    (warned,) = lost_meaning(rows.tables[0].columns, rows.tables[0].left)
    assert "`messages.weight` is not used" in warned


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"turns": [{"speaker": "A", "utterance": "Hello"}]}],
            "`turns` holds lists of objects with `speaker`, `utterance`",
        ),
        ([{"id": 1, "data": [{"x": 1}, {"x": 2}]}], "`data` holds lists of objects with `x`"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "parts of chats"),
        ([{"conversation_id": 1, "from": "human", "value": "Hi"}], "parts of chats"),
    ],
)
def test_lists_of_unknown_objects_are_refused_in_clear_words(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="has no column") as caught:
        read(write(tmp_path / "x.jsonl", rows * 2))
    assert said in caught.value.hint and "`role` and `content`" in caught.value.hint


def test_chats_inside_other_objects_get_a_command_that_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"ward": {"chats": [{"messages": messages()}]}, "other": [1, {"a": 2}], "b": [[2]]}))
    with pytest.raises(ToolkitError, match="holds no list of records") as caught:
        read(path)
    assert "the records are in `ward.chats`: python -c" in caught.value.hint.replace("`python", "python")


def prepared(
    tmp_path: Path, rows: list[Any], tokenizer: Tokenizer, *overrides: str
) -> tuple[dict[str, Any], RunFolder]:
    path = write(tmp_path / "x.jsonl", rows)
    config = build({}, [f"data.source={path}", f"run.folder={tmp_path / 'runs'}", "train.max_length=512", *overrides])
    folder = RunFolder(tmp_path / "runs/x", "x")
    return prepare(config, folder, path, tokenizer).figures, folder


def numbered(number: int, turns: int) -> Any:
    return messages(tuple((f"Question {number} of {turn}?", f"Answer {turn} to {number}.") for turn in range(turns)))


@pytest.mark.slow
def test_prepared_files_carry_the_earlier_turns_and_count_them(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": numbered(number, 1 + number % 3)} for number in range(30)]
    rows += [{"messages": numbered(99, 500)}, {"messages": [*numbered(98, 2), *user("Thanks!")]}]
    figures, folder = prepared(tmp_path, rows, tokenizer)
    assert (figures["chats"], figures["turns"], figures["unanswered"]) == (22, 52 + 500 - figures["turns_left_out"], 1)
    lines = [json.loads(line) for name in ("train", "val", "test") for line in folder.split_file(name).open()]
    assert len(lines) == 32 == figures["kept"]
    for line in lines:
        number = line["row"] - 1
        if number < 30:
            turns = [*line.get("history", []), [line["input"], line["output"]]]
            assert turns == [
                [f"Question {number} of {turn}?", f"Answer {turn} to {number}."] for turn in range(1 + number % 3)
            ]
            assert ("history" in line) is (number % 3 > 0)
    assert "chat ← messages" in capsys.readouterr().err
    *_, counted, unanswered, left_out = STAGE.summary(figures, folder).splitlines()
    assert counted == f"22 chats of {figures['turns']} turns, at most {figures['most_turns']} in one"
    assert unanswered == "1 last question without an answer left out"
    assert f"{figures['turns_left_out']} last turns left out of 1 chat that is longer" in left_out


@pytest.mark.slow
@pytest.mark.parametrize(("long", "warned"), [(0, False), (1, False), (2, True), (30, True)])
def test_chats_without_their_last_turns_are_warned_of_with_the_length_that_fits(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], long: int, warned: bool
) -> None:
    rows = [{"messages": numbered(number, 40 if number < long else 2)} for number in range(30)]
    figures, _ = prepared(tmp_path, rows, tokenizer)
    shown = capsys.readouterr().err
    assert figures["shortened_chats"] == long and (" lose their last turns" in shown) is warned
    if warned:
        assert f"{long} of 30 chats ({long / 30:.0%}) lose their last turns at train.max_length = 512; " in shown
        fits = max(map(int, re.findall(r"max_length=(\d+)`", shown) + re.findall(r"of them, (\d+) all", shown)))
        assert prepared(tmp_path, rows, tokenizer, f"train.max_length={fits}")[0]["shortened_chats"] == 0
        assert prepared(tmp_path, rows, tokenizer, f"train.max_length={fits - 1}")[0]["shortened_chats"] > 0


def test_thoughts_in_earlier_answers_are_read_as_a_server_sends_them(tmp_path: Path) -> None:
    thought = "<think>\nHm.\n</think>\n\n"
    turns = tuple((question, thought + answer) for question, answer in TURNS)
    path, chatml = write(tmp_path / "x.jsonl", [{"messages": messages(turns)}]), "prompt.preset=chatml"
    with pytest.raises(ToolkitError, match="thoughts in earlier answers") as caught:
        read(path, chatml, "prompt.thinking=keep")
    assert "`--set train.turns=last` learns" in caught.value.hint
    with pytest.raises(ToolkitError, match="thoughts in earlier answers") as caught:
        read(path, chatml, "prompt.thinking=keep", "train.completion_only_loss=false")
    assert "`--set train.turns=last --set train.completion_only_loss=true`" in caught.value.hint
    (record,) = read(path, chatml, "prompt.thinking=keep", "train.turns=last").records
    assert turns_of(record) == (TURNS[0], turns[1])
    first_alone = write(tmp_path / "y.jsonl", [{"messages": messages((turns[0], TURNS[1]))}])
    with pytest.raises(ToolkitError, match="answers begin with `<think>`"):
        read(first_alone, chatml, "prompt.thinking=off", "train.turns=last")


def test_a_rejected_chat_shows_its_texts(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "x.jsonl", [{"messages": messages()}, {"messages": [*user("a", "b")]}]))
    rejected: Rejection = rows.rejected[0]
    assert rejected.text == "a | b"
    assert Config().data.merge_messages is False


texts = st.one_of(
    st.none(), st.sampled_from(["", " ", "What?", "\ud800", "[", "<image>"]), st.text(max_size=5), st.integers()
)
part = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image_url", "tool_use", 3]), "text": texts}
)
contents = st.one_of(texts, st.lists(st.one_of(part, texts), max_size=3), part)
message: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool", "User "]), texts),
        "content": contents,
        "from": st.sampled_from(["human", "gpt", None]),
        "value": contents,
        "tool_calls": st.one_of(st.none(), st.just([{}]), texts),
    },
)
cells = st.one_of(
    contents,
    st.lists(st.one_of(message, texts, st.lists(texts, max_size=3)), max_size=5),
    st.dictionaries(st.sampled_from(["role", "content", "messages"]), st.lists(texts, max_size=3)),
)


@settings(max_examples=tries(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"messages": cells}, optional={"history": cells, "input": contents, "output": contents, "images": cells}
        ),
        min_size=1, max_size=4,
    ),
    merge=st.booleans(), named=st.booleans(),
)  # fmt: skip
def test_no_row_of_any_form_is_lost(rows: list[Any], merge: bool, named: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = {"messages": messages(), "input": "What?", "output": "That.", "history": [["q", "a"]]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *rows]), encoding="utf-8")
    column = ["data.messages_column=messages"] if named else []
    found = read(path, f"data.merge_messages={str(merge).lower()}", "data.personal=off", *column)
    there = [row for row in [good, *rows] if not all(map(is_blank, row.values()))]
    assert len(found.records) + len(found.rejected) == found.count == len(there)
    for record in found.records:
        assert all(text and text == text.strip() for turn in turns_of(record) for text in turn)


@pytest.mark.parametrize("form", ["messages", "history", "prompt and completion"])
def test_a_chat_that_no_context_holds_is_rejected_although_each_turn_is_short(form: str, tmp_path: Path) -> None:
    def row(turns: int) -> dict[str, Any]:
        said = [(f"Question {turn:990}?", 990 * "a") for turn in range(turns)]
        if form == "history":
            return {**PLAIN, "history": said}
        if form == "messages":
            return {"messages": messages(tuple(said))}
        last = messages(TURNS[:1])
        return {"prompt": messages(tuple(said)) + last[:1], "completion": last[1:]}

    rows = read(write(tmp_path / "x.jsonl", [row(2), row(520), row(3)]), "data.personal=off")
    assert [record.number for record in rows.records] == [1, 3]
    (rejected,) = rows.rejected
    assert (rejected.number, rejected.reason) == (2, ENDLESS) and " has 1," in rejected.detail
