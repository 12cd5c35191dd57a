"""Faults between us and a real server: after each the former model is there, and no temporary name is left."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.register.conftest import Run, bare_run, make_run, temporary
from tests.support.faults import Handler, Strike, drips, proxy, says
from tests.support.ollama_server import OllamaServer
from toolkit import register
from toolkit.core.errors import FAILED, MISSING, ToolkitError
from toolkit.ollama import blobs, server, transaction

pytestmark = pytest.mark.ollama


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "PAUSES", (0.01, 0.02, 0.04))


@pytest.fixture(autouse=True)
def _proof_where_it_is_struck(request: pytest.FixtureRequest) -> None:
    if PROMPT not in request.node.name:
        request.getfixturevalue("no_proof")


def recover(run: Run) -> None:
    """What the next call does first, and nothing else."""
    with server.http(run.config.ollama) as http, transaction.begin(http, run.name, 120):
        pass


def half_an_upload(handler: Handler) -> bool:
    handler.rfile.read(1000)
    return handler.reset()


def silence(handler: Handler) -> bool:
    time.sleep(3)
    return handler.reset()


PROMPT = "another prompt"
REAL_COPY = b'"destination":"faulty:latest"'


@dataclass(frozen=True)
class Fault:
    """What strikes a registration, what the error says of it, and how the registration is to be called."""

    strike: Strike
    said: str
    timeout: float = 120.0
    cleans_up: bool = True  # if not, the server refuses it, and the next call does


FAULTS: dict[str, Fault] = {
    "resets in the upload": Fault(
        Strike("POST", "/api/blobs/", half_an_upload, times=99),
        "the upload of `faulty-F32.gguf` broke off 4 times",
    ),
    "a gateway that lost the server in the upload": Fault(
        Strike("POST", "/api/blobs/", says(502, "<html>", "text/html"), times=99),
        "broke off 4 times: RemoteProtocolError HTTP 502",
    ),
    "html at the question for the blob": Fault(
        Strike("HEAD", "/api/blobs/", says(401, "<html>", "text/html")),
        "refused while uploading .*: HTTP 401",
    ),
    "a drip at create": Fault(
        Strike("POST", "/api/create", drips(200, '{"status":"parsing GGUF"}' * 9, 0.1)),
        "no complete answer within 2 s while creating",
        timeout=2.0,
    ),
    "a drip at show": Fault(
        Strike("POST", "/api/show", drips(200, '{"template":"' + "x" * 99, 0.1), body=b"toolkit-new-"),
        "no complete answer within 2 s while proving",
        timeout=2.0,
    ),
    "full disk in the upload": Fault(
        Strike("POST", "/api/blobs/", says(500, '{"error":"write: no space left on device"}')),
        "no space left on device",
    ),
    "500 at create": Fault(Strike("POST", "/api/create", says(500, '{"error":"boom"}')), "creating .*: boom"),
    "error in the stream of create": Fault(
        Strike("POST", "/api/create", says(200, '{"status":"parsing GGUF"}\n{"error":"boom"}\n')),
        "creating .*: boom",
    ),
    "create without success": Fault(
        Strike("POST", "/api/create", says(200, '{"status":"writing manifest"}\n')),
        "stopped at `writing manifest`",
    ),
    "html at create": Fault(Strike("POST", "/api/create", says(200, "<html>\n", "text/html")), "not Ollama's"),
    "reset at create": Fault(Strike("POST", "/api/create", lambda handler: handler.reset()), "broke while creating"),
    "silence at create": Fault(Strike("POST", "/api/create", silence), "no complete answer within 2 s", timeout=2.0),
    "html at show": Fault(
        Strike("POST", "/api/show", says(502, "<html>", "text/html"), body=b"toolkit-new-"),
        "a proxy in front of .* got no answer from it while proving",
    ),
    "a proxy's limit in the upload": Fault(
        Strike("POST", "/api/blobs/", says(413, "<title>413 Too Large</title>", "text/html"), times=99),
        "refused the size of the request while uploading .*: HTTP 413",
    ),
    PROMPT: Fault(
        Strike("POST", "/api/chat", says(200, '{"_debug_info":{"rendered_template":"Below is X"}}')),
        r"/api/chat renders a different prompt .* at character 10: 'X' instead of 'an instruction",
    ),
    "no end of the answer": Fault(
        Strike("POST", "/api/generate", says(200, '{"response":"a","done":false}'), body=b'"num_predict"'),
        "did not answer",
    ),
    "reset at the question": Fault(
        Strike("POST", "/api/generate", lambda handler: handler.reset(), body=b'"num_predict"'),
        "broke while proving",
    ),
    "500 at the last copy": Fault(
        Strike("POST", "/api/copy", says(500, '{"error":"boom"}'), body=REAL_COPY),
        "registering .*: boom",
    ),
    "a copy that does nothing": Fault(
        Strike("POST", "/api/copy", says(200, ""), body=REAL_COPY),
        "does not list `faulty:latest`",
    ),
    "500 at the delete that makes it valid": Fault(
        Strike("DELETE", "/api/delete", says(500, '{"error":"boom"}'), body=b"toolkit-commit-", times=99),
        "registering .*: boom",
        cleans_up=False,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_any_fault_the_former_model_is_there(ollama: OllamaServer, tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    run = bare_run(tmp_path / "former", ollama.url, "faulty", seed=5)
    if "latest" not in run.held():
        run.register()
    former, answer = run.held(), run.answer()
    with proxy(ollama.url) as (url, passing):
        seed = 100 + list(FAULTS).index(name)
        fresh = (make_run if name == PROMPT else bare_run)(
            tmp_path / "fresh",
            url,
            "faulty",
            seed=seed,
            ollama={"timeout": fault.timeout},
            export={"quantizations": ["F32"]},
        )
        passing.fault = fault.strike
        with pytest.raises(ToolkitError, match=fault.said) as caught:
            fresh.register()
        assert fault.strike.struck
        assert caught.value.exit_code == FAILED and caught.value.hint
        if not fault.cleans_up:
            assert temporary(run)
            passing.fault = lambda handler: False
            recover(run)
    assert not temporary(run)
    assert run.held() == former
    assert run.answer() == answer
    assert not fresh.folder.modelfile.exists()


def at_the_last_step(
    monkeypatch: pytest.MonkeyPatch, run: Run, former: dict[str, str], exception: BaseException
) -> None:
    """Raise when all real tags are changed, just before that becomes valid."""

    def same(*args: Any) -> None:
        check(*args)
        if run.held().get("latest") != former.get("latest"):
            raise exception

    check = transaction._same
    monkeypatch.setattr(transaction, "_same", same)


@pytest.mark.parametrize("where", ["check_shown", "smoke", "last step"])
def test_after_ctrl_c_the_former_model_is_there(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = bare_run(tmp_path / "former", ollama.url, "interrupted", seed=5)
    if "latest" not in run.held():
        run.register()
    former, answer = run.held(), run.answer()

    def interrupted(*args: Any, **kwargs: Any) -> NoReturn:
        raise KeyboardInterrupt

    if where == "last step":
        at_the_last_step(monkeypatch, run, former, KeyboardInterrupt())
    else:
        monkeypatch.setattr(register.verify, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        bare_run(tmp_path / "fresh", ollama.url, "interrupted", seed=6).register()
    assert run.held() == former and run.answer() == answer


@pytest.mark.usefixtures("no_question")
def test_a_first_registration_that_fails_leaves_nothing(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bare_run(tmp_path, ollama.url, "first")
    at_the_last_step(monkeypatch, run, {}, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        run.register()
    assert run.held() == {} and not run.folder.modelfile.exists()


@pytest.mark.usefixtures("no_question")
def test_an_upload_that_breaks_off_is_tried_again(
    ollama: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxy(ollama.url) as (url, passing):
        run = bare_run(tmp_path, url, "stubborn", seed=200, export={"quantizations": ["F32"]})
        passing.fault = Strike("POST", "/api/blobs/", half_an_upload, times=2)
        run.register()
        assert passing.fault.struck == 2
        assert capsys.readouterr().err.count("broke off") == 2
        assert not temporary(run)


@pytest.mark.usefixtures("no_question")
def test_a_server_that_runs_another_file_is_refused_unless_it_is_known_to_rewrite(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register.verify, "check_shown", lambda *args: "f" * 64)
    for version, refused in (("0.34.1", True), ("0.34.4", True), ("0.34.0", False)):
        with proxy(ollama.url) as (url, passing):
            answer = says(200, f'{{"version":"{version}"}}', "application/json")
            passing.fault = Strike("GET", "/api/version", answer)
            run = bare_run(tmp_path / version, url, "rewritten", seed=210)
            if refused:
                with pytest.raises(ToolkitError, match="stored a different file"):
                    run.register()
                assert run.held() == {}
            else:
                found = run.register().figures["tags"]["latest"]
                assert found["stored_sha256"] == "f" * 64 and found["gguf_sha256"] == run.digests["F32"]


@pytest.mark.usefixtures("no_question")
def test_an_upload_whose_answer_is_lost_is_not_sent_twice(ollama: OllamaServer, tmp_path: Path) -> None:
    with proxy(ollama.url) as (url, passing):
        run = bare_run(tmp_path, url, "lost", seed=201, export={"quantizations": ["F32"]})
        passing.then = Strike("POST", "/api/blobs/", lambda handler: handler.reset())
        run.register()
    assert passing.seen.count(f"POST /api/blobs/sha256:{run.digests['F32']}") == 1


@pytest.mark.usefixtures("no_question")
def test_a_lost_answer_to_the_last_step_is_no_failure(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path / "former", ollama.url, "ended", seed=5)
    run.register()
    with proxy(ollama.url) as (url, passing):
        fresh = bare_run(tmp_path / "fresh", url, "ended", seed=202)
        passing.then = Strike("DELETE", "/api/delete", lambda handler: handler.reset(), body=b"toolkit-commit-")
        tags = fresh.register().figures["tags"]
    assert passing.then.struck
    assert run.held()["latest"] == tags["latest"]["digest"] and not temporary(run)


@pytest.mark.usefixtures("no_question")
def test_names_that_cannot_be_cleared_away_are_by_the_next_call(
    ollama: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxy(ollama.url) as (url, passing):
        run = bare_run(tmp_path, url, "untidy", seed=203)
        passing.fault = Strike("DELETE", "/api/delete", says(500, '{"error":"boom"}'), body=b"toolkit-new-", times=99)
        digest = run.register().figures["tags"]["latest"]["digest"]
        assert "the next call deletes them" in " ".join(capsys.readouterr().err.split())
        assert temporary(run) and run.held()["latest"] == digest
        passing.fault = lambda handler: False
        recover(run)
        assert not temporary(run) and run.held()["latest"] == digest


KILLS = [("/api/create", b"", 0.0), ("/api/create", b"", 0.004), ("/api/generate", b'"num_predict"', 0.1)]


def test_a_server_that_is_killed_in_create_and_under_the_question(
    mortal: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = make_run(tmp_path / "former", mortal.url, "dying", seed=5)
    former.register()
    held, answer = former.held(), former.answer()
    for seed, (path, body, delay) in enumerate(KILLS):
        with proxy(mortal.url) as (url, passing):

            def die(handler: Handler, delay: float = delay) -> bool:
                threading.Timer(delay, mortal.kill).start()
                return False  # the server is at work on it when it dies

            passing.fault = Strike("POST", path, die, body=body)
            fresh = make_run(
                tmp_path / f"fresh{seed}",
                url,
                "dying",
                seed=6 + seed,
                validate={"answer_tokens": 900},
            )
            with pytest.raises(ToolkitError, match="broke") as caught:
                fresh.register()
            assert caught.value.exit_code == FAILED
            assert "the next `toolkit register` will do it" in " ".join(capsys.readouterr().err.split())
        with pytest.raises(ToolkitError, match="no Ollama server answers") as caught:
            former.register()
        assert caught.value.exit_code == MISSING
        mortal.start()
        assert {tag: digest for tag, digest in former.held().items() if not tag.startswith("toolkit-")} == held
        assert former.answer() == answer
    recover(former)
    assert former.held() == held
