"""One prompt format: all renderings are the same bytes. The server's own renderings are compared in tests/register."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.prompts import FORMATS
from tests.support.properties import tries
from toolkit.core.input_settings import PromptSettings
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import conversation, prompt_text, render
from toolkit.prompt.templates import chat_template, go_template, python_function

RECIPE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response in pt-BR that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)
CHATML = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<start_of_turn>user\n{}\n\n{}<end_of_turn>\n<start_of_turn>model\n"
BOS, EOS = "<s>", "</s>"
PRESETS: tuple[str, ...] = get_args(PromptSettings.model_fields["preset"].annotation)

NO_THINKING = [name for name in PRESETS if name not in ("chatml", "custom")]

forms = st.sampled_from([prompt_format(each) for each in FORMATS.values()])
parts = st.lists(
    st.one_of(st.builds(lambda text: {"type": "text", "text": text}, st.text()), st.just({"type": "image"}))
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
        optional={"content": st.one_of(st.text(), st.sampled_from(["Explain:", ""]), st.none(), parts)},
    ),
    max_size=6,
)


def jinja(messages: list[dict[str, Any]], form: PromptFormat, *, bos: bool = False, generate: bool = True) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    template, tokens = chat_template(form, bos=bos), {"bos_token": BOS, "eos_token": EOS}
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=generate, **tokens)
    return str(rendered[0])


def eos_of(form: PromptFormat) -> str:
    return form.eos or EOS


def test_the_recipe_prompt_is_reproduced() -> None:
    form = prompt_format(PromptSettings(language="pt-BR"))
    assert prompt_text(form, "What is X ?", "Explain:") == RECIPE.format("Explain:", "What is X ?")
    assert prompt_text(form, "What is X ?") == RECIPE.format("Explain:", "What is X ?")


def test_the_presets_are_what_is_known_by_their_names() -> None:
    assert prompt_text(prompt_format(FORMATS["chatml"]), "q") == CHATML.format("Explain:", "q")
    assert prompt_text(prompt_format(FORMATS["llama3"]), "q", "s") == LLAMA3.format("s", "q")
    assert prompt_text(prompt_format(FORMATS["gemma"]), "q") == GEMMA.format("Explain:", "q")
    assert prompt_text(prompt_format(FORMATS["gemma, bare"]), "q") == GEMMA.format("", "q").replace("\n\n\n", "\n")
    without = prompt_text(prompt_format(FORMATS["chatml, bare"]), "q")
    assert without == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    bare = prompt_format(FORMATS["alpaca-no-input, bare"])
    assert prompt_text(bare, "q").endswith("request.\n\n### Instruction:\nq\n\n### Response:\n")
    assert "### Instruction:\ns\n\nq\n\n" in prompt_text(bare, "q", "s")


def test_without_a_language_the_preamble_names_none() -> None:
    assert "Write a response that appropriately" in prompt_text(prompt_format(PromptSettings(language="")), "q")


@pytest.mark.slow
@settings(max_examples=tries(300))
@given(forms, messages, st.booleans(), st.booleans())
def test_jinja_by_transformers_equals_the_plain_rendering(
    form: PromptFormat, messages: list[dict[str, Any]], bos: bool, generate: bool
) -> None:
    plain = conversation(form, messages, eos_of(form), generate=generate)
    assert jinja(messages, form, bos=bos, generate=generate) == BOS * bos + plain


@pytest.mark.parametrize("name", FORMATS)
def test_a_begun_answer_is_left_open_and_a_whole_one_is_the_training_text(name: str) -> None:
    form = prompt_format(FORMATS[name])
    asked = [{"role": "user", "content": "q"}]
    begun = [*asked, {"role": "assistant", "content": "The"}, {"role": "assistant", "content": "answer"}]
    assert jinja(begun, form) == prompt_text(form, "q") + "The\n\nanswer"
    assert jinja(begun, form, generate=False) == prompt_text(form, "q") + "The\n\nanswer" + eos_of(form)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("chatml", "<|im_start|>user\nq<|im_end|>\n"),
        ("gemma", "<start_of_turn>user\nExplain:\n\nq<end_of_turn>\n"),
        ("llama3", "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"),
        ("alpaca", "### Input:\nq"),
        ("alpaca-no-input", "Explain:\n\nq"),
        ("custom, start", "<|user|>\nq<|end|>\n"),
        ("custom, inst", "Explain:\n\nq"),
    ],
)
def test_without_a_generation_prompt_no_answer_is_opened(name: str, ending: str) -> None:
    form = prompt_format(FORMATS[name])
    asked = [{"role": "user", "content": "q"}]
    closed = jinja(asked, form, generate=False)
    assert closed.endswith(ending) and jinja(asked, form).startswith(closed) and jinja(asked, form) != closed


@pytest.mark.parametrize(
    ("said", "instruction"),
    [
        ([("developer", "D")], "D"),
        ([("system", "S"), ("developer", "D")], "S\n\nD"),
        ([("developer", "D"), ("system", "S")], "D\n\nS"),
        ([("system", "Explain:"), ("developer", "D")], "D"),  # as a server has it that puts its own in front
        ([("system", "Explain:"), ("system", "S")], "Explain:\n\nS"),
        ([("system", ""), ("developer", None)], "Explain:"),
        ([("system", [{"type": "text", "text": "S"}, {"type": "text", "text": "T"}])], "S\n\nT"),
        ([], "Explain:"),
    ],
)
def test_a_developer_counts_as_system_and_the_default_gives_way(said: list[tuple[str, Any]], instruction: str) -> None:
    form = prompt_format(FORMATS["chatml"])
    asked = [*({"role": role, "content": content} for role, content in said), {"role": "user", "content": "q"}]
    assert jinja(asked, form) == CHATML.format(instruction, "q")


@pytest.mark.parametrize("content", [None, "", []])
def test_no_content_is_empty(content: Any) -> None:
    form = prompt_format(FORMATS["alpaca"])
    assert (
        jinja([{"role": "user", "content": content}], form) == jinja([{"role": "user"}], form) == prompt_text(form, "")
    )


@given(forms, st.text(), st.text())
def test_a_first_question_is_the_training_text_everywhere(form: PromptFormat, question: str, system: str) -> None:
    asked = [{"role": "user", "content": question}]
    with_system = [{"role": "system", "content": system}, *asked]
    for listed, instruction in ((asked, None), (with_system, system)):
        assert conversation(form, listed, eos_of(form)) == prompt_text(form, question, instruction)


@given(forms, st.text(), st.text(min_size=1))
def test_the_function_for_scripts_gives_the_same(form: PromptFormat, question: str, system: str) -> None:
    names: dict[str, Any] = {}
    exec(python_function(form), names)
    assert names["prompt"](question) == prompt_text(form, question)
    assert names["prompt"](question, system) == prompt_text(form, question, system)


@given(st.text(), st.text())
def test_parts_say_what_is_data(question: str, system: str) -> None:
    prompt = render(prompt_format(FORMATS["chatml"]), question, system) + "an answer"
    data = [part.text for part in prompt.parts if not part.ours]
    assert data == [system or "Explain:", question, "an answer"]
    assert prompt.text.endswith("assistant\nan answer")


@pytest.mark.parametrize("name", FORMATS)
def test_later_turns_keep_the_instruction_and_past_answers_end_in_eos(name: str) -> None:
    form = prompt_format(FORMATS[name])
    asked = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    start = conversation(form, asked[:1], "")
    first, second = prompt_text(form, "a", "Be brief"), prompt_text(form, "c\n\nd", "Be brief").removeprefix(start)
    second = second.replace("Be brief\n\n", "") if name.startswith("gemma") else second  # before the first alone
    assert first.startswith(start) and "Be brief" in first
    assert jinja(asked, form) == first + "b" + eos_of(form) + form.after + second


def test_without_thoughts_every_answer_follows_a_closed_block() -> None:
    form, block = prompt_format(FORMATS["chatml, closed"]), "<think>\n\n</think>\n\n"
    assert prompt_text(form, "q") == CHATML.format("Explain:", "q") + block
    talk = [{"role": role, "content": text} for role, text in (("user", "1"), ("assistant", "2"), ("user", "3"))]
    opened = "<|im_start|>assistant\n" + block
    later = f"2<|im_end|>\n<|im_start|>user\n3<|im_end|>\n{opened}"
    assert jinja(talk, form) == CHATML.format("Explain:", "1") + block + later
    assert jinja(talk[:1], form, generate=False) == CHATML.format("Explain:", "1").removesuffix(
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("thinking", ["", "keep"])
def test_thoughts_that_are_kept_change_no_prompt(thinking: Any) -> None:
    form = prompt_format(PromptSettings(preset="chatml", thinking=thinking))
    talk = [{"role": role, "content": text} for role, text in (("user", "1"), ("assistant", "2"), ("user", "3"))]
    assert jinja(talk, form) == jinja(talk, prompt_format(FORMATS["chatml"]))
    assert (".Thinking" in go_template(form, "<|im_end|>")) is (thinking == "keep")


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        ("uau", "user\nS\n\n1<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n<start_of_turn>user\n3"),
        ("uuau", "user\nS\n\n1\n\n2<end_of_turn>\n<start_of_turn>model\n3<end_of_turn>\n<start_of_turn>user\n4"),
        ("usu", "user\nS\n\n2\n\n1<end_of_turn>\n<start_of_turn>model\n<start_of_turn>user\n3"),
    ],
)
def test_gemmas_instruction_stands_before_the_first_question_alone(turns: str, wanted: str) -> None:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    asked = [{"role": roles[turn], "content": str(number)} for number, turn in enumerate(turns, 1)]
    found = jinja([{"role": "system", "content": "S"}, *asked], prompt_format(FORMATS["gemma"]))
    assert found == f"<start_of_turn>{wanted}<end_of_turn>\n<start_of_turn>model\n"


def test_an_answer_before_every_question_leaves_gemmas_instruction_where_it_belongs() -> None:
    greeted = [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "q"}]
    form = prompt_format(FORMATS["gemma"])
    assert jinja(greeted, form) == "Hello<end_of_turn>\n" + GEMMA.format("Explain:", "q")


@pytest.mark.parametrize("name", FORMATS)
def test_ollama_is_given_no_reason_to_prefer_the_jinja_template(name: str) -> None:
    text = chat_template(prompt_format(FORMATS[name]), bos=True)
    assert text.startswith("{{ bos_token }}") and "bos" not in chat_template(prompt_format(FORMATS[name]), bos=False)
    assert not any(word in text for word in ("tools", "tool_call", "<think>", "</think>"))


def test_go_template_escapes_only_what_go_would_execute() -> None:
    form = prompt_format(PromptSettings(language="{{ hi }}", instruction="Say {{ hi }}"))
    text = go_template(form, "<|end|>")
    assert '{{ "{" }}{ hi }}' in text
    assert "{{-" not in text and "-}}" not in text
    assert text.count("### Response:\n") == 1
    assert '$lead "Say {{ hi }}"' in text  # in quotes Go executes nothing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"instruction": " "}, "instruction must not be empty"),
        ({"instruction": "a\0"}, "U\\+0000 cannot be written"),
        ({"preset": "chatml", "user_turn": "{input}", "eos": "x"}, "user_turn, eos: only for preset"),
        ({"preset": "custom"}, "user_turn must hold {input} exactly once"),
        ({"preset": "custom", "user_turn": "{input}{input}{instruction}"}, "user_turn must hold {input} exactly once"),
        ({"preset": "custom", "user_turn": "{input}", "suffix": "{input}"}, "user_turn must hold {input} exactly once"),
        ({"preset": "custom", "user_turn": "{input}"}, "hold {instruction} exactly once"),
        (
            {"preset": "custom", "user_turn": "{input}{instruction}", "prefix": "{instruction}"},
            "{instruction} exactly once",
        ),
        ({"preset": "custom", "user_turn": "{input}{instruction}", "instruction": ""}, "instruction must not be empty"),
        ({"preset": "custom", "user_turn": "{input}{instruction}", "stops": ["x", ""]}, "empty text would end"),
        *(({"preset": name, "thinking": "off"}, 'thinking: only for preset = "chatml"') for name in NO_THINKING),
        ({"preset": "alpaca", "thinking": "keep"}, 'with "alpaca" leave it empty'),
        ({"preset": "custom", "user_turn": "{input}{instruction}", "thinking": "off"}, "closed block into user_turn"),
        ({"preset": "chatml", "thinking": "on"}, "'off' or 'keep'"),
        ({"preset": "no such"}, ", ".join(map(repr, PRESETS[:-1])) + f" or {PRESETS[-1]!r}"),
    ],
)
def test_formats_that_cannot_be_rendered_everywhere_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PromptSettings(**given)
