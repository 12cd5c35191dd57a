"""Thoughts in front of an answer are told from it, and marks within an answer are not thoughts."""

import pytest

from toolkit.prompt.thoughts import begins_with_thoughts, without_thoughts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nHm.\n</think>\n\nRest.", "Rest."),
        ("\n<think></think>Rest. </think> stays", "Rest. </think> stays"),
        ("<think>Hm, and the limit came", ""),
        ("<think>Hm.</think>", ""),
        ("Rest. <think>is a mark</think> of the base", "Rest. <think>is a mark</think> of the base"),
        (" Rest.\n", " Rest.\n"),
        ("", ""),
    ],
)
def test_what_stands_behind_thoughts_is_the_answer(text: str, said: str) -> None:
    assert without_thoughts(text) == said
    assert begins_with_thoughts(text) == (said != text)
