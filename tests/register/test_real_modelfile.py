"""`ollama create -f` as the judge of our writer and our reader."""

import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.register.conftest import bare_run
from tests.support.modelfiles import HOSTILE, PIECES
from tests.support.ollama_server import OllamaServer
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.ollama import blobs, modelfile, server
from toolkit.ollama.modelfile import Modelfile
from toolkit.register import verify

pytestmark = pytest.mark.ollama

Judge = Callable[[str], dict[str, Any] | str]

printable = st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \t\n")
values = st.lists(st.sampled_from([*PIECES, "\r", "\r\n"]) | printable, max_size=12).map("".join)
anything = st.lists(st.sampled_from(HOSTILE) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)


@pytest.fixture(scope="module")
def judge(ollama: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Create a model from a Modelfile with the real CLI; return what the server stored, or the CLI's complaint."""
    folder = tmp_path_factory.mktemp("judge")
    run = bare_run(folder, ollama.url, "judge")
    path = folder / "Modelfile"

    def create(text: str) -> dict[str, Any] | str:
        path.write_bytes(text.replace("FROM x", f"FROM {run.files['F32']}", 1).encode())
        made = ollama.run("create", "judged", "-f", str(path))
        if made.returncode:
            return made.stderr
        with httpx.Client(base_url=ollama.url, trust_env=False) as http:
            return server.call(http, "/api/show", {"model": "judged"})

    return create


@pytest.fixture(scope="module")
def through_the_api(
    ollama: OllamaServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Modelfile], dict[str, Any]]]:
    """Create a model as `register` does; return what the server stored."""
    run = bare_run(tmp_path_factory.mktemp("api"), ollama.url, "judge")
    with server.http(run.config.ollama) as http:
        blobs.upload(http, run.files["F32"], run.digests["F32"])

        def create(spec: Modelfile) -> dict[str, Any]:
            blobs.create(http, "through-api", "x.gguf", run.digests["F32"], spec)
            return server.call(http, "/api/show", {"model": "through-api"})

        yield create


def writable(texts: list[str]) -> list[str]:
    kept = []
    for text in texts:
        try:
            modelfile.quote(text, "it")
        except ToolkitError:
            continue
        kept.append(text)
    return kept


def go(template: str) -> str:
    """A Go template that renders this text, whatever it holds."""
    return template.replace("{", '{{ "{" }}') + "{{ .Prompt }}"


@settings(max_examples=tries(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(values, values, st.lists(values, min_size=10, max_size=10), st.lists(values, min_size=10, max_size=10))
def test_what_the_server_stores_is_what_was_written(
    judge: Judge, template: str, system: str, stops: list[str], licenses: list[str]
) -> None:
    template, system = ((writable([text]) or [""])[0] for text in (go(template), system))
    stops, licenses = writable(stops), writable(licenses)
    lines = ["FROM x", f"TEMPLATE {modelfile.quote(template or '{{ .Prompt }}', 'it')}"]
    lines += [f"SYSTEM {modelfile.quote(system, 'it')}"]
    lines += [f"PARAMETER stop {modelfile.quote(stop, 'it')}" for stop in stops]
    lines += [f"LICENSE {modelfile.quote(text, 'it')}" for text in licenses]
    shown = judge("\n".join(lines) + "\n")
    assert isinstance(shown, dict), shown
    assert shown["template"] == (template or "{{ .Prompt }}")
    assert shown.get("system", "") == system
    assert verify.shown_parameters(shown.get("parameters", "")).get("stop", []) == stops
    assert shown.get("license", "") == "\n".join(licenses)


def test_every_character_that_the_writer_writes_is_stored(judge: Judge) -> None:
    """All of Unicode as this Python knows it, 4,000 characters a licence."""
    if unicodedata.unidata_version > "15.0.0":
        pytest.skip("this Python knows characters that the server's Go 1.26 (Unicode 15) would not print")
    text = "".join(map(chr, (code for code in range(32, 0x110000) if chr(code).isprintable() and chr(code) != '"')))
    parts = [f"|{text[start : start + 4000]}|" for start in range(0, len(text), 4000)]
    shown = judge("FROM x\n" + "".join(f"LICENSE {modelfile.quote(part, 'it')}\n" for part in parts))
    assert isinstance(shown, dict), shown
    assert shown["license"] == "\n".join(parts) and len(text) > 140_000


@settings(max_examples=tries(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(anything, anything, st.lists(anything, min_size=10, max_size=10), st.lists(anything, min_size=10, max_size=10))
def test_the_api_stores_what_no_modelfile_can_hold(
    ollama: OllamaServer,
    through_the_api: Callable[[Modelfile], dict[str, Any]],
    template: str,
    system: str,
    stops: list[str],
    licenses: list[str],
) -> None:
    shown = through_the_api(Modelfile("", go(template), system, {"stop": stops}, tuple(licenses)))
    assert shown["template"] == go(template)
    assert shown.get("system", "") == system
    assert verify.shown_parameters(shown.get("parameters", "")).get("stop", []) == stops
    assert shown.get("license", "") == "\n".join(licenses)


RAW = [
    '"',
    '"""',
    "\n",
    "\n",
    " ",
    "\t",
    "#",
    "a",
    "SYSTEM ",
    "system\t",
    "\r",
    "\r\n",
    "\u00a0",
    "\u200b",
    "é",
    "\x07",
]


@settings(max_examples=tries(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(RAW), max_size=14).map("".join))
def test_the_reader_agrees_with_the_real_parser(judge: Judge, body: str) -> None:
    text = f"FROM x\nSYSTEM {body}"
    shown = judge(text)
    try:
        commands = modelfile.read_modelfile(text)
    except ToolkitError:
        assert isinstance(shown, str), f"the server reads it: {shown.get('system')!r}"
    else:
        assert isinstance(shown, dict), shown
        assert shown.get("system", "") == modelfile.meaning(commands).system
