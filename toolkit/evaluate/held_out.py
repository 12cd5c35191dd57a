"""Held-out questions: each system answers all of them, and says how likely it finds the reference answer."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.records import Records, each_record, spread
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.copied import longest_runs
from toolkit.evaluate.journal import Journal, key_of
from toolkit.evaluate.measures import chrf, rouge_l
from toolkit.evaluate.statistics import compare, mean_of
from toolkit.evaluate.systems import Answer, Asked
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.held_out import held_out_records, no_held_out
from toolkit.prompt.languages import related
from toolkit.prompt.renderings import asked_in_full, earlier_turns
from toolkit.prompt.text_language import main_language, sure_language
from toolkit.prompt.thoughts import without_thoughts
from toolkit.prompt.tokenizer import Tokenizer

MEASURES = (("chrf", False), ("rouge_l", False), ("nll", True))  # each with whether less of it is better
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Question:
    """One held-out question: `ids` are prompt, reference answer and EOS, the first `start` of them the prompt's.

    Of a chat the last answer is asked for, and `question` shows the turns before it too.
    """

    row: int
    question: str
    instruction: str
    reference: str
    prompt: Prompt
    ids: list[int]
    start: int


@dataclass(frozen=True)
class Found:
    """What one system answered, by question, and its loss on each reference answer (nats per token)."""

    answers: list[Answer]
    nll: list[float]
    seconds: float


def read_questions(folder: RunFolder, form: PromptFormat, tokenizer: Tokenizer, count: int) -> tuple[int, list[Any]]:
    """Return the number of held-out rows, and `count` of them spread over the split, as questions."""
    path = folder.split_file("test")
    records = Records(path)
    if not records:
        raise no_held_out(path)
    some = [(number, records[number - 1]) for number in spread(range(1, len(records) + 1), count)]
    found = held_out_records(path, some, form, tokenizer)
    return len(records), [
        Question(one.row, asked_in_full(values), values["instruction"], one.answer, one.prompt, one.ids, one.start)
        for one, (_, values) in zip(found, some, strict=True)
    ]


def room(questions: Sequence[Question], tokens: int) -> int:
    """Return the tokens of the longest prompt with its reference, or with an answer of `tokens` tokens."""
    return max(max(len(one.ids), one.start + tokens) for one in questions) + 1


def question_keys(
    key: str, questions: Sequence[Question], tokens: int, window: int, stops: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Return the journal's keys of all likelihoods, and of all answers, of a system with so many positions.

    Raises ToolkitError where these are too few for a prompt.
    """
    tokens = _fitting(questions, tokens, window)
    scores = [key_of(key, "score", one.ids, one.start) for one in questions]
    return scores, [key_of(key, "answer", one.ids[: one.start], tokens, stops) for one in questions]


def _fitting(questions: Sequence[Question], tokens: int, window: int) -> int:
    longest = max(one.start for one in questions)
    if window <= longest:
        raise ToolkitError(
            f"a prompt has {longest:,} tokens, and the model has {window:,} positions",
            hint="lower `train.max_length`, then prepare and train again",
        )
    return min(tokens, window - longest)


def ask(
    asked: Asked,
    key: str,
    questions: Sequence[Question],
    tokens: int,
    stops: tuple[str, ...],
    journal: Journal,
    advance: Callable[[], object],
) -> Found:
    """Ask a system all questions that the journal does not answer yet; `advance` is called for each item.

    `key` stands for all that decides its answers besides the question. Raises ToolkitError where the model has too few
    positions for a prompt.
    """
    tokens = _fitting(questions, tokens, asked.window)
    score_keys, answer_keys = question_keys(key, questions, tokens, asked.window, stops)

    def scores() -> Iterator[dict[str, Any]]:
        left = [one for one, name in zip(questions, score_keys, strict=True) if journal.get(name) is None]
        for one, score in zip(left, asked.scores([(o.ids[: o.start], o.ids[o.start :]) for o in left]), strict=True):
            value = -score.logprob / (len(one.ids) - one.start)
            yield {"nll": value if math.isfinite(value) else None}

    def answers() -> Iterator[dict[str, Any]]:
        left = [one.prompt for one, name in zip(questions, answer_keys, strict=True) if journal.get(name) is None]
        for found in asked.answers(left, tokens, stops):
            yield {"text": found.text, "tokens": found.tokens, "ended": found.ended}

    for keys, results in ((score_keys, scores()), (answer_keys, answers())):
        started = time.monotonic()
        for name in [name for name in keys if journal.get(name) is None]:
            value = next(results)
            now = time.monotonic()
            journal.put(name, {**value, "seconds": round(now - started, 3)})
            started = now
            advance()
    said = [journal.get(name) for name in answer_keys]
    likely = [journal.get(name) for name in score_keys]
    return Found(
        [Answer(one["text"], one["tokens"], one["ended"]) for one in said],
        [math.nan if one["nll"] is None else one["nll"] for one in likely],
        sum(one["seconds"] for one in [*said, *likely]),
    )


def measures_of(
    folder: RunFolder, rows: int, questions: Sequence[Question], tokens: int, found: dict[str, Found], pairs: Pairs
) -> dict[str, Any]:
    """Return the part `held_out` of evaluation.json; the p-values of its comparisons are not corrected yet."""
    per_row = {name: _per_row(questions, one) for name, one in found.items()}
    copied = _copied(folder, found)
    spoken = main_language([without_thoughts(one.reference) for one in questions])
    return {
        "rows": rows,
        "questions": len(questions),
        "answer_tokens": tokens,
        "language": spoken or None,
        "systems": {
            name: {
                **{measure: mean_of([value for value in per_row[name][measure] if math.isfinite(value)])
                   for measure, _ in MEASURES},
                "tokens": mean_of([float(answer.tokens) for answer in one.answers]),
                "ended": mean_of([float(answer.ended) for answer in one.answers], share=True),
                "language": _share_in(spoken, one.answers),
                "copied": copied[name],
            }
            for name, one in found.items()
        },
        "identical": [
            {"a": a, "b": b, "share": _identical(found[a].answers, found[b].answers)} for a, b in combinations(found, 2)
        ],
        "comparisons": [
            compare(measure, a, b, per_row[a][measure], per_row[b][measure], less=less)
            for a, b in pairs
            for measure, less in MEASURES
        ],
        "answers": [
            {
                "row": one.row,
                "question": one.question,
                "instruction": one.instruction,
                "reference": one.reference,
                "answers": {
                    name: {
                        "text": found[name].answers[index].text,
                        "tokens": found[name].answers[index].tokens,
                        "ended": found[name].answers[index].ended,
                        "chrf": per_row[name]["chrf"][index],
                        "rouge_l": per_row[name]["rouge_l"][index],
                    }
                    for name in found
                },
            }
            for index, one in enumerate(questions)
        ],
    }  # fmt: skip


def _per_row(questions: Sequence[Question], found: Found) -> dict[str, list[float]]:
    """Return the measures of each question; what an answer and the reference say, without their thoughts."""
    both = [
        (without_thoughts(answer.text), without_thoughts(one.reference))
        for answer, one in zip(found.answers, questions, strict=True)
    ]
    return {
        "chrf": [chrf(answer, reference) for answer, reference in both],
        "rouge_l": [rouge_l(answer, reference) for answer, reference in both],
        "nll": found.nll,
    }


def _share_in(spoken: str, answers: Sequence[Answer]) -> dict[str, Any] | None:
    """Return the share of answers in the data's language; None where that, or the language of all, is uncertain."""
    codes = [sure_language(without_thoughts(answer.text)) for answer in answers] if spoken else []
    known = [float(related(code, spoken)) for code in codes if code]
    return mean_of(known, share=True) if known else None


def _identical(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    return sum(a.text == b.text for a, b in zip(first, second, strict=True)) / len(first)


def _copied(folder: RunFolder, found: dict[str, Found]) -> dict[str, Any]:
    """Return the longest run that each system copied from a training answer, and the median of its answers'."""
    training = (
        (int(values.get("row", number)), answer)
        for number, values in enumerate(each_record(folder.split_file("train")), 1)
        for answer in (*(answer for _, answer in earlier_turns(values)), values["output"])
    )
    texts = [answer.text for one in found.values() for answer in one.answers]
    runs = iter(longest_runs(texts, training))
    result = {}
    for name, one in found.items():
        own = [next(runs) for _ in one.answers]
        longest = max(own, key=lambda run: run.words)
        middle = float(median(run.words for run in own))
        result[name] = {"longest": longest.words, "row": longest.row, "text": longest.text, "median": middle}
    return result
