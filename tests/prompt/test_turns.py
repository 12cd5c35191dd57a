"""Several turns of a chat: one text in all renderings, and where each answer is among the ids."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import families
from tests.support.models import save_tokenizer
from tests.support.prompts import FORMATS
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.core.records import Records
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import Turn, asked_in_full, conversation, render, render_record
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

EOS = "</s>"
CHAT = [("What is a fever?", "A high temperature."), ("From when on?", "From 38 °C.")]

forms = st.sampled_from([prompt_format(each) for each in FORMATS.values()])
turns = st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4)


def messages(history: list[Turn], question: str, instruction: str) -> list[dict[str, str]]:
    said = [{"role": "system", "content": instruction}] if instruction else []
    for asked, answer in history:
        said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*said, {"role": "user", "content": question}]


@settings(max_examples=tries(300))
@given(forms, turns, st.text(), st.text())
def test_a_chat_is_trained_as_the_templates_render_it(
    form: PromptFormat, history: list[Turn], question: str, instruction: str
) -> None:
    eos = form.eos or EOS
    prompt = render(form, question, instruction, history, eos)
    assert prompt.text == conversation(form, messages(history, question, instruction), eos)
    assert [part.text for part in prompt.parts if part.answer] == [answer for _, answer in history]


def test_the_instruction_of_gemma_stands_before_the_first_question_alone() -> None:
    text = render(prompt_format(PromptSettings(preset="gemma")), "And then?", "Be brief", CHAT, "<end_of_turn>").text
    assert text.count("Be brief") == 1 and text.startswith("<start_of_turn>user\nBe brief\n\nWhat is a fever?")


def test_earlier_answers_need_the_text_of_eos() -> None:
    with pytest.raises(ValueError, match="EOS"):
        render(prompt_format(PromptSettings()), "And then?", None, CHAT)


@settings(max_examples=tries(200))
@given(history=st.lists(st.tuples(st.text(), st.text().map(str.strip)), min_size=1, max_size=3), question=st.text())
def test_each_answer_of_a_chat_is_found_among_the_ids(
    known: tuple[Tokenizer, PromptFormat], history: list[Turn], question: str
) -> None:
    tokenizer, form = known
    prompt = render(form, question, "Explain:", history, tokenizer.eos_text)
    ids = tokenizer.prompt_ids(prompt)
    spans = tokenizer.answer_spans(prompt)
    assert len(spans) == len(history) == ids.count(tokenizer.eos) - form.turn.count(tokenizer.eos_text)
    for number, ((start, end), (_, answer)) in enumerate(zip(spans, history, strict=True)):
        before = render(form, history[number][0], "Explain:", history[:number], tokenizer.eos_text)
        assert ids[:start] == tokenizer.prompt_ids(before)  # what a server reads when it is asked that turn
        assert ids[end - 1] == tokenizer.eos
        assert tokenizer.decode(ids[start : end - 1]) == answer


@pytest.fixture(scope="module", params=["alpaca", "custom, inst"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PromptFormat]:
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    form = prompt_format(FORMATS[request.param])
    return load_tokenizer(folder, form), form


def test_an_id_that_joins_a_prompt_to_its_answer_is_not_learned(tmp_path: Path) -> None:
    """A prompt that ends in a blank: byte-level BPE puts the blank and the next word into one id."""
    save_tokenizer(tmp_path)
    form = prompt_format(PromptSettings(preset="custom", user_turn="{instruction} Q: {input} A: "))
    tokenizer = load_tokenizer(tmp_path, form)
    prompt = render(form, "why?", "Say", [("what?", "water helps")], tokenizer.eos_text)
    ids = tokenizer.prompt_ids(prompt)
    ((start, end),) = tokenizer.answer_spans(prompt)
    text = tokenizer.decode(ids[start : end - 1])
    assert "water helps".endswith(text) and len(text) >= len(" helps")
    assert tokenizer.decode(ids[:start]).endswith("A: " + "water helps".removesuffix(text))


@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen2.5", "gemma3"])
def test_answers_are_found_in_every_kind_of_vocabulary(kind: str, tmp_path: Path) -> None:
    families.FAMILIES[kind][2](tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    form = prompt_format(PromptSettings())
    prompt = render(form, "And then?", "Explain:", CHAT, tokenizer.eos_text)
    ids = tokenizer.prompt_ids(prompt)
    found = [tokenizer.decode(ids[start:end]) for start, end in tokenizer.answer_spans(prompt)]
    assert found == [answer + tokenizer.eos_text for _, answer in CHAT]


def test_a_record_of_a_chat_is_read_and_shown(tmp_path: Path) -> None:
    form, path = prompt_format(PromptSettings()), tmp_path / "train.jsonl"
    record = {"instruction": "Explain:", "history": CHAT, "input": "And then?", "output": "Rest."}
    path.write_text(json.dumps(record) + "\n")
    (found,) = Records(path)
    assert render_record(form, found, EOS).text == render(form, "And then?", "Explain:", CHAT, EOS).text
    assert asked_in_full(found).endswith("Assistant: From 38 °C.\n\nUser: And then?")
    assert asked_in_full({"input": "What?"}) == "What?"


@pytest.mark.parametrize("history", ["text", [["only a question"]], [["q", 1]], {"q": "a"}, [["q", "a", "b"]]])
def test_a_damaged_history_is_refused(history: object, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"instruction": "", "input": "q", "output": "a", "history": history}) + "\n")
    with pytest.raises(ToolkitError, match="line 1 is not a record: `history`"):
        Records(path)
