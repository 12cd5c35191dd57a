"""Your own exam: a JSON Lines file with question, choices and answer becomes a task of lm-eval, without a download.

Each question is asked as MedMCQA's are: the question, the choices after letters, and `Answer:`. The likeliest letter is
the answer. That is lm-eval's `acc` of letters: these are equally long, so that no choice gains by its length.
"""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.parsing import parse_json, read_bounded
from toolkit.evaluate.guards import quiet
from toolkit.evaluate.measures import check_installed
from toolkit.evaluate.tasks import ChoiceTask, make_task

LETTERS = string.ascii_uppercase
EXAMPLE = '{"question": "…", "choices": ["…", "…"], "answer": "A"}'
LARGEST = 64 << 20  # bytes


@dataclass(frozen=True)
class ExamRow:
    """A question with its choices; `answer` is the place of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_exam(path: Path) -> list[ExamRow]:
    """Read an exam; `answer` is a letter, the text of a choice, or its place from 0.

    Raises ToolkitError with the row's number for a row that is not such a question, or is there twice.
    """
    try:
        content = read_bounded(path, LARGEST)
    except FileNotFoundError:
        raise ToolkitError(
            f"no exam `{path}`", hint=f"correct `evaluate.exam`; a row is {EXAMPLE}", exit_code=MISSING
        ) from None
    except ValueError as exc:
        raise ToolkitError(f"`{path}` is no exam: {exc}", hint=f"a row is {EXAMPLE}", exit_code=USAGE) from None
    rows: list[ExamRow] = []
    first: dict[str, int] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _row(parse_json(line))
        except ValueError as exc:
            raise ToolkitError(f"`{path}` row {number}: {exc}", hint=f"a row is {EXAMPLE}", exit_code=USAGE) from None
        before = first.setdefault(" ".join(row.question.casefold().split()), number)
        if before != number:
            raise ToolkitError(
                f"`{path}` row {number} asks what row {before} asks",
                hint="remove one of them: a question that counts twice bends the result",
                exit_code=USAGE,
            )
        rows.append(row)
    if not rows:
        raise ToolkitError(f"`{path}` has no question", hint=f"a row is {EXAMPLE}", exit_code=USAGE)
    return rows


def exam_task(path: Path) -> ChoiceTask:
    """Make a task of an exam, for lm-eval; raises ToolkitError as `read_exam` does."""
    rows = read_exam(path)
    check_installed(("lm_eval",))
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    name = f"exam:{path.stem}"
    documents = [{"question": row.question, "choices": list(row.choices), "answer": row.answer} for row in rows]
    with quiet():
        task = ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
                "output_type": "multiple_choice",
                "test_split": "test",
                "doc_to_text": _text,
                "doc_to_choice": _letters,
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )
    made = make_task(name, task, 0)
    return ChoiceTask(name, f"Own exam, {path.name}", made.metric, made.lower, made.task, made.requests)


def _text(document: dict[str, Any]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, document["choices"], strict=False)]
    return "\n".join([f"Question: {document['question']}", "Choices:", *lines, "Answer:"])


def _letters(document: dict[str, Any]) -> list[str]:
    return list(LETTERS[: len(document["choices"])])


def _row(values: Any) -> ExamRow:
    """Check one row; raises ValueError that says what is wrong."""
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    question, choices, answer = (values.get(key) for key in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError("it has no `question`" if "question" not in values else "its `question` is no text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError("it has no `choices`" if "choices" not in values else "its `choices` are no list of texts")
    texts = [choice.strip() for choice in choices]
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(
            f"it has {len(texts)} choice{'' if len(texts) == 1 else 's'}; 2 to {len(LETTERS)} are possible"
        )
    alike = {text.casefold() for text in texts}
    if len(alike) < len(texts):
        raise ValueError("two of its choices are the same")
    return ExamRow(question.strip(), tuple(texts), _place(answer, texts))


def _place(answer: Any, texts: list[str]) -> int:
    """Return the place of the right choice. The text of a choice comes before a letter, and that before a number."""
    if answer is None or answer == "" or isinstance(answer, bool):
        raise ValueError("it has no right `answer`")
    if isinstance(answer, str):
        said = answer.strip()
        folded = [text.casefold() for text in texts]
        if said in texts:
            return texts.index(said)
        if said.casefold() in folded:
            return folded.index(said.casefold())
        letter = said.rstrip(".)").upper()
        if len(letter) == 1 and letter in LETTERS[: len(texts)]:
            return LETTERS.index(letter)
    elif type(answer) is int and 0 <= answer < len(texts):
        return answer
    last = LETTERS[len(texts) - 1]
    raise ValueError(
        f"its answer {answer!r} is none of its {len(texts)} choices (text, A to {last}, or 0 to {len(texts) - 1})"
    )
