"""An exam of one's own: what is read, what is refused with its row, and the one that comes with the toolkit."""

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import REPOSITORY
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.evaluate.exam import ExamRow, exam_task, read_exam

SAMPLE = REPOSITORY / "data" / "exam.jsonl"
GOOD: dict[str, Any] = {"question": "Which organ pumps blood?", "choices": ["The liver", "The heart"], "answer": "B"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "exam.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("answer", ["B", "b", "B.", "b)", 1, "The heart", "the heart ", " The heart"])
def test_an_answer_is_a_letter_a_place_or_a_text(answer: object, tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "answer": answer})
    assert read_exam(path) == [ExamRow("Which organ pumps blood?", ("The liver", "The heart"), 1)]


def test_the_text_of_a_choice_comes_before_a_letter(tmp_path: Path) -> None:
    """Blood groups: the choice that reads B is meant, not the second one; a number as text is a choice's text, too."""
    groups = {"question": "Which group is rarest?", "choices": ["AB", "A", "B", "0"], "answer": "B"}
    numbers = {"question": "How many?", "choices": ["1", "2", "0"], "answer": "0"}
    assert [row.answer for row in read_exam(write(tmp_path, groups, numbers))] == [2, 2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "answer": None}, "it has no right `answer`"),
        ({key: GOOD[key] for key in ("question", "choices")}, "it has no right `answer`"),
        ({**GOOD, "answer": ""}, "it has no right `answer`"),
        ({**GOOD, "answer": True}, "it has no right `answer`"),
        ({**GOOD, "answer": "C"}, "its answer 'C' is none of its 2 choices (text, A to B, or 0 to 1)"),
        ({**GOOD, "answer": 2}, "its answer 2 is none"),
        ({**GOOD, "answer": -1}, "its answer -1 is none"),
        ({**GOOD, "answer": 0.5}, "its answer 0.5 is none"),
        ({**GOOD, "answer": ["B"]}, "its answer ['B'] is none"),
        ({**GOOD, "answer": "The spleen"}, "its answer 'The spleen' is none"),
        ({**GOOD, "choices": ["The heart"]}, "it has 1 choice; 2 to 26 are possible"),
        ({**GOOD, "choices": []}, "it has 0 choices"),
        ({**GOOD, "choices": [str(n) for n in range(27)]}, "it has 27 choices"),
        ({**GOOD, "choices": ["The heart", "the heart "]}, "two of its choices are the same"),
        ({**GOOD, "choices": "A or B"}, "its `choices` are no list of texts"),
        ({**GOOD, "choices": ["The heart", 3]}, "its `choices` are no list of texts"),
        ({**GOOD, "choices": ["The heart", " "]}, "its `choices` are no list of texts"),
        ({key: GOOD[key] for key in ("question", "answer")}, "it has no `choices`"),
        ({**GOOD, "question": " "}, "its `question` is no text"),
        ({key: GOOD[key] for key in ("choices", "answer")}, "it has no `question`"),
        ([1, 2], "it is no JSON object"),
        ('{"question": "x"', "Expecting"),
        ('{"question": "x", "choices": NaN}', "not a number"),
    ],
)
def test_a_bad_row_is_named(row: object, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "question": "Another?"}, "", row)
    with pytest.raises(ToolkitError) as raised:
        read_exam(path)
    assert raised.value.message.startswith(f"`{path}` row 3: ")
    assert said in raised.value.message
    assert raised.value.hint.startswith('a row is {"question"')
    assert raised.value.exit_code == USAGE


def test_a_question_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    again = {**GOOD, "question": " which organ  pumps BLOOD?", "choices": ["The skin", "The heart"]}
    with pytest.raises(ToolkitError, match="row 3 asks what row 1 asks"):
        read_exam(write(tmp_path, GOOD, {**GOOD, "question": "Another?"}, again))


def test_an_exam_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no exam") as raised:
        read_exam(tmp_path / "exam.jsonl")
    assert raised.value.exit_code == MISSING
    with pytest.raises(ToolkitError, match="has no question"):
        read_exam(write(tmp_path, "", " "))
    with pytest.raises(IsADirectoryError):  # the command line says it in words
        read_exam(tmp_path)


def test_an_exam_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.evaluate.exam.LARGEST", 1 << 20)
    with pytest.raises(ToolkitError, match="`/dev/zero` is no exam: it is larger than 1 MB") as caught:
        read_exam(Path("/dev/zero"))
    assert caught.value.exit_code == USAGE


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n" + json.dumps(GOOD).encode("utf-16") + b"\n")
    with pytest.raises(ToolkitError, match="row 2: it is not UTF-8 text"):
        read_exam(path)


def test_the_sample_exam_has_no_bias() -> None:
    """Right answers are spread over the letters, and neither the longest nor the shortest choice is a good guess."""
    rows = read_exam(SAMPLE)
    assert len(rows) == 40
    assert {len(row.choices) for row in rows} == {4}
    places = [row.answer for row in rows]
    assert Counter(places) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert max(len(list(same)) for _, same in groupby(places)) <= 3
    lengths = [[len(choice) for choice in row.choices] for row in rows]
    right = [found[place] for found, place in zip(lengths, places, strict=True)]
    for extreme in (min, max):  # how many a guesser gets right who takes the shortest or longest, of several any
        hits = [(one == extreme(found)) / found.count(one) for one, found in zip(right, lengths, strict=True)]
        assert 6 <= sum(hits) <= 14
    wrong = [(sum(found) - one) / 3 for one, found in zip(right, lengths, strict=True)]
    assert 0.9 < sum(right) / sum(wrong) < 1.1


@pytest.mark.slow
def test_the_sample_exam_as_a_task(capfd: pytest.CaptureFixture[str]) -> None:
    task = exam_task(SAMPLE)
    assert capfd.readouterr() == ("", "")
    assert (task.name, task.title, task.metric, task.lower) == ("exam:exam", "Own exam, exam.jsonl", "acc", False)
    assert len(task.requests) == 40
    row = read_exam(SAMPLE)[0]
    context = task.requests[0][0].args[0]
    assert context.startswith(f"Question: {row.question}\nChoices:\nA. {row.choices[0]}\nB. ")
    assert context.endswith("\nAnswer:")
    assert [request.args for request in task.requests[0]] == [(context, f" {letter}") for letter in "ABCD"]
    right = [(-0.5 if number == row.answer else -1.0, False) for number in range(4)]
    assert task.value(0, right) == 1.0
    assert task.value(0, right[::-1]) == 0.0


@pytest.mark.slow
def test_rows_may_have_different_numbers_of_choices(tmp_path: Path) -> None:
    more = {"question": "Which is a fruit?", "choices": ["Bread", "Cheese", "Apple"], "answer": "Apple"}
    task = exam_task(write(tmp_path, GOOD, more))
    assert [len(requests) for requests in task.requests] == [2, 3]
    assert task.value(1, [(-3.0, False), (-2.0, False), (-1.0, True)]) == 1.0
    assert task.value(0, [(-3.0, False), (-4.0, False)]) == 0.0
