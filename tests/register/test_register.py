"""Registration against a real server: what it leaves when it succeeds, and when it does not."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.register.conftest import ROWS, Run, bare_run, make_run, temporary
from tests.support import tiny_gguf as tiny
from tests.support.faults import Handler, proxy
from tests.support.ollama_server import OllamaServer, library
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.manifest import FileRecord, Manifest, StageRecord, write_manifest
from toolkit.ollama import blobs, server
from toolkit.register import modelfile_text, verify

pytestmark = pytest.mark.ollama

names_alone = pytest.mark.usefixtures("no_question")
MODELFILE_KEYS = ("template", "system", "license")


def show(url: str, model: str) -> dict[str, Any]:
    with httpx.Client(base_url=url, trust_env=False) as http:
        return server.call(http, "/api/show", {"model": model})


def test_every_quantization_becomes_a_tag_and_the_default_is_latest(ollama: OllamaServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, ollama.url, "Good")
    outcome = run.register(rows=ROWS)
    with server.http(run.config.ollama) as http:
        held = {model: digest for model, digest in server.held(http).items() if model.startswith("good:")}
    tags = outcome.figures["tags"]
    assert held == {f"good:{tag}": figures["digest"] for tag, figures in tags.items()}
    assert set(tags) == {"f16", "f32", "latest"}
    assert held["good:latest"] == held["good:f32"] != held["good:f16"]
    for tag, quantization in (("f16", "F16"), ("latest", "F32")):
        assert tags[tag]["gguf_sha256"] == run.digests[quantization]
        assert (tags[tag]["stored_sha256"] != run.digests[quantization]) == server.rewrites(ollama.version)
        assert tags[tag]["prompts_verified"] == tags[tag]["prompts_counted"] == len(ROWS)
        assert tags[tag]["control_like_prompts"] == 3
        assert len(tags[tag]["greedy"]) == 3 and all(one["ollama"] for one in tags[tag]["greedy"])
        assert tags[tag]["done_reason"] in ("stop", "length")
        assert tags[tag]["answer"] and tags[tag]["tokens_per_second"] > 0
    assert outcome.figures["server_version"] == server.version(run.config.ollama)
    assert outcome.outputs == [run.folder.modelfile]
    assert run.folder.modelfile.read_text() == modelfile_text(run.config, run.folder, tiny.EOS)
    assert "SYSTEM" in ollama.run("show", "good", "--modelfile").stdout
    assert ollama.run("run", "good", "How?").returncode == 0


@names_alone
def test_the_default_alone_is_stored_unless_tags_name_more(
    mortal: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tag that is no longer named stays as it is, and the message says how to remove it."""

    def stored() -> int:
        return sum(path.stat().st_size for path in (mortal.root / "models" / "blobs").iterdir())

    few = bare_run(tmp_path / "1", mortal.url, "few", ollama={"tags": []})
    few.register()
    assert set(few.held()) == {"f32", "latest"}
    alone = stored()
    assert alone < 1.1 * few.files["F32"].stat().st_size
    more = bare_run(tmp_path / "1", mortal.url, "few", ollama={"tags": ["f16"]})
    more.register()
    named = more.held()
    assert set(named) == {"f16", "f32", "latest"} and stored() > 1.4 * alone
    capsys.readouterr()
    newer = bare_run(tmp_path / "2", mortal.url, "few", seed=5, ollama={"tags": []})
    newer.register()
    held = newer.held()
    assert held["f16"] == named["f16"] and held["previous"] == named["latest"] != held["latest"]
    assert set(held) == {"f16", "f32", "latest", "previous", "previous-f32"}
    assert "`ollama rm few:f16` removes it" in capsys.readouterr().err


@names_alone
def test_the_cli_makes_the_same_model_of_the_modelfile(ollama: OllamaServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, ollama.url, "twin")
    digest = run.register().figures["tags"]["latest"]["digest"]
    made = ollama.run("create", "twin-cli", "-f", str(run.folder.modelfile))
    assert made.returncode == 0, made.stderr
    ours, theirs = show(ollama.url, "twin"), show(ollama.url, "twin-cli")
    for key in MODELFILE_KEYS:
        assert ours[key] == theirs[key] and ours[key]
    assert verify.shown_parameters(ours["parameters"]) == verify.shown_parameters(theirs["parameters"])
    with server.http(run.config.ollama) as http:
        assert server.held(http)["twin-cli:latest"] == digest


@names_alone
def test_registering_again_uploads_nothing_and_changes_nothing(ollama: OllamaServer, tmp_path: Path) -> None:
    with proxy(ollama.url) as (url, passing):
        run = bare_run(tmp_path, url, "again", seed=304)
        run.register()
        held = run.held()
        assert sum(line.startswith("POST /api/blobs/") for line in passing.seen) == 2
        passing.seen.clear()
        run.register()
        assert run.held() == held and set(held) == {"f16", "f32", "latest"}
        assert sum(line.startswith("HEAD /api/blobs/") for line in passing.seen) == 2
        assert not any(line.startswith("POST /api/blobs/") for line in passing.seen)


@names_alone
def test_the_former_version_stays_as_previous(ollama: OllamaServer, tmp_path: Path) -> None:
    first = bare_run(tmp_path / "1", ollama.url, "versions", seed=1)
    first.register()
    former = first.held()
    second = bare_run(tmp_path / "2", ollama.url, "versions", seed=2)
    second.register()
    assert second.held()["previous"] == former["latest"] != second.held()["latest"]
    assert {tag: second.held()[f"previous-{tag}"] for tag in ("f16", "f32")} == {
        tag: former[tag] for tag in ("f16", "f32")
    }
    second.register()
    assert second.held()["previous"] == former["latest"]
    bare_run(tmp_path / "3", ollama.url, "versions", seed=3).register()
    assert first.held()["previous"] != former["latest"]
    assert not temporary(first)


@names_alone
def test_own_parameters_reach_the_server(ollama: OllamaServer, tmp_path: Path) -> None:
    from toolkit.ollama import modelfile_template

    own = tmp_path / "Own.template"
    own.write_text(modelfile_template.template_text("")[0] + 'PARAMETER min_p 0.05\nPARAMETER stop """\nEND "x"\t"""\n')
    run = bare_run(tmp_path, ollama.url, "own", ollama={"template": str(own)})
    run.register()
    shown = verify.shown_parameters(show(ollama.url, "own")["parameters"])
    assert shown["min_p"] == [0.05] and shown["stop"][-1] == '\nEND "x"\t'


def test_what_no_modelfile_can_hold_goes_through_the_api(
    ollama: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instruction = 'Explain\u00a0: """\n\u3000in full'
    run = make_run(
        tmp_path, ollama.url, "unwritable", prompt={"instruction": instruction}, ollama={"license": "a\u200bb"}
    )
    outcome = run.register(rows=ROWS)
    shown = show(ollama.url, "unwritable")
    assert shown["system"] == instruction and shown["license"].endswith("a\u200bb")
    assert outcome.figures["tags"]["latest"]["prompts_verified"] == len(ROWS)
    assert "cannot be used with `ollama create`: " in " ".join(capsys.readouterr().err.split())
    text = run.folder.modelfile.read_text()
    assert "U+00A0" in text and "U+200B" in text and "PARAMETER temperature" in text
    made = ollama.run("create", "by-hand", "-f", str(run.folder.modelfile))
    assert made.returncode and "no FROM line" in made.stderr
    with pytest.raises(ToolkitError, match=r"U\+00A0 .*; .*U\+200B") as caught:
        modelfile_text(run.config, run.folder, tiny.EOS)
    assert "toolkit register" in caught.value.hint


@pytest.mark.usefixtures("no_proof")
def test_without_questions_for_the_report_it_is_asked_one_all_the_same(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path, ollama.url, "unasked", validate={"questions": []})
    run.register()
    assert "unasked:latest" in [model.model for model in library(ollama.url).list().models]


@names_alone
def test_licence_base_data_and_run_are_shown_by_ollama(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path, ollama.url, "credits", ollama={"license": "CC BY 4.0"})
    source = FileRecord(path="data/raw/medquad.csv", size=1, mtime_ns=1, sha256="ab" * 32)
    prepared = StageRecord(settings={}, inputs=[source], outputs=[], versions={}, seconds=0.0, finished="", figures={})
    write_manifest(run.folder, Manifest(run_id="0123abcd", stages={"prepare": prepared}))
    run.register()
    lines = ollama.run("show", "credits", "--license").stdout.splitlines()
    assert lines[0].split()[-2:] == ["credits", "0123abcd"]
    assert lines[1:5] == [
        "Base model: HuggingFaceTB/SmolLM2-135M-Instruct",
        f"Data: medquad.csv, SHA-256 {'ab' * 32}",
        "",
        "CC BY 4.0",
    ]


def test_https_with_a_key_from_the_cli_on(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server on another machine stands behind a proxy: TLS with a certificate of one's own, and a bearer key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate with")
    wanted: list[str | Path] = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=test",
        "-days",
        "2",
    ]
    subprocess.run(
        ["openssl", "req", "-x509", *wanted, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )

    def unauthorised(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer secret":
            return False
        return handler.answer(401, b'{"error":"unauthorized"}')

    with proxy(ollama.url, (certificate, key)) as (url, passing):
        passing.fault = unauthorised
        run = make_run(tmp_path, url, "remote", seed=81)
        with pytest.raises(ToolkitError, match="no TLS connection"):
            run.register()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(ToolkitError, match="refuses access: HTTP 401") as caught:
            run.register()
        assert "OLLAMA_API_KEY" in caught.value.hint
        monkeypatch.setenv("OLLAMA_API_KEY", "secret")
        run.register()
        assert len(run.held()) == 3 and run.answer()


@names_alone
def test_a_file_that_is_not_what_the_manifest_says(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path, ollama.url, "wrong-digest", seed=21)
    run.digests["F32"] = "0" * 64
    with pytest.raises(ToolkitError, match=r"uploading `wrong-digest-F32.gguf`: digest mismatch") as caught:
        run.register()
    assert "toolkit export" in caught.value.hint
    assert run.held() == {}


def test_a_gguf_whose_own_template_would_win(ollama: OllamaServer, tmp_path: Path) -> None:
    jinja = "{% if tools %}{{ tools }}{% endif %}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    run = make_run(tmp_path, ollama.url, "takeover", chat_template=jinja)
    with pytest.raises(ToolkitError, match="would not use our prompt template") as caught:
        run.register()
    assert "toolkit export" in caught.value.hint
    assert run.held() == {}


@pytest.mark.parametrize("damage", ["truncated", "no vocabulary", "no GGUF"])
def test_a_file_that_cannot_run(ollama: OllamaServer, tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path, ollama.url, "damaged", seed=31)
    path = run.files["F16"]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50_000])
    elif damage == "no vocabulary":
        tiny.write(path, seed=32, f16=True, vocabulary=False)
    else:
        path.write_bytes(b"PK\3\4" * 100)
    run.digests["F16"] = sha256_of(path)
    with pytest.raises(ToolkitError, match=r"refused while|cannot load"):
        run.register()
    assert run.held() == {}


def somebodys(run: Run, *tags: str) -> dict[str, str]:
    """Put models of another maker under the run's name; return what it holds then."""
    client = run.client()
    with server.http(run.config.ollama) as http:
        blobs.upload(http, run.files["F16"], run.digests["F16"])
    for tag in tags:
        digest = f"sha256:{run.digests['F16']}"
        client.create(f"{run.name}:{tag}", files={"theirs.gguf": digest}, license=f"MIT {tag}", template="x")
    return run.held()


@names_alone
def test_a_model_of_another_maker_is_replaced_only_by_its_name_and_keeps_a_copy(
    ollama: OllamaServer, tmp_path: Path
) -> None:
    run = bare_run(tmp_path, ollama.url, "taken", seed=41)
    theirs = somebodys(run, "f16")
    for wrong in ((), ("taken:f32",), ("Taken:latest",)):
        with pytest.raises(ToolkitError, match="already has `taken:f16`, not made with") as caught:
            run.register(*wrong)
        assert "--replace taken:f16" in caught.value.hint and "--force" not in caught.value.hint
        assert run.held() == theirs
    run.register("Taken:F16")
    assert run.held()[f"f16-kept-{theirs['f16'][:8]}"] == theirs["f16"] != run.held()["f16"]
    assert not temporary(run)
    newer = bare_run(tmp_path / "newer", ollama.url, "taken", seed=42)
    newer.register()
    assert newer.held()[f"f16-kept-{theirs['f16'][:8]}"] == theirs["f16"], "no later registration takes it"


@names_alone
def test_every_tag_of_another_maker_is_named_at_once_and_every_copy_is_kept(
    ollama: OllamaServer, tmp_path: Path
) -> None:
    """Even one that stands where a copy would go."""
    run = bare_run(tmp_path, ollama.url, "mixed", seed=43)
    run.register()
    ours = run.held()
    somebodys(run, "f16", "previous")
    theirs = run.held()
    newer = bare_run(tmp_path / "newer", ollama.url, "mixed", seed=44)
    with pytest.raises(ToolkitError, match="`mixed:f16`, `mixed:previous`, not made with") as caught:
        newer.register()
    assert "--replace mixed:f16 --replace mixed:previous" in caught.value.hint
    with pytest.raises(ToolkitError, match="already has `mixed:previous`, not"):
        newer.register("mixed:f16")
    newer.register("mixed:f16", "mixed:previous")
    held = newer.held()
    assert held["previous"] == ours["latest"] and held["previous-f32"] == ours["f32"]
    assert held[f"f16-kept-{theirs['f16'][:8]}"] == theirs["f16"]
    assert held[f"previous-kept-{theirs['previous'][:8]}"] == theirs["previous"]


@pytest.mark.parametrize("model", ["other:f16", "named:q8_0", "named", "named:toolkit-commit-1", "f16"])
def test_naming_what_would_not_be_replaced_is_a_mistake(ollama: OllamaServer, tmp_path: Path, model: str) -> None:
    run = make_run(tmp_path, ollama.url, "named", seed=45)
    with pytest.raises(ToolkitError, match=f"--replace {model}: this registration does not write that model") as caught:
        run.register(model)
    assert caught.value.exit_code == USAGE and "`named:f16`, `named:f32`, `named:latest`" in caught.value.hint


def test_a_missing_file_is_found_before_anything_is_touched(ollama: OllamaServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, ollama.url, "nothing")
    run.files["F16"].unlink()
    with pytest.raises(ToolkitError, match=r"nothing-F16.gguf` is missing") as caught:
        run.register()
    assert "toolkit export" in caught.value.hint and run.held() == {}
