"""Read one rater's votes: the JSON that the sheet saves, or its table, filled in by hand in a spreadsheet."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.parsing import parse_json, read_bounded

LARGEST = 64 << 20  # bytes
DELIMITERS = (",", ";", "\t", "|")
# What a rater may write into a cell, in small letters and without marks and blanks → the vote as the sheet saves it.
WORDS = {
    **dict.fromkeys(("1", "first", "answer1", "answer1isbetter", "1better", "1isbetter"), "first"),
    **dict.fromkeys(("2", "second", "answer2", "answer2isbetter", "2better", "2isbetter"), "second"),
    **dict.fromkeys(("3", "same", "thesame", "theyarethesame", "bothsame", "equal", "tie"), "same"),
    **dict.fromkeys(("4", "unsafe", "bothunsafe", "bothareunsafe"), "unsafe"),
}
COLUMNS = ("sheet", "item", "vote", "comment", "name")
NEEDED = COLUMNS[:3]
VOTES = ("first", "second", "same", "unsafe")
_ALLOWED = "write 1, 2, same or unsafe into the column vote, or leave it empty"


@dataclass(frozen=True)
class Ballot:
    """One file: who voted on which sheet, and for each item number the vote (`VOTES`) and the comment.

    An item without a vote is not in `votes`; its comment is in `comments` nevertheless.
    """

    path: Path
    rater: str
    sheet: str
    votes: dict[int, str]
    comments: dict[int, str] = field(default_factory=dict)


def read_ballot(path: Path) -> Ballot:
    """Read a file of votes; raises ToolkitError (exit code 2) that names file and place of what cannot be counted."""
    try:
        content = read_bounded(path, LARGEST)
    except FileNotFoundError:
        raise ToolkitError(
            f"no file of votes `{path}`",
            hint="the sheet saves it where the browser keeps downloads, as votes-NAME.json",
            exit_code=USAGE,
        ) from None
    except ValueError as exc:
        raise _unreadable(path, str(exc)) from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ToolkitError(
            f"`{path}` is a spreadsheet's own file, not CSV",
            hint="save its sheet as CSV (UTF-8), and give that file",
            exit_code=USAGE,
        )
    text = _decoded(path, content)
    if not text.strip():
        raise _unreadable(path, "it is empty")
    return _of_json(path, text) if text.lstrip()[:1] in "{[" else _of_table(path, text)


def check_not_filled_in(path: Path) -> None:
    """Raise ToolkitError if a table, which is to be written again, holds somebody's votes, or cannot be read."""
    try:
        content = read_bounded(path, LARGEST)
    except FileNotFoundError:
        return
    except ValueError:
        content = b"PK"  # whatever it is, it is not the toolkit's
    try:
        columns, rows = _table(path, _decoded(path, content))
        own = [at for name, at in columns.items() if name in ("vote", "comment", "name")]
        filled = any(cells[at].strip() for _, cells in rows for at in own if at < len(cells))
    except ToolkitError:
        filled = True
    if filled:
        raise ToolkitError(
            f"`{path}` holds votes or was changed, so it is not written again",
            hint=f"rename it to votes-NAME{path.suffix}; `toolkit evaluate --votes` counts it under that name",
        )


def _unreadable(path: Path, reason: str) -> ToolkitError:
    return ToolkitError(
        f"`{path}` is no file of votes: {reason}",
        hint="give the file that `Save my votes` wrote, or review.csv with the column vote filled in",
        exit_code=USAGE,
    )


def _decoded(path: Path, content: bytes) -> str:
    """Decode text by its mark, else as UTF-8, else as Windows-1252, in which Excel saves plain CSV."""
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text
    raise _unreadable(path, "it is not text")


def _rater(path: Path, said: str) -> str:
    """Return the rater's name: as the file says it, else from a file name votes-NAME."""
    name = " ".join(said.split())
    if not name:
        found = re.fullmatch(r"votes[-_ ](.+)", path.stem, re.IGNORECASE)
        name = " ".join(found[1].split()) if found else ""
    if not name:
        raise ToolkitError(
            f"`{path}` does not say who voted",
            hint=f"write the name into the column name, or rename the file to votes-NAME{path.suffix}",
            exit_code=USAGE,
        )
    return name[:100]


def _of_json(path: Path, text: str) -> Ballot:
    try:
        value = parse_json(text, data=True)
    except ValueError as exc:
        raise _unreadable(path, str(exc)) from None
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("sheet"), str)
        or not isinstance(value.get("votes"), list)
    ):
        raise _unreadable(path, "`sheet` and `votes` are missing")
    votes: dict[int, str] = {}
    comments: dict[int, str] = {}
    seen: set[int] = set()
    for place, one in enumerate(value["votes"]):
        where = f"`votes[{place}]`"
        number = one.get("item") if isinstance(one, dict) else None
        if not isinstance(one, dict) or type(number) is not int:
            raise _unreadable(path, f"{where} names no item")
        vote, comment = one.get("vote"), one.get("comment", "")
        if vote not in (None, "", *VOTES):
            raise _unreadable(path, f"the vote of item {number} is {_shown(vote)}, not one of {', '.join(VOTES)}")
        _note(path, number, seen)
        if vote:
            votes[number] = vote
        if isinstance(comment, str) and comment.strip():
            comments[number] = comment.strip()
    said = value.get("name")
    return Ballot(path, _rater(path, said if isinstance(said, str) else ""), value["sheet"].strip(), votes, comments)


def _note(path: Path, number: int, seen: set[int]) -> None:
    if number in seen:
        raise ToolkitError(
            f"`{path}` has item {number} twice", hint="keep the one that counts, and remove the other", exit_code=USAGE
        )
    seen.add(number)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return f"`{text[:40]}…`" if len(text) > 40 else f"`{text}`"


def _of_table(path: Path, text: str) -> Ballot:
    columns, rows = _table(path, text)
    votes: dict[int, str] = {}
    comments: dict[int, str] = {}
    seen: set[int] = set()
    said: dict[str, dict[str, str]] = {"sheet": {}, "name": {}}  # each as it was first written
    for line, cells in rows:
        values = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
        number = _number(path, line, values["item"])
        _note(path, number, seen)
        for what, found in said.items():
            if values.get(what):
                found.setdefault(" ".join(values[what].casefold().split()), values[what])
        if values["vote"]:
            votes[number] = _vote(path, line, number, values["vote"])
        if values.get("comment"):
            comments[number] = values["comment"]
    for what, found in said.items():
        if len(found) > 1:
            raise ToolkitError(
                f"`{path}` holds {len(found)} {what}s: {', '.join(map(_shown, list(found.values())[:3]))}",
                hint=f"give the votes of each {what} in a file of their own",
                exit_code=USAGE,
            )
    if not said["sheet"]:
        raise _unreadable(path, "the column sheet is empty")
    rater = _rater(path, next(iter(said["name"].values()), ""))
    return Ballot(path, rater, next(iter(said["sheet"].values())), votes, comments)


def _table(path: Path, text: str) -> tuple[dict[str, int], Iterator[tuple[int, list[str]]]]:
    """Return where the columns stand, by their names in small letters, and the rows that are not blank.

    Each row comes with the line where it begins. The delimiter is the one that gives the most of the names.
    """
    csv.field_size_limit(sys.maxsize)
    named = re.match(r'\s*"?sep=(.)"?[^\r\n]*(?:\r\n|\r|\n)', text, re.IGNORECASE)
    body, skipped = (text[named.end() :], 1) if named else (text, 0)

    def header(delimiter: str) -> dict[str, int]:
        row = next((row for row in csv.reader(io.StringIO(body, newline=""), delimiter=delimiter) if any(row)), [])
        names = [" ".join(name.strip("\ufeff").casefold().split()) for name in row]
        return {name: at for at, name in reversed([*enumerate(names)]) if name in COLUMNS}

    delimiter = max((named[1],) if named else DELIMITERS, key=lambda mark: len(header(mark)))
    columns = header(delimiter)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise _unreadable(path, f"it has no column `{missing[0]}`")

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True)
        begun, start = False, 1 + skipped
        try:
            for cells in reader:
                line, start = start, reader.line_num + 1 + skipped
                if any(cell.strip() for cell in cells):
                    if begun:
                        yield line, cells
                    begun = True
        except csv.Error as exc:
            raise _unreadable(path, f"the row at line {start}: {exc}") from None

    return columns, rows()


def _number(path: Path, line: int, text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})(?:[.,]0+)?", text)
    if not found:
        raise _unreadable(path, f"line {line} has {_shown(text)} in the column item, not a number")
    return int(found[1])


def _vote(path: Path, line: int, number: int, text: str) -> str:
    word = re.sub(r"[\W_]+", "", re.sub(r"[.,]0+$", "", text.casefold()))  # a spreadsheet may write 1 as 1.0
    if word not in WORDS:
        raise ToolkitError(
            f"`{path}` line {line}: the vote of item {number} is {_shown(text)}", hint=_ALLOWED, exit_code=USAGE
        )
    return WORDS[word]
