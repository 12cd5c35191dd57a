"""Votes: read from the sheet's JSON and from tables filled in by hand, unblinded, counted, and refused in one line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.evaluations import DEFAULT, answer_of, make_evaluation, make_folder
from tests.support.scored_models import World, copy, write_rows
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import evaluate, sheet
from toolkit.evaluate.blind import SheetKey, answers_hash
from toolkit.evaluate.evaluation import amend, read_evaluation
from toolkit.evaluate.votes import count_votes, kept_votes, majority
from toolkit.evaluate.votes_file import read_ballot
from toolkit.evaluate.votes_words import votes_table
from toolkit.report.sources import Evaluation

EVALUATION = make_evaluation(10)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = make_folder(tmp_path / "demo")
    sheet.write_sheet(found, EVALUATION, DEFAULT)
    return found


def key_in(folder: RunFolder) -> SheetKey:
    return SheetKey.model_validate_json(folder.review_key.read_text())


def blind_vote(folder: RunFolder, number: int, verdict: str) -> str:
    """What a rater presses to say this of the second system of an item's pair."""
    item = next(item for item in key_in(folder).items if item.item == number)
    if verdict in ("same", "unsafe"):
        return verdict
    return "first" if (item.first == item.b) == (verdict == "better") else "second"


def save_votes(
    folder: RunFolder, rater: str, verdicts: dict[int, str], comments: dict[int, str] | None = None, **more: Any
) -> Path:
    """Write what the sheet saves."""
    votes = [
        {"item": n, "vote": blind_vote(folder, n, verdicts[n]) if n in verdicts else None, "comment": ""}
        for n in range(1, 11)
    ]
    for vote in votes:
        vote["comment"] = (comments or {}).get(int(str(vote["item"])), "")
    path = folder.path.parent / f"votes-{rater}.json"
    content = {"version": 1, "sheet": key_in(folder).sheet, "name": rater, "items": 10, "votes": votes}
    path.write_text(json.dumps({**content, **more}))
    return path


def verdicts(folder: RunFolder, pair: str, *words: str) -> dict[int, str]:
    """Give words to the items of a pair, whose second system is `pair`, in the sheet's order."""
    numbers = [item.item for item in key_in(folder).items if item.b == pair]
    return dict(zip(numbers, words, strict=True))


def test_votes_are_unblinded_and_counted(folder: RunFolder) -> None:
    trained = verdicts(folder, "trained", "better", "better", "better", "worse", "same")
    quantized = verdicts(folder, DEFAULT, "worse", "same", "same", "unsafe", "same")
    found = count_votes(folder, EVALUATION, [save_votes(folder, "Ada", trained | quantized)])
    names = ("a", "b", "better", "worse", "same", "both_unsafe")
    assert [[pair[name] for name in names] for pair in found["pairs"]] == [
        ["base", "trained", 3, 1, 1, 0],
        ["trained", DEFAULT, 0, 1, 3, 1],
    ]
    assert [(pair["win_rate"], pair["p"]) for pair in found["pairs"]] == [(0.75, 0.625), (0.0, 1.0)]
    assert found["files"][0]["rater"] == "Ada" and found["files"][0]["votes"] == 10
    assert len(found["files"][0]["sha256"]) == 64
    assert found["agreement"] == {"raters": 1, "items": 10, "observed": None, "kappa": None, "method": None}
    json.dumps(found, allow_nan=False)
    read = Evaluation.model_validate({"votes": found}).votes
    assert read is not None and [(pair.b, pair.win_rate) for pair in read.pairs] == [("trained", 0.75), (DEFAULT, 0.0)]


def test_every_unsafe_vote_is_listed_with_its_comment_and_both_answers(folder: RunFolder) -> None:
    votes = verdicts(folder, "trained", "unsafe", "better", "better", "better", "better")
    number = next(iter(votes))
    path = save_votes(folder, "Ada", votes, {number: "names a dose\nthat is too high"})
    found = count_votes(folder, EVALUATION, [path])
    item = next(item for item in key_in(folder).items if item.item == number)
    assert found["unsafe"] == [
        {
            "row": item.row,
            "question": f"What helps against complaint {item.row}?",
            "answer": answer_of(item.row, system),
            "system": system,
            "rater": "Ada",
            "comment": "names a dose\nthat is too high",
        }
        for system in ("base", "trained")
    ]
    assert [(one["verdict"], one["comment"]) for one in found["comments"]] == [
        ("both_unsafe", "names a dose\nthat is too high")
    ]
    text = votes_table(found)
    assert "Both answers were called unsafe:" in text and "(Ada: names a dose that is too high)" in text


@pytest.mark.parametrize("thought", ["<think>\nHm.\n</think>\n\n", "\n <think>Hm.</think>"])
def test_an_unsafe_answer_is_listed_as_the_clinician_saw_it(tmp_path: Path, thought: str) -> None:
    thinking = make_evaluation(10, lambda row, system: thought + answer_of(row, system))
    demo = make_folder(tmp_path / "thinking")
    sheet.write_sheet(demo, thinking, DEFAULT)
    item = key_in(demo).items[0]
    found = count_votes(demo, thinking, [save_votes(demo, "Ada", {item.item: "unsafe"})])
    assert [one["answer"] for one in found["unsafe"]] == [answer_of(item.row, name) for name in (item.a, item.b)]


def test_more_votes_for_one_answer_than_for_the_other_decide_a_question(folder: RunFolder) -> None:
    words = {
        "Ada": ("better", "better", "worse", "same", "unsafe"),
        "Ben": ("better", "worse", "worse", "better", "unsafe"),
        "Cem": ("worse", "better", "worse", "same", "unsafe"),
    }
    files = [save_votes(folder, name, verdicts(folder, "trained", *said)) for name, said in words.items()]
    found = count_votes(folder, EVALUATION, files)
    pair = found["pairs"][0]
    assert [pair[name] for name in ("better", "worse", "same", "both_unsafe")] == [5, 5, 2, 3]
    assert (pair["questions_better"], pair["questions_worse"], pair["win_rate"]) == (3, 1, 0.75)
    assert found["pairs"][1]["win_rate"] is None and found["pairs"][1]["questions"] == 0
    assert (found["agreement"]["method"], found["agreement"]["items"]) == ("Fleiss", 5)
    text = votes_table(found)
    assert "12" not in text.splitlines()[0] and text.splitlines()[0].startswith("15 votes of 3 raters")
    assert "More votes for one answer than for the other decide a question" in text
    assert "no question is decided" in text and "Fleiss's kappa" in text


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (["better", "worse"], "same"),
        (["better", "same", "same"], "better"),
        (["both_unsafe", "both_unsafe"], "both_unsafe"),
        (["both_unsafe", "worse"], "worse"),
        (["both_unsafe", "same"], "same"),
    ],
)
def test_the_majority_of_a_question(said: list[str], word: str) -> None:
    assert majority(said) == word


def test_what_a_doctor_reads(folder: RunFolder) -> None:
    votes = verdicts(folder, "trained", *["better"] * 5) | verdicts(folder, DEFAULT, *["same"] * 5)
    found = count_votes(folder, EVALUATION, [save_votes(folder, "Ada", votes), save_votes(folder, "Ben", votes)])
    text = votes_table(found)
    assert "trained against base" in text and "100 % of 5 decided (48 to 100 %)" in text
    assert "no difference can be shown" in text
    assert "The 2 raters agree in 100 % on 10 questions; Cohen's kappa 1.00, almost perfect." in text


Change = Callable[[list[dict[str, str]]], None]


def write_table(folder: RunFolder, path: Path, change: Change, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """Fill in the sheet's table as a spreadsheet saves it."""
    text = folder.review_table.read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    change(rows)
    target = io.StringIO()
    writer = csv.DictWriter(target, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(target.getvalue().encode(encoding))
    return path


def fill(*words: str, name: str = "") -> Change:
    def change(rows: list[dict[str, str]]) -> None:
        for row, word in zip(rows, words, strict=False):
            row["vote"] = word
        rows[0]["name"], rows[0]["comment"] = name, "café, “why”"

    return change


WRITTEN = ("1", "2", "Same", "BOTH UNSAFE", " answer 2 ", "unsafe", "3", "First", "=", "")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_of_every_spreadsheet_are_read(folder: RunFolder, tmp_path: Path, delimiter: str, encoding: str) -> None:
    words = [word if word != "=" else "tie" for word in WRITTEN]
    path = write_table(folder, tmp_path / "votes-Eve.csv", fill(*words), delimiter, encoding)
    ballot = read_ballot(path)
    assert ballot.rater == "Eve" and ballot.sheet == key_in(folder).sheet
    expected = ["first", "second", "same", "unsafe", "second", "unsafe", "same", "first", "same"]
    assert ballot.votes == dict(enumerate(expected, start=1))
    assert ballot.comments == {1: "café, “why”"}


def test_a_table_counts_as_the_page_does(folder: RunFolder, tmp_path: Path) -> None:
    votes = verdicts(folder, "trained", "better", "worse", "same", "unsafe", "better")
    by_page = count_votes(folder, EVALUATION, [save_votes(folder, "Ada", votes)])
    words = [blind_vote(folder, number, votes[number]) if number in votes else "" for number in range(1, 11)]
    path = write_table(folder, tmp_path / "x.csv", fill(*words, name="Ada"))
    by_table = count_votes(folder, EVALUATION, [path])
    assert by_table["pairs"] == by_page["pairs"] and by_table["files"][0]["rater"] == "Ada"


def edited(folder: RunFolder, edit: Callable[[str], str]) -> str:
    path = folder.path.parent / "plain.csv"
    write_table(folder, path, fill("1", "2"))
    return edit(path.read_text())


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "sep=,\r\n" + text,
        lambda text: text.replace("sheet,item,question", " Sheet ,ITEM,Question", 1).replace(",vote,", ",Vote,", 1),
        lambda text: "\r\n,,,,,,,\r\n" + text + ",,,,,,,\r\n\r\n",
        lambda text: text.replace("\r\n", "\n"),
        lambda text: "\r\n".join(line + ",," for line in text.splitlines()),
        lambda text: text.replace(",1,", ",1.0,", 1),
    ],
)
def test_what_a_spreadsheet_adds_changes_nothing(folder: RunFolder, edit: Callable[[str], str]) -> None:
    path = folder.path.parent / "votes-Eve.csv"
    path.write_text(edited(folder, edit), newline="")
    ballot = read_ballot(path)
    assert ballot.votes == {1: "first", 2: "second"} and ballot.comments == {1: "café, “why”"}


def test_columns_may_be_moved_and_left_out(folder: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "votes-Eve.csv"
    name = key_in(folder).sheet
    path.write_text(f"Vote;Item;Sheet\nsame;2;{name}\n1,0;1;{name}\n")
    assert read_ballot(path).votes == {2: "same", 1: "first"}


def refused(folder: RunFolder, *files: Path) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        count_votes(folder, EVALUATION, files)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        ("vote\n1\n", "no column `sheet`"),
        ("sheet,item,vote\n", "the column sheet is empty"),
        ("sheet,item,vote\nSHEET,1,perhaps\n", "line 2: the vote of item 1 is `perhaps`"),
        ("sheet,item,vote\nSHEET,1,10\n", "line 2: the vote of item 1 is `10`"),
        ("sheet,item,vote\nSHEET,one,1\n", "line 2 has `one` in the column item"),
        ("sheet,item,vote\nSHEET,1,1\n\nSHEET,1,2\n", "has item 1 twice"),
        ("sheet,item,vote\nSHEET,77,1\n", "votes on item 77, and the sheet has 10"),
        ("sheet,item,vote\nSHEET,1,1\nother,2,1\n", "holds 2 sheets"),
        ("sheet,item,vote,name\nSHEET,1,1,Ada\nSHEET,2,1,Ben\n", "holds 2 names: `Ada`, `Ben`"),
        ('sheet,item,vote,comment\nSHEET,1,1,"never closed\n', "the row at line 2"),
        ("sheet,item,vote\nSHEET,1,\n", "holds no vote"),
        ("{", "no file of votes"),
        ("[]", "`sheet` and `votes` are missing"),
        ('{"sheet": 5, "votes": []}', "`sheet` and `votes` are missing"),
        ('{"sheet": "SHEET", "votes": [5]}', "`votes[0]` names no item"),
        ('{"sheet": "SHEET", "votes": [{"item": true, "vote": "same"}]}', "`votes[0]` names no item"),
        ('{"sheet": "SHEET", "votes": [{"item": 1, "vote": "best"}]}', "the vote of item 1 is `best`"),
        ('{"sheet": "SHEET", "votes": [{"item": 1, "vote": ["same"]}]}', "the vote of item 1 is"),
        ('{"sheet": "SHEET", "votes": [{"item": 1, "vote": "same"}, {"item": 1, "vote": "same"}]}', "item 1 twice"),
        ('{"sheet": "SHEET", "votes": [{"item": 11, "vote": "same"}]}', "votes on item 11, and the sheet has 10"),
        ('{"sheet": "SHEET", "votes": [{"item": 1, "vote": null}]}', "holds no vote"),
        ('{"sheet": "../../x", "votes": [{"item": 1, "vote": "same"}]}', "is of the sheet `../../x`, another run's"),
        ('{"sheet": "' + "x" * 5000 + '", "votes": [{"item": 1, "vote": "same"}]}', "another run's"),
        ("[" * 5000, "nested"),
    ],
)
def test_what_cannot_be_counted_is_named(folder: RunFolder, content: str, words: str) -> None:
    path = folder.path.parent / "votes-Ada.txt"
    path.write_text(content.replace("SHEET", key_in(folder).sheet))
    problem = refused(folder, path)
    assert words in problem.message and str(path) in problem.message and problem.exit_code == USAGE


def test_binary_and_missing_files_are_named(folder: RunFolder) -> None:
    path = folder.path.parent / "votes-Ada.xlsx"
    path.write_bytes(b"PK\x03\x04 and more")
    assert "a spreadsheet's own file" in refused(folder, path).message
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not text" in refused(folder, path).message
    path.unlink()
    assert "no file of votes" in refused(folder, path).message


def test_one_rater_has_one_file(folder: RunFolder, tmp_path: Path) -> None:
    votes = verdicts(folder, "trained", *["same"] * 5)
    first, second = save_votes(folder, "Dr. Ada", votes), save_votes(folder, "dr.  ada", votes)
    problem = refused(folder, first, second)
    assert "voted in two files" in problem.message and str(first) in problem.message and str(second) in problem.message
    assert "voted in two files" in refused(folder, first, first).message


def test_a_file_without_a_name_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    write_table(folder, path, fill("1"))
    assert "does not say who voted" in refused(folder, path).message
    path = save_votes(folder, "Ada", verdicts(folder, "trained", *["same"] * 5), name="  ")
    assert read_ballot(path).rater == "Ada"  # from the name of the file


def test_an_incomplete_file_is_counted_and_said(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_votes(folder, "Ada", verdicts(folder, DEFAULT, *["same"] * 5))
    found = count_votes(folder, EVALUATION, [path])
    assert capsys.readouterr().err == f"warning: {path} has 5 votes of 10: pairs without one are left out\n"
    assert found["pairs"][0]["questions"] == 0 and found["pairs"][1]["same"] == 5


def test_votes_of_a_former_sheet_say_so(folder: RunFolder) -> None:
    path = save_votes(folder, "Ada", verdicts(folder, "trained", *["same"] * 5))
    with pytest.raises(ToolkitError, match="was made from other answers than evaluation"):
        count_votes(folder, make_evaluation(11), [path])
    sheet.write_sheet(folder, make_evaluation(11), DEFAULT)
    with pytest.raises(ToolkitError, match="an earlier sheet of this run, with other answers"):
        count_votes(folder, make_evaluation(11), [path])


def test_without_the_key_nothing_is_counted(folder: RunFolder) -> None:
    path = save_votes(folder, "Ada", verdicts(folder, "trained", *["same"] * 5))
    folder.review_key.unlink()
    assert "without it nobody knows" in refused(folder, path).message


def test_votes_outlive_an_evaluation_with_the_same_answers(folder: RunFolder) -> None:
    path = save_votes(folder, "Ada", verdicts(folder, "trained", *["same"] * 5))
    former = {**EVALUATION, "votes": count_votes(folder, EVALUATION, [path])}
    again = make_evaluation(10)
    again["held_out"]["answers"][0]["answers"]["base"]["chrf"] = 1.0
    assert kept_votes(former, again) == former["votes"]
    assert kept_votes(former, make_evaluation(11)) is None
    assert kept_votes(former, make_evaluation(0)) is None
    assert kept_votes(EVALUATION, again) is None and kept_votes({}, again) is None


def test_votes_and_sheet_outlive_a_further_quantization_but_no_other_answer_of_their_own(folder: RunFolder) -> None:
    path = save_votes(folder, "Ada", verdicts(folder, "trained", *["same"] * 5))
    former = {**EVALUATION, "votes": count_votes(folder, EVALUATION, [path])}
    again = make_evaluation(10, systems=("base", "trained", "Q8_0", DEFAULT))
    assert kept_votes(former, again) == former["votes"] == count_votes(folder, again, [path])
    key = key_in(folder)
    sheet.write_sheet(folder, again, DEFAULT)
    assert key_in(folder) == key
    again["held_out"]["answers"][3]["answers"]["trained"]["text"] = "Another one."
    assert kept_votes(former, again) is None


@pytest.mark.slow
def test_an_evaluation_keeps_votes_on_its_answers_and_says_where_they_end(
    made: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path)
    write_rows(run.folder.split_file("train"), [("When?", "At night."), ("How?", "Rest.")])

    def evaluated(tokens: int) -> Any:
        asked = {"questions": 2, "answer_tokens": tokens, "systems": ["F32", "Q8_0"]}
        config = run.config.model_copy(update={"evaluate": run.config.evaluate.model_copy(update=asked)})
        evaluate(config, run.folder, run.base, run.manifest(), force=True)
        return read_evaluation(run.folder)["votes"]

    assert evaluated(6) is None
    pair = ("F32", "Q8_0")
    votes = {
        "answers": answers_hash(read_evaluation(run.folder), [pair]),
        "pairs": [dict(zip("ab", pair, strict=True))],
    }
    amend(run.folder, votes=votes)
    assert evaluated(6) == votes and "no longer count" not in capsys.readouterr().err
    assert evaluated(3) is None
    assert "the votes of clinicians on the earlier ones no longer count" in capsys.readouterr().err
