"""The clinicians' sheet: one HTML file that works without a network, and the same as a table for a spreadsheet.

Neither holds anything that tells the systems apart: names and order are in the key alone (`toolkit.evaluate.blind`).
"""

import base64
import csv
import functools
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.files import write_text
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.blind import SheetKey, answered, key_for, shown_answer_of
from toolkit.evaluate.votes_file import check_not_filled_in
from toolkit.evaluate.votes_words import counted

if TYPE_CHECKING:
    from jinja2 import Environment

CHOICES = (
    ("first", "Answer 1 is better"),
    ("second", "Answer 2 is better"),
    ("same", "They are the same"),
    ("unsafe", "Both are unsafe"),
)
LONG = 3000  # characters from which a text scrolls in a box of its own
CELL = 32_000  # characters; a spreadsheet's cell takes 32,767, and Excel breaks the row after that
COLUMNS = ("sheet", "item", "question", "answer 1", "answer 2", "vote", "comment", "name")

# What HTML and spreadsheets cannot hold: controls other than tab and newline, halves of surrogate pairs, noncharacters.
# And overrides of direction (Unicode's UAX 9), behind which "50 mg" would be read backwards.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_FORMULA = re.compile(r"\s*[=+\-@]")


@dataclass(frozen=True)
class ShownAnswer:
    """An answer as the sheet shows it; `cut` if it was stopped by the limit on its length."""

    text: str
    cut: bool


@dataclass(frozen=True)
class ShownItem:
    """One comparison as the sheet shows it."""

    number: int
    instruction: str
    question: str
    answers: tuple[ShownAnswer, ShownAnswer]


def write_sheet(folder: RunFolder, evaluation: dict[str, Any], default: str) -> dict[str, Any]:
    """Write `review.html`, `review.csv` and the key of the sheet, and return what it holds.

    The same answers give the same sheet again, so that votes on an earlier copy still count. Raises ToolkitError if
    there is nothing to compare, the key is damaged, or somebody wrote votes into the table.
    """
    check_not_filled_in(folder.review_table)
    key = key_for(folder, evaluation, default)
    items = shown_items(key, evaluation)
    write_text(folder.review, sheet_html(key.sheet, items))
    write_text(folder.review_table, "\ufeff" + sheet_csv(key.sheet, items))
    counts = [
        {**pair.model_dump(), "shown": sum((item.a, item.b) == (pair.a, pair.b) for item in key.items)}
        for pair in key.pairs
    ]
    written = [str(path) for path in (folder.review, folder.review_table, folder.review_key)]
    return {"sheet": key.sheet, "items": len(items), "pairs": counts, "written": written}


def shown_sentences(sheet: dict[str, Any]) -> list[str]:
    """Say what a sheet compares, and which questions it leaves out, as `write_sheet` returns it."""
    lines = [f"{counted(sheet['items'], 'comparison')}; each question is shown once, so that no answer is recognised"]
    for pair in sheet["pairs"]:
        same = f"; {counted(pair['identical'], 'question')} with the same text from both left out"
        lines.append(f"{pair['b']} against {pair['a']}: {pair['shown']}{same if pair['identical'] else ''}")
    return lines


def shown_items(key: SheetKey, evaluation: dict[str, Any]) -> list[ShownItem]:
    """Return the comparisons in the sheet's order; an instruction that all questions share is left out."""
    entries = {entry["row"]: entry for entry in answered(evaluation)}
    shared = len({entry.get("instruction") or "" for entry in entries.values()}) == 1
    found = []
    for item in key.items:
        entry = entries[item.row]
        instruction, question = str(entry.get("instruction") or ""), str(entry.get("question") or "")
        if not question.strip():
            instruction, question = "", instruction
        order = (item.first, item.b if item.first == item.a else item.a)
        answers = [
            ShownAnswer(showable(shown_answer_of(entry, name) or ""), not entry["answers"][name].get("ended", True))
            for name in order
        ]
        found.append(
            ShownItem(
                item.item,
                "" if shared else showable(instruction.strip()),
                showable(question.strip()),
                (answers[0], answers[1]),
            )
        )
    return found


def showable(text: str) -> str:
    """Return text in which U+FFFD stands for what HTML cannot hold or turns text around; line ends are newlines."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def sheet_html(sheet: str, items: list[ShownItem]) -> str:
    """Write the page. Text is escaped by Jinja; a content security policy runs the page's own script alone."""
    folder = Path(__file__).parents[1] / "templates"
    style, script = ((folder / f"sheet.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        _templates()
        .get_template("sheet.html")
        .render(
            sheet=sheet,
            items=items,
            choices=CHOICES,
            long=LONG,
            style=style,
            script=script,
            style_hash=_source_hash(style),
            script_hash=_source_hash(script),
        )
    )


@functools.cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("toolkit"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _source_hash(text: str) -> str:
    """Return a hash-source of Content Security Policy Level 3 (W3C), which allows just this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def sheet_csv(sheet: str, items: list[ShownItem]) -> str:
    """Write the table (RFC 4180). What a spreadsheet would run as a formula gets an apostrophe in front.

    That is OWASP's advice on CSV injection. A text longer than a cell is cut, which its end says.
    """
    target = io.StringIO()
    rows = csv.writer(target, lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for item in items:
        question = f"{item.instruction}\n\n{item.question}" if item.instruction else item.question
        texts = [question]
        for answer in item.answers:
            texts.append(answer.text + ("\n[stopped by a limit on the length]" if answer.cut else ""))
        rows.writerow([sheet, item.number, *map(_cell, texts), "", "", ""])
    return target.getvalue()


def _cell(text: str) -> str:
    if len(text) > CELL:
        text = f"{text[:CELL]} [cut here: review.html has the rest]"
    return f"'{text}" if _FORMULA.match(text) else text
