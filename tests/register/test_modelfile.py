"""The writer, the reader, the user's template, and the settings that become a Modelfile: no server needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny_gguf
from tests.support.modelfiles import HOSTILE, PIECES
from tests.support.properties import tries
from toolkit.core import config_file, run_folder
from toolkit.core.config import Config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.manifest import read_manifest, write_manifest
from toolkit.core.run_folder import RunFolder
from toolkit.ollama import blobs, modelfile, modelfile_template
from toolkit.ollama.modelfile import Command, Modelfile
from toolkit.ollama.modelfile_template import fill_template
from toolkit.prompt import format, templates
from toolkit.register import model_spec, modelfile_text

texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40)
hostile = st.lists(st.sampled_from(HOSTILE), max_size=12).map("".join) | st.text(max_size=40)


def representable(value: str) -> bool:
    """The same rule as the writer's, said in another way: what the reader gives back is the value itself."""
    try:
        commands = modelfile.read_modelfile(f'FROM x\nSYSTEM """{value}"""\nLICENSE after')
    except ToolkitError:
        return False
    return commands[1:] == [Command("system", value), Command("license", "after")]


@settings(max_examples=tries(2000), deadline=None)
@given(hostile)
def test_the_writer_refuses_exactly_what_would_be_read_differently(value: str) -> None:
    try:
        quoted = modelfile.quote(value, "it")
    except ToolkitError as exc:
        assert exc.exit_code == USAGE
        assert not representable(value)
    else:
        assert quoted == f'"""{value}"""'
        assert representable(value)


@settings(max_examples=tries(500), deadline=None)
@given(st.lists(texts, min_size=4, max_size=4), st.lists(texts, max_size=4))
def test_what_is_written_is_read_back(values: list[str], stops: list[str]) -> None:
    try:
        quoted = [modelfile.quote(value, "it") for value in values]
        lines = [f"PARAMETER stop {modelfile.quote(stop, 'it')}" for stop in stops]
    except ToolkitError:
        return
    text = "\n".join(
        [f"FROM {quoted[0]}", f"TEMPLATE {quoted[1]}", *lines, f"SYSTEM {quoted[2]}", f"LICENSE {quoted[3]}", ""]
    )
    expected = Modelfile(values[0], values[1], values[2], {"stop": stops} if stops else {}, (values[3],))
    assert modelfile.meaning(modelfile.read_modelfile(text)) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a\u00a0b", r"U\+00A0 at character 2"),
        ("bell\x07", r"U\+0007"),
        ("half \ud800", r"U\+D800"),
        ('x """\ny', 'ends in `"""`'),
        ('x """ \t\ny', 'ends in `"""`'),
        ('x """\r\ny', 'ends in `"""`'),
    ],
)
def test_refusals_say_what_and_where(value: str, said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        modelfile.quote(value, "the system message")


# The table of cases that were executed against the server's parser.
@pytest.mark.parametrize(
    ("body", "commands"),
    [
        ("PARAMETER temperature 0.7 # hot", [("parameter:temperature", "0.7 # hot")]),
        ('PARAMETER stop "###" # c\nPARAMETER stop "b"', [("parameter:stop", '###" # c\nPARAMETER stop "b')]),
        ('PARAMETER stop "\\n### X"', [("parameter:stop", "\\n### X")]),
        ('PARAMETER stop "\n### X"', [("parameter:stop", "\n### X")]),
        ("PARAMETER stop ### Instruction:  ", [("parameter:stop", "### Instruction:")]),
        ('SYSTEM "He said "hi" ok"', [("system", 'He said "hi" ok')]),
        ('SYSTEM """a """ b"""', [("system", 'a """ b')]),
        ('SYSTEM """say "hi""""', [("system", 'say "hi"')]),
        ('TEMPLATE """\nA\n"""', [("template", "\nA\n")]),
        ('SYSTEM """a\r\nb"""\r\n', [("system", "a\r\nb")]),
        ("SYSTEM \n", [("system", "")]),
        ("  # note\n\tsystem x\n#end", [("system", "x")]),
        ("SYSTEM 'x'", [("system", "'x'")]),
        ("SYSTEM a\u00a0b\u200bc", [("system", "abc")]),
        ("MESSAGE user hello: you", [("message:user", "hello: you")]),
    ],
)
def test_the_reader_reads_as_the_server_does(body: str, commands: list[tuple[str, str]]) -> None:
    assert modelfile.read_modelfile(f"\ufeffFROM x\n{body}")[1:] == [Command(*command) for command in commands]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('FROM x\nSYSTEM "Hi" is a greeting\nLICENSE y', "no closing quotes"),
        ('FROM x\nSYSTEM """a """\nb"""\n', r"line 3: .*is not allowed in the name `b"),
        ("FROM x\nSYSTEM", "has no value"),
        ("FROM x\nPARAMETER num-ctx 1", "'-' is not allowed in the name `num"),
        ("FROM x\nFORM y", "line 2: `FORM` is not an instruction"),
        ("FROM x\nMESSAGE tool y", "`tool` is not a role"),
        ("SYSTEM x", "there is no FROM"),
        ("", "there is no FROM"),
    ],
)
def test_the_reader_refuses_what_the_server_refuses(text: str, said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        modelfile.read_modelfile(text)


def test_wrong_parameters_are_listed_all_at_once() -> None:
    text = (
        "FROM x\nPARAMETER num_ctx 32k\nPARAMETER STOP a\nPARAMETER tempreature 1\nPARAMETER top_p high\n"
        "PARAMETER use_mmap maybe\nPARAMETER typical_p 1\nADAPTER y\nMESSAGE user hi\nPARAMETER min_p 1e-2"
    )
    with pytest.raises(ToolkitError) as caught:
        modelfile.meaning(modelfile.read_modelfile(text))
    said = caught.value.message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in said] == [
        "PARAMETER num_ctx",
        "PARAMETER STOP",
        "PARAMETER tempreature",
        "PARAMETER top_p",
        "PARAMETER use_mmap",
        "PARAMETER typical_p",
        "ADAPTER",
        "MESSAGE",
    ]
    assert "`temperature`?" in said[2]
    assert "num_thread" in caught.value.hint


def test_undefined_names_are_named_with_their_lines() -> None:
    with pytest.raises(ToolkitError, match=r"mine uses .* `tempalte` \(line 2\), `sistem` \(line 4\)") as caught:
        fill_template({"from_": "x"}, "FROM [[ from_ ]]\n[[ tempalte ]]\n\n[[ sistem|upper ]]\n", "mine")
    assert caught.value.exit_code == USAGE and "from_" in caught.value.hint


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("FROM x\n[% for a in %]", "line 2:"),
        ("FROM x\n\n[[ from_.nothing ]]", r"line 3: .*no attribute 'nothing'"),
        ("FROM x\n[[ 1 / 0 ]]", "line 2: division by zero"),
        ("FROM x\n[[ from_|shout ]]", "line 2: No filter named 'shout'"),
        ("[[ from_.__class__.__mro__ ]]", "line 1: access to attribute '__class__'"),
    ],
)
def test_a_broken_template_is_told_with_its_line(template: str, said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        fill_template({"from_": "x"}, template)


def test_ollamas_own_braces_stay_untouched() -> None:
    text = "[# note #]FROM [[ from_ ]]\nTEMPLATE {{ .Prompt }} {% x %} {# y #}\n"
    assert fill_template({"from_": "x"}, text) == "FROM x\nTEMPLATE {{ .Prompt }} {% x %} {# y #}\n"


def settings_with(tmp_path: Path, **sections: Any) -> tuple[Config, RunFolder]:
    config = config_file.build({"run": {"name": "medassist", "folder": str(tmp_path)}, **sections})
    return config, run_folder.folder_of(config)


def own_template(tmp_path: Path, change: Callable[[str], str]) -> dict[str, dict[str, str]]:
    text, _ = modelfile_template.template_text("")
    path = tmp_path / "My.template"
    path.write_text(change(text), encoding="utf-8")
    return {"ollama": {"template": str(path)}}


def test_the_modelfile_of_the_default_settings(tmp_path: Path) -> None:
    config, folder = settings_with(tmp_path)
    text = modelfile_text(config, folder, tiny_gguf.EOS)
    found = modelfile.meaning(modelfile.read_modelfile(text))
    form = format.prompt_format(config.prompt)
    assert "FROM ./gguf/medassist-Q4_K_M.gguf\n" in text
    assert found.template == templates.go_template(form, tiny_gguf.EOS)
    assert found.system == "Explain:"
    assert found.parameters == {
        "num_ctx": 2048 + 512,
        "num_predict": 512,
        "temperature": 0.2,
        "top_p": 0.9,
        "top_k": 40,
        "repeat_penalty": 1.0,
        "seed": 42,
        "stop": [tiny_gguf.EOS, *form.stops],
    }
    assert found.licenses[0].startswith(blobs.MARKER + "medassist")
    assert "Llama 3.1 Community License" in found.licenses[0]


def test_every_parameter_of_the_settings_arrives(tmp_path: Path) -> None:
    mine = {"num_ctx": 333, "num_predict": 7, "temperature": 0.0, "top_p": 1.0, "top_k": 1, "repeat_penalty": 1e-7}
    config, folder = settings_with(tmp_path, ollama={**mine, "seed": 9, "license": 'MIT\n"as is"'})
    found = modelfile.meaning(modelfile.read_modelfile(modelfile_text(config, folder, "</s>")))
    assert {name: found.parameters[name] for name in mine} == mine
    assert found.parameters["seed"] == 9 and found.parameters["stop"][0] == "</s>"
    assert found.licenses[0].endswith('\n\nMIT\n"as is"')


@pytest.mark.parametrize(
    ("base", "terms"),
    [
        ("google/gemma-3-270m-it", "the Gemma Terms of Use."),
        ("google/medgemma-4b-it", "the Health AI Developer Foundations terms."),
        ("google/medgemma-27b-text-it", "the Health AI Developer Foundations terms."),
        ("someone/tiny", "Fine-tuned from someone/tiny."),
    ],
)
def test_the_licence_names_the_terms_of_the_base(base: str, terms: str, tmp_path: Path) -> None:
    config, folder = settings_with(tmp_path, model={"base": base})
    assert model_spec.licence(config, folder).endswith(terms)


@pytest.mark.parametrize(
    ("files", "terms"),
    [
        ({"LICENSE": "gemma\n"}, "which is under the Gemma Terms of Use."),
        (
            {"README.md": "---\nlicense: health-ai-developer-foundations\n---\n"},
            "Health AI Developer Foundations terms.",
        ),
        ({"README.md": "---\nlicense: 'llama3.2'\n---\n"}, "Llama 3.2 Community License; Built with Llama."),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, "under qwen-research."),
        ({"README.md": "---\nlicense: apache-2.0\n---\n", "LICENSE": "MIT\n"}, "under Apache-2.0."),
        ({"README.md": "---\nlicense: other\n---\n"}, "base."),
        ({}, "base."),
    ],
)
def test_the_licence_is_found_in_the_files_of_a_base(files: dict[str, str], terms: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, text in {**files, "tokenizer.json": "{}"}.items():
        (base / name).write_text(text)
    config, folder = settings_with(tmp_path, model={"base": str(base)})
    found = model_spec.licence(config, folder)
    assert found.endswith(terms) and ("which is under" in found) is (terms != "base.")


def test_the_licence_names_the_run_once_there_is_a_manifest(tmp_path: Path) -> None:
    config, folder = settings_with(tmp_path)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest)
    assert manifest.run_id in modelfile_text(config, folder, tiny_gguf.EOS)


def test_a_template_may_add_to_ours(tmp_path: Path) -> None:
    sections = own_template(
        tmp_path, lambda text: text + "# mine\r\nPARAMETER num_thread 2\nPARAMETER stop END\nLICENSE more\n"
    )
    config, folder = settings_with(tmp_path, **sections)
    found = model_spec.describe_model(config, folder, tiny_gguf.EOS).spec
    assert found.parameters["num_thread"] == 2
    assert found.parameters["stop"][-1] == "END" and len(found.parameters["stop"]) == 5
    assert found.licenses[1] == "more"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("SYSTEM [[ system ]]\n", ""), "changed SYSTEM"),
        (lambda text: text.replace("[[ template ]]", '"""[[ template ]]"""'), "TEMPLATE"),
        (lambda text: text + "PARAMETER temperature 0.9\n", r"PARAMETER temperature \(0.9 instead of 0.2\)"),
        (lambda text: text.replace("[[ from_ ]]", "llama3"), "changed FROM"),
        (lambda text: text.replace("LICENSE [[ license ]]", ""), "changed LICENSE"),
        (lambda text: text + "PARAMETER num_thread two\n", "num_thread: expected a 32-bit integer"),
        (lambda text: text + "ADAPTER ./x\n", "ADAPTER: it would change"),
        (lambda text: text.replace("[[ system ]]", "[[ sytem ]]"), r"`sytem` \(line"),
        (lambda text: text + "HELLO x\n", "`HELLO` is not an instruction"),
    ],
)
def test_a_template_that_changes_what_was_trained_is_refused(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    config, folder = settings_with(tmp_path, **own_template(tmp_path, change))
    with pytest.raises(ToolkitError, match=said) as caught:
        modelfile_text(config, folder, tiny_gguf.EOS)
    assert caught.value.exit_code == USAGE


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"FROM \xe9")
    for name, said in (("missing", "No such file"), ("latin", "not UTF-8")):
        config, folder = settings_with(tmp_path, ollama={"template": str(tmp_path / name)})
        with pytest.raises(ToolkitError, match=said):
            modelfile_text(config, folder, tiny_gguf.EOS)


def test_an_instruction_that_a_modelfile_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    config, folder = settings_with(tmp_path, prompt={"instruction": "Explain\u00a0:"})
    with pytest.raises(ToolkitError, match=r"holds U\+00A0"):
        modelfile_text(config, folder, tiny_gguf.EOS)


def test_a_name_that_ollama_would_refuse(tmp_path: Path) -> None:
    config, _ = settings_with(tmp_path)
    bad = config.model_copy(update={"ollama": config.ollama.model_copy(update={"name": "a b"})})
    with pytest.raises(ToolkitError, match="would refuse the name"):
        model_spec.model_name(bad)


@pytest.mark.parametrize(
    ("settings", "own", "said"),
    [
        ({}, "", ""),
        ({"repeat_penalty": 1.1}, "", "repeat_penalty 1.1: answers"),
        ({}, "PARAMETER presence_penalty 0.5\nPARAMETER frequency_penalty 0\n", "presence_penalty 0.5: answers"),
        (
            {"repeat_penalty": 0.9},
            "PARAMETER frequency_penalty 1\n",
            "repeat_penalty 0.9, frequency_penalty 1: answers",
        ),
    ],
)
def test_a_penalty_is_warned_of_whoever_sets_it(
    settings: dict[str, float], own: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from toolkit.register import _warn_of_penalties
    from toolkit.register.model_spec import describe_model

    values = own_template(tmp_path, lambda text: text + own)
    values["ollama"] = {**values["ollama"], **settings}  # type: ignore[dict-item]
    config, folder = settings_with(tmp_path, **values)
    _warn_of_penalties(describe_model(config, folder, tiny_gguf.EOS).spec)
    warned = " ".join(capsys.readouterr().err.split())
    assert said in warned and bool(warned) == bool(said)
