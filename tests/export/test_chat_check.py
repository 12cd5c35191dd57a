"""After every export a chat has the tokens in llama.cpp that it had in training, or nothing is written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer

from tests.support import families, models
from tests.support.vocabularies import setting
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.export import export
from toolkit.export.vocab.added_tokens import STRIPS
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
CONTROLS = ("<|reserved_0|>", "<|reserved_1|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    base = models.save_model(folder / "base", controls=CONTROLS, **SHAPE)
    return base, models.save_adapter(folder / "adapter", base)


@pytest.fixture
def adapter(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the adapter, with the base's tokenizer beside it."""
    copy = Path(shutil.copytree(made[1], tmp_path / "adapter"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made[0] / name, copy / name)
    return copy


def change(folder: Path, *changes: Callable[[Any], None]) -> None:
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text())
    for each in changes:
        each(layout)
    path.write_text(json.dumps(layout))


def rename(folder: Path, **texts: str) -> None:
    """Rename tokens in both files of a tokenizer; keys are the old texts without `<|` and `|>`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for old, new in texts.items():
            text = text.replace(f"<|{old}|>", new)
        (folder / name).write_text(text)


def flag(text: str, **flags: bool) -> Callable[[Any], None]:
    def set_flags(layout: Any) -> None:
        next(entry for entry in layout["added_tokens"] if entry["content"] == text).update(flags)

    return set_flags


def ids_in_file(path: Path, text: str) -> list[int]:
    with open_vocabulary(path) as file:
        return file.chat_ids(text)


@pytest.mark.parametrize(
    "renamed",
    [
        {"end_of_text": "<|im_end|>"},
        {"end_of_text": "<|im_end|>", "reserved_0": "<|im_start|>"},
        {"reserved_0": "<|im_start|>", "reserved_1": "<|im_end|>"},
        {"pad": "[END]"},
    ],
)
def test_renamed_tokens_are_those_of_the_training(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, renamed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    base, target = made[0], tmp_path / "a.gguf"
    rename(adapter, **renamed)
    export(base, adapter, {"F16": target}, CHATML, "x")
    said = capsys.readouterr().err
    assert f"{len(renamed)} renamed" in said and all(text in said for text in renamed.values())
    trained = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    for text in renamed.values():
        chat = f"hello{text}\nyou"
        assert ids_in_file(target, chat)[1:] == trained.encode(chat, add_special_tokens=False).ids
    with open_vocabulary(target) as file:
        assert file.text(file.eos) == renamed.get("end_of_text", "<|end_of_text|>")


def test_an_equal_tokenizer_is_the_bases(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "vocabulary:" not in capsys.readouterr().err


def test_more_tokens_than_rows(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base's vocabulary is written and said; a template that needs the new ones cannot be."""
    models.add_tokens(made[0], adapter, *(f"<|new_{n}|>" for n in range(60)), "<|im_start|>", "<|im_end|>")
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "more tokens than the embedding has rows (512)" in capsys.readouterr().err
    with pytest.raises(ToolkitError, match=r"training saw \d+ `<\|im_start\|>`, .*llama.cpp would see \d+ `<`"):
        export(made[0], adapter, {"F16": tmp_path / "b.gguf"}, CHATML, "x")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "in_vocabulary"), [("gemma3", False), ("gemma3", True), ("llama", False), ("qwen3", False)]
)
def test_a_control_token_of_the_base_without_a_row(
    family: str, in_vocabulary: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `<image_soft_token>` in Gemma-3 1B: the converter leaves it out. An ordinary token is refused as before."""
    trial = families.save_stub(tmp_path / "trial", family)
    rows = max(Tokenizer.from_file(str(trial / "tokenizer.json")).get_vocab().values()) + 1
    base = families.save(tmp_path / "base", family, vocab_size=rows)
    token = {"id": rows, "content": "<image_soft_token>", "special": True, **dict.fromkeys(STRIPS, False)}
    change(base, lambda layout: layout["added_tokens"].append({**token, "normalized": False}))
    if in_vocabulary:
        change(base, setting("model", "vocab", "<image_soft_token>", value=rows))
    adapter = models.save_adapter(tmp_path / "adapter", base)
    for path in base.glob("tokenizer*"):
        shutil.copyfile(path, adapter / path.name)
    export(base, adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    said = " ".join(capsys.readouterr().err.split())
    assert "no row for are left out: `<image_soft_token>`" in said and "vocabulary:" not in said
    tokens = gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == rows and "<image_soft_token>" not in tokens
    change(base, flag("<image_soft_token>", special=False))
    with pytest.raises(ToolkitError, match=f"the id {rows}, but the embedding has {rows} rows"):
        export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")


@pytest.mark.parametrize(
    ("flags", "template"),
    [
        ({"lstrip": True}, "{% for m in messages %}{{ m['content'] + ' <|reserved_0|>' }}{% endfor %}"),
        ({"rstrip": True}, "{% for m in messages %}{{ '<|reserved_0|>\\n' + m['content'] }}{% endfor %}"),
        ({"single_word": True}, "{% for m in messages %}{{ m['content'] + 'x<|reserved_0|>x' }}{% endfor %}"),
    ],
)
def test_flags_that_llama_cpp_has_not(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, flags: dict[str, bool], template: str
) -> None:
    change(adapter, flag("<|reserved_0|>", **flags))
    with pytest.raises(ToolkitError, match="a chat has different tokens in the file than in training") as caught:
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, template, "x")
    assert "tokenizer.save_pretrained" in caught.value.hint
    assert not list(tmp_path.glob("*.gguf"))
    assert "gives `<|reserved_0|>` the flag" in caught.value.message
    with pytest.raises(ToolkitError, match="the flag"):  # nor in a question, where training finds it too
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    change(adapter, flag("<|reserved_0|>", **dict.fromkeys(flags, False)))  # the hint
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")


def add(folder: Path, text: str, **flags: bool) -> None:
    """Add a token to a tokenizer, in one of the rows that the embedding has left."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = flags.pop("special", False)
    token = AddedToken(text, special=special, **{"normalized": False, **flags})
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.save(str(folder / "tokenizer.json"))


AROUND = "take{0}now, take {0} now\n{0}\n\n {0} take {0}{0}"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["nemo", "mistral", "phi3", "gemma2"])
@pytest.mark.parametrize(
    "flags",
    [
        {"lstrip": True},
        {"rstrip": True},
        {"single_word": True},
        {"lstrip": True, "rstrip": True, "special": True},
        {"normalized": True},
        {},
        {"special": True},
    ],
    ids=lambda flags: "+".join(flags) or "none",
)
def test_an_added_token_is_found_as_in_training_or_refused(family: str, flags: dict[str, bool], tmp_path: Path) -> None:
    """Whatever is exported has the ids of training around the token; else the token and its flag are named."""
    base = families.save(tmp_path / "base", family)
    add(base, "<dose>", **flags)
    template = "Question: {% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}Answer:"
    target = tmp_path / "a.gguf"
    trained = Tokenizer.from_file(str(base / "tokenizer.json"))
    chat = f"Question: {AROUND.format('<dose>')}\nAnswer:"
    expected = trained.encode(chat, add_special_tokens=False).ids
    try:
        export(base, None, {"F16": target}, template, "x")
    except ToolkitError as exc:
        named = [flag for flag in flags if flag not in ("special", "normalized")]
        assert "<dose>" in exc.message and all(f"`{flag}`" in exc.message for flag in named)
        assert family == "mistral" or flags  # llama.cpp puts Mistral's space behind a token too
        assert not target.exists() and "tokenizer.json" in exc.hint
    else:
        found = ids_in_file(target, chat)
        assert flags.get("special") or found[-len(expected) :] == expected


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_a_run_of_the_toolkit_trains_with_tokens_as_llama_cpp_finds_them(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, flags: dict[str, bool]
) -> None:
    add(adapter, "<dose>", **flags)
    form = prompt_format(Config().prompt)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, chat_template(form, bos=True), "x", prompt_format=form)
    text = AROUND.format("<dose>")
    assert ids_in_file(tmp_path / "a.gguf", text) == load_tokenizer(adapter, eos_from=made[0]).prompt_ids(text)


# The same tokens, made of a text by other rules.


def merges_swapped(layout: Any) -> None:
    merges = layout["model"]["merges"]
    merges[:] = [*merges[::-1]]


def merges_fewer(layout: Any) -> None:
    del layout["model"]["merges"][-40:]


@pytest.mark.parametrize("changed", [merges_swapped, merges_fewer])
def test_other_merges_are_those_of_the_training(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, changed: Callable[[Any], None], capsys: Any
) -> None:
    change(adapter, changed)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "the same tokens, found in a text by other rules" in capsys.readouterr().err
    trained = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    for text in (*models.TEXT, "Drinking enoughs waterish"):
        assert ids_in_file(tmp_path / "a.gguf", text)[1:] == trained.encode(text, add_special_tokens=False).ids


def test_merges_that_llama_cpp_has_not(made: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    change(adapter, setting("model", "ignore_merges", value=False), setting("normalizer", value={"type": "NFKC"}))
    with pytest.raises(ToolkitError, match="is not one that llama"):
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")


def test_merges_written_in_another_way_are_the_same(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_texts(layout: Any) -> None:
        layout["model"]["merges"] = [" ".join(pair) for pair in layout["model"]["merges"]]
        layout["model"].pop("dropout", None)

    change(adapter, as_texts)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "vocabulary:" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"reserved_0": "<|im_start|>"}, {}])
def test_more_tokens_than_rows_and_other_ones_below(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    """Neither vocabulary is that of the training."""
    if changed:
        rename(adapter, **changed)
    else:
        change(adapter, merges_swapped)
    models.add_tokens(adapter, adapter, *(f"<|new_{n}|>" for n in range(60)))
    with pytest.raises(ToolkitError, match=r"(renames tokens|splits text).* and has \d+ more tokens than") as caught:
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "save_embedding_layers" in caught.value.hint


@pytest.mark.parametrize(
    ("template", "chat"),
    [
        ("{{ bos_token }}Answer:", "one message"),
        ("{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}", "one message"),
        ("{{ messages[0]['content'] }}", "a system message"),
        ("{% for m in messages if m['role'] == messages[0]['role'] %}{{ m['content'] }}{% endfor %}", "a system"),
        ("{% for m in messages[:2] %}{{ m['content'] }}{% endfor %}", "earlier messages"),
    ],
)
def test_a_template_that_does_not_show_the_question(
    made: tuple[Path, Path], tmp_path: Path, template: str, chat: str
) -> None:
    with pytest.raises(ToolkitError, match=f"does not show the question of a chat that has {chat}"):
        export(made[0], None, {"F16": tmp_path / "a.gguf"}, template, "x")
    assert not list(tmp_path.iterdir())


def test_bos_is_what_the_training_put_there(made: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    change(adapter, setting("post_processor", value=None))
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    with open_vocabulary(tmp_path / "a.gguf") as file:
        assert not file.adds_bos and file.bos is not None


@pytest.mark.parametrize("start", ["", "{{ bos_token }}", "<|begin_of_text|>"])
def test_one_bos_with_and_without_one_in_the_template(made: tuple[Path, Path], tmp_path: Path, start: str) -> None:
    export(made[0], None, {"F16": tmp_path / "a.gguf"}, start + models.TEMPLATE, "x")
    with open_vocabulary(tmp_path / "a.gguf") as file:
        for text in ("hello", "<|begin_of_text|>hello"):
            ids = file.chat_ids(text)
            assert ids[0] == file.bos and ids.count(ids[0]) == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ bos_token }}{{ bos_token }}" + models.TEMPLATE, "begins with `<|begin_of_text|>` twice"),
        ("\n {{ bos_token }}" + models.TEMPLATE, "different tokens in the file than in training"),
        ("{% for m in messages %}", "is not valid Jinja"),
        ("{{ raise_exception('no chats') }}", "does not render a question: no chats"),
    ],
)
def test_templates_that_cannot_run_as_trained(
    made: tuple[Path, Path], tmp_path: Path, template: str, words: str
) -> None:
    with pytest.raises(ToolkitError, match=words.replace("|", r"\|")):
        export(made[0], None, {"F16": tmp_path / "a.gguf"}, template, "x")
    assert not list(tmp_path.iterdir())


def test_templates_of_every_kind_are_rendered(made: tuple[Path, Path], tmp_path: Path) -> None:
    """What transformers' Jinja has: loop controls, generation blocks, dates, JSON, no system role."""
    template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{%- if tools %}{{ tools | tojson(indent=4) }}{% endif %}{% for m in messages %}{% if loop.index > 9 %}"
        "{% break %}{% endif %}{%- generation -%}{{ m | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') }}"
    )
    export(made[0], None, {"F16": tmp_path / "a.gguf"}, template, "x")


def test_a_run_of_the_toolkit_is_held_to_its_own_prompts(made: tuple[Path, Path], tmp_path: Path) -> None:
    form = prompt_format(Config().prompt)
    export(made[0], None, {"F16": tmp_path / "a.gguf"}, chat_template(form, bos=True), "x", prompt_format=form)
    with pytest.raises(ToolkitError, match="different tokens in the file than in training"):
        export(
            made[0], None, {"F16": tmp_path / "b.gguf"}, "x" + chat_template(form, bos=True), "x", prompt_format=form
        )


def test_text_that_looks_like_a_token_is_warned_of(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(made[0], None, {"F16": tmp_path / "a.gguf"}, CHATML, "x")
    said = capsys.readouterr().err
    assert "they become plain text: `<|im_start|>` (" in said and "`<|im_end|>`" in said


def test_two_tokens_of_one_text(made: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    tokenizer = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    count = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(f"[PAD{count + 3}]", special=True, normalized=False)])
    tokenizer.save(str(adapter / "tokenizer.json"))
    with pytest.raises(ToolkitError, match=rf"tokens {count} and {count + 3} of the vocabulary have the same text"):
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"eos_token": "<|im_end|>"}, r"names the EOS `<\|im_end\|>`"),
        ({"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}}, r"calls token 7 `<\|im_end\|>`"),
    ],
)
def test_tokens_named_without_a_tokenizer(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, named: dict[str, Any], words: str
) -> None:
    (adapter / "tokenizer.json").unlink()
    (adapter / "tokenizer_config.json").write_text(json.dumps(named))
    with pytest.raises(ToolkitError, match=words) as caught:
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "eos"),
    [
        ("tokenizer_config.json", "<|im_end|>"),
        ("tokenizer_config.json", {"content": "<end_of_turn>", "special": True}),
        ("special_tokens_map.json", "</s>"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_an_eos_that_no_vocabulary_has(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, file: str, eos: Any, saved: bool
) -> None:
    """The model would never stop, or stop at a token that it was not trained to end with."""
    (adapter / "tokenizer_config.json").unlink()
    (adapter / file).write_text(json.dumps({"eos_token": eos}))
    if not saved:
        (adapter / "tokenizer.json").unlink()
    text = eos["content"] if isinstance(eos, dict) else eos
    with pytest.raises(ToolkitError, match=rf"{file}` names the EOS `{re.escape(text)}`"):
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")


def test_an_eos_beyond_the_rows_is_said(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.add_tokens(made[0], adapter, *(f"<|new_{n}|>" for n in range(60)), "<|im_end|>")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    said = " ".join(capsys.readouterr().err.split())
    assert "its EOS `<|im_end|>` is one of them, so answers end in the base's" in said


def test_a_renamed_eos_without_settings_is_the_bases_by_its_id(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    rename(adapter, end_of_text="<|im_end|>")
    (adapter / "tokenizer_config.json").unlink()
    base = Path(shutil.copytree(made[0], tmp_path / "base"))
    index = Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id("<|end_of_text|>")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": index}))
    export(base, adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    with open_vocabulary(tmp_path / "a.gguf") as file:
        assert file.text(file.eos) == "<|im_end|>"


def test_an_adapters_tokenizer_may_leave_eos_to_the_base(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    rename(adapter, reserved_0="<|im_start|>")
    (adapter / "tokenizer_config.json").unlink()
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    with open_vocabulary(tmp_path / "a.gguf") as file:
        assert file.text(file.eos) == "<|end_of_text|>"


# Names that mean something to llama.cpp.


@pytest.mark.parametrize("name", ["llama-vs-phi3", "my-Phi-3-killer", "PHI3"])
def test_a_name_that_is_another_vocabulary_to_llama_cpp(
    made: tuple[Path, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export(made[0], None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, name)
    with open_vocabulary(tmp_path / "a.gguf"):  # it loads
        pass
    written = gguf.GGUFReader(tmp_path / "a.gguf").fields["general.name"].contents()
    assert written != name and f"the model's name in the file is `{written}`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_harmless_name_stays(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("phi-4 of mine", "Modern BERT", "alphi 3"):
        export(made[0], None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, name)
        assert gguf.GGUFReader(tmp_path / "a.gguf").fields["general.name"].contents() == name
    assert "the model's name in the file" not in capsys.readouterr().err


PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'].replace('system', 'user') + '|>\\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.slow
def test_the_name_by_which_llama_cpp_drops_spaces(tmp_path: Path) -> None:
    """Phi-3's tokenizer drops the newline behind a control token; llama.cpp does so for files of its name only."""
    base = families.save(tmp_path / "base", "phi3")
    export(base, None, {"F16": tmp_path / "plain.gguf"}, PHI3, "mine")
    change(base, *(flag(text, rstrip=True) for text in ("<|user|>", "<|assistant|>", "<|placeholder1|>", "</s>")))
    export(base, None, {"F16": tmp_path / "a.gguf"}, PHI3, "mine")
    export(base, None, {"F16": tmp_path / "b.gguf"}, PHI3, "mine-phi-3")
    names = [
        gguf.GGUFReader(tmp_path / f"{name}.gguf").fields["general.name"].contents() for name in ("plain", "a", "b")
    ]
    assert names == ["mine", "mine (phi-3)", "mine-phi-3"]
    expected = Tokenizer.from_file(str(base / "tokenizer.json")).encode("<|user|>\nDrink", add_special_tokens=False).ids
    assert ids_in_file(tmp_path / "a.gguf", "<|user|>\nDrink") == expected
    assert ids_in_file(tmp_path / "plain.gguf", "<|user|>\nDrink") != expected


@pytest.mark.slow
def test_spaces_behind_control_tokens_as_mistral_has_them(tmp_path: Path) -> None:
    """Its pre-tokenizer puts a space in front of a text alone; llama.cpp would put one behind every control token."""
    base = families.save(tmp_path / "base", "mistral")
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    export(base, None, {"F16": tmp_path / "a.gguf"}, template, "x")
    chat = "[INST] Drink water[/INST] Yes"
    expected = Tokenizer.from_file(str(base / "tokenizer.json")).encode(f"<s>{chat}", add_special_tokens=False).ids
    assert ids_in_file(tmp_path / "a.gguf", chat) == expected
    export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")  # a text in front: the space is there
    assert ids_in_file(tmp_path / "b.gguf", "Drink")[1:] == Tokenizer.from_file(str(base / "tokenizer.json")).encode(
        "Drink", add_special_tokens=False
    ).ids  # fmt: skip


# What transformers makes of a GGUF's tokenizer: bytes split and encode, the rest is left over from another kind.


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "smollm"])
def test_byte_level_beside_a_fallback_for_bytes(tmp_path: Path, pre: str) -> None:
    base = models.save_model(tmp_path / "base", pre=pre, **SHAPE)
    decoder = {"type": "Sequence", "decoders": [
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    ]}  # fmt: skip
    empty = {"type": "Sequence", "normalizers": []}
    fallback = setting("model", "byte_fallback", value=True)
    change(base, fallback, setting("decoder", value=decoder), setting("normalizer", value=empty))
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2" and fields["tokenizer.ggml.pre"].contents() == pre


def test_a_tokenizer_that_transformers_read_from_a_gguf(made: tuple[Path, Path], tmp_path: Path) -> None:
    """The very thing: its pre-tokenizer is lost on the way, and what it now is, the file is too."""
    from transformers import AutoTokenizer

    export(made[0], None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    base = Path(shutil.copytree(made[0], tmp_path / "base"))
    for path in base.glob("tokenizer*"):
        path.unlink()
    AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf").save_pretrained(base)
    layout = json.loads((base / "tokenizer.json").read_text())
    assert layout["model"]["byte_fallback"] and layout["pre_tokenizer"]["type"] == "ByteLevel"
    export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "nemo"])
def test_the_toolkits_prompts_on_every_kind_of_vocabulary(family: str, tmp_path: Path) -> None:
    """The presets that are plain text, as a run exports them."""
    base = families.save(tmp_path / "base", family)
    for preset in ("alpaca", "alpaca-no-input"):
        form = prompt_format(build({"prompt": {"preset": preset}}).prompt)
        template = chat_template(form, bos=bool(load_tokenizer(base, form).bos_text))
        export(base, None, {"F16": tmp_path / "a.gguf"}, template, "x", prompt_format=form)


PHI4 = "{% for m in messages %}{{ '<|turn|>' + m['role'] + '<|sep|>' + m['content'] + '<|stop|>' }}{% endfor %}"


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_what_a_base_itself_strips_is_warned_of(
    flags: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Phi-4's control tokens: messages without spaces at their ends have the ids of training, others are named."""
    base = families.save(tmp_path / "base", "nemo")
    for text in ("<|turn|>", "<|sep|>", "<|stop|>"):
        add(base, text, special=True, **flags)
    export(base, None, {"F16": tmp_path / "a.gguf"}, PHI4, "x")
    said = " ".join(capsys.readouterr().err.split())
    assert "the base gives" in said and "begins or ends with spaces has other tokens than in training" in said
    trained = Tokenizer.from_file(str(base / "tokenizer.json"))
    for question, same in (("Does water help?", True), (" Does water help?\n", False)):
        chat = f"<|turn|>user<|sep|>{question}<|stop|>"
        expected = trained.encode(chat, add_special_tokens=False).ids
        assert (ids_in_file(tmp_path / "a.gguf", chat)[-len(expected) :] == expected) is same


def test_what_an_adapter_strips_and_its_base_does_not_is_refused(
    made: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    for text in ("<|turn|>", "<|sep|>", "<|stop|>"):
        add(adapter, text, special=True, lstrip=True)
    with pytest.raises(ToolkitError, match="the flag `lstrip`"):
        export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, PHI4, "x")
