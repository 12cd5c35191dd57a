"""Personal data on its way through prepare: listed, masked, refused, or not looked for."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.processor import processor_seconds
from toolkit.core import config, config_file, console
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import checks, personal, prepare
from toolkit.prepare.division import read_rows
from toolkit.prepare.language import file_language
from toolkit.prepare.personal.analyzer import Span, finder
from toolkit.prepare.personal.masking import Placeholders, everywhere, hidden
from toolkit.prepare.source import Source
from toolkit.prompt.tokenizer import Tokenizer

SECRETS = ("529.982.247-25", "52998224725", "maria@example.org", "98765-4321", "12/03/1961", "4111 1111 1111 1111")


def build(*overrides: str) -> config.Config:
    return config_file.build({}, overrides)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "exports/x", "x")


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    plain = [{"question": f"What is question {at}?", "answer": f"An answer about {at}."} for at in range(20)]
    names = [*dict.fromkeys(name for row in [*rows, *plain] for name in row)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows([*rows, *plain])
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return table(
        tmp_path / "x.csv",
        [
            {"question": "CPF 529.982.247-25, nasc. 12/03/1961: what now?", "answer": "Ask for 52998224725, CPF."},
            {"question": "Is it me?", "answer": "Write to maria@example.org or call (11) 98765-4321."},
            {"question": "Is it me?", "answer": "Write to MARIA@example.org or call (11) 98765-4321."},
            {"question": "", "answer": "Paid with 4111 1111 1111 1111"},
            {"question": "", "answer": "x" * 186 + " CPF 529.982.247-25"},
        ],
    )


def everything(folder: RunFolder) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.data.iterdir())


@pytest.mark.slow
def test_what_is_found_is_listed_without_its_value(
    source: Path, folder: RunFolder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = prepare(build(), folder, source, tokenizer).figures
    kinds = {"BR_CPF": 2, "EMAIL_ADDRESS": 2, "PHONE_NUMBER": 2, "DATE_OF_BIRTH": 1}
    assert figures["personal"] == {"mode": "warn", "looked": True, "names": False, "rows": 3, "kinds": kinds}
    listed = lines(folder.personal)
    assert listed[0] == {
        "file": str(source), "row": 1, "column": "question", "kind": "BR_CPF", "score": 1.0,
        "text": "CPF <BR_CPF_1>, nasc. <DATE_OF_BIRTH_1>: what now?",
    }  # fmt: skip
    assert listed[2]["column"] == "answer" and listed[2]["text"] == "Ask for <BR_CPF_1>, CPF."  # the same number again
    assert not any(secret in folder.personal.read_text() for secret in SECRETS)
    assert "529.982.247-25" in everything(folder)  # the records are as they were
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 23 rows may hold personal data (2 CPF, 2 e-mail address, 2 telephone, 1 date of birth)" in said
    assert "names were not looked for" in said and "warning" in said


def test_masked_before_the_duplicates_are_dropped(source: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    figures = prepare(build("data.personal=mask"), folder, source, tokenizer).figures
    assert figures["duplicates"] == 1  # the two e-mail addresses differ in case alone
    assert not [secret for secret in SECRETS if secret.lower() in everything(folder).lower()]
    rows = {row["row"]: row for name in SPLITS for row in lines(folder.split_file(name))}
    assert rows[1]["input"] == "CPF <BR_CPF_1>, nasc. <DATE_OF_BIRTH_1>: what now?"
    assert rows[1]["output"] == "Ask for <BR_CPF_1>, CPF."
    assert rows[2]["output"] == "Write to <EMAIL_ADDRESS_1> or call <PHONE_NUMBER_1>."
    assert rows[6]["output"] == "An answer about 0."


def test_a_rejected_row_does_not_show_what_was_masked(source: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    """Its text is cut at 200 characters, here inside the CPF: the part of a number is not shown either."""
    prepare(build("data.personal=mask"), folder, source, tokenizer)
    first, second = lines(folder.rejected)
    assert first["text"] == "Paid with <CREDIT_CARD_1>" and first["reason"] == "empty question"
    assert second["text"] == "x" * 186 + " CPF …"


def test_a_rejected_row_with_control_characters_does_not_show_it_either(
    tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer
) -> None:
    path = table(tmp_path / "c.csv", [{"question": "CPF 529.982\x01.247-25?", "answer": "4111 1111\x7f 1111 1111"}])
    prepare(build("data.personal=mask"), folder, path, tokenizer)
    (row,) = lines(folder.rejected)
    assert row["text"] == "CPF <BR_CPF_1>? | <CREDIT_CARD_1>" and row["reason"] == "binary or undecodable text"


@pytest.mark.parametrize("mode", ["mask", "refuse"])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (f"call {'1' * 60} please, or {'write ' * 40}", f"call {'1' * 60} please, or {'write ' * 20}".rstrip()),
        (f"{'12 34-56 ' * 14}words {'more ' * 30}", f"{'12 34-56 ' * 14}words {'more ' * 13}".rstrip()),
        (f"{'word ' * 30}{'98 76 ' * 30}", "word " * 29 + "word"),
        ("7" * 300, ""),
        (f"{'word ' * 40}7", "word " * 39 + "word"),
    ],
)
def test_a_rejected_row_with_many_digits_is_shown_at_once(mode: str, answer: str, text: str, tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", [{"question": "", "answer": answer}])
    with processor_seconds(5):
        (rejected,) = read_rows([Source(path)], build(f"data.personal={mode}")).rejected
    assert rejected.text == f"{text} …"


@pytest.mark.parametrize("mode", ["mask", "refuse"])
@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("CPF\n529.982.247-25", "`CPF\n<BR_CPF_1>`"),
        ("CPF 529.982\x00.247-25", "`CPF <BR_CPF_1>`"),
        ("CPF of the patient in our ward is 529.982.247-25", "a text of 48 characters"),
    ],
)
@pytest.mark.parametrize("part", [False, True])
def test_nor_what_stands_in_place_of_a_role_or_a_type(
    mode: str, role: str, said: str, part: bool, tmp_path: Path
) -> None:
    said_first = {"role": "user", "content": [{"type": role}]} if part else {"role": role, "content": "What helps?"}
    whole = [{"role": "user", "content": "What helps?"}, {"role": "assistant", "content": "Rest."}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in ([said_first, *whole], whole)))
    (rejected,) = read_rows([Source(path)], build(f"data.personal={mode}")).rejected
    assert rejected.detail.endswith(said)


@pytest.mark.parametrize(("mode", "there"), [("warn", True), ("warn", False), ("mask", True), ("refuse", True)])
def test_nor_does_the_message_where_all_rows_are_rejected(
    mode: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "CPF\n529.982.247-25\x01", "content": "What helps?"}]}))
    monkeypatch.setattr(personal, "presidio_there", lambda: there)
    with pytest.raises(ToolkitError) as caught:
        read_rows([Source(path)], build(f"data.personal={mode}"))
    assert "unknown role" in caught.value.message and "\n" not in caught.value.message
    assert "529" not in caught.value.message


def test_where_personal_data_is_refused_a_rejected_row_shows_none(
    tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer
) -> None:
    path = table(tmp_path / "r.csv", [{"question": "", "answer": "CPF 529.982.247-25"}])
    prepare(build("data.personal=refuse"), folder, path, tokenizer)
    assert [row["text"] for row in lines(folder.rejected)] == ["CPF <BR_CPF_1>"]


def test_refused(source: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    with pytest.raises(ToolkitError) as caught:
        prepare(build("data.personal=refuse"), folder, source, tokenizer)
    said = caught.value.message
    assert caught.value.exit_code == 2 and "3 of 23 rows may hold personal data (2 CPF" in said
    assert f"row 1 of `{source}`, question: `CPF <BR_CPF_1>, nasc. <DATE_OF_BIRTH_1>: what now?`" in said
    assert not any(secret in said for secret in SECRETS) and not folder.path.exists()
    assert "data.personal=mask" in caught.value.hint
    with pytest.raises(ToolkitError, match="may hold personal data"):
        checks.data(build("data.personal=refuse", f"data.source={source}"), lambda: tokenizer, offline=True)


@pytest.mark.parametrize(("mode", "told"), [("mask", True), ("refuse", True), ("warn", False)])
def test_where_nothing_is_found_a_mask_says_what_it_did_not_look_for(
    mode: str, told: bool, tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(build(f"data.personal={mode}"), folder, table(tmp_path / "plain.csv", []), tokenizer)
    said = " ".join(capsys.readouterr().err.split())
    assert ("nothing personal was found in 20 rows; names were not looked for (data.personal_model)" in said) is told


def test_the_doctor_counts_too(source: Path, tokenizer: Tokenizer) -> None:
    check = checks.data(build(f"data.source={source}"), lambda: tokenizer, offline=True)
    assert check.ok and "3 of 23 rows may hold personal data (2 CPF" in check.found
    check = checks.data(build(f"data.source={source}", "data.personal=off"), lambda: tokenizer, offline=True)
    assert check.ok and "personal" not in check.found


def test_off(source: Path, folder: RunFolder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal, "finder", None)
    figures = prepare(build("data.personal=off"), folder, source, tokenizer).figures
    assert figures["personal"]["looked"] is False and figures["personal"]["kinds"] == {}
    assert folder.personal.read_text() == ""


def test_init_does_not_look(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal, "finder", None)
    assert file_language(source) in ("", "en")


def test_without_the_extra(
    source: Path,
    folder: RunFolder,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The default says in one line how many rows to look at; what was asked for is not left out in silence."""
    monkeypatch.setattr(personal, "presidio_there", lambda: False)
    figures = prepare(build(), folder, source, tokenizer).figures
    assert figures["personal"]["looked"] is False and folder.personal.read_text() == ""
    said = " ".join(capsys.readouterr().err.split())
    assert "personal data was not looked for, and 3 of 23 rows have long numbers or the like" in said
    assert "[privacy]" in said and "data.personal=off" in said
    for setting in ("data.personal=mask", "data.personal=refuse", "data.personal_model=somewhere"):
        with pytest.raises(ToolkitError, match="needs Presidio") as caught:
            prepare(build(setting), folder, source, tokenizer)
        assert caught.value.exit_code == 3 and "[privacy]" in caught.value.hint


def test_a_column_of_identifiers(tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    """The name of the column says what its numbers are; with `mask` the row's number stands for them."""
    path = table(tmp_path / "ids.csv", [{"id": "529.982.247-25", "question": "Why so?", "answer": "Because."}])
    prepare(build("data.personal=mask"), folder, path, tokenizer)
    assert lines(folder.personal)[0]["column"] == "id" and "529.982" not in everything(folder)
    assert {row["id"] for name in SPLITS for row in lines(folder.split_file(name))} >= {"1"}


def test_a_value_that_the_text_names_is_hidden_inside_a_files_name(
    tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer
) -> None:
    rows = [
        {"question": "CPF 529.982.247-25: where?", "answer": "In exam_52998224725.pdf and 52998224725_b.pdf."},
        {"question": "MRN 4481220: where?", "answer": "In scans/4481220_left.png, not in 94481220.png."},
    ]
    prepare(build("data.personal=mask"), folder, table(tmp_path / "f.csv", rows), tokenizer)
    outputs = {row["row"]: row["output"] for name in SPLITS for row in lines(folder.split_file(name))}
    assert outputs[1] == "In exam_<BR_CPF_1>.pdf and <BR_CPF_1>_b.pdf."
    assert outputs[2] == "In scans/<MEDICAL_RECORD_1>_left.png, not in 94481220.png."


def test_an_identifier_that_the_text_names_is_hidden_as_well(
    tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer
) -> None:
    """A bare number says nothing by itself; the same row's text says whose it is, or the other way round."""
    rows = [
        {"id": "12345678", "question": "MRN 12345678: why so?", "answer": "Because."},
        {"id": "529.982.247-25", "question": "Is it high?", "answer": "Ask 52998224725."},
        {"id": "A-7", "question": "MRN 12345679: why so?", "answer": "As it was."},
    ]
    prepare(build("data.personal=mask"), folder, table(tmp_path / "ids.csv", rows), tokenizer)
    assert "12345678" not in everything(folder) and "52998224725" not in everything(folder)
    ids = {row["row"]: row["id"] for name in SPLITS for row in lines(folder.split_file(name))}
    assert (ids[1], ids[2], ids[3]) == ("1", "2", "A-7")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("CPF 529\u00a0982\u00a0247\u00a025.", "CPF <BR_CPF_1>."),
        ("\u200bCPF 529.982.247\u200b-25.", "\u200bCPF <BR_CPF_1>."),
        ("n\u00e3o: 529.982.247\u201125, 529\u202f982\u202f247-25", "n\u00e3o: <BR_CPF_1>, <BR_CPF_1>"),
        ("Write to maria\u00ad@exam\u00adple.org\ufeff", "Write to <EMAIL_ADDRESS_1>\ufeff"),
        ("MRN\u00a04481\u2011220 \u2013 BP 180/90", "MRN\u00a0<MEDICAL_RECORD_1> \u2013 BP 180/90"),
    ],
)
def test_spaces_and_hyphens_of_word_processors_hide_nothing(text: str, masked: str) -> None:
    spans = finder("")(text)
    assert hidden(text, spans, Placeholders([text]))[0] == masked


def test_a_date_of_birth_is_hidden_in_any_order_of_its_numbers() -> None:
    texts = ["Born 12/03/1985.", "1985-03-12, 12.3.1985, 12 - 03 - 1985; 1985-3-13, 112/03/1985, 2019-03-12"]
    placeholders = Placeholders(texts)
    masked = [
        hidden(text, spans, placeholders)[0] for text, spans in zip(texts, everywhere(texts, finder("")), strict=True)
    ]
    one = "<DATE_OF_BIRTH_1>"
    assert masked == [f"Born {one}.", f"{one}, {one}, {one}; 1985-3-13, 112/03/1985, 2019-03-12"]
    texts = ["DOB: 1961-12-31", "31/12/1961, 12/31/1961"]
    placeholders = Placeholders(texts)
    masked = [
        hidden(text, spans, placeholders)[0] for text, spans in zip(texts, everywhere(texts, finder("")), strict=True)
    ]
    assert masked == [f"DOB: {one}", f"{one}, {one}"]


@pytest.mark.parametrize(
    ("texts", "masked"),
    [
        (
            ["Call (11) 98765-4321.", "Her telephone: +55 11 98765-4321 or 0xx11 98765-4321, tel. 98765-4321."],
            ["Call <>.", "Her telephone: <> or <>, tel. <>."],
        ),
        (["Phone 020 7946 0958", "+44 20 7946 0958, +44 (0)20 7946 0958"], ["Phone <>", "<>, <>"]),
        (["Call 212-555-0142", "+1 212 555 0142; phone (212) 555-0142"], ["Call <>", "<>; phone <>"]),
        (["Write to ana@example.com", "Ana (at) example.com, ana[at]example.com"], ["Write to <>", "<>, <>"]),
        (["DOB 12 March 1985", "born on 12/03/1985; 12.3.1985"], ["DOB <>", "born on <>; <>"]),
        (["DOB 12/03/1985", "On March 12th, 1985 and 12 de março de 1985."], ["DOB <>", "On <> and <>."]),
    ],
)
def test_one_value_has_one_placeholder_however_it_is_written(texts: list[str], masked: list[str]) -> None:
    placeholders = Placeholders(texts)
    found = everywhere(texts, finder(""))
    said = [hidden(text, spans, placeholders)[0] for text, spans in zip(texts, found, strict=True)]
    assert [re.sub("<[A-Z_]+_1>", "<>", text) for text in said] == masked


def test_other_values_have_other_placeholders() -> None:
    text = "Call (11) 98765-4321, (11) 98765-4322 or (21) 98765-4321. DOB 12/03/1985, mother born 12 April 1985."
    placeholders = Placeholders([text])
    given = re.findall(r"<([A-Z_]+_\d)>", hidden(text, finder("")(text), placeholders)[0])
    assert given == ["PHONE_NUMBER_1", "PHONE_NUMBER_2", "PHONE_NUMBER_3", "DATE_OF_BIRTH_1", "DATE_OF_BIRTH_2"]


def test_context_and_instruction_are_looked_at(tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    rows = [
        {
            "question": "Is it high?",
            "answer": "Yes.",
            "note": "MRN 4481-220, BP 180/90",
            "instruction": "Answer ana@example.org:",
        }
    ]
    path = table(tmp_path / "c.csv", rows)
    prepare(build("data.personal=mask", "data.context_column=note"), folder, path, tokenizer)
    row = next(row for name in SPLITS for row in lines(folder.split_file(name)) if row["row"] == 1)
    assert row["input"] == "MRN <MEDICAL_RECORD_1>, BP 180/90\n\nIs it high?"
    assert row["instruction"] == "Answer <EMAIL_ADDRESS_1>:"


def test_files_are_named(tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    from toolkit.prepare.source import Source

    paths = [
        table(tmp_path / f"{name}.csv", [{"question": f"{name}?", "answer": "CPF 529.982.247-25"}]) for name in "ab"
    ]
    prepare(build(), folder, [Source(path) for path in paths], tokenizer)
    assert [row["file"] for row in lines(folder.personal)] == [str(path) for path in paths]


def test_numbers_already_given_are_not_given_again() -> None:
    text = "<BR_CPF_3> and CPF 529.982.247-25, again 529 982 247 25"
    spans = [Span("BR_CPF", 1.0, 19, 33), Span("BR_CPF", 1.0, 41, 55)]
    assert hidden(text, spans, Placeholders([text])) == (
        "<BR_CPF_3> and CPF <BR_CPF_4>, again <BR_CPF_4>",
        ["<BR_CPF_3> and CPF <BR_CPF_4>, again <BR_CPF_4>"] * 2,
    )


NOTE = "Maria, CPF 529.982.247-25, tel (11) 98765-4321, what should she take against fever and cough in winter"


@pytest.mark.parametrize("mode", ["warn", "mask", "refuse", "off"])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (f"question,answer\n{NOTE.replace(',', ';')},\n" * 2, "no usable row"),
        ("529.982.247-25,12/03/1961,rest and drink\n" * 3, "no column with the answer"),
        ("Maria Silva,maria@example.org,rest\n" * 3, "no column with the answer"),
        ("4111 1111 1111 1111;What helps?;rest\n" * 3, "no column with the answer"),
    ],
)
def test_an_error_shows_no_personal_data_of_a_row(
    mode: str, content: str, error: str, tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ToolkitError) as caught:
        prepare(build(f"data.personal={mode}"), folder, path, tokenizer)
    said = f"{caught.value.message} {caught.value.hint}"
    assert error in said and ("first line that names the columns" in said or "column `answer` is empty" in said)
    assert any(secret in said for secret in SECRETS) is (mode == "off")
    if error.startswith("no column") and mode != "off":
        assert "found 3 cells in the first row, which looks like data and is not shown (data.personal)" in said


def test_the_header_of_a_file_is_shown(tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Pergunta do paciente,Resposta 2021,nº\nq,a,1\n", encoding="utf-8")
    with pytest.raises(ToolkitError, match="found `Pergunta do paciente`, `Resposta 2021`, `nº`"):
        prepare(build(), folder, path, tokenizer)


def test_examples_on_the_screen_are_masked(
    tmp_path: Path, folder: RunFolder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{NOTE} {at}?", "answer": f"<b>CPF 529.982.247-25</b> {at}"} for at in range(40)]
    console.configure()
    prepare(build(), folder, table(tmp_path / "x.csv", rows), tokenizer)
    said = capsys.readouterr().err
    assert "near-duplicate (0." in said and "HTML tags" in said and "<BR_CPF_1>" in said
    assert not any(secret in said for secret in SECRETS)


def test_without_presidio_such_a_row_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal, "presidio_there", lambda: False)
    assert personal.for_screen(NOTE, build().data) == "(not shown: it may hold personal data)"
    assert personal.for_screen("What helps?", build().data) == "What helps?"
