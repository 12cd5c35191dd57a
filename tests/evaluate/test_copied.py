"""The longest run of words that an answer has from a training answer, as trying every pair of places finds it."""

import random

import pytest

from toolkit.evaluate import copied
from toolkit.evaluate.copied import longest_runs, words_of


def longest(answer: str, texts: list[tuple[int, str]]) -> int:
    """The run's words, the slow way."""
    ours, best = words_of(answer), 0
    for _, text in texts:
        theirs = words_of(text)
        for first in range(len(ours)):
            for second in range(len(theirs)):
                size = 0
                while ours[first + size : first + size + 1] == theirs[second + size : second + size + 1] != []:
                    size += 1
                best = max(best, size)
    return best


def made(seed: int) -> tuple[list[str], list[tuple[int, str]]]:
    draw = random.Random(seed)
    words = [f"w{index}" for index in range(12)]
    texts = [(row + 100, " ".join(draw.choices(words, k=draw.randint(0, 40)))) for row in range(40)]
    answers = [" ".join(draw.choices([*words, "new"], k=draw.randint(0, 25))) for _ in range(20)]
    answers[7] = f"New. {' '.join(words_of(texts[5][1])[3:18]).upper()}, new!"
    return answers, texts


@pytest.mark.slow
@pytest.mark.parametrize("part", [copied.PART, 30])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_run_is_the_longest(seed: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "PART", part)
    answers, texts = made(seed)
    found = longest_runs(answers, texts)
    assert [one.words for one in found] == [longest(answer, texts) for answer in answers]
    for answer, one in zip(answers, found, strict=True):
        if one.words:
            assert one.text in answer and len(words_of(one.text)) == one.words
            assert " ".join(words_of(one.text)) in " ".join(words_of(dict(texts)[one.row or 0]))


def test_a_run_does_not_go_on_from_one_training_answer_into_the_next() -> None:
    [found] = longest_runs(["drink water and rest at home"], [(1, "drink water"), (2, "and rest"), (3, "at home")])
    assert (found.words, found.row) == (2, 1)


def test_marks_and_case_do_not_break_a_run() -> None:
    [found] = longest_runs(["Fever: drink WATER – and rest!"], [(4, "You should drink water, and (rest) now")])
    assert (found.words, found.row, found.text) == (4, 4, "drink WATER – and rest")


def test_each_chinese_character_is_a_word_and_accents_are_letters() -> None:
    assert words_of("体温 39°C, fièvre élevée") == ["体", "温", "39", "c", "fièvre", "élevée"]
    [found] = longest_runs(["请多喝水"], [(1, "每天多喝水。")])
    assert (found.words, found.text) == (3, "多喝水")


def test_nothing_is_copied_from_nothing() -> None:
    assert [one.words for one in longest_runs(["", "a b", "?"], [(1, ""), (2, "c")])] == [0, 0, 0]
    assert longest_runs([], [(1, "a")]) == [] and longest_runs(["a"], [])[0].row is None
