"""A chat template as Ollama's Go template: its format is found by rendering, and renders every chat alike."""

import pytest

from toolkit.export.jinja_format import format_of
from toolkit.export.jinja_render import renderer
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.renderings import conversation
from toolkit.prompt.templates import go_template

END = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    + END
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}" + END + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}" + END + "{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set told = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (told if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FOUND = {"chatml": CHATML, "a default system message": DEFAULT, "llama-3": LLAMA3, "gemma": GEMMA}
NONE = {
    "numbered": "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}",
    "only the last": "{{ messages[-1]['content'] }}",
    "capitals": "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "twice": "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
    "nothing": "BASE",
    "raises": "{{ raise_exception('no') }}",
    "mistral, whose answers begin with a space": LLAMA2,
    "the system message stands last": CHATML.replace("in messages", "in messages[::-1]"),
}


def found(template: str) -> PromptFormat | None:
    return format_of(renderer(template, {"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize("name", FOUND)
def test_the_format_of_a_template(name: str) -> None:
    form = found(FOUND[name])
    assert form is not None
    render = renderer(FOUND[name], {"bos_token": "<s>", "eos_token": "</s>"})
    chats = [
        [("user", "A?")],
        [("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D."), ("user", "E?")],
    ]
    if name != "gemma":
        chats += [[("system", "S"), *chat] for chat in chats]
    for chat in chats:
        assert conversation(form, [{"role": role, "content": text} for role, text in chat], "") == render(chat)


def test_the_go_template_of_a_default_system_message() -> None:
    form = found(DEFAULT)
    assert form is not None
    assert form.instruction == "You are kind."
    assert "<|im_start|>system\n" in go_template(form, "") and "You are kind." in go_template(form, "")


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_such_format(name: str) -> None:
    assert found(NONE[name]) is None
