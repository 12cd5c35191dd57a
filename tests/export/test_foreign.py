"""`toolkit export --adapter` and `--model`: whose base, whose chat template, and what stands beside the GGUF."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.conftest import Called
from tests.support import models
from toolkit.core.errors import ToolkitError
from toolkit.export import export, foreign, foreign_template, ordering, standalone
from toolkit.ollama import modelfile

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
OWN, BASES = "OWN" + models.TEMPLATE, "BASE" + models.TEMPLATE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    base = models.save_model(folder / "base", **SHAPE)
    return base, models.save_adapter(folder / "mine", base)


@pytest.fixture
def pair(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of a base and of an adapter that names it, in the folder in which the test is called."""
    base, adapter = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in made)
    configured(adapter, base_model_name_or_path=str(base))
    monkeypatch.chdir(tmp_path)
    return base, adapter


def configured(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def carry(order: ordering.Order, *quantizations: str, form: str = "gguf", **options: bool) -> dict[str, Any]:
    wanted = {"dry_run": False, "force": False, **options}
    return standalone.carry_out(order, form, quantizations or (("F16",) if form == "gguf" else ()), "out", **wanted)


def template_in(order: ordering.Order) -> str:
    figures = carry(order, force=True)
    text: str = gguf.GGUFReader(figures["files"]["F16"]["path"]).fields["tokenizer.chat_template"].contents()
    return text


# The base: the nearest wins, and is said.


@pytest.mark.parametrize(
    ("given", "own", "stated", "used", "warned"),
    [
        ("other", "base", None, "other (--base)", ["the adapter's own names another base"]),
        (None, "base", "other", "base (the adapter's own)", ["`toolkit.toml` names another base"]),
        ("base", "base", "other", "base (--base)", ["`toolkit.toml` names another base"]),
        (None, None, "other", "other (`toolkit.toml`)", []),
        ("base", None, "base", "base (--base)", []),
        ("base", "./base", None, "base (--base)", []),
        (None, "x/Llama-7B-bnb-4bit", "y/llama-7b", "x/Llama-7B-bnb-4bit (the adapter's own)", []),
    ],
)
def test_the_nearest_base(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: str | None,
    own: str | None,
    stated: str | None,
    used: str,
    warned: list[str],
) -> None:
    (tmp_path / "other").mkdir()
    configured(pair[1], base_model_name_or_path=own)
    if stated:
        (tmp_path / "toolkit.toml").write_text(f'[model]\nbase = "{stated}"\n')
    order = ordering.of_adapter(pair[1], given, "toolkit.toml", ())
    said = capsys.readouterr().err
    assert f"base: {used}\n" in said and order.base == used.partition(" ")[0]
    assert said.count("warning") == len(warned) and all(text in said for text in warned)


def test_settings_that_state_no_base_name_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The default base is nobody's choice."""
    configured(pair[1], base_model_name_or_path=None)
    (tmp_path / "toolkit.toml").write_text('[run]\nname = "x"\n')
    with pytest.raises(ToolkitError, match="does not name its base model"):
        ordering.of_adapter(pair[1], None, "toolkit.toml", ())


def test_a_base_of_another_machine(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It is not replaced by the settings' in silence, but the hint names that."""
    configured(pair[1], base_model_name_or_path="/content/drive/model")
    (tmp_path / "toolkit.toml").write_text('[model]\nbase = "base"\n')
    with pytest.raises(ToolkitError, match="`/content/drive/model`, which is not on this machine") as caught:
        ordering.of_adapter(pair[1], None, "toolkit.toml", ())
    assert "--base base" in caught.value.hint


@pytest.mark.slow
def test_16_bit_weights_belong_to_the_base_that_names_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    models.save_model(tmp_path / "other", **SHAPE)
    (tmp_path / "toolkit.toml").write_text('[model]\nbase = "a/b-bnb-4bit"\nbase_16bit = "other"\n')
    figures = carry(ordering.of_adapter(pair[1], None, "toolkit.toml", ()), "F32")
    assert models.kl(*pair, Path(figures["files"]["F32"]["path"]), 64) <= 1e-9


# The chat template, in every form that transformers writes.


def jinja(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(text)


def in_config(folder: Path, text: Any) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**values, "chat_template": text}))


def named(folder: Path, text: str) -> None:
    in_config(folder, [{"name": "rag", "template": "no"}, {"name": "default", "template": text}])


def processors(folder: Path, text: str) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))


@pytest.mark.parametrize("write", [jinja, in_config, named, processors])
def test_the_adapters_own_template_in_every_form(
    pair: tuple[Path, Path], tmp_path: Path, write: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = pair
    write(adapter, OWN)
    jinja(base, BASES)
    (tmp_path / "toolkit.toml").write_text('[prompt]\npreset = "alpaca"\n')
    assert template_in(ordering.of_adapter(adapter, None, "toolkit.toml", ())) == OWN
    said = capsys.readouterr().err
    assert "chat template: the adapter's own" in said
    assert (
        "the base's own is a different chat template" in said and "`toolkit.toml` is a different chat template" in said
    )


@pytest.mark.parametrize("write", [jinja, in_config, named, processors])
def test_the_bases_own_template_comes_next(
    pair: tuple[Path, Path], write: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = pair
    write(base, BASES)
    assert template_in(ordering.of_adapter(adapter, None, "none.toml", ())) == BASES
    said = capsys.readouterr().err
    assert "chat template: the base's own" in said and "warning" not in said


@pytest.mark.parametrize("kept", ["{{ bos_token }}BASE", "{{ bos_token }}{{ messages[0]['content'] }}"])
def test_the_bases_own_template_is_kept_though_it_hides_the_question(
    pair: tuple[Path, Path], tmp_path: Path, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base answers so, too: it is warned of. An adapter's own template is refused."""
    base, adapter = pair
    jinja(base, kept)
    assert export(base, adapter, {"F32": tmp_path / "a.gguf"}, kept, "x")
    assert "does not show the question" in capsys.readouterr().err
    with pytest.raises(ToolkitError, match="does not show the question"):
        export(base, adapter, {"F32": tmp_path / "b.gguf"}, f"{kept} ", "x")


def test_a_template_inside_a_gguf_base(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(pair[0], None, {"F32": tmp_path / "base.gguf"}, BASES, "base")
    assert template_in(ordering.of_adapter(pair[1], "base.gguf", "none.toml", ())) == BASES


@pytest.mark.slow
def test_a_preset_that_was_stated(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the file it comes before the base's, on the command line before the adapter's."""
    base, adapter = pair
    jinja(base, BASES)
    (tmp_path / "toolkit.toml").write_text('[prompt]\npreset = "alpaca-no-input"\n')
    assert "### Response" in template_in(ordering.of_adapter(adapter, None, "toolkit.toml", ()))
    assert "the base's own is a different chat template, which is not used" in capsys.readouterr().err
    jinja(adapter, OWN)
    order = ordering.of_adapter(adapter, None, "toolkit.toml", ("prompt.preset=alpaca",))
    assert "### Input" in template_in(order)
    assert "the adapter's own is a different chat template, which is not used" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("change", ["prompt.instruction=Answer briefly.", "prompt.language=Deutsch"])
def test_what_fills_a_preset_in_states_none(
    pair: tuple[Path, Path], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's own template stays; where nobody has one, the text is used."""
    adapter = pair[1]
    order = ordering.of_adapter(adapter, None, "none.toml", (change,))
    assert "### Response" in template_in(order) and change.partition("=")[2] in Path("out/Modelfile").read_text()
    assert "has no effect" not in capsys.readouterr().err
    jinja(adapter, OWN)
    (tmp_path / "toolkit.toml").write_text('[prompt]\npreset = "alpaca-no-input"\n')
    for settings in ("none.toml", "toolkit.toml"):
        assert template_in(ordering.of_adapter(adapter, None, settings, (change,))) == OWN
        assert f"--set {change.partition('=')[0]} has no effect on this chat template" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("change", ["prompt.suffix=<end>", "prompt.after=<end>", 'prompt.stops=["<end>"]'])
def test_a_part_of_a_custom_preset_states_it(pair: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    jinja(pair[1], OWN)
    custom = 'preset = "custom"\nuser_turn = "Q {instruction} {input} A "\n'
    (tmp_path / "toolkit.toml").write_text(f"[prompt]\n{custom}")
    assert template_in(ordering.of_adapter(pair[1], None, "toolkit.toml", ())) == OWN
    assert template_in(ordering.of_adapter(pair[1], None, "toolkit.toml", (change,))) != OWN


# What stands beside the GGUF.


def test_a_modelfile_and_the_next_step(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Of the default quantization; the prompt is the preset's."""
    figures = carry(ordering.of_adapter(pair[1], None, "none.toml", ()), "Q8_0", "Q4_K_M")
    assert figures["modelfile"] == "out/Modelfile" and figures["next"] == "ollama create mine -f out/Modelfile"
    found = modelfile.meaning(modelfile.read_modelfile(Path("out/Modelfile").read_text()))
    assert found.from_ == "./mine-Q4_K_M.gguf" and "### Response:" in found.template and found.system
    assert found.parameters["stop"][0] == "<|end_of_text|>" and found.parameters["repeat_penalty"] == 1.0


def test_a_template_of_its_own_is_said_in_go(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Else Ollama would take the most similar of its own templates."""
    jinja(pair[1], "{{ bos_token }}" + ZEPHYR)
    carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    found = modelfile.meaning(modelfile.read_modelfile(Path("out/Modelfile").read_text()))
    assert "<|system|>\n" in found.template and "<|end_of_text|>\n<|assistant|>\n" in found.template
    assert not found.system and found.parameters["stop"] == ["<|end_of_text|>"]
    assert "--template" not in capsys.readouterr().err


def test_a_template_that_go_cannot_say(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    jinja(pair[1], "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}")
    carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    assert "TEMPLATE" not in Path("out/Modelfile").read_text()
    assert "`ollama show mine --template`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (ZEPHYR.replace("m['content']", "m['content'] | trim"), "send messages without them"),
        (ZEPHYR.replace("m['content']", "m['content'].split('</think>')[-1]"), "<think>…</think> from earlier answers"),
    ],
)
def test_a_template_that_does_more_than_go(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], template: str, words: str
) -> None:
    jinja(pair[1], template)
    carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    assert "TEMPLATE" in Path("out/Modelfile").read_text() and words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("form", "written"), [("%d %b %Y", True), ("%H:%M", False)])
def test_a_template_go_gets_the_date_of_the_day(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], form: str, written: bool
) -> None:
    jinja(pair[1], f"{{{{ strftime_now('{form}') + '\\n' }}}}" + ZEPHYR)
    carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    text, said = Path("out/Modelfile").read_text(), " ".join(capsys.readouterr().err.split())
    assert ("currentDate" in text) == written and (f"it writes the date as `{form}`" in said) != written
    assert ("llama-server --jinja -m out/mine-F16.gguf" in said) != written


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_is_not_utf8(pair: tuple[Path, Path], name: str) -> None:
    """It would have become another template, or none, in silence."""
    text = "{{ messages[0]['content'] }} für Ärzte"
    written = text if name.endswith("jinja") else json.dumps({"chat_template": text}, ensure_ascii=False)
    (pair[1] / name).write_bytes(written.encode("latin-1"))
    with pytest.raises(ToolkitError, match=r"UTF-8 text: byte 0xfc"):
        carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    if name.endswith("jinja"):
        with pytest.raises(ToolkitError) as caught:
            foreign_template.saved_template(pair[1])
        subprocess.run(caught.value.hint.partition("If it is Latin-1: ")[2], shell=True, check=True)
        assert foreign_template.saved_template(pair[1]) == text


@pytest.mark.slow
def test_a_modelfile_of_somebody_else_stays(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Modelfile").write_text("FROM x\n")
    order = ordering.of_adapter(pair[1], None, "none.toml", ())
    assert carry(order)["modelfile"] == "out/mine.Modelfile"
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM x\n"
    assert carry(order, "Q8_0")["modelfile"] == "out/mine.Modelfile"
    assert carry(order, force=True)["modelfile"] == "out/Modelfile"


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "PARAMETER temperature 0.1\n",
        lambda text: text.replace("1.0", "1.1"),
        lambda text: "\n".join(text.split("\n")[:1] + text.split("\n")[2:]),
    ],
)
@pytest.mark.parametrize("force", [True, False])
def test_a_modelfile_that_a_user_edited_stays(
    pair: tuple[Path, Path], edit: Callable[[str], str], force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ordering.of_adapter(pair[1], None, "none.toml", ())
    carry(order)
    path = Path("out/Modelfile")
    edited = edit(path.read_text())
    path.write_text(edited)
    again = ("F16",) if force else ("Q8_0",)
    figures = carry(order, *again, force=force)
    assert path.read_text() == edited and figures["modelfile"] == "out/mine.Modelfile"
    said = " ".join(capsys.readouterr().err.split())
    assert "`out/Modelfile` was edited, and stays as it is; the new one is `out/mine.Modelfile`" in said
    second = Path("out/mine.Modelfile")
    assert carry(order, *again, force=True)["modelfile"] == "out/mine.Modelfile"
    second.write_text(second.read_text() + "SYSTEM mine\n")
    assert carry(order, *again, force=True)["modelfile"] == "out/mine-2.Modelfile"
    assert second.read_text().endswith("SYSTEM mine\n") and path.read_text() == edited


def test_a_modelfile_that_nobody_edited_is_written_again(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    order = ordering.of_adapter(pair[1], None, "none.toml", ())
    assert carry(order)["modelfile"] == carry(order, "Q8_0")["modelfile"] == "out/Modelfile"
    assert "FROM ./mine-Q8_0.gguf" in Path("out/Modelfile").read_text()
    assert "was edited" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "called"), [("my adapter (2)", "my-adapter--2-"), (".hidden", "hidden"), ("ü", "model")]
)
def test_a_name_that_ollama_takes(pair: tuple[Path, Path], tmp_path: Path, name: str, called: str) -> None:
    adapter = pair[1].rename(tmp_path / name)
    assert carry(ordering.of_adapter(adapter, None, "none.toml", ()))["next"].startswith(f"ollama create {called} ")


def test_nothing_is_written_by_a_dry_run(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "next" not in carry(ordering.of_adapter(pair[1], None, "none.toml", ()), dry_run=True)
    said = capsys.readouterr().err
    assert not Path("out").exists() and "base: " in said and "chat template: " in said


def test_hints_speak_of_options(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10))
    with pytest.raises(ToolkitError) as caught:
        carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    assert "--output DIR" in caught.value.hint and "run.folder" not in caught.value.hint
    with pytest.raises(ToolkitError) as caught:
        carry(ordering.of_adapter(pair[1], "gone", "none.toml", ()))
    assert "--base" in caught.value.hint and "model.base" not in caught.value.hint


# A whole model, and what is no adapter.


def test_a_whole_model_is_exported_as_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    jinja(pair[0], OWN)
    figures = carry(ordering.of_model("base", "none.toml", ()), "F32")
    path = Path(figures["files"]["F32"]["path"])
    assert path.name == "base-F32.gguf" and models.kl(pair[0], None, path, 64) <= 1e-9
    assert gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents() == OWN
    assert carry(ordering.of_model("base", "none.toml", ()), form="safetensors")["files"]
    with pytest.raises(ToolkitError, match="no adapter"):
        carry(ordering.of_model("base", "none.toml", ()), form="lora-gguf")


def test_a_whole_model_in_a_folder_named_like_four_bits(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Its own weights are meant, not those of a namesake."""
    pair[0].rename(tmp_path / "mine-bnb-4bit")
    assert carry(ordering.of_model("mine-bnb-4bit", "none.toml", ()))["files"]


@pytest.mark.slow
def test_the_options_for_a_whole_model(pair: tuple[Path, Path], toolkit: Callable[..., Called]) -> None:
    for call in (["--model", "base"], ["--adapter", "none", "--base", "base"]):
        done = toolkit("export", *call, "--quant", "F16", "--output", "out", "--force", "--json")
        assert done.code == 0, done.err
        assert list(done.json["files"]) == ["F16"] and "next: ollama create base -f out/Modelfile" in done.err
    for call in (["--model", "base", "--adapter", "mine"], ["--model", "base", "--base", "base"]):
        assert toolkit("export", *call, "--output", "out", "--json").code == 2


def outputs(folder: Path, adapter: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(adapter, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("checkpoint-20", "checkpoint-100", "checkpoint-60"), "--adapter outputs/checkpoint-100 is the last one"),
        (("final",), "--adapter outputs/final"),
        (("run1/checkpoint-5", "run1/checkpoint-10"), "--adapter outputs/run1/checkpoint-10 is the last one"),
    ],
)
def test_a_trainers_output_folder_names_its_adapters(
    pair: tuple[Path, Path], names: tuple[str, ...], hint: str
) -> None:
    folder = outputs(Path("outputs"), pair[1], *names)
    with pytest.raises(ToolkitError, match="not an adapter folder") as caught:
        foreign.check_adapter(folder)
    assert caught.value.hint.startswith(hint) and all(name in caught.value.message for name in names)


def test_the_best_checkpoint_is_named(pair: tuple[Path, Path]) -> None:
    folder = outputs(Path("outputs"), pair[1], "checkpoint-20", "checkpoint-40")
    state = {"best_model_checkpoint": "/content/outputs/checkpoint-20"}
    (folder / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ToolkitError) as caught:
        foreign.check_adapter(folder)
    assert "--adapter outputs/checkpoint-20 the best" in caught.value.hint


def test_what_is_no_adapter_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree("base", "models/checkpoint-7")
    (tmp_path / "empty").mkdir()
    for given, hint in (
        ("base", "toolkit export --model base"),
        ("models", "toolkit export --model models/checkpoint-7"),
        ("mine/adapter_model.safetensors", "--adapter mine"),
        ("owner/adapter", "hf download owner/adapter"),
        ("empty", "save_pretrained"),
    ):
        with pytest.raises(ToolkitError, match="not an adapter folder") as caught:
            foreign.check_adapter(Path(given))
        assert hint in caught.value.hint
    for given, hint in (("mine", "toolkit export --adapter mine"), ("models", "--model models/checkpoint-7")):
        with pytest.raises(ToolkitError) as caught:
            ordering.of_model(given, "none.toml", ())
        assert hint in caught.value.hint


def test_hints_can_be_typed_as_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Names with spaces, quotes and dollar signs, and one that looks like an option."""
    base, adapter = Path("my model"), Path("it's $mine")
    shutil.copytree("base", base)
    shutil.copytree("mine", adapter)
    shutil.copytree("mine", "runs --adapter x/checkpoint 7")
    shutil.copytree("mine", "runs --adapter x/checkpoint 8")
    state = json.dumps({"best_model_checkpoint": "checkpoint 7"})
    Path("runs --adapter x/trainer_state.json").write_text(state)
    shutil.copytree("base", "models --adapter y/last one")

    def model(folder: Path) -> None:
        foreign.check_model(str(folder))

    for check, given, option, named in (
        (foreign.check_adapter, base, "--model", base),
        (foreign.check_adapter, adapter / "adapter_model.safetensors", "--adapter", adapter),
        (foreign.check_adapter, base / "model.safetensors", "--model", base / "model.safetensors"),
        (foreign.check_adapter, Path("runs --adapter x"), "--adapter", Path("runs --adapter x/checkpoint 8")),
        (foreign.check_adapter, Path("models --adapter y"), "--model", Path("models --adapter y/last one")),
        (model, adapter, "--adapter", adapter),
        (model, Path("models --adapter y"), "--model", Path("models --adapter y/last one")),
        (model, Path("runs --adapter x"), "--adapter", Path("runs --adapter x/checkpoint 8")),
    ):
        with pytest.raises(ToolkitError) as caught:
            check(given)
        words = shlex.split(caught.value.hint)
        assert words[words.index(option) + 1] == str(named), caught.value.hint
    configured(adapter, base_model_name_or_path="/gone")
    Path("toolkit.toml").write_text('[model]\nbase = "my model"\n')
    with pytest.raises(ToolkitError) as caught:
        ordering.of_adapter(adapter, None, "toolkit.toml", ())
    assert caught.value.hint.endswith("--base 'my model'")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (("--model", "base", "--base", "base"), "toolkit export --model base"),
        (("--model", "mine", "--base", "base"), "toolkit export --adapter mine --base base"),
        (("--model", "base", "--adapter", "mine"), "toolkit export --adapter mine --base base"),
        (("--base", "a base"), "toolkit export --model 'a base'"),
    ],
)
def test_options_that_exclude_each_other(
    pair: tuple[Path, Path], toolkit: Callable[..., Called], given: tuple[str, ...], hint: str
) -> None:
    """The hint is the command that was probably meant."""
    done = toolkit("export", *given, "--output", "out", "--json")
    assert done.code == 2 and done.json["hint"] == hint and not Path("out").exists()


@pytest.mark.parametrize("text", ["{}", '{"model": {}}', '{"model": {"type": "BPE", "vocab": {}}, "added_tokens": []}'])
def test_a_tokenizer_without_a_vocabulary(pair: tuple[Path, Path], text: str) -> None:
    (pair[1] / "tokenizer.json").write_text(text)
    with pytest.raises(ToolkitError, match="holds no vocabulary") as caught:
        carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    assert "delete it: the base's is then used" in caught.value.hint
    (pair[1] / "tokenizer.json").unlink()  # as it says
    carry(ordering.of_adapter(pair[1], None, "none.toml", ()))


@pytest.mark.parametrize("text", ['{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 1}}', "no JSON"])
def test_a_damaged_tokenizer_beside_an_adapter(pair: tuple[Path, Path], text: str) -> None:
    (pair[1] / "tokenizer.json").write_text(text)
    with pytest.raises(ToolkitError) as caught:
        carry(ordering.of_adapter(pair[1], None, "none.toml", ()))
    assert "copy the base" not in caught.value.hint
