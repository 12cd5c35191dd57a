"""The Modelfile beside the GGUF of a foreign adapter makes a model in a real Ollama that reads prompts as trained."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.support import models
from tests.support.ollama_server import OllamaServer
from toolkit.export import ordering, standalone
from toolkit.export.jinja_render import renderer
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text

pytestmark = [pytest.mark.ollama, pytest.mark.slow]
CONTROLS = ("<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, TEMPLATE, TEMPLATE.removeprefix("{{ bos_token }}")])
def test_ollama_create_of_the_modelfile(
    server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    base = models.save_model(tmp_path / "base", controls=CONTROLS, max_position_embeddings=2048)
    adapter = models.save_adapter(tmp_path / "mine", base)
    (adapter / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    names = json.loads((base / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(
        json.dumps({**names, **({"chat_template": template} if template else {})})
    )
    monkeypatch.chdir(tmp_path)
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    figures = standalone.carry_out(order, "gguf", ("F16",), "out", dry_run=False, force=False)
    made = server.run(*figures["next"].split()[1:], cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    question = "What helps against a cold?"
    body: dict[str, Any] = {
        "model": "mine", "messages": [{"role": "user", "content": question}], "stream": False,
        "options": {"num_predict": 1},
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=120, trust_env=False).json()
    with open_vocabulary(tmp_path / "out" / "mine-F16.gguf") as file:
        if template is None:
            form = prompt_format(order.config.prompt)
            expected = file.chat_ids(prompt_text(form, question, form.instruction))
        else:
            text = f"<|begin_of_text|><|user|>\n{question}<|end_of_text|><|assistant|>\n"
            expected = file.chat_ids(text)
            trained = Tokenizer.from_file(str(adapter / "tokenizer.json"))
            assert expected == trained.encode(text, add_special_tokens=False).ids
    assert answer["prompt_eval_count"] == len(expected), answer


DATE = "strftime_now('%d %b %Y, %B %-d %y/%-m')"


@pytest.mark.parametrize(
    "start",
    [
        f"{{{{ {DATE} + '\\n' }}}}",
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ '<|system|>\\nIt is \"' + {DATE} + '\".\\n' + eos_token }}}}"
        "{% endif %}",
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_the_date_of_the_day_in_ollama(
    server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, told: bool
) -> None:
    """The server's own words: today's date, as the chat template would write it, also in a system message of its."""
    template = start + TEMPLATE.removeprefix("{{ bos_token }}")
    base = models.save_model(tmp_path / "base", controls=CONTROLS)
    adapter = models.save_adapter(tmp_path / "mine", base)
    (adapter / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(tmp_path)
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    figures = standalone.carry_out(order, "gguf", ("F16",), "out", dry_run=False, force=False)
    assert server.run(*figures["next"].split()[1:], cwd=tmp_path).returncode == 0
    messages = [("system", "Be brief."), ("user", "A?"), ("assistant", "B."), ("user", "C?")]
    messages = messages if told else messages[1:]
    body = {"model": "mine", "messages": [{"role": role, "content": text} for role, text in messages], "stream": False}
    answer = httpx.post(
        f"{server.url}/api/chat", json={**body, "_debug_render_only": True}, timeout=120, trust_env=False
    ).json()
    expected = renderer(template, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})(messages)
    assert answer["_debug_info"]["rendered_template"] == expected
