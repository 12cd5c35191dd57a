"""Thoughts in answers: what the prompt's setting makes of them, and what is said where the two do not fit."""

import json
from pathlib import Path

import pytest

from tests.support import families
from tests.support.models import save_tokenizer
from toolkit.core.config_file import build
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.run_folder import folder_of
from toolkit.prepare import checks, prepare
from toolkit.prompt.format import prompt_format
from toolkit.prompt.tokenizer import load_tokenizer

THOUGHT = "<think>\nHm, water.\n</think>\n\n"


def save_marked(folder: Path) -> None:
    """Save a vocabulary in which the marks of a thinking block are control tokens."""
    save_tokenizer(folder, controls=["<|im_start|>", "<|im_end|>", "<think>", "</think>"])


BASES = {"thinking": families.save_thinking, "qwen": families.save_qwen, "marked": save_marked}


def rows(folder: Path, thoughts: int) -> Path:
    path = folder / "data.jsonl"
    answers = [(THOUGHT if number < thoughts else "") + f"Drink {number} glasses." for number in range(20)]
    path.write_text("".join(json.dumps({"question": f"q {n}", "answer": a}) + "\n" for n, a in enumerate(answers)))
    return path


def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], thinking: str, thoughts: int, base: str) -> str:
    """What prepare says of thoughts, which is what the doctor says."""
    source = rows(tmp_path, thoughts)
    config = build(
        {}, ["prompt.preset=chatml", f"prompt.thinking={thinking}", f"data.source={source}", f"run.folder={tmp_path}"]
    )
    BASES[base](tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base", prompt_format(config.prompt))
    prepare(config, folder_of(config), source, tokenizer)
    text = " ".join(capsys.readouterr().err.split())
    found = checks.data(config, lambda: tokenizer, offline=True)
    mentioned = text.partition("prompt.thinking")[1]
    assert found.ok is True and ("prompt.thinking" in found.found) is bool(mentioned)
    return text if mentioned else ""


@pytest.mark.parametrize(
    ("thinking", "thoughts", "base", "words"),
    [
        ("", 0, "thinking", "`--set prompt.thinking=off` closes the block"),
        ("", 0, "qwen", ""),
        (
            "",
            3,
            "thinking",
            "3 of 20 answers begin with `<think>`, and are trained so; `--set prompt.thinking=keep`",
        ),
        ("", 20, "qwen", "20 of 20 answers begin with `<think>`"),
        ("", 2, "marked", "2 of 20 answers begin with `<think>`, a control token of this base"),
        ("off", 0, "thinking", ""),
        ("off", 0, "marked", ""),
        ("keep", 0, "thinking", "no answer begins with `<think>`: `--set prompt.thinking=off`"),
        ("keep", 0, "qwen", "leave it empty: this base does not think either"),
        ("keep", 1, "thinking", ""),
    ],
)
def test_what_is_said_of_thoughts(
    thinking: str, thoughts: int, base: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(tmp_path, capsys, thinking, thoughts, base)
    assert words in found if words else not found


@pytest.mark.parametrize("thoughts", [1, 20])
def test_thoughts_behind_a_closed_block_are_refused_before_anything_is_written(thoughts: int, tmp_path: Path) -> None:
    source = rows(tmp_path, thoughts)
    config = build(
        {}, ["prompt.preset=chatml", "prompt.thinking=off", f"data.source={source}", f"run.folder={tmp_path / 'run'}"]
    )
    families.save_thinking(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base", prompt_format(config.prompt))
    for refusing in (
        lambda: prepare(config, folder_of(config), source, tokenizer),
        lambda: checks.data(config, lambda: tokenizer, offline=True),
        lambda: checks.data(config, lambda: None, offline=True),
    ):
        with pytest.raises(ToolkitError, match=f"{thoughts} of 20 answers begin with `<think>`, first row 1") as caught:
            refusing()
        assert caught.value.exit_code == USAGE and "prompt.thinking=keep" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "alone"),
    [
        ("<think>Hm, water. Drink a lot.", True),
        ("<think>Hm, water.</think>", True),
        ("<think></think> \n", True),
        ("  <think>Hm.</think>\n\nDrink a lot.", False),
        ("Drink <think> a lot.", False),
    ],
)
@pytest.mark.parametrize("thinking", ["keep", ""])
def test_thoughts_without_an_answer_are_counted(
    answer: str, alone: bool, thinking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [answer if number in (3, 7) else f"{THOUGHT}Drink {number} glasses." for number in range(20)]
    lines = [json.dumps({"question": f"q {n}", "answer": text}) + "\n" for n, text in enumerate(answers)]
    (tmp_path / "own.jsonl").write_text("".join(lines))
    families.save_thinking(tmp_path / "base")
    settings = [f"data.source={tmp_path / 'own.jsonl'}", f"run.folder={tmp_path}", f"prompt.thinking={thinking}"]
    config = build({}, ["prompt.preset=chatml", *settings])
    tokenizer = load_tokenizer(tmp_path / "base", prompt_format(config.prompt))
    prepare(config, folder_of(config), tmp_path / "own.jsonl", tokenizer)
    text = " ".join(capsys.readouterr().err.split())
    assert ("2 of 20 answers, first row 4, are thoughts alone" in text) is alone
    assert checks.data(config, lambda: tokenizer, offline=True).ok is True


def test_a_mark_inside_an_answer_is_no_thought(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"question": "q", "answer": "The mark <think> begins a thought."}
    path.write_text("".join(json.dumps({**row, "question": f"q {number}"}) + "\n" for number in range(20)))
    config = build({}, ["prompt.preset=chatml", "prompt.thinking=off", f"data.source={path}", f"run.folder={tmp_path}"])
    families.save_thinking(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base", prompt_format(config.prompt))
    assert prepare(config, folder_of(config), path, tokenizer).figures["kept"] == 20
