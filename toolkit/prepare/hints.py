"""Commands for a file whose rows or columns are not found at once.

Of JSON with questions and answers deeper than one list, such as SQuAD's, one lists them: each record gets the texts of
the objects around it, such as the passage that a question is about. Of text whose first row names no question or answer
another one makes the row with the names the first, or names the delimiter.
"""

import csv
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.prepare.cells import ANSWERS, INSTRUCTION, QUESTIONS, name_key
from toolkit.prepare.containers import quoted, with_fresh_file
from toolkit.prepare.delimited import DELIMITERS
from toolkit.prepare.messages import kind_of

LARGEST = 64 << 20  # bytes of a file that is read for a hint
FEW = 20  # items of a list that are looked at
DEEPEST = 8
EACH = "*"  # in a place: every item of a list

_LOOKED_AT = 65536  # bytes of a text
_LINES = 20  # among which the names are looked for
_OTHERS = ("^", ":", "~", "#", "\x1f", "\x01", "=", "!", "*", "/", "+", "@", "%", "&", "$")
_ASKED = frozenset((*QUESTIONS, INSTRUCTION))

Place = tuple[str, ...]


def hint_for_nested_file(path: Path) -> str:
    """Return a command that writes the records inside a JSON or JSONL file to a new file; empty if it has none."""
    try:
        if path.stat().st_size > LARGEST:
            return ""
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] not in ("{", "["):
            return ""
        try:
            return hint_for_nested(json.loads(text), path)
        except json.JSONDecodeError:
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
            return hint_for_nested(lines, path, by_line=True)
    except (OSError, ValueError, RecursionError):
        return ""


def hint_for_nested(value: Any, path: Path, *, by_line: bool = False) -> str:
    """Return the command for a file's value; empty where it holds no list of records, or is itself one."""
    found = [place for place in dict.fromkeys(_places(value, ())) if any(part != EACH for part in place)]
    if not found:
        return ""
    place = found[0]
    names = [f"`{'.'.join(part for part in one if part != EACH)}`" for one in found]
    where = f"the records are in {names[0]}"
    if len(found) > 1:
        where = f"records are in {', '.join(names[:6])}; those of {names[0]}"
    loaded = "[json.loads(l) for l in f if l.strip()]" if by_line else "json.load(f)"
    code = (
        f"import json; f=open({str(path)!r},encoding='utf-8-sig'); d={loaded}; "
        "t=lambda o:{k:v for k,v in o.items() if isinstance(v,str)}; "
        f"print(json.dumps({_listed(value, place)}))"
    )
    return f"{where}: {with_fresh_file(f'python -c {shlex.quote(code)}', f'{path.stem}.records.json')}"


def _places(value: Any, place: Place) -> Iterator[Place]:
    """Yield where lists of objects with question and answer are."""
    if len(place) > DEEPEST:
        return
    if isinstance(value, list):
        objects = [item for item in value[:FEW] if isinstance(item, dict)]
        if any(is_record(item) for item in objects):
            yield (*place, EACH)
            return
        for item in objects:
            for key, inner in item.items():
                yield from _places(inner, (*place, EACH, key))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*place, key))


def is_record(item: dict[str, Any]) -> bool:
    """Tell whether an object has a question, as text, and an answer by their usual names, or a list of messages."""
    if any(isinstance(inner, list) and kind_of(inner) == "messages" for inner in item.values()):
        return True
    keys = {name_key(name) for name, inner in item.items() if isinstance(inner, str)}
    return not keys.isdisjoint(_ASKED) and (not keys.isdisjoint(ANSWERS) or _answer_list(item) is not None)


def _answer_list(item: dict[str, Any]) -> str | None:
    """Return the name of a list of answers as SQuAD has it: objects with a `text`."""
    for name, inner in item.items():
        if name_key(name) != "answers" or not isinstance(inner, list):
            continue
        if not inner or (isinstance(inner[0], dict) and isinstance(inner[0].get("text"), str)):
            return name
    return None


def _listed(value: Any, place: Place) -> str:
    """Write a comprehension over the lists of a place, whose items have the texts of the objects around them."""
    current, loops, around, names = "d", "", [], iter("abcdefgh")
    for part in place:
        if part == EACH:
            name = next(names)
            loops += f" for {name} in {current}"
            current = name
            around.append(name)
        else:
            current += f"[{part!r}]"
    last = around[-1]
    item = _first(value, place)
    merged = "".join(f"**t({name})," for name in around[:-1]) + f"**{last}"
    squad = None if {name_key(name) for name in item} & {*ANSWERS} else _answer_list(item)
    if squad:
        merged += f",'answer':({last}[{squad!r}] or [{{'text':''}}])[0]['text']"
    return f"[{{{merged}}}{loops}]"


def _first(value: Any, place: Place) -> dict[str, Any]:
    """Return the first object of a place that has one."""
    level = [value]
    for part in place:
        level = [inner for one in level for inner in (one[:FEW] if part == EACH else [one.get(part)]) if inner]
        level = [one for one in level if isinstance(one, list | dict)]
    return next((one for one in level if isinstance(one, dict)), {})


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
            text = file.read(_LOOKED_AT).decode("utf-8-sig", "replace")
    except OSError:
        return ""
    for number, line in enumerate(text.splitlines()[:_LINES], start=1):
        for delimiter in (*DELIMITERS, *_OTHERS):
            names = {name_key(name) for name in _cells(line, delimiter)}
            if not (names & questions and names & answers):
                continue
            rest = f"tail -n +{number} {quoted(path)}"
            if delimiter in _OTHERS:
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
