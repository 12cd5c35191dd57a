"""One BOS on every way to a chat prompt, with Llama-3's real vocabulary: the ids are those of training."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needed, ollama_binary
from tests.support import families, vocabularies
from tests.support.llama_server import llama_server, program_of
from tests.support.ollama_server import OllamaServer, library
from tests.support.prompts import FORMATS
from toolkit.core.output_settings import OllamaSettings
from toolkit.export import export
from toolkit.export.merged_model import export_merged
from toolkit.ollama import server
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.templates import chat_template, go_template
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

ASKED = [
    ("What is flu?", "Explain as a doctor"),
    ("  Wie lange dauert eine Grippe?\n\n", "Antworte kurz."),
    ("naïve 水 🙂 1234567", "Explain:"),
]


def messages_of(question: str, instruction: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": instruction}, {"role": "user", "content": question}]


def by_transformers(folder: Path, messages: list[dict[str, Any]]) -> list[int]:
    """As apply_chat_template tokenizes, and as vLLM does: the text without special tokens around it."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = loaded.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids
    return ids


def by_llama_cpp_python(llm: Any, messages: list[dict[str, Any]]) -> list[int]:
    """The prompt that create_chat_completion hands on."""
    seen: list[list[int]] = []
    complete = llm.create_completion

    def watched(prompt: list[int], **options: Any) -> Any:
        seen.append(prompt)
        return complete(prompt=prompt, **options)

    llm.create_completion = watched
    try:
        llm.create_chat_completion(messages, max_tokens=1)
    finally:
        llm.create_completion = complete
    return list(seen[0])


@pytest.mark.parametrize("preset", ["alpaca", "llama3"])
def test_every_way_to_chat_has_the_ids_of_training(ollama: OllamaServer, tmp_path: Path, preset: str) -> None:
    import llama_cpp

    form, base, gguf = prompt_format(FORMATS[preset]), tmp_path / "base", tmp_path / "model.gguf"
    families.save(base, "llama", vocabulary=vocabularies.llama3, vocab_size=128256, **families.WIDTHS)
    tokenizer = load_tokenizer(base, form)
    template = chat_template(form, bos=True)
    export(base, None, {"F16": gguf}, template, "bos")
    export_merged(base, None, tmp_path / "merged", template)
    trained = [tokenizer.prompt_ids(render(form, *asked)) for asked in ASKED]
    assert all(ids[0] == tokenizer.bos and ids.count(ids[0]) == 1 for ids in trained)

    messages = [messages_of(*asked) for asked in ASKED]
    assert [by_transformers(tmp_path / "merged", each) for each in messages] == trained
    llm = llama_cpp.Llama(str(gguf), n_ctx=1024, verbose=False)
    assert [by_llama_cpp_python(llm, each) for each in messages] == trained
    llm.close()
    by_llama_server(gguf, messages, trained)
    by_ollama(ollama, gguf, form, tokenizer, trained)


def by_llama_server(gguf: Path, messages: list[list[dict[str, Any]]], trained: list[list[int]]) -> None:
    """It takes the template's BOS away and has its tokenizer add one."""
    program = program_of(ollama_binary())
    needed(program.is_file(), str(program))
    with llama_server(program, gguf) as http:
        for asked, ids in zip(messages, trained, strict=True):
            text = server.call(http, "/apply-template", {"messages": asked})["prompt"]
            body = {"content": text, "add_special": True, "parse_special": True}
            assert server.call(http, "/tokenize", body)["tokens"] == ids
            answer = server.call(http, "/v1/chat/completions", {"messages": asked, "max_tokens": 1})
            assert answer["usage"]["prompt_tokens"] == len(ids)


def by_ollama(
    ollama: OllamaServer, gguf: Path, form: PromptFormat, tokenizer: Tokenizer, trained: list[list[int]]
) -> None:
    """Its own template stays without: llama.cpp adds the BOS there."""
    settings = OllamaSettings(host=ollama.url)
    template = go_template(form, tokenizer.eos_text)
    assert tokenizer.bos_text not in template
    client = library(ollama.url)
    client.create("bos", files={"model.gguf": client.create_blob(str(gguf))}, template=template, system="Explain:")
    with server.http(settings) as http:
        for (question, instruction), ids in zip(ASKED, trained, strict=True):
            body = {"model": "bos", "prompt": question, "system": instruction, "stream": False}
            answer = server.call(http, "/api/generate", {**body, "options": {"num_predict": 1, "stop": []}})
            assert answer["prompt_eval_count"] == len(ids)
            assert answer["context"][: len(ids) - 2] == ids[1:-1]


def test_a_real_ollama_renders_the_chat_template_as_ggufdoctor_predicts(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made of the GGUF alone, without our Modelfile, a model gets its own chat template."""
    from ggufdoctor.checks.ollama_registry import run_ollama_checks
    from ggufdoctor.engines.registry import select_engines
    from ggufdoctor.fixtures import load_corpus
    from ggufdoctor.models import CheckContext, Severity
    from ggufdoctor.runtime_ollama import OllamaRuntime, run_runtime_checks
    from ggufdoctor.sources import resolve

    for name in ("HOME", "OLLAMA_HOST", "OLLAMA_MODELS"):
        monkeypatch.setenv(name, ollama.environment[name])
    base, gguf = tmp_path / "base", tmp_path / "model.gguf"
    families.save(base, "llama", vocabulary=vocabularies.smollm2, vocab_size=49152, **families.WIDTHS)
    export(base, None, {"F16": gguf}, chat_template(prompt_format(FORMATS["alpaca"]), bos=False), "runtime")
    model, _, _ = resolve(str(gguf), None)
    corpus = load_corpus(None)
    context = CheckContext(
        model=model, engines=select_engines(None).engines, fixtures=corpus.fixtures, corpus_version=corpus.version
    )
    assert run_ollama_checks(context) == []
    found = run_runtime_checks(context, OllamaRuntime([str(ollama.binary)]), str(gguf))
    assert [(each.id, each.severity) for each in found] == [("RT001", Severity.INFO)], found
    assert "exactly as predicted" in found[0].message
