"""Prompts that do not fit are refused before anything is sent; a num_ctx beyond the model's positions is said."""

from pathlib import Path

import pytest

from tests.register.conftest import Run, make_run
from toolkit import ask
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.register import checks, modelfile_text

NOBODY = "127.0.0.1:9"  # a server is not asked before this is known


def run_with(folder: Path, positions: int = 0, **settings: int) -> Run:
    """A run whose GGUF files say that the model has so many positions."""
    run = make_run(folder, NOBODY, "tiny", ollama={"host": NOBODY, **settings})
    for path in run.files.values() if positions else ():
        content = path.read_bytes()
        key = b"llama.context_length"
        at = content.index(key) + len(key) + 4
        path.write_bytes(content[:at] + positions.to_bytes(4, "little") + content[at + 4 :])
    return run


@pytest.mark.parametrize("context", [1, 8, 60])
def test_held_out_prompts_that_do_not_fit(tmp_path: Path, context: int) -> None:
    run = run_with(tmp_path, num_ctx=context)
    with pytest.raises(ToolkitError, match=rf"longest held-out prompt has \d+ tokens, but num_ctx is {context}") as got:
        run.register()
    assert got.value.exit_code == USAGE
    hint = got.value.hint.partition("num_ctx=")[2].partition("`")[0]
    fitting = run_with(tmp_path / "again", num_ctx=int(hint))
    with pytest.raises(ToolkitError, match="Ollama"):  # the next thing that is missing
        fitting.register()


def test_held_out_prompts_beyond_the_models_positions(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"but the model has 40 positions") as got:
        run_with(tmp_path, 40, num_ctx=4096).register()
    assert "`train.max_length` to 40" in got.value.hint


@pytest.mark.parametrize(("context", "said"), [(4096, True), (600, True), (512, False), (500, False)])
def test_a_context_beyond_the_models_positions(
    tmp_path: Path, context: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, 512, num_ctx=context)
    with pytest.raises(ToolkitError, match="Ollama"):
        run.register()
    words = f"num_ctx is {context:,}, but the model has 512 positions"
    assert (words in " ".join(capsys.readouterr().err.split())) == said
    assert f"PARAMETER num_ctx {context}" in modelfile_text(run.config, run.folder, "<|end_of_text|>")
    assert (words in " ".join(capsys.readouterr().err.split())) == said


@pytest.mark.slow
def test_a_question_beyond_the_models_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By llama.cpp, which would go on in silence."""
    run = run_with(tmp_path, 300, num_ctx=4096, num_predict=64)
    with pytest.raises(ToolkitError, match=r"tokens with its prompt, but the model has 300 positions"):
        list(ask.answer(run.config, run.folder, "long " * 60, None)[1])
    assert list(ask.answer(run.config, run.folder, "How?", None)[1])
    assert "tokens at most" not in capsys.readouterr().err
    near = 300 - 10 - (300 - _room(run))
    assert "".join(ask.answer(run.config, run.folder, "x" * near, None)[1]) is not None
    assert "the answer has 10 tokens at most: the model has 300 positions" in " ".join(capsys.readouterr().err.split())


def _room(run: Run) -> int:
    """How many bytes a question may have, at a token each, until the model's positions are full."""
    try:
        list(ask.answer(run.config, run.folder, "y" * 1000, None)[1])
    except ToolkitError as exc:
        return 1300 - int(exc.message.partition(" has ")[2].partition(" tokens")[0].replace(",", ""))
    raise AssertionError("it was answered")


@pytest.mark.parametrize(("context", "found"), [(0, 0), (100, 1), (2048, 0), (1024, 1)])
def test_the_doctor_names_a_short_context(tmp_path: Path, context: int, found: int) -> None:
    assert len(checks.context(run_with(tmp_path, num_ctx=context).config)) == found
