"""The way back and its undoing, and what status says of the server, against a real one."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import call_toolkit
from tests.register.conftest import Run, bare_run, temporary
from tests.support.ollama_server import OllamaServer
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Manifest, Outcome, StageRecord, read_manifest, record_file, write_manifest
from toolkit.ollama import blobs, server
from toolkit.register import rollback, status, verify

pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_proof")]


def recorded(run: Run, outcome: Outcome) -> Manifest:
    """Write the manifest as the pipeline would after this registration."""
    files = [record_file(path, run.folder) for path in run.files.values()]
    common = {"settings": {}, "inputs": [], "versions": {}, "seconds": 0.0, "finished": ""}
    stages = {
        "export": StageRecord(outputs=files, figures={}, **common),
        "register": StageRecord(outputs=[], figures=outcome.figures, **common),
    }
    manifest = Manifest(run_id=read_manifest(run.folder).run_id, stages=stages)
    write_manifest(run.folder, manifest)
    return manifest


def states(run: Run, manifest: Manifest) -> dict[str, str]:
    return {tag: held["state"] for tag, held in status.server_state(run.config, manifest)["tags"].items()}


def test_back_and_forth(ollama: OllamaServer, tmp_path: Path) -> None:
    first = bare_run(tmp_path / "1", ollama.url, "swing", seed=1)
    first_outcome = first.register()
    old, old_answer = first.held(), first.answer()
    with pytest.raises(ToolkitError, match="has no previous model `swing:previous`") as caught:
        rollback.roll_back(first.config)
    assert caught.value.exit_code == MISSING
    second = bare_run(tmp_path / "2", ollama.url, "swing", seed=2)
    second_outcome = second.register()
    new = second.held()
    manifests = recorded(first, first_outcome), recorded(second, second_outcome)

    for own in ("stable", "previous-stable", "latest-kept-0123456789ab"):  # copies of the user's own
        second.client().copy("swing", f"swing:{own}")
    copies = {tag: digest for tag, digest in second.held().items() if tag not in new}
    new |= copies

    preview = rollback.roll_back(second.config, dry_run=True)
    assert second.held() == new and preview["dry_run"]
    done = rollback.roll_back(second.config)
    assert done["tags"] == preview["tags"] and done["answer"]
    held = second.held()
    kept = {"previous-f16": old["f16"], "previous-f32": old["f32"], **copies}
    assert held == {"latest": old["latest"], "f32": old["f32"], "f16": new["f16"], "previous": new["latest"], **kept}
    assert second.answer() == old_answer
    assert not temporary(second)
    assert states(second, manifests[1])["previous"] == "this run's, rolled back"
    assert status.lost(second.config, second_outcome.figures) == "", "`toolkit run` must not undo a rollback"
    assert states(first, manifests[0])["latest"] == "this run's"

    rollback.roll_back(second.config)
    assert second.held() == new
    assert set(states(second, manifests[1]).values()) >= {"this run's"}


@pytest.mark.usefixtures("no_question")
def test_a_former_model_that_does_not_answer_is_not_brought_back(
    ollama: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_run(tmp_path / "1", ollama.url, "mute", seed=1).register()
    run = bare_run(tmp_path / "2", ollama.url, "mute", seed=2)
    run.register()
    held = run.held()

    def mute(*args: Any, **kwargs: Any) -> NoReturn:
        raise ToolkitError("did not answer")

    monkeypatch.setattr(verify, "smoke", mute)
    with pytest.raises(ToolkitError, match="did not answer"):
        rollback.roll_back(run.config)
    assert run.held() == held


@pytest.mark.usefixtures("no_question")
def test_a_latest_of_another_maker_is_not_moved_away_unless_it_is_named(ollama: OllamaServer, tmp_path: Path) -> None:
    bare_run(tmp_path / "1", ollama.url, "moved", seed=1).register()
    run = bare_run(tmp_path / "2", ollama.url, "moved", seed=2)
    run.register()
    former, client = run.held()["previous"], run.client()
    client.create("moved", files={"theirs.gguf": f"sha256:{run.digests['F16']}"}, license="MIT", template="x")
    theirs = run.held()["latest"]
    with pytest.raises(ToolkitError, match="not made with this toolkit"):
        rollback.roll_back(run.config)
    assert run.held()["latest"] == theirs
    rollback.roll_back(run.config, replace=[f"{run.name}:latest"])
    assert (run.held()["latest"], run.held()["previous"]) == (former, theirs)


@pytest.mark.usefixtures("no_question")
def test_status_says_of_every_tag_what_the_server_holds(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path / "a", ollama.url, "seen", seed=51)
    write_manifest(run.folder, read_manifest(run.folder))  # earlier stages have given the run its id
    manifest = recorded(run, run.register())
    found = status.server_state(run.config, manifest)
    tags = found["tags"]
    assert set(tags) == {"latest", "f16", "f32"}
    for tag, quantization in (("latest", "F32"), ("f16", "F16")):
        shown = tags[tag]
        assert shown["state"] == "this run's" and shown["gguf_sha256"] == run.digests[quantization]
        assert shown["digest"] == run.held()[tag] and shown["stored_sha256"]
        assert shown["run"] == f"seen {manifest.run_id}"

    other = bare_run(tmp_path / "b", ollama.url, "seen", seed=52)
    other.register()
    client = run.client()
    client.delete("seen:f16")
    with server.http(run.config.ollama) as http:
        blobs.upload(http, run.files["F16"], run.digests["F16"])
    client.create("seen:mine", files={"x.gguf": f"sha256:{run.digests['F16']}"}, template="x")
    shown = states(run, manifest)
    assert shown["latest"] == "of run seen" and shown["f16"] == "not there"
    assert shown["previous"] == "this run's, rolled back"
    rewritten = server.rewrites(ollama.version)
    assert (tags["f16"]["stored_sha256"] != run.digests["F16"]) == rewritten
    assert shown["mine"] == ("not made with toolkit" if rewritten else "this run's file, of another registration")
    other.register()
    later = bare_run(tmp_path / "c", ollama.url, "seen", seed=53)
    later.register()
    assert status.lost(run.config, manifest.stages["register"].figures) == (
        "the server holds another model as `seen:latest`"
    )


@pytest.mark.usefixtures("no_question")
def test_an_earlier_export_of_the_same_run_is_told_apart(ollama: OllamaServer, tmp_path: Path) -> None:
    run = bare_run(tmp_path, ollama.url, "earlier", seed=61)
    manifest = recorded(run, run.register())
    changed = [file.model_copy(update={"sha256": "0" * 64}) for file in manifest.stages["export"].outputs]
    manifest.stages["export"] = manifest.stages["export"].model_copy(update={"outputs": changed})
    assert states(run, manifest)["latest"] == "this run's, of an earlier export"


def test_the_verbs(ollama: OllamaServer, tmp_path: Path) -> None:
    """--rollback and status as a user calls them."""
    first = bare_run(tmp_path / "exports", ollama.url, "verbs", seed=71)
    first.register()
    settings = f'[run]\nname = "verbs"\n[model]\nbase = "x"\n[ollama]\nhost = "{ollama.url}"\ntags = "all"\n'
    (tmp_path / "toolkit.toml").write_text(settings + '[export]\nquantizations = ["F16", "F32"]\ndefault = "F32"\n')
    none = call_toolkit("register", "--rollback", cwd=tmp_path)
    assert none.code == MISSING and "no previous model" in none.err
    second = bare_run(tmp_path / "2", ollama.url, "verbs", seed=72)
    recorded(second, second.register())
    done = call_toolkit("register", "--rollback", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["tags"]["latest"]["digest"] == second.held()["latest"]
    assert "undoes it" in done.err and "ollama run verbs" in done.err
    shown = call_toolkit("status", cwd=tmp_path)
    assert "verbs:latest" in shown.out and "of run verbs" in shown.out
    gone = call_toolkit("status", "--json", "--set", "ollama.host=127.0.0.1:9", cwd=tmp_path)
    assert gone.code == 0 and gone.json["ollama"]["version"] is None
    assert json.dumps(gone.json)
