"""Answers side by side: marks that lose no word, and notes where there is nothing to mark."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.report.answers import marked, side_by_side
from toolkit.report.sources import HeldOutAnswer

WORDS = st.lists(st.sampled_from(["rest", "water", "and", "the", "fever."]), max_size=25)


@settings(max_examples=tries(300))
@given(WORDS, WORDS, st.sampled_from([" ", "\n", "  "]))
def test_marks_lose_no_word_of_either_answer(ours: list[str], theirs: list[str], space: str) -> None:
    pieces, note = marked(space.join(ours), space.join(theirs))
    assert "".join(text for kind, text in pieces if kind != "missing").split() == ours
    if not note:
        assert " ".join("".join(text for kind, text in pieces if kind != "added").split()) == " ".join(theirs)
    assert all(text.strip() == text for kind, text in pieces if kind != "same")


def test_notes_say_what_marks_cannot() -> None:
    assert marked("a b c", "a b c")[1] == "word for word the trained model's"
    assert marked("a b c", "x y z")[1] == "differs throughout"
    assert marked("a " * 5000, "b " * 5000)[1] == "too long to be compared"
    assert marked("", "a b") == ([], "differs throughout")


def test_without_the_trained_model_nothing_is_marked() -> None:
    one = HeldOutAnswer.model_validate(
        {"question": "q", "answers": {"Q8_0": {"text": "a b"}, "Q4_0": {"text": "a c", "ended": False}}}
    )
    [row] = side_by_side([one], 100)
    assert [(told.system, told.pieces, told.note) for told in row.answers] == [
        ("Q8_0", [("same", "a b")], ""),
        ("Q4_0", [("same", "a c")], "cut at the limit"),
    ]
