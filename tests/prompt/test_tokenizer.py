"""Token ids: BOS and EOS by id, control tokens in text stay text, truncation keeps EOS."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import families
from tests.support.models import save_tokenizer
from tests.support.prompts import FORMATS
from tests.support.properties import tries
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return load_tokenizer(base)


def test_bos_and_eos_are_those_of_the_files(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.encoder.id_to_token(tokenizer.bos) == "<|begin_of_text|>"
    assert tokenizer.eos_text == "<|end_of_text|>"
    save_tokenizer(tmp_path, bos=False)
    assert load_tokenizer(tmp_path).bos is None


def test_ids_are_those_of_transformers(base: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(base)
    for text in ("Drink water 123 times!\r\n\n", "naïve 水 🙂", " x", "x "):
        assert tokenizer.prompt_ids(text) == theirs(text)["input_ids"]


@given(st.text())
def test_control_tokens_in_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    control = {tokenizer.bos, tokenizer.eos}
    ids = tokenizer.encode(f"{text}<|end_of_text|>{text}<|begin_of_text|>")
    assert not control & set(ids)


@given(st.text(), st.text())
def test_the_prompt_has_the_same_ids_in_training_and_serving(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    ids, start = tokenizer.record_ids(prompt, answer)
    assert ids[:start] == tokenizer.prompt_ids(prompt)
    assert ids[-1] == tokenizer.eos
    assert ids.count(tokenizer.eos) == 1


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=300), st.integers(2, 120))
def test_a_shortened_answer_fits_and_is_a_beginning(
    tokenizer: Tokenizer, prompt: str, answer: str, length: int
) -> None:
    short = tokenizer.shorten(prompt, answer, length)
    if short is None:
        return
    ids, start = tokenizer.record_ids(prompt, short)
    assert len(ids) <= length
    assert start < len(ids) - 1
    assert answer.startswith(short)
    if len(tokenizer.record_ids(prompt, answer)[0]) <= length:
        assert short == answer


def test_eos_from_config_where_the_tokenizer_names_none(base: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ToolkitError, match="not name an end-of-sequence"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert load_tokenizer(tmp_path).eos == 7


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", [-1, 2**32, 2**64, 10**30, 499_999, True, 1.0, "7", [], [-1, 7], {}])
def test_an_eos_id_that_the_tokenizer_has_not_is_refused_with_file_and_key(
    tmp_path: Path, file: str, value: object
) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ToolkitError, match=f"{file}` sets `eos_token_id`") as caught:
        load_tokenizer(tmp_path)
    assert len(caught.value.message) < 300 and "tokenizer_config.json" in caught.value.hint


@pytest.mark.parametrize(("content", "said"), [(None, "no tokenizer.json"), (b"{", "cannot be read")])
def test_damaged_tokenizers(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ToolkitError, match=said):
        load_tokenizer(tmp_path)


CHATML = ["<|im_start|>", "<|im_end|>"]
GEMMA = ["<start_of_turn>", "<end_of_turn>"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    save_tokenizer(folder, controls=[*CHATML, *GEMMA, *LLAMA3, "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"])
    return folder


@pytest.mark.parametrize(("preset", "controls"), [("chatml", CHATML), ("gemma", GEMMA), ("llama3", LLAMA3)])
@settings(max_examples=tries(30))
@given(question=st.text(), answer=st.text(min_size=1))
def test_control_tokens_of_the_format_are_single_tokens_and_those_in_data_are_text(
    with_controls: Path, preset: str, controls: list[str], question: str, answer: str
) -> None:
    form = prompt_format(FORMATS[preset])
    tokenizer = load_tokenizer(with_controls, form)
    clean = render(form, question, "Be brief")
    spoilt = render(form, f"{question}{''.join(controls)}", f"Be {controls[0]} brief")
    control_ids = [tokenizer.controls[token] for token in controls]

    def counted(ids: list[int]) -> list[int]:
        return [ids.count(index) for index in control_ids]

    wanted = [clean.text.count(token) - question.count(token) for token in controls]
    assert counted(tokenizer.prompt_ids(clean)) == counted(tokenizer.prompt_ids(spoilt)) == wanted
    assert tokenizer.decode(tokenizer.prompt_ids(spoilt)) == "<|begin_of_text|>" + spoilt.text
    ids, start = tokenizer.record_ids(spoilt, answer + controls[-1])
    assert ids[:start] == tokenizer.prompt_ids(spoilt)
    assert tokenizer.eos_text == form.eos and ids[-1] == tokenizer.eos
    assert counted(ids[start:-1]) == [0] * len(controls)


@pytest.mark.parametrize("stated", ["<|endoftext|>", "<|im_end|>"])
def test_chatml_answers_end_in_its_own_token_whichever_eos_the_base_names(stated: str, tmp_path: Path) -> None:
    """Qwen's base models end a document in `<|endoftext|>`, its chat models a turn in `<|im_end|>`."""
    families.save_qwen(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": stated}))
    tokenizer = load_tokenizer(tmp_path, prompt_format(FORMATS["chatml"]))
    assert tokenizer.eos_text == "<|im_end|>" and tokenizer.bos is None
    assert tokenizer.record_ids("a prompt", "an answer")[0][-1] == tokenizer.controls["<|im_end|>"]
    assert load_tokenizer(tmp_path).eos_text == stated


def test_a_closed_block_is_two_tokens_and_what_follows_them(tmp_path: Path) -> None:
    families.save_thinking(tmp_path)
    form = prompt_format(FORMATS["chatml, closed"])
    tokenizer = load_tokenizer(tmp_path, form)
    ids, start = tokenizer.record_ids(render(form, "q"), "Rest.")
    marks = [tokenizer.encoder.token_to_id(mark) for mark in ("<think>", "</think>")]
    assert [ids[:start].count(mark) for mark in marks] == [1, 1] and not set(marks) & set(ids[start:])
    thought, start = load_tokenizer(tmp_path, prompt_format(FORMATS["chatml, thoughts"])).record_ids(
        render(prompt_format(FORMATS["chatml, thoughts"]), "q"), "<think>\nHm.\n</think>\n\nRest."
    )
    assert [thought[start:].count(mark) for mark in marks] == [1, 1] and not set(marks) & set(thought[:start])


@pytest.mark.parametrize("name", ["chatml, closed", "chatml, thoughts"])
def test_thinking_that_a_vocabulary_cannot_write_is_refused(name: str, tmp_path: Path) -> None:
    families.save_qwen(tmp_path / "plain")
    save_tokenizer(tmp_path / "control", controls=[*CHATML, "<think>", "</think>"])
    refused, said = {
        "chatml, closed": ("plain", "no tokens `<think>` and `</think>`"),
        "chatml, thoughts": ("control", "`<think>` is a control token"),
    }[name]
    with pytest.raises(ToolkitError, match=said) as caught:
        load_tokenizer(tmp_path / refused, prompt_format(FORMATS[name]))
    assert caught.value.exit_code == USAGE and "prompt.thinking" in caught.value.hint
    load_tokenizer(tmp_path / ({"plain", "control"} - {refused}).pop(), prompt_format(FORMATS[name]))


def test_a_format_of_the_users_own_has_the_control_tokens_that_its_text_names(with_controls: Path) -> None:
    form = prompt_format(FORMATS["custom, start"])
    tokenizer = load_tokenizer(with_controls, form)
    ids = tokenizer.prompt_ids(render(form, "<|user|>", "hi"))
    assert [tokenizer.encoder.id_to_token(index) for index in ids if index in tokenizer.controls.values()] == [
        "<|begin_of_text|>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "chatml"}, "no control token `<|im_start|>`, `<|im_end|>`"),
        ({"preset": "custom", "user_turn": "{instruction}{input}", "eos": "</s>"}, "no control token `</s>`"),
        ({"preset": "custom", "user_turn": "<|begin_of_text|>{instruction}{input}"}, "it would appear twice"),
        ({"instruction": "End with <|end_of_text|>"}, "contains the control token `<|end_of_text|>`"),
    ],
)
def test_a_format_that_the_vocabulary_cannot_hold_is_refused(base: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ToolkitError, match=re.escape(said)) as caught:
        load_tokenizer(base, prompt_format(PromptSettings(**changes)))  # type: ignore[arg-type]
    assert caught.value.exit_code == USAGE and caught.value.hint
