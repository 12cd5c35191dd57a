"""The chat template in exported files: what ggufdoctor says of every preset and family, and its BOS."""

import json
from pathlib import Path
from typing import Any

import pytest
from ggufdoctor.checks.cross_engine import run_cross_engine_checks
from ggufdoctor.checks.ollama_registry import run_ollama_checks
from ggufdoctor.checks.sanity import run_sanity_checks
from ggufdoctor.engines.registry import select_engines
from ggufdoctor.fixtures import load_corpus
from ggufdoctor.models import CheckContext
from ggufdoctor.sources import resolve

from tests.support import families, models
from tests.support.prompts import FORMATS
from toolkit.export import export
from toolkit.export.merged_model import export_merged
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer

PRESETS = (
    "alpaca", "alpaca-no-input", "alpaca-no-input, bare", "chatml", "chatml, bare", "gemma", "llama3", "custom, start",
)  # fmt: skip
PLAIN = ("alpaca", "alpaca-no-input")


def name_eos(base: Path, eos: str) -> None:
    """Give a base the EOS that its format has, as an adapter trained with that format names it."""
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", eos),
        ("config.json", "eos_token_id", load_tokenizer(base).controls[eos]),
    ):
        values = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**values, key: value}))


def lint(path: Path) -> list[str]:
    """Every error and remark of ggufdoctor, as its command line finds them."""
    model, upstream, _ = resolve(str(path), None)
    corpus = load_corpus(None)
    engines = select_engines(None)
    assert not engines.unavailable and len(engines.engines) == 2
    context = CheckContext(
        model=model, engines=engines.engines, fixtures=corpus.fixtures, upstream_template=upstream,
        corpus_version=corpus.version, custom_corpus=corpus.custom,
    )  # fmt: skip
    found = [*run_sanity_checks(context), *run_cross_engine_checks(context), *run_ollama_checks(context)]
    assert not context.checks_not_evaluated
    return [f"{each.severity} {each.id}: {each.message}" for each in found]


def expected(found: list[str], bos: bool) -> list[str]:
    """What is left, but for the remark that the template begins with BOS where the vocabulary adds one: it must.

    llama.cpp takes its own away, which tests/register/test_bos.py proves; who renders it elsewhere adds none.
    """
    assert sum("S006" in each for each in found) == bos
    return [each for each in found if "S006" not in each]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "preset"),
    [*((family, preset) for family in families.FAMILIES for preset in PLAIN), *(("llama", each) for each in PRESETS)],
)
def test_ggufdoctor_finds_no_error_and_no_remark(family: str, preset: str, tmp_path: Path) -> None:
    form = prompt_format(FORMATS[preset])
    options: dict[str, Any] = {}
    if form.controls:
        options["vocabulary"] = lambda folder: models.save_tokenizer(
            folder, controls=[*form.controls, "<|system|>", "<|user|>", "<|assistant|>"]
        )
    base = families.save(tmp_path / "base", family, **options)
    if form.eos:
        name_eos(base, form.eos)
    bos = bool(load_tokenizer(base, form).bos_text)
    path = tmp_path / "model.gguf"
    export(base, None, {"F16": path}, chat_template(form, bos=bos), "linted")
    assert expected(lint(path), bos) == []


@pytest.mark.slow
def test_the_quick_starts_vocabulary_has_nothing_to_remark(tmp_path: Path) -> None:
    """SmolLM2-Instruct has no BOS: not one remark, of any kind."""
    from tests.support import vocabularies

    form = prompt_format(FORMATS["alpaca"])
    base = families.save(tmp_path / "base", "llama", vocabulary=vocabularies.smollm2, vocab_size=49152)
    path = tmp_path / "model.gguf"
    export(base, None, {"F16": path}, chat_template(form, bos=False), "quickstart")
    assert lint(path) == []


def test_a_merged_folder_names_the_bos_that_its_template_begins_with(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = families.save(tmp_path / "base", "llama")
    values = json.loads((base / "tokenizer_config.json").read_text())
    values.pop("bos_token", None)  # only tokenizer.json's post-processor knows it
    (base / "tokenizer_config.json").write_text(json.dumps(values))
    form = prompt_format(FORMATS["alpaca"])
    export_merged(base, None, tmp_path / "merged", chat_template(form, bos=True))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = loaded.apply_chat_template([{"role": "user", "content": "q"}], add_generation_prompt=True)["input_ids"]
    tokenizer = load_tokenizer(base, form)
    assert ids[0] == tokenizer.bos and ids.count(tokenizer.bos) == 1
