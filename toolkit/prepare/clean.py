"""From a row to a record, or to a rejection with its reason."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.core.input_settings import DataSettings
from toolkit.prepare.cells import INSTRUCTION, cell_text, group_name, is_null_word, joined_text, name_key
from toolkit.prepare.columns import Columns
from toolkit.prepare.messages import EMPTIED_TURN, UnusableChatError, texts_in
from toolkit.prepare.row_texts import RowTexts, empty_nulls, put_context, repair_texts, take_turns
from toolkit.prepare.table import Row
from toolkit.prompt.renderings import Turn

NO_QUESTION_MARK = "no `Question:`"
NO_ANSWER_MARK = "no `Answer:`"
EMPTY_QUESTION = "empty question"
EMPTY_ANSWER = "empty answer"
NOT_TEXT = "binary or undecodable text"
WRONG_TYPE = "a list or object instead of text"
REPEATED_HEADER = "the header again"
ENDLESS = "a cell of more than 1,000,000 characters"
LONGEST = 1_000_000  # characters of a cell: no context holds them, and a quote that is never closed makes such cells

SHOWN = 200  # number of characters kept of a rejected row

# C0 without tab, newline, vertical tab and form feed (which text from PDFs has), DEL, and lone surrogates.
_UNUSABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_APOSTROPHES = {ord("'"): None, ord("’"): None}
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """One question with its answer, as it will be trained on. `normalised` names the group of its question.

    Of a chat these are the last ones, `history` has the turns before them, and the group is that of the first question.
    `question` begins with the record's context, if it has one. `repaired` names the repairs that changed its text.
    `tokens` is the length of the whole record where its answer is cut, or `left_out` turns at its end; else 0. `file`
    is set where there are several. `unanswered`: a last question without an answer is not in the record.
    `group` is the cell of `data.group_column`, which is written nowhere: it may be a patient's number.
    """

    id: str
    number: int
    line: int | None
    instruction: str
    question: str
    answer: str
    normalised: str
    instruction_as_question: bool = False
    truncated: bool = False
    repaired: tuple[str, ...] = ()
    tokens: int = 0
    file: str = ""
    history: tuple[Turn, ...] = ()
    left_out: int = 0
    unanswered: bool = False
    group: str = ""

    @property
    def where(self) -> str:
        """Return the row as a message names it."""
        return f"row {self.number}" + (f" of {self.file}" if self.file else "")

    @property
    def first_question(self) -> str:
        """The question that a chat begins with; of one turn its only one."""
        return self.history[0][0] if self.history else self.question

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the record: those of its last turn, the instruction, and those of earlier turns."""
        earlier = (text for turn in self.history for text in turn)
        return self.question, self.answer, self.instruction, *earlier


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used: `reason` is what is counted, `detail` is for the reader.

    `tokens` is the length of a record that is too long, else 0. `file` is set where there are several. `near` is the
    row that a near-duplicate is like, and how much.
    """

    number: int
    line: int | None
    reason: str
    text: str
    detail: str = ""
    tokens: int = 0
    file: str = ""
    near: Mapping[str, Any] | None = None


def clean_row(row: Row, columns: Columns, instruction: str, settings: DataSettings) -> Record | Rejection:
    """Turn a row into a record or a rejection, as `data` says; `instruction` serves rows without one."""
    if row.problem:
        reason, _, detail = row.problem.partition(": ")
        return Rejection(row.number, row.line, reason, _show(row.text), detail, file=row.file)
    names = (
        (None, None, columns.instruction) if columns.chat else (columns.question, columns.answer, columns.instruction)
    )
    cells = [cell_text(row.values.get(name)) if name is not None else "" for name in names]
    cells.append(joined_text(row.values.get(columns.context)) if columns.context is not None else "")
    shown = _show(" | ".join(text[:SHOWN] for text in cells if text))

    def rejection(reason: str, detail: str = "") -> Rejection:
        return Rejection(row.number, row.line, reason, shown, _SURROGATES.sub("\ufffd", detail), file=row.file)

    group = group_name(row.values.get(columns.group)) if columns.group is not None else ""
    if group is None:
        return rejection(WRONG_TYPE, f"`{columns.group}` is {_kind(row.values.get(columns.group or ''))}")
    if None in cells:
        name = (*names, columns.context)[cells.index(None)]
        return rejection(WRONG_TYPE, f"`{name}` is {_kind(row.values.get(name or ''))}")
    texts = RowTexts("", "", "", "")
    texts.take([text or "" for text in cells])
    if _is_header(texts, row, columns):
        return rejection(REPEATED_HEADER)
    try:
        unanswered = take_turns(texts, row, columns, merge=settings.merge_messages)
    except UnusableChatError as exc:
        said = [text[:SHOWN] for name in columns.turns for text in texts_in(row.values.get(name))[:SHOWN]]
        shown = _show(" | ".join([shown] * bool(shown) + said))
        return rejection(exc.reason, exc.detail)
    sizes = [*map(len, texts.all()[:4])]
    if columns.turns:  # one cell has all turns, or all but the last
        sizes.append(sum(map(len, texts.history)) + (sizes[0] + sizes[1]) * bool(columns.chat))
    if max(sizes) > LONGEST:
        where = (columns.question, columns.answer, columns.instruction, columns.context, columns.earlier)
        at = next(at for at, size in enumerate(sizes) if size > LONGEST)
        return rejection(ENDLESS, f"`{where[at] or columns.earlier}` has {sizes[at]:,}")
    if any(map(_UNUSABLE.search, texts.all())):
        return rejection(NOT_TEXT)
    if columns.question is None:
        parted = split_cell(texts.answer)
        if isinstance(parted, str):
            return rejection(parted)
        texts.question, texts.answer = parted
    repaired = repair_texts(texts, settings.clean)
    if "" in texts.history:
        return rejection(EMPTIED_TURN)
    null_is_empty = settings.null_words == "empty"
    nulls = empty_nulls(texts, columns) if null_is_empty else {}
    if columns.history is not None and not texts.question and name_key(columns.context or "") == INSTRUCTION:
        texts.question, texts.context = texts.context, ""
    moved = columns.instruction is not None and not texts.question and bool(texts.instruction)
    if moved:
        texts.question, texts.instruction = texts.instruction, ""
    if not texts.question:
        return rejection(EMPTY_QUESTION, nulls.get("question", ""))
    if not texts.answer:
        return rejection(EMPTY_ANSWER, nulls.get("answer", ""))
    if texts.context:
        put_context(texts, columns)
    first = texts.history[0] if texts.history else texts.question
    row_id = cell_text(row.values.get(columns.id)) if columns.id is not None else None
    return Record(
        id=_SURROGATES.sub("\ufffd", row_id or (f"{row.file}:{row.number}" if row.file else str(row.number))),
        number=row.number,
        line=row.line,
        instruction=texts.instruction or instruction,
        question=texts.question,
        answer=texts.answer,
        normalised=normalise(first),
        instruction_as_question=moved or (columns.question is not None and name_key(columns.question) == INSTRUCTION),
        repaired=repaired,
        file=row.file,
        history=tuple(zip(texts.history[::2], texts.history[1::2], strict=True)),
        unanswered=unanswered,
        group="" if null_is_empty and is_null_word(group) else group,
    )


def _kind(cell: Any) -> str:
    if isinstance(cell, list):
        return f"a list of {len(cell)}"
    return "an object" if isinstance(cell, dict) else f"a {type(cell).__name__}"


def _is_header(texts: RowTexts, row: Row, columns: Columns) -> bool:
    """Say whether the cells are the names of their columns: a header again, where files were joined."""
    if columns.chat:
        cells = [(name, row.values.get(name)) for name in columns.chat]
        return all(isinstance(cell, str) and name_key(cell) == name_key(name) for name, cell in cells)
    names = (columns.question or "", columns.answer, columns.instruction or "", columns.context or "")
    return len(texts.answer) <= len(columns.answer) + 2 and all(
        name_key(text) == name_key(name) for text, name in zip(texts.all(), names, strict=True)
    )


def _show(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text[:SHOWN])


def split_cell(cell: str) -> tuple[str, str] | str:
    """Divide MedQuAD's `Question: … URL: … Answer: …)` into question and answer, or say why that fails.

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
    """Reduce a question to what makes it the same: NFKC, case folded, words separated by one space, no punctuation.

    A question of nothing but punctuation stays as it is, so that `+` and `-` are two questions.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    letters = folded.translate(_APOSTROPHES)
    if letters.isascii():
        words = re.findall(r"[a-z0-9]+", letters)
    else:  # not \w, which divides words at the vowel signs of Indic scripts
        words = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in letters).split()
    return " ".join(words) or folded.strip()


def group_id(normalised: str) -> str:
    """Return a short name for a question group: 12 hex digits of the SHA-256 of its normalised question."""
    return hashlib.sha256(normalised.encode("utf-8")).hexdigest()[:12]
