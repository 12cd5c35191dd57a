"""`toolkit evaluate` as a user calls it: a preview, the evaluation, fresh, out of date; nothing waits for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Called
from tests.support import models
from toolkit.core.errors import USAGE

SETTINGS = """
[run]
name = "r"
[data]
source = "rows.csv"
[model]
base = "base"
[export]
quantizations = ["F16", "Q8_0"]
default = "F16"
[evaluate]
questions = 2
answer_tokens = 3
"""


@pytest.fixture
def exported(tmp_path: Path, toolkit: Callable[..., Called]) -> Path:
    """A project with prepared rows, an adapter and two files; nothing was trained here."""
    models.save_model(tmp_path / "base")
    (tmp_path / "toolkit.toml").write_text(SETTINGS)
    rows = [
        f"What helps against {word}{end}?,Rest helps against {word}{end}."
        for word in ("fever", "gout")
        for end in "abcdefghij"
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    models.save_adapter(tmp_path / "exports/r/adapter", tmp_path / "base")
    assert toolkit("prepare").code == 0
    return tmp_path / "exports/r"


@pytest.mark.slow
def test_an_evaluation_is_foreseen_done_once_and_again_when_something_changes(
    exported: Path, toolkit: Callable[..., Called]
) -> None:
    assert toolkit("evaluate").code != 0 and not (exported / "evaluation.json").exists()
    assert toolkit("export").code == 0
    foreseen = toolkit("evaluate", "--dry-run", "--json").json
    assert (foreseen["dry_run"], foreseen["items"], foreseen["questions"]) == (True, 16, 2)
    assert not (exported / "evaluation.json").exists() and "about" in toolkit("evaluate", "--dry-run").out

    done = toolkit("evaluate")
    assert done.code == 0 and "trained against base: no difference can be shown" in done.out, done.err
    assert "evaluation.json" in done.out and "next: toolkit evaluate --sheet" in done.err
    assert "evaluate (first time)" in done.err and "evaluate: 16/16 items" in (exported / "log.txt").read_text()
    again = toolkit("evaluate", "--json").json
    assert again["fresh"] is True and again["comparisons_made"] == 12 and "answers" not in again["held_out"]

    states = toolkit("status", "--json").json["stages"]
    assert states["evaluate"]["state"] == "fresh" and states["validate"]["state"] == "not run"
    changed = ("--set", "evaluate.answer_tokens=4")
    states = toolkit("status", "--json", *changed).json["stages"]
    assert states["evaluate"]["why"] == "settings changed: evaluate.answer_tokens"
    assert toolkit("export", "--json", *changed).json["fresh"] is True
    other = ("--set", "export.quantizations=F16")
    assert toolkit("status", "--json", *other).json["stages"]["evaluate"]["state"] == "stale"
    refused = toolkit("evaluate", *other)
    assert refused.code == 1 and "no GGUF files of this model" in refused.err and "toolkit export" in refused.err
    forced = toolkit("evaluate", "--force", "--json", "--set", "evaluate.systems=F16").json
    assert [one["name"] for one in forced["systems"]] == ["F16"] and forced["fresh"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sheet", "--votes", "x"], "--sheet and --votes cannot be used in one call"),
        (["votes.json"], "`votes.json` has no use here: only --votes reads files"),
        (["--votes"], "--votes names no file"),
        (["--sheet", "--force"], "--sheet has no --force"),
        (["--votes", "votes.json", "--force"], "--votes has no --force"),
        (["--set", "evaluate.systems=Q4_K_M,Q2_K"], 'evaluate.systems: "Q2_K" is none of base, trained, Q8_0, Q4_K_M'),
        (["--set", "evaluate.systems=trainned"], 'unknown quantization "trainned"'),
        (["--set", "evaluate.systems=trainned"], 'did you mean "trained"?'),
        (["--set", "evaluate.systems=Basis"], 'did you mean "base"?'),
        (["--set", "evaluate.judge=gpt"], 'write "ollama:gpt"'),
        (["--set", "evaluate.judge=ollama:"], "name the model"),
        (["--set", "evaluate.questions=0"], "evaluate.questions"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, tmp_path: Path, toolkit: Callable[..., Called]) -> None:
    (tmp_path / "toolkit.toml").write_text("")
    done = toolkit("evaluate", *words)
    assert done.code == USAGE and said in done.err, done.err


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "[run]\nname = 'r'\n"])
def test_the_settings_of_a_failed_evaluation_are_not_kept(
    before: str, tmp_path: Path, toolkit: Callable[..., Called]
) -> None:
    """They would be those of every other stage; an interrupted one goes on with them."""
    models.save_model(tmp_path / "base")
    (tmp_path / "toolkit.toml").write_text(SETTINGS.replace("questions = 2", 'systems = ["base"]'))
    kept = tmp_path / "exports/r/config.toml"
    kept.parent.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (kept.parent / "adapter").mkdir(exist_ok=True)
        (kept.parent / "adapter" / name).write_text("{}")
    for name in ("test", "train"):
        (kept.parent / "data").mkdir(exist_ok=True)
        (kept.parent / "data" / f"{name}.jsonl").write_text("")
    if before:
        kept.write_text(before)
    for setting, said in (("judge=ollama:absent", "127.0.0.1:9"), ("answer_tokens=3", "records")):
        done = toolkit("evaluate", "--force", "--set", f"evaluate.{setting}")
        assert done.code and "evaluate (first time)" in done.err and said in done.err, done.err
        assert (kept.read_text() if kept.exists() else "") == before, done.err


@pytest.mark.slow
def test_without_a_run_it_says_what_comes_first(tmp_path: Path, toolkit: Callable[..., Called]) -> None:
    models.save_model(tmp_path / "base")
    (tmp_path / "toolkit.toml").write_text('[model]\nbase = "base"\n')
    for words in (("evaluate",), ("evaluate", "--dry-run")):
        done = toolkit(*words)
        assert done.code in (1, 3) and "hint: " in done.err and "toolkit " in done.err, done.err
        assert "Traceback" not in done.err
