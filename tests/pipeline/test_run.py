"""A run from Python: typed results, errors as exceptions, nothing printed, and the command line calls the same."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import toolkit
from tests.support.models import save_model
from tests.support.places import REPOSITORY
from toolkit import Run, ToolkitError, pipeline
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core import console, plain, streams
from toolkit.core.errors import MISSING, USAGE
from toolkit.pipeline.findings import Answer, Findings, Finished
from toolkit.pipeline.results import Done, Prepared
from toolkit.train import launch

SAMPLE = REPOSITORY / "data" / "sample.csv"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base", hidden_size=64, intermediate_size=128)


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Callable[..., Run]:
    """Make a run on a small base and the sample data; further settings by section."""

    def made(name: str = "small", data: Path = SAMPLE, progress: Any = None, **sections: Any) -> Run:
        usual: dict[str, Any] = {"model": {"base": base}, "train": {"max_length": 512, "max_steps": 2}, **sections}
        return Run.load(None, progress=progress, run={"name": name, "folder": tmp_path}, data={"source": data}, **usual)

    return made


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys, toolkit; before = {*sys.modules}; from toolkit import Run; import json; print(json.dumps("
    code += (
        "[sorted(m for m in before if m.startswith('toolkit')), 'pydantic' in sys.modules, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["toolkit"], False, False]


def test_settings_come_by_section_or_as_the_command_line_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "toolkit.toml"
    path.write_text('[run]\nname = "own"\n[train]\nnum_train_epochs = 2\n')
    by_section = Run.load(path, train={"max_steps": 8, "target_modules": ("q_proj",)}, data={"source": tmp_path / "a"})
    as_set = Run.load(path, "train.max_steps=8", "train.target_modules=q_proj", f"data.source={tmp_path / 'a'}")
    assert by_section.config == as_set.config and by_section.config.run.name == "own"
    assert by_section.config.train.max_steps == 8
    assert Run.load(path, "train.max_steps=9", train={"max_steps": 8}).config.train.max_steps == 9
    assert Run.load(None).config == Run.load().config != by_section.config


def test_former_names_are_warned_of_and_every_problem_is_in_one_error() -> None:
    lines: list[str] = []
    run = Run.load(None, progress=lines.append, train={"steps": 8})
    assert run.config.train.max_steps == 8 and "train.max_steps now" in run.warnings[0]
    assert lines == [f"warning: {run.warnings[0]}"]
    wrong: Any = {"train": {"max_steps": "8", "stepz": 1}, "trian": {"seed": 1}, "data": 3, "run": {"name": "a/b"}}
    with pytest.raises(ToolkitError) as caught:
        Run.load(None, "export.quantizations=Q9", **wrong)
    said = caught.value.message
    for part in ("6 problems", "train.max_steps", "train.stepz", "did you mean [train]", "data:", "run.name", "Q9"):
        assert part in said
    assert caught.value.exit_code == USAGE and caught.value.__notes__ == [f"hint: {caught.value.hint}"]


@pytest.mark.parametrize(
    ("positional", "named", "said"),
    [
        ((3,), {}, "the settings file cannot be 3"),
        ((b"toolkit.toml",), {}, "the settings file cannot be b'toolkit.toml'"),
        ((["toolkit.toml"],), {}, "the settings file cannot be ['toolkit.toml']"),
        (("train.max_steps=8",), {}, "the settings file cannot be 'train.max_steps=8'"),
        ((None, 5), {}, "5: write it as text"),
        ((None, {"train.max_steps": 8}), {}, "{'train.max_steps': 8}: write it as text"),
        ((None,), {"progress": "print"}, "progress cannot be 'print'"),
        ((None,), {"progress": True}, "progress cannot be True"),
        ((None,), {"train": "max_steps=8"}, 'train: write its settings by their keys, got "max_steps=8"'),
        ((None, "train.allow_unexportable=True"), {}, 'train.allow_unexportable: write true or false, got "True"'),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(positional: Any, named: Any, said: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        Run.load(*positional, **named)
    assert said in caught.value.message and caught.value.exit_code == USAGE and caught.value.hint


def test_calls_with_wrong_arguments_are_refused_before_anything_is_written(make: Callable[..., Run]) -> None:
    run: Any = make()
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: run.perform("doctor"), "the stage cannot be 'doctor'"),
        (lambda: run.perform(3), "the stage cannot be 3"),
        (lambda: run.train(gpus=0), "gpus cannot be 0"),
        (lambda: run.train(gpus="2"), "gpus cannot be '2'"),
        (lambda: run.register(replace="own:latest"), "replace cannot be 'own:latest'"),
        (lambda: run.roll_back(replace="own:latest"), "replace cannot be 'own:latest'"),
        (lambda: run.ask(None), "the question cannot be None"),
        (lambda: run.ask("Why?", 3), "the instruction cannot be 3"),
    ]
    for call, said in calls:
        with pytest.raises(ToolkitError) as caught:
            call()
        assert caught.value.message == said and caught.value.exit_code == USAGE and caught.value.hint
    assert not run.folder.path.exists()


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    run = Run.load(None, train={"max_steps": np.int64(8), "learning_rate": np.float32(0.5)}, data={"seed": np.uint8(7)})
    assert (run.config.train.max_steps, run.config.train.learning_rate, run.config.data.seed) == (8, 0.5, 7)


@pytest.mark.slow
def test_a_folder_whose_name_no_run_can_have_is_refused_by_its_name(make: Callable[..., Run], tmp_path: Path) -> None:
    """As a copy in Google Drive is called."""
    make().prepare()
    for name in ("Copy of small", "small (1)"):
        (tmp_path / "small").rename(tmp_path / name)
        with pytest.raises(ToolkitError, match="cannot be the name of a run") as caught:
            Run.load(tmp_path / name)
        assert f"`{name}`" in caught.value.message and caught.value.hint.startswith("rename the folder")
        (tmp_path / name).rename(tmp_path / "small")
    assert Run.load(tmp_path / "small").prepare().fresh


def test_prepare_returns_figures_and_paths_and_prints_nothing(
    make: Callable[..., Run], capfd: pytest.CaptureFixture[str]
) -> None:
    run = make()
    first, again = run.prepare(), run.prepare()
    assert isinstance(first, Prepared) and (first.fresh, again.fresh) == (False, True)
    assert again.figures == first.figures and first.figures["kept"] == first.kept <= first.rows
    assert first.train.read_text().count("\n") == first.figures["train"]
    written = {first.train, first.val, first.test, first.rejected, run.folder.personal}
    assert written == {*first.files} == {*again.files}
    assert f"{first.kept:,} kept" in str(first) == again.summary
    assert run.prepare(force=True).why == "--force"
    assert capfd.readouterr() == ("", "")
    assert f"{first.kept:,} kept" in run.folder.log.read_text()


@pytest.mark.slow
def test_the_lines_go_where_they_are_wanted(make: Callable[..., Run], capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    make(progress=lines.append).prepare()
    assert "\nprepare (first time)" in lines and capfd.readouterr() == ("", "")
    make("loud", progress="terminal").prepare()
    out, err = capfd.readouterr()
    assert out == "" and "prepare (first time)" in err


def test_errors_are_exceptions_with_the_same_words(make: Callable[..., Run], tmp_path: Path) -> None:
    run = make()
    with pytest.raises(ToolkitError, match=r"train needs .*train\.jsonl") as caught:
        run.perform("train")
    assert caught.value.hint == "run `toolkit prepare` first"
    assert f"error: {caught.value.message}" in run.folder.log.read_text()
    with pytest.raises(ToolkitError, match="the question is empty"):
        run.ask(" ")
    with pytest.raises(ToolkitError, match=r"no trained model"):
        run.modelfile()
    broken = make("broken", data=tmp_path / "none.csv")
    with pytest.raises(ToolkitError, match=r"none\.csv"):
        broken.prepare()
    assert not broken.folder.data.exists()


def test_an_error_of_the_system_is_one_too(make: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "small").write_text("a file where the run's folder belongs\n")
    with pytest.raises(ToolkitError, match="small") as caught:
        make().prepare()
    assert isinstance(caught.value.__cause__, OSError)


def test_what_a_sink_raises_is_not_swallowed(make: Callable[..., Run]) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(progress=stop).prepare()
    assert make().prepare().fresh is False


@pytest.mark.slow
def test_runs_in_threads_keep_apart(make: Callable[..., Run], tmp_path: Path) -> None:
    """Each has its own lines, log and warnings: one in five of every second run's answers is empty."""
    rows = [f'"Question number {n} of many?","Answer {n} to it, in a sentence."\n' for n in range(40)]
    count = 6
    found: dict[int, Prepared] = {}
    lines: dict[int, list[str]] = {}
    gate = threading.Barrier(count)
    for number in range(count):
        bad = [row if n % 5 or number % 2 else f'"Question {n}?",""\n' for n, row in enumerate(rows)]
        (tmp_path / f"{number}.csv").write_text("question,answer\n" + "".join(bad))

    def work(number: int) -> None:
        said = lines[number] = list[str]()
        run = make(f"run-{number}", data=tmp_path / f"{number}.csv", progress=said.append)
        gate.wait(60)
        found[number] = run.prepare()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*found} == {*range(count)}
    for number, result in found.items():
        rejected = [text for text in result.warnings if "rows rejected" in text]
        assert [f"run-{number}/data/" in text for text in rejected] == [True] * (number % 2 == 0)
        assert [f"warning: {text}" for text in result.warnings] == [x for x in lines[number] if x.startswith("warning")]
        log = (tmp_path / f"run-{number}" / "log.txt").read_text()
        assert log.count("prepare (first time)") == 1 and all(text in log for text in result.warnings)
    assert streams.state().sink is None and not streams.state().warnings


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_meanwhile(make: Callable[..., Run]) -> None:
    refused: list[str] = []

    def during(line: str) -> None:
        if "first time" in line:
            with pytest.raises(ToolkitError, match="is at work in") as caught:
                make().prepare()
            refused.append(caught.value.message)

    assert make(progress=during).prepare().kept and len(refused) == 1


@pytest.mark.slow
def test_doctor_and_status_say_what_they_find(make: Callable[..., Run], capfd: pytest.CaptureFixture[str]) -> None:
    run = make(ollama={"host": "127.0.0.1:9"})
    assert {each.state for each in run.status().stages.values()} == {"not run"}
    run.prepare()
    status = run.status()
    assert [each.state for each in status.stages.values()] == ["fresh", *["not run"] * 5]
    assert status.folder == run.folder.path and status.ollama["version"] is None
    findings = make("other", data=Path("none.csv")).doctor()
    assert isinstance(findings, Findings) and "data" in [check.name for check in findings.failed]
    assert "none.csv" in str(findings) and not (run.folder.path.parent / "other").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_training_that_this_machine_cannot_do_is_not_begun(make: Callable[..., Run]) -> None:
    run = make(train={"max_steps": 2, "max_length": 512, "precision": "f16"})
    run.prepare()
    with pytest.raises(ToolkitError, match="cannot do the configured run") as caught:
        run.train()
    assert caught.value.exit_code == MISSING and not run.folder.checkpoints.exists()


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        *((name, "perform") for name in pipeline.STAGES),
        ("run", "run"),
        ("doctor", "doctor"),
        ("status", "status"),
        ("modelfile", "modelfile"),
        ("ask Why?", "ask"),
        ("register --rollback", "roll_back"),
        ("evaluate", "perform"),
        ("evaluate --dry-run", "foresee_evaluation"),
        ("evaluate --sheet", "write_sheet"),
        ("evaluate --votes votes.json", "count_votes"),
    ],
)
def test_every_verb_calls_the_run(arguments: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Called(Exception):
        pass

    def called(self: Run, *_: object, **__: object) -> None:
        assert self.config.train.max_steps == 7 and self.progress == "terminal"
        raise Called

    monkeypatch.chdir(tmp_path)
    (tmp_path / "toolkit.toml").write_text("[train]\nmax_steps = 7\n")
    monkeypatch.setattr(Run, method, called)
    assert isinstance(CliRunner().invoke(group, arguments.split()).exception, Called)


WORKER = """
import os, sys, json
from pathlib import Path
from toolkit.core import console, streams
from toolkit.train import relay
asked = json.loads(Path(sys.argv[1]).read_text())
print("a library's banner")
with relay.sent_to(asked["lines"]):
    console.info("one\\ntwo")
    console.warn("odd: é" + "x" * 200_000)
    if asked["die"]:
        print("the last words", file=sys.stderr, flush=True)
        os._exit(7)
    found = {"figures": {}, "warnings": streams.state().warnings}
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_what_the_training_process_says_reaches_the_program(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "WORKER", ["-c", WORKER])
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    lines: list[str] = []
    warning = "odd: é" + "x" * 200_000
    with streams.directed(lines.append) as state:
        assert launch.run_worker({"die": False}, 1) == {"figures": {}}
        assert lines == ["one\ntwo", f"warning: {warning}"] and state.warnings == [warning]
        with pytest.raises(ToolkitError, match="exit code 7") as caught:
            launch.run_worker({"die": True}, 1)
    assert "the last words" in caught.value.hint and "same command continues" in caught.value.hint
    assert capfd.readouterr() == ("", "")
    assert launch.run_worker({"die": False}, 1) == {"figures": {}}
    assert streams.state().warnings == [warning] and "one\ntwo" in capfd.readouterr().err


@pytest.mark.slow
def test_a_status_is_the_table_that_the_command_line_prints(
    make: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "table", plain.table)
    run = make(ollama={"host": "127.0.0.1:9"})
    run.prepare()
    text = str(run.status())
    printed = CliRunner().invoke(group, ["status", "-c", str(run.folder.path)])
    assert text == printed.stdout.rstrip("\n") and "prepare" in text and "no server answers" in text
    failing = replace(run.status(), ollama={"problem": "odd"}, unmeasured="not measured")
    assert str(failing).endswith("\n\nOllama: odd") and "\ntrain: not measured\n" in str(failing)


def test_a_whole_run_is_one_line() -> None:
    done = [Done(name, fresh, "", {}, 4.2) for name, fresh in (("prepare", True), ("train", False))]
    assert str(Finished((*done,), Path("out/a"), False, ())) == "done in 4.2 s (train 4.2 s): out/a"
    assert str(Finished((done[0],), Path("out/a"), False, ())) == "nothing to do, fresh already: prepare: out/a"
    assert str(Finished((done[0],), Path("out/a"), True, ())) == "all stages are fresh: out/a"


def test_the_package_lists_what_it_offers() -> None:
    assert {"Run", "ToolkitError"} <= {*dir(toolkit)} & {*toolkit.__all__}
    names: dict[str, Any] = {}
    exec("from toolkit import *", names)
    assert names["Run"] is Run and names["ToolkitError"] is ToolkitError


def test_an_answer_is_its_text() -> None:
    assert str(Answer("Why?", "Because.", "llama.cpp", ())) == "Because."
