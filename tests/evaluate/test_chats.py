"""Held-out chats: the last answer is asked for behind the earlier turns, and a reader sees these."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import scored_models
from toolkit.evaluate import held_out
from toolkit.evaluate.held_out import Found, measures_of
from toolkit.evaluate.systems import Answer
from toolkit.prompt.format import prompt_format
from toolkit.prompt.held_out import read_held_out
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

HISTORY = [["What is a fever?", "A body temperature that is higher than it usually is."], ["And then?", "Rest."]]


def chat(row: int, answer: str) -> dict[str, Any]:
    return {"row": row, "instruction": "Explain:", "history": HISTORY, "input": "For how long?", "output": answer,
            "truncated": False}  # fmt: skip


def test_the_last_answer_is_asked_for_behind_the_earlier_turns(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path)
    path = run.folder.split_file("test")
    path.write_text(json.dumps(chat(5, "Three days.")) + "\n")
    run.folder.split_file("train").write_text(json.dumps(chat(6, "A week.")) + "\n")
    form = prompt_format(run.config.prompt)
    tokenizer = load_tokenizer(run.base.folder, form)
    _, (question,) = held_out.read_questions(run.folder, form, tokenizer, 10)
    earlier = [(asked, answer) for asked, answer in HISTORY]
    prompt = render(form, "For how long?", "Explain:", earlier, tokenizer.eos_text)
    assert question.prompt == prompt and question.ids[: question.start] == tokenizer.prompt_ids(prompt)
    assert tokenizer.decode(question.ids[question.start :]) == f"Three days.{tokenizer.eos_text}"
    (record,) = read_held_out(path, form, tokenizer)  # what validate scores
    assert (record.prompt, record.ids, record.start) == (question.prompt, question.ids, question.start)
    shown = "User: What is a fever?\n\nAssistant: A body temperature that is higher than it usually is."
    assert question.question.startswith(shown) and question.question.endswith("User: For how long?")
    said = Answer("It is a body temperature that is higher than it usually is.", 9, True)
    result = measures_of(run.folder, 1, [question], 32, {"trained": Found([said], [1.0], 1.0)}, [])
    assert result["answers"][0]["question"] == question.question
    copied = result["systems"]["trained"]["copied"]  # of an earlier answer, which was learned too
    assert copied["row"] == 6 and copied["longest"] >= 10


@pytest.mark.parametrize("cut", [False, True])
def test_thoughts_are_neither_praised_nor_blamed(made: scored_models.World, tmp_path: Path, cut: bool) -> None:
    """Both systems say the same, one of them behind thoughts: their answers score the same, unless cut in thoughts."""
    run = scored_models.copy(made, tmp_path)
    form = prompt_format(run.config.prompt)
    tokenizer = load_tokenizer(run.base.folder, form)
    reference = "<think>Hm.</think>\nRest for three days, and drink water."
    run.folder.split_file("test").write_text(json.dumps(chat(5, reference)) + "\n")
    run.folder.split_file("train").write_text(json.dumps(chat(6, "A week.")) + "\n")
    _, questions = held_out.read_questions(run.folder, form, tokenizer, 10)
    said = "Rest for three days, and drink water."
    thought = "<think>Rest for three days, and drink water." + ("" if cut else f"</think>\n\n{said}")
    found = {name: Found([Answer(text, 9, True)], [1.0], 1.0) for name, text in (("base", said), ("trained", thought))}
    systems = measures_of(run.folder, 1, questions, 32, found, [])["systems"]
    assert systems["base"]["chrf"]["mean"] == 100 and systems["base"]["rouge_l"]["mean"] == 1
    assert systems["trained"]["chrf"]["mean"] == (0 if cut else 100)
    assert systems["trained"]["rouge_l"]["mean"] == (0 if cut else 1)
