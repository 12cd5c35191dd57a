"""Why rows were rejected, and what to do about each reason."""

from collections import Counter
from collections.abc import Sequence

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import (
    EMPTY_ANSWER,
    EMPTY_QUESTION,
    ENDLESS,
    NO_ANSWER_MARK,
    NO_QUESTION_MARK,
    NOT_TEXT,
    REPEATED_HEADER,
    WRONG_TYPE,
    Rejection,
)
from toolkit.prepare.columns import ReadTable, listed
from toolkit.prepare.decoding import encoding_hint, looked_through
from toolkit.prepare.delimited import WRONG_COLUMNS
from toolkit.prepare.documents import NOT_XML
from toolkit.prepare.fit import NO_ROOM, TOO_LONG
from toolkit.prepare.merged import MERGED
from toolkit.prepare.messages import CHAT_HINTS
from toolkit.prepare.objects import NOT_AN_OBJECT
from toolkit.prepare.packed import ARROW, ARROW_STREAM, PARQUET, open_data
from toolkit.prepare.personal import for_screen
from toolkit.prepare.row_texts import NULL_WORD
from toolkit.prepare.table import Table


def no_usable_row(tables: Sequence[ReadTable], rejected: Sequence[Rejection], settings: DataSettings) -> ToolkitError:
    """Return the error of sources whose rows are all rejected, with the hint of the commonest reason."""
    has = f"`{tables[0].table.name}` has" if len(tables) == 1 else f"{len(tables)} files have"
    if not rejected:
        return ToolkitError(f"{has} no rows", hint="set `data.source` to a file with questions and answers")
    reason, count = Counter(rejection.reason for rejection in rejected).most_common(1)[0]
    example = next(rejection for rejection in rejected if rejection.reason == reason)
    where = f"row {example.number}" + (f" (line {example.line})" if example.line else "")
    where += f" of `{example.file}`" if example.file else ""
    shown = brief(for_screen(example.text, settings))
    detail = f", {_one_line(for_screen(example.detail, settings))}" if example.detail else ""
    return ToolkitError(
        f"{has} no usable row: {len(rejected)} of {len(rejected)} rejected, {count} of them for: "
        f"{reason}, first {where} `{shown}`{detail}",
        hint=_hint_for(reason, tables, rejected),
    )


def brief(text: str) -> str:
    """Return a text on one line, its first 80 characters."""
    text = _one_line(text)
    return text if len(text) <= 80 else text[:79] + "…"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def hints_for_some(tables: Sequence[ReadTable], rejected: Sequence[Rejection]) -> list[str]:
    """Return a line for each reason of rejected rows that needs an explanation, where other rows are kept."""
    hints = []
    for reason in dict.fromkeys(rejection.reason for rejection in rejected):
        nulls = any(_is_null(rejection) for rejection in rejected if rejection.reason == reason)
        explained = (TOO_LONG, NO_ROOM, NOT_TEXT, WRONG_TYPE, WRONG_COLUMNS, NOT_AN_OBJECT, ENDLESS, MERGED)
        if nulls or reason in explained or reason in CHAT_HINTS:
            hints.append(f"{reason}: {_hint_for(reason, tables, rejected)}")
    return hints


def useless(tables: Sequence[ReadTable], rejected: Sequence[Rejection]) -> list[str]:
    """Return a line for each of several files that gives no row, with the commonest reason."""
    reasons: dict[str, Counter[str]] = {}
    for rejection in rejected:
        reasons.setdefault(rejection.file, Counter())[rejection.reason] += 1
    said = []
    for one in tables if len(tables) > 1 else ():
        there, count = Counter[str](), len(one.table.rows)
        for file in one.files:
            there += reasons.get(file, Counter())
        if not count:
            said.append(f"`{one.table.name}` has no rows")
        elif there.total() == count:
            said.append(f"`{one.table.name}`: none of its {count:,} rows can be used ({there.most_common(1)[0][0]})")
    return said


def _is_null(rejection: Rejection) -> bool:
    return rejection.detail.startswith(NULL_WORD)


def _hint_for(reason: str, tables: Sequence[ReadTable], rejected: Sequence[Rejection]) -> str:
    some = [rejection for rejection in rejected if rejection.reason == reason]
    if reason in (TOO_LONG, NO_ROOM):
        return _longer_context(some, sum(len(one.table.rows) for one in tables))
    read = next((one for one in tables if some[0].file in one.files), tables[0])
    table, columns = read.table, read.columns
    if reason == NOT_TEXT:
        return _not_text(table)
    if reason in (EMPTY_ANSWER, EMPTY_QUESTION):
        words = dict.fromkeys(
            rejection.detail.removeprefix(f"{NULL_WORD} ") for rejection in some if _is_null(rejection)
        )
        if words:
            shown = ", ".join(list(words)[:5]) + (" and others" if len(words) > 5 else "")
            return f"cells of {shown} count as empty; `--set data.null_words=text` keeps them as text"
        role = "answer" if reason == EMPTY_ANSWER else "question"
        name = columns.answer if reason == EMPTY_ANSWER else columns.question or columns.answer
        others = f" (with text: {listed(left)})" if (left := read.left) else ""
        return (
            f"column `{name}` is empty there: fill it in, or name another with `--set data.{role}_column=NAME`{others}"
        )
    return {
        **CHAT_HINTS,
        WRONG_TYPE: "give each cell one text: write a row for each text of a list, or a column for each part of an "
        "object",
        NOT_AN_OBJECT: 'write each row as an object, such as {"question": "…", "answer": "…"}',
        WRONG_COLUMNS: "give each row as many cells as the header has names; quote a cell that holds the delimiter",
        MERGED: "unmerge the cells in Excel or LibreOffice, and write into each row what it means",
        NOT_XML: "copy these documents again",
        ENDLESS: "divide the text into rows; if a quote that is never closed took in other rows, correct it there",
        REPEATED_HEADER: "the file has no other rows: export it again",
        NO_QUESTION_MARK: "put `Question:` in front of the cell's text, or name the column with the question: "
        "`--set data.question_column=NAME`",
        NO_ANSWER_MARK: "put `Answer:` in front of the answer in the cell, or name the column with the question: "
        "`--set data.question_column=NAME`",
    }[reason]


def _not_text(table: Table) -> str:
    characters = "the rows hold control characters or halves of characters: remove them, or export the file again"
    if not table.path.is_file():  # a folder of documents, or of a data set, has no bytes of its own
        return characters
    opened = open_data(table.path)
    if opened.start().startswith((PARQUET, ARROW, ARROW_STREAM)):
        return "the columns hold bytes that are not UTF-8: write them as text"
    if looked_through(opened)[0]:
        return characters
    if table.encoding:
        return f"the rows hold bytes that {table.encoding} does not have: correct them, or change data.encoding"
    with opened.stream() as lines:
        return encoding_hint(table.path, lines, packed=opened.packed)


def _longer_context(some: Sequence[Rejection], rows: int) -> str:
    """Name the lengths that would fit 90 % of the rows, and all of them."""
    lengths = sorted((rejection.tokens for rejection in some), reverse=True)
    over = rows // 10  # rows that need not fit
    if over >= len(lengths) or lengths[over] == lengths[0]:
        return f"`--set train.max_length={lengths[0]}` fits them all"
    return f"`--set train.max_length={lengths[over]}` fits 90 % of the rows, {lengths[0]} all of them"
