"""What to do about a file whose first row names no question or answer: where the names are, or another delimiter."""

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.prepare.cells import ANSWERS, INSTRUCTION, QUESTIONS, name_key
from toolkit.prepare.containers import quoted, with_fresh_file
from toolkit.prepare.delimited import DELIMITERS

LOOKED_AT = 65536  # bytes
DEEPEST = 20  # lines, among which the names are looked for
OTHERS = ("^", ":", "~", "#", "\x1f", "\x01", "=", "!", "*", "/", "+", "@", "%", "&", "$")


def header_hint(path: Path, named: Mapping[str, Sequence[str]]) -> str:
    """Return a command that makes the row with both names the first, or that names the delimiter; else nothing.

    `named` are names that a role's column may have beside the usual ones.
    """
    questions, answers = (
        {*usual, *map(name_key, named.get(role, ()))}
        for role, usual in (("question", (*QUESTIONS, INSTRUCTION)), ("answer", ANSWERS))
    )
    try:
        with path.open("rb") as file:
            text = file.read(LOOKED_AT).decode("utf-8-sig", "replace")
    except OSError:
        return ""
    for number, line in enumerate(text.splitlines()[:DEEPEST], start=1):
        for delimiter in (*DELIMITERS, *OTHERS):
            names = {name_key(name) for name in _cells(line, delimiter)}
            if not (names & questions and names & answers):
                continue
            rest = f"tail -n +{number} {quoted(path)}"
            if delimiter in OTHERS:
                first = shlex.quote(f"sep={delimiter}")
                done = with_fresh_file(f"(printf '%s\\n' {first}; {rest})", f"{path.stem}.sep.csv")
                said = f"the cells seem to be separated by {delimiter!a}; a first line `sep={delimiter}` says so"
                return f"{said}: {done}"
            if number == 1:
                return ""
            done = with_fresh_file(rest, f"{path.stem}.rows{path.suffix or '.csv'}")
            return f"line {number} seems to have the names: remove the lines above it: {done}"
    return ""


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
