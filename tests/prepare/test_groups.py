"""`data.group_column`: the rows of a patient, document or department stay in one split, and so do a question's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core import console
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import prepare
from toolkit.prepare.cells import group_name
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.groups import tied
from toolkit.prepare.remarks import groups_tied
from toolkit.prepare.split import asked, grouped_split, leaked, split
from toolkit.prompt.tokenizer import Tokenizer


def record(number: int, question: str, group: str = "") -> Record:
    return Record(
        str(number), number, number, "Explain:", question, f"answer {number}", normalise(question), group=group
    )


ROWS = st.lists(
    st.tuples(st.integers(0, 12).map("question {}".format), st.sampled_from(["", *"abcdefgh"])), max_size=40
)


def components(rows: list[tuple[str, str]]) -> list[set[int]]:
    """What is tied, by joining sets until none of them share a question or a group."""
    parts = [{number} for number in range(len(rows))]
    joined = True
    while joined:
        joined = False
        for one in parts:
            for other in parts:
                if one is not other and any(
                    rows[a][0] == rows[b][0] or (rows[a][1] and rows[a][1] == rows[b][1]) for a in one for b in other
                ):
                    one |= other
                    parts.remove(other)
                    joined = True
                    break
            if joined:
                break
    return parts


@given(rows=ROWS)
def test_what_is_tied_by_questions_and_groups_has_one_name(rows: list[tuple[str, str]]) -> None:
    records = [record(number, *row) for number, row in enumerate(rows)]
    names = tied(records)
    for order in (records, records[::-1]):
        assert tied(order) == names
    found: dict[str, set[int]] = {}
    for each in records:
        found.setdefault(names[each.normalised], set()).add(each.number)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, components(rows)))


@given(rows=ROWS, seed=st.integers(0, 20))
def test_no_group_and_no_question_lies_in_two_splits(rows: list[tuple[str, str]], seed: int) -> None:
    records = [record(number, *row) for number, row in enumerate(rows)]
    splits = grouped_split(records, DataSettings(seed=seed, group_column="patient"))
    where: dict[tuple[str, str], set[str]] = {}
    for name, some in splits.items():
        for each in some:
            where.setdefault(("question", each.normalised), set()).add(name)
            if each.group:
                where.setdefault(("group", each.group), set()).add(name)
    assert all(len(names) == 1 for names in where.values()) and leaked(asked(splits)) == 0
    assert sorted(each.number for some in splits.values() for each in some) == list(range(len(rows)))


def test_without_groups_the_split_is_that_of_the_questions() -> None:
    records = [record(number, f"question {number % 40}") for number in range(100)]
    assert set(tied(records).items()) == {(each.normalised, each.normalised) for each in records}


def test_rows_more_move_no_other_row() -> None:
    """New patients with questions of their own, and more rows of patients who are there."""
    records = [record(number, f"question {number}", f"patient {number // 4:03}") for number in range(200)]
    more = [record(1000 + number, f"new question {number}", f"patient {number % 55:03}") for number in range(8)]
    settings = DataSettings(group_column="patient")
    before, after = (split(some, settings) for some in (records, [*records, *more]))
    for name in SPLITS:
        assert {each.number for each in before[name]} <= {each.number for each in after[name]} | {999}


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        (["7", 7, 7.0, "7.0", " 7 ", ["7"]], "7"),
        (["Cardiology", "cardiology ", "CARDIOLOGY", "Ｃardiology"], "cardiology"),
        (["007", "007 "], "007"),
        (["", None, float("nan"), "  "], ""),
        ([["a", "b"], {"a": 1}], None),
        (["Ana  Silva", "ana silva"], "ana silva"),
        ([2.5, "2.5"], "2.5"),
    ],
)
def test_a_group_has_one_name_however_it_is_written(cells: list[Any], name: str | None) -> None:
    assert {group_name(cell) for cell in cells} == {name}


Prepared = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> Prepared:
    folder = RunFolder(tmp_path / "exports/x", "x")
    console.configure()

    def run(source: Path, *settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        figures = prepare(build({}, settings), folder, source, tokenizer).figures
        assert figures["kept"] + figures["duplicates"] + figures["rejected"] == figures["rows"]
        found = []
        for name in SPLITS:
            with folder.split_file(name).open(encoding="utf-8") as file:
                found += [{**json.loads(line), "split": name} for line in file]
        return figures, found

    return run


def csv_file(path: Path, rows: list[tuple[str, str, str]], header: str = "patient_id,question,answer") -> Path:
    path.write_text(header + "\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


PATIENTS = [(f"BR-{n // 5:03}", f"what about {n}", f"answer {n}") for n in range(100)]


def test_patients_stay_in_one_split(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = csv_file(tmp_path / "mine.csv", [*PATIENTS, ("", "one without", "a"), ("N/A", "another without", "a")])
    figures, rows = prepared(source, "data.group_column=Patient_ID")
    where: dict[int, set[str]] = {}
    for row in rows:
        where.setdefault((row["row"] - 1) // 5, set()).add(row["split"])
    assert all(len(names) == 1 for number, names in where.items() if number < 20) and figures["test"] >= 5
    assert figures["columns"]["group"] == "patient_id" and "unused_columns" in figures
    said = capsys.readouterr().err
    assert "20 groups by `Patient_ID`, each in one split; 2 rows without one are grouped by question alone" in said
    assert "group ← patient_id" in said and "BR-0" not in said + json.dumps(rows) + json.dumps(figures)


@pytest.mark.parametrize(
    ("setting", "near"),
    [("patient", "patient_id"), ("patientid", "patient_id"), ("pateint_id", "patient_id"), ("PatientID", "patient_id")],
)
def test_a_wrong_name_is_told_the_right_one(setting: str, near: str, prepared: Prepared, tmp_path: Path) -> None:
    source = csv_file(tmp_path / "mine.csv", PATIENTS)
    with pytest.raises(ToolkitError) as caught:
        prepared(source, f"data.group_column={setting}")
    assert (
        f"no column with the group: wanted `{setting}`, found `patient_id`, `question`, `answer`"
        in caught.value.message
    )
    assert caught.value.hint == f"did you mean `{near}`? `--set data.group_column={near}`"
    prepared(source, f"data.group_column={near}")


def test_every_setting_of_a_column_is_told_the_right_one(prepared: Prepared, tmp_path: Path) -> None:
    source = csv_file(tmp_path / "mine.csv", PATIENTS, "patient_id,pergunta,resposta")
    for role, wrong, right in (("question", "pregunta", "pergunta"), ("answer", "respostas", "resposta")):
        with pytest.raises(ToolkitError) as caught:
            prepared(source, f"data.{role}_column={wrong}")
        assert f"--set data.{role}_column={right}`" in caught.value.hint


@pytest.mark.parametrize(
    ("role", "wrong", "hint"),
    [
        ("group", "pacient", "did you mean `patient`? `--set data.group_column=patient`"),
        ("context", "pasient", "did you mean `patient`? `--set data.context_column=patient`"),
        ("messages", "message", "did you mean `messages`? `--set data.messages_column=messages`"),
        ("group", "ward", "name one of these columns with `--set data.group_column=NAME`, or leave that setting out"),
    ],
)
def test_of_a_file_of_chats_too_a_wrong_name_is_told_the_right_one(
    role: str, wrong: str, hint: str, prepared: Prepared, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "What helps?"}, {"role": "assistant", "content": "Rest."}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"messages": said, "patient": n}) + "\n" for n in range(20)))
    with pytest.raises(ToolkitError) as caught:
        prepared(path, f"data.{role}_column={wrong}")
    assert f"wanted `{wrong}`, found `messages`, `patient`" in caught.value.message and caught.value.hint == hint


def test_a_list_is_no_group(prepared: Prepared, tmp_path: Path) -> None:
    rows = [{"who": n // 2, "question": f"what about {n}", "answer": "a"} for n in range(40)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "who": [1, 2]}]))
    figures, _ = prepared(path, "data.group_column=who")
    assert figures["reasons"] == {"a list or object instead of text": 1}


def test_the_id_may_be_the_group_and_so_may_the_context(prepared: Prepared, tmp_path: Path) -> None:
    rows = [{"id": n // 4, "passage": f"text {n // 4}", "question": f"what is {n}", "answer": "a"} for n in range(80)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for settings in (["data.group_column=id"], ["data.group_column=passage", "data.context_column=passage"]):
        figures, found = prepared(path, *settings)
        splits = [{row["split"] for row in found if (row["row"] - 1) // 4 == n} for n in range(20)]
        assert all(len(names) == 1 for names in splits) and figures["val"] >= 4


def test_a_group_column_and_a_random_split_do_not_go_together() -> None:
    with pytest.raises(ToolkitError) as caught:
        build({}, ["data.split=random", "data.group_column=patient"])
    assert 'leave it at "grouped"' in f"{caught.value.message} {caught.value.hint}"


def test_groups_that_one_question_ties_are_warned_of(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied_rows = [(f"p{n}", "how are you", f"answer {n}") for n in range(60)]
    source = csv_file(tmp_path / "mine.csv", [*tied_rows, *PATIENTS[:40]])
    figures, _ = prepared(source, "data.group_column=patient_id")
    assert (
        "60 groups, 60 of 100 rows, stay in one split, because they ask the same questions" in capsys.readouterr().err
    )
    assert figures["val"] and figures["test"]
    assert groups_tied([record(n, f"question {n}", "one") for n in range(10)]) == ""


def test_groups_that_leave_no_split_have_a_way_out(prepared: Prepared, tmp_path: Path) -> None:
    rows = [("one", f"what about {n}", f"answer {n}") for n in range(40)]
    with pytest.raises(ToolkitError) as caught:
        prepared(csv_file(tmp_path / "mine.csv", rows), "data.group_column=patient_id")
    assert "leaves val empty: 40 usable rows of 40 questions in 1 group give" in caught.value.message
    assert "random" not in caught.value.hint and "`--set data.group_column=` gives train" in caught.value.hint


@pytest.mark.parametrize("form", ["messages", "prompt and completion", "system"])
def test_the_groups_of_chats_are_taken_and_not_called_unused(
    form: str, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(number: int) -> dict[str, Any]:
        said = [
            {"role": role, "content": f"{text} {number}"}
            for text in ("What is case", "And of case")
            for role in ("user", "assistant")
        ]
        chat = {"prompt": said[:3], "completion": said[3:]} if form == "prompt and completion" else {"messages": said}
        return {**chat, "system" if form == "system" else "ward": f"W{number % 6}" if number % 7 else None}

    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(60)))
    name = "system" if form == "system" else "ward"
    figures, rows = prepared(path, f"data.group_column={name}")
    assert figures["columns"]["group"] == name and figures["unused_columns"] == []
    assert "instruction" not in figures["columns"]
    said = capsys.readouterr().err
    assert f"group ← {name}" in said and "not used" not in said
    splits: dict[int, set[str]] = {}
    for one in rows:
        if (one["row"] - 1) % 7:
            splits.setdefault((one["row"] - 1) % 6, set()).add(one["split"])
    assert len(splits) == 6 and all(len(found) == 1 for found in splits.values())
