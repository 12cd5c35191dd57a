"""A stage that is called alone looks at the stages before it, as `status` does; and a doubtful model replaces none."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support import faults
from tests.support.models import save_model
from tests.support.properties import first_fast
from toolkit import pipeline
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core.errors import GATE
from toolkit.core.manifest import Outcome
from toolkit.core.stage import Check, Context, no_checks

SETTINGS = """
[run]
name = "r"
[data]
source = "own.csv"
[model]
base = "base"
[train]
max_length = 128
learning_rate = 0.05
max_steps = 2
[export]
quantizations = ["F16"]
default = "F16"
[ollama]
host = "HOST"
"""
DOUBT = "the trained model is worse than its base"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, data and a base, in which every stage only writes the files that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    (tmp_path / "own.csv").write_text("question,answer\na,b\n")
    (tmp_path / "toolkit.toml").write_text(SETTINGS.replace("HOST", "http://127.0.0.1:9"))
    pretend(monkeypatch)
    return tmp_path


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    warnings: dict[str, str] | None = None,
    figures: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Have each stage write its files only; those named say a warning, or have figures."""

    def run_of(name: str) -> Callable[[Context], Outcome]:
        def run(context: Context) -> Outcome:
            outputs = pipeline.stage(name).files(context.config, context.folder).outputs
            for path in outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{context.config.train.max_steps}{(Path('own.csv')).read_text()}")
            return Outcome(outputs, (figures or {}).get(name, {}), (warnings or {}).get(name, ""))

        return run

    for name in pipeline.STAGES:
        module = import_module(f"toolkit.{name}.stage")
        made = replace(module.STAGE, run=run_of(name), summary=lambda figures, folder: "", checks=no_checks)
        monkeypatch.setattr(module, "STAGE", replace(made, may_replace=lambda *_: False, lost=lambda *_: ""))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, [*arguments, "--json"])


def message(result: Result) -> str:
    """The error and its hint; fails where there is none."""
    assert result.exception is not None, result.output
    return f"{getattr(result.exception, 'message', result.exception)} | {getattr(result.exception, 'hint', '')}"


def perform(*stages: str) -> None:
    for stage in stages:
        result = call(stage, "--force") if stage == "train" else call(stage)
        assert result.exception is None, result.exception


@pytest.fixture
def no_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.doctor.doctor", lambda *_, **__: [])


@pytest.mark.usefixtures("no_doctor")
@pytest.mark.parametrize("verb", first_fast(["train", "export", "validate", "register"]))
def test_a_verb_alone_says_that_the_data_changed(place: Path, verb: str) -> None:
    before = [*pipeline.STAGES][: [*pipeline.STAGES].index(verb)]
    perform(*before)
    assert call(verb).exception is None
    (place / "own.csv").write_text("question,answer\na,b\nc,d\n")
    said = message(call(verb))
    assert "prepare is out of date: input changed: own.csv" in said and "toolkit prepare" in said
    assert f"run {verb} anyway with --force" in said
    assert call(verb, "--force").exception is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_doctor")
@pytest.mark.parametrize(
    ("verb", "change", "stale"),
    [
        ("train", "prompt.language=German", "prepare is out of date: settings changed: prompt.language"),
        ("export", "train.max_steps=5", "train is out of date: settings changed: train.max_steps"),
        ("validate", "train.learning_rate=1e-3", "train is out of date: settings changed: train.learning_rate"),
        ("validate", "export.merge_base=as-trained", "export is out of date: settings changed: export.merge_base"),
        ("register", "train.lora_r=4", "train is out of date: settings changed: train.lora_r"),
    ],
)
def test_a_verb_alone_says_that_settings_changed(place: Path, verb: str, change: str, stale: str) -> None:
    perform(*[*pipeline.STAGES][: [*pipeline.STAGES].index(verb)])
    said = message(call(verb, "--set", change))
    assert stale in said
    assert call("run", "--set", change).exception is None or verb == "register"
    assert json.loads(call("status", "--set", change).stdout)["stages"]["validate"]["state"] == "fresh"


# What an earlier version's manifest says otherwise than today's (... is absent), and why which stage is stale.
EARLIER: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"train.base_compute": ..., "train.turns": ..., "data.near_duplicates": ..., "prompt.thinking": ...}, {}),
    ({"validate.questions": ..., "validate.max_kl": ..., "export.overrides": ..., "ollama.tags": ...}, {}),
    ({"train.max_steps": ..., "train.steps": 2, "train.optim": ..., "train.optimizer": "adamw_torch_fused"}, {}),
    ({"train.logging_steps": 7, "export.stream_base": False, "ollama.timeout": 1.0}, {}),  # decide nothing today
    ({"train.learning_rate": ...}, {"train": "settings changed: train.learning_rate"}),
    ({"train.steps": 9, "train.max_steps": ...}, {"train": "settings changed: train.max_steps"}),
    ({"data.personal": "off"}, {"prepare": "settings changed: data.personal"}),
    ({"export.gone": 1}, {"export": "settings changed: export.gone"}),
]


@pytest.mark.slow
@pytest.mark.usefixtures("no_doctor")
def test_a_run_of_an_earlier_version_is_fresh_where_its_settings_were_the_same(place: Path) -> None:
    """The manifest lacks settings that came since, and has former names; no stage is done again for that."""
    stages = ("prepare", "train", "export", "validate")
    perform(*stages)
    path = place / "exports/r/manifest.json"
    text = path.read_text()
    for change, stale in [({}, {}), *EARLIER]:
        manifest = json.loads(text)
        for name in stages:
            settings = manifest["stages"][name]["settings"]
            sections = {key.partition(".")[0] for key in settings}
            settings.update({key: value for key, value in change.items() if key.partition(".")[0] in sections})
            manifest["stages"][name]["settings"] = {key: value for key, value in settings.items() if value is not ...}
        path.write_text(json.dumps(manifest))
        found = json.loads(call("status").stdout)["stages"]
        first = stages.index(next(iter(stale))) if stale else len(stages)
        assert [found[name]["state"] for name in stages] == ["fresh"] * first + ["stale"] * (len(stages) - first)
        assert all(found[name]["why"] == why for name, why in stale.items()), change


@pytest.mark.usefixtures("no_doctor")
def test_a_split_that_was_edited_by_hand_is_said_and_one_that_nobody_prepared_is_taken(place: Path) -> None:
    perform("prepare")
    split = place / "exports/r/data/train.jsonl"
    split.write_text("edited\n")
    assert "prepare is out of date: output changed: data/train.jsonl" in message(call("train"))
    (place / "exports/r/manifest.json").unlink()
    result = call("train")
    assert result.exception is None, result.exception
    assert "prepare was not run here: its files are used as they are" in result.stderr


@pytest.mark.usefixtures("no_doctor")
def test_a_training_is_looked_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is fresh is asked in one place, and the doctor only looks where it is not."""
    looked: list[str] = []

    def look(*_: object, **__: object) -> list[Check]:
        looked.append("doctor")
        return []

    monkeypatch.setattr("toolkit.doctor.doctor", look)
    perform("prepare")
    for expected in (1, 1):
        assert call("train").exception is None
        assert len(looked) == expected


@contextmanager
def server(place: Path, *models: str) -> Iterator[list[str]]:
    """An Ollama that holds these models, or others that are put into the list."""
    held = [*models]

    def respond(handler: faults.Handler) -> bool:
        listed = {"models": [{"model": model, "digest": "ab" * 32} for model in held]}
        bodies: dict[str, Any] = {"/api/version": {"version": "0.34.1"}, "/api/tags": listed}
        return handler.answer(200, json.dumps(bodies[handler.path]).encode())

    with faults.serving(respond) as url:
        (place / "toolkit.toml").write_text(SETTINGS.replace("HOST", url))
        yield held


@pytest.mark.slow
@pytest.mark.usefixtures("no_doctor")
@pytest.mark.parametrize("where", ["train", "validate"])
def test_a_doubtful_model_replaces_none_that_answers(place: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    pretend(monkeypatch, {where: DOUBT})
    run = place / "exports/r"
    with server(place) as held:
        for verb in ("prepare", "train", "export", "validate"):
            result = call(verb)
            assert json.loads(result.stdout.splitlines()[-1])["warning"] == (DOUBT if verb == where else "")
            assert (f"warning: {DOUBT}" in result.stderr) == (verb == where)
            assert ("next: toolkit train --set train.learning_rate=0.0002\n" in result.stderr) == (verb == where)
        stated = call("status")
        assert "next: toolkit train --set train.learning_rate=0.0002\n" in stated.stderr
        found = json.loads(stated.stdout)["stages"]
        assert found[where] == {**found[where], "state": "fresh", "warning": DOUBT}
        assert f"warning: {DOUBT}" in CliRunner().invoke(group, ["status"]).stdout
        shutil.copytree(run, place / "validated")
        for name, asks in (("r:latest", True), ("r:f16", True), ("other:latest", False), ("", False)):
            held[:] = [name] * bool(name)
            for verb in ("register", "run"):
                result = call(verb)
                if asks:
                    said = message(result)
                    assert getattr(result.exception, "exit_code", 0) == GATE
                    assert "`r` answers in Ollama" in said and DOUBT in said and "--force" in said
                else:
                    assert result.exception is None
                assert (run / "Modelfile").exists() is not asks
            assert call("register", "--force").exception is None and (run / "Modelfile").exists()
            shutil.rmtree(run)
            shutil.copytree(place / "validated", run)


@pytest.mark.slow
@pytest.mark.usefixtures("no_doctor")
def test_a_model_that_learned_replaces_one_that_answers(place: Path) -> None:
    with server(place, "r:latest"):
        perform(*pipeline.STAGES)
        assert (place / "exports/r/Modelfile").exists()


UNMEASURED = {"learned": None, "held_out_loss_after": None}
FOUND = {"better": (3.0, 2.5), "worse": (3.0, 17.0), "unmoved": (3.0, 3.0)}


@pytest.mark.slow
@pytest.mark.usefixtures("no_doctor")
@pytest.mark.parametrize("verdict", [*FOUND, ""])
def test_what_training_did_not_measure_is_said_and_validation_decides(
    place: Path, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    """With `data.val = 0`: status says so until validate has compared, and register goes by what that found."""
    before, after = FOUND.get(verdict, (0.0, 0.0))
    test = {"before": before, "after": after, "error": None, "verdict": verdict} if verdict else None
    figures: dict[str, dict[str, Any]] = {"train": UNMEASURED, "validate": {"learned": {"train": None, "test": test}}}
    pretend(monkeypatch, {"validate": DOUBT} if verdict in ("worse", "unmoved") else {}, figures)
    with server(place, "r:latest"):
        perform("prepare", "train")
        shown = CliRunner().invoke(group, ["status"]).stdout
        assert "train: held-out loss not measured, because the val split is empty (data.val)" in shown
        assert "`toolkit validate` compares it with its base" in shown
        perform("export", "validate")
        shown = CliRunner().invoke(group, ["status"]).stdout
        assert (f"on the test split validate found {verdict}: {before:.4f} → {after:.4f}" in shown) == bool(verdict)
        result = call("register")
        if verdict == "better":
            assert result.exception is None
        else:
            assert getattr(result.exception, "exit_code", 0) == GATE
            assert (DOUBT if verdict else "not measured") in message(result)
