"""Questions after training show that they are being answered: each takes seconds, or minutes on a busy CPU."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from toolkit.core import config_file, console
from toolkit.prompt.format import prompt_format
from toolkit.train import sample


class Model:
    """What is asked of a model here; it says which of the two it is."""

    trained = True

    def parameters(self) -> list[Any]:
        return []

    @contextlib.contextmanager
    def disable_adapter(self) -> Any:
        self.trained = False
        yield
        self.trained = True


@pytest.mark.parametrize("count", [1, 3])
def test_each_answer_is_counted(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(sample, "greedy_answer", lambda model, *_: "trained" if model.trained else "base")
    questions = [f"Question {number}?" for number in range(count)]
    config = config_file.build({"validate": {"questions": questions}})
    backend = SimpleNamespace(device="cpu", infer=lambda model: None)
    job: Any = SimpleNamespace(
        config=config, prompt_format=prompt_format(config.prompt), backend=backend, tokenizer=None
    )
    found = sample.answers(job, Model())
    assert [(one["question"], one["before"], one["after"]) for one in found] == [
        (question, "base", "trained") for question in questions
    ]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("questions after training: ")]
    assert len(lines) == 2 * count and f"{2 * count}/{2 * count} answers" in lines[-1]
