"""From a row to a record, or to a rejection with its reason."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.read import Row, Table

NO_QUESTION_MARK = "no `Question:`"
NO_ANSWER_MARK = "no `Answer:`"
EMPTY_QUESTION = "empty question"
EMPTY_ANSWER = "empty answer"
NOT_TEXT = "binary or undecodable text"
WRONG_TYPE = "a list or object instead of text"

# The usual names, best first; compared in lower case.
QUESTIONS = ("question", "input", "prompt", "query", "user")
ANSWERS = ("answer", "output", "response", "completion", "assistant")
INSTRUCTION = "instruction"
IDS = ("id", "answerid", "qid", "uid")

SHOWN = 200  # characters of a rejected row that are kept

# C0 without tab, newline, vertical tab and form feed (which text from PDFs has), DEL, and lone surrogates.
_UNUSABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_APOSTROPHES = {ord("'"): None, ord("’"): None}
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `question` is None for MedQuAD's cells, which hold question and answer."""

    question: str | None
    answer: str
    instruction: str | None
    id: str | None


@dataclass(frozen=True)
class Record:
    """One question with its answer, as it will be trained on. `normalised` names the group of its question."""

    id: str
    number: int
    line: int | None
    instruction: str
    question: str
    answer: str
    normalised: str
    instruction_as_question: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used: `reason` is what is counted, `detail` is for the reader."""

    number: int
    line: int | None
    reason: str
    text: str
    detail: str = ""


def wanted_names(settings: DataSettings) -> list[str]:
    """Return every column name, in lower case, that a source may have."""
    named = (settings.question_column, settings.answer_column, settings.instruction_column)
    return [*QUESTIONS, *ANSWERS, INSTRUCTION, *IDS, *(name.casefold() for name in named if name)]


def find_columns(table: Table, settings: DataSettings) -> Columns:
    """Decide which columns hold question, answer and instruction; raises ToolkitError naming what was found."""
    by_name = {name.casefold(): name for name in reversed(table.columns)}
    answer = _named(settings.answer_column, "answer", by_name, table) or _first(ANSWERS, by_name)
    question = _named(settings.question_column, "question", by_name, table)
    instruction = _named(settings.instruction_column, "instruction", by_name, table) or by_name.get(INSTRUCTION)
    question = question or _first(
        tuple(name for name in QUESTIONS if by_name.get(name) not in (answer, instruction)), by_name
    )
    if instruction in (question, answer):
        instruction = None
    row_id = _first(IDS, by_name)
    if answer is None:
        raise _no_column("answer", ANSWERS, table)
    if question is None and instruction is not None:
        return Columns(instruction, answer, None, row_id)
    if question is None and not any(_is_medquad(row.values.get(answer)) for row in table.rows):
        raise _no_column("question", QUESTIONS, table)
    return Columns(question, answer, instruction, row_id)


def _named(name: str, role: str, by_name: dict[str, str], table: Table) -> str | None:
    if not name:
        return None
    if name in table.columns:
        return name
    if name.casefold() not in by_name:
        raise _no_column(role, (name,), table)
    return by_name[name.casefold()]


def _first(names: tuple[str, ...], by_name: dict[str, str]) -> str | None:
    return next((by_name[name] for name in names if name in by_name), None)


def _no_column(role: str, wanted: tuple[str, ...], table: Table) -> ToolkitError:
    found = ", ".join(f"`{name[:40]}`" for name in table.columns[:20]) or "none"
    return ToolkitError(
        f"`{table.path}` has no column with the {role}: wanted {' or '.join(f'`{name}`' for name in wanted)}, "
        f"found {found}",
        hint=f"name it with `--set data.{role}_column=NAME`",
    )


def _is_medquad(cell: Any) -> bool:
    return isinstance(cell, str) and cell.lstrip().startswith("Question:")


def clean(table: Table, columns: Columns, instruction: str) -> tuple[list[Record], list[Rejection]]:
    """Turn every row into a record or a rejection, in the order of the file; `instruction` fills in where none is."""
    records: list[Record] = []
    rejected: list[Rejection] = []
    for row in table.rows:
        result = _clean_row(row, columns, instruction)
        if isinstance(result, Record):
            records.append(result)
        else:
            rejected.append(result)
    return records, rejected


def _clean_row(row: Row, columns: Columns, default: str) -> Record | Rejection:
    if row.problem:
        reason, _, detail = row.problem.partition(": ")
        return Rejection(row.number, row.line, reason, _show(row.text), detail)
    names = [columns.question, columns.answer, columns.instruction]
    cells = [_cell(row.values.get(name)) if name is not None else "" for name in names]
    texts = [cell for cell in cells if cell is not None]
    shown = _show(" | ".join(text for text in texts if text))
    if len(texts) < len(cells):
        return Rejection(row.number, row.line, WRONG_TYPE, shown)
    question, answer, instruction = texts
    if any(_UNUSABLE.search(text) for text in texts):
        return Rejection(row.number, row.line, NOT_TEXT, shown)
    if columns.question is None:
        parted = split_cell(answer)
        if isinstance(parted, str):
            return Rejection(row.number, row.line, parted, shown)
        question, answer = parted
    moved = columns.instruction is not None and not question and bool(instruction)
    if moved:
        question, instruction = instruction, ""
    if not question:
        return Rejection(row.number, row.line, EMPTY_QUESTION, shown)
    if not answer:
        return Rejection(row.number, row.line, EMPTY_ANSWER, shown)
    row_id = _cell(row.values.get(columns.id)) if columns.id is not None else None
    return Record(
        id=_SURROGATES.sub("\ufffd", row_id or str(row.number)),
        number=row.number,
        line=row.line,
        instruction=instruction or default,
        question=question,
        answer=answer,
        normalised=normalise(question),
        instruction_as_question=moved or (columns.question is not None and columns.question.casefold() == INSTRUCTION),
    )


def _cell(value: Any) -> str | None:
    """Return a cell as text with `\\n` as the line end and without blank ends; None if it is not text or a number."""
    if value is None or value != value:  # NaN is how data frames write an empty cell
        return ""
    if isinstance(value, str):
        if "\r" in value:
            value = value.replace("\r\n", "\n").replace("\r", "\n")
        return str(value.strip())
    return str(value) if isinstance(value, int | float) else None


def _show(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text[:SHOWN])


def split_cell(cell: str) -> tuple[str, str] | str:
    """Part MedQuAD's `Question: … URL: … Answer: …)` into question and answer, or say why it cannot be parted.

    The URL line may be missing. The file closes each answer with a `)` that opens nowhere: that one goes.
    """
    mark = re.search(r"^[ \t]*Answer:", cell, re.MULTILINE) or re.search(r"\bAnswer:", cell)
    if mark is None:
        return NO_ANSWER_MARK
    head, answer = cell[: mark.start()].lstrip(), cell[mark.end() :].strip()
    if not head.startswith("Question:"):
        return NO_QUESTION_MARK
    head = head.removeprefix("Question:")
    url = re.search(r"^[ \t]*URL:", head, re.MULTILINE) or re.search(r"\sURL:\s", head)
    question = head[: url.start()] if url else head
    if answer.endswith(")") and not _closes(answer):
        answer = answer[:-1].rstrip()
    return question.strip(), answer


def _closes(text: str) -> bool:
    """Say whether the final `)` closes a `(`; a `)` that opens nowhere, as in `1)`, closes nothing."""
    depth = 0
    for mark in re.findall(r"[()]", text[:-1]):
        depth = depth + 1 if mark == "(" else max(0, depth - 1)
    return depth > 0


def normalise(question: str) -> str:
    """Reduce a question to what makes it the same: NFKC, case folded, words parted by one space, no punctuation.

    A question of nothing but punctuation stays as it is, so that `+` and `-` are two questions.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    letters = folded.translate(_APOSTROPHES)
    if letters.isascii():
        words = re.findall(r"[a-z0-9]+", letters)
    else:  # not \w, which parts words at the vowel signs of Indic scripts
        words = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in letters).split()
    return " ".join(words) or folded.strip()


def group_id(normalised: str) -> str:
    """Return a short name for a question group: 12 hex digits of the SHA-256 of its normalised question."""
    return hashlib.sha256(normalised.encode("utf-8")).hexdigest()[:12]
