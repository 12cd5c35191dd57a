"""The settings of the evaluation: what is asked, which systems, and with which limits."""

import difflib

from pydantic import Field, field_validator

from toolkit.core.output_settings import check_quantization
from toolkit.core.section import PathText, Section

BASE, TRAINED = "base", "trained"  # as entries of evaluate.systems


class EvaluateSettings(Section):
    """What `toolkit evaluate` asks the base, the trained model and each GGUF."""

    questions: int = Field(50, ge=1)
    """Held-out questions, spread over the test split; each system answers all of them."""
    answer_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    systems: list[str] = []
    """What is asked: base, trained, and names of quantizations; empty: all of them."""
    tasks: list[str] = []
    """Multiple-choice tasks of lm-evaluation-harness, as "medqa_4options"; they need the extra [evaluate]."""
    task_items: int = Field(0, ge=0)
    """How many items of each task, from its beginning; 0: all."""
    task_folder: PathText = ""
    """Folder with the tasks' data, for a machine without a network; empty: the hub's cache, else the hub."""
    exam: PathText = ""
    """Your own multiple-choice exam, a JSON Lines file with question, choices and answer."""
    judge: str = ""
    """A model that compares answers in pairs, as "ollama:MODEL"; it decides nothing. Empty: none."""

    @field_validator("systems")
    @classmethod
    def _known_systems(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(_system(name) for name in value))

    @field_validator("judge")
    @classmethod
    def _local_judge(cls, value: str) -> str:
        if value and not value.removeprefix("ollama:").strip():
            raise ValueError('name the model, as in "ollama:qwen3:8b"')
        if value and not value.startswith("ollama:"):
            raise ValueError(f'write "ollama:{value}": a judge runs on your Ollama server')
        return value


def _system(name: str) -> str:
    if name.lower() in (BASE, TRAINED):
        return name.lower()
    try:
        return check_quantization(name)
    except ValueError as exc:
        close = difflib.get_close_matches(name.lower(), (BASE, TRAINED), n=1)
        meant = f'; did you mean "{close[0]}"?' if close else f"; besides quantizations there are {BASE} and {TRAINED}"
        raise ValueError(f"{exc}{meant}") from None
