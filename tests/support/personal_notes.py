"""The 300 made-up notes with marked spans, and how well personal data is found in them.

`python -m tests.support.personal_notes [MODEL]` prints the tables in docs/guide/patients-data.md; MODEL is the
folder of a model that finds names, which are then measured in each language.
"""

import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.support.places import REPOSITORY
from toolkit.prepare.personal.analyzer import NAMES, Find, finder

LANGUAGES = ("en", "pt")
NOTES = REPOSITORY / "tests/data/personal_notes.jsonl"


@dataclass
class Measured:
    """Kind → number of marked spans, of those found whole, and of findings that are none."""

    marked: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)

    def recall(self, kind: str) -> float:
        return self.found[kind] / self.marked[kind]

    def precision(self, kind: str) -> float:
        return self.found[kind] / max(1, self.found[kind] + self.false[kind])


def notes() -> list[dict[str, Any]]:
    return [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()]


def measure(find: Find, kinds: set[str], languages: Collection[str] = LANGUAGES) -> Measured:
    """Compare what is found in the notes with what is marked there. A span counts as found where it is found whole."""
    measured = Measured()
    for note in notes():
        if note["language"] not in languages:
            continue
        spans = [span for span in find(note["text"]) if span.kind in kinds]
        right = set()
        for mark in note["spans"]:
            if mark["kind"] not in kinds:
                continue
            hits = {
                span
                for span in spans
                if span.kind == mark["kind"] and span.start <= mark["start"] and mark["end"] <= span.end
            }
            right |= hits
            measured.marked[mark["kind"]] += 1
            measured.found[mark["kind"]] += bool(hits)
        measured.false.update(span.kind for span in spans if span not in right)
    return measured


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else ""
    if model:
        print("| kind | language | marked | recall | precision |\n|---|---|---|---|---|")
        for language in LANGUAGES:
            show(measure(finder(model), {*NAMES}, [language]), f"{language} | ")
        return
    kinds = {mark["kind"] for note in notes() for mark in note["spans"]}
    print("| kind | marked | recall | precision |\n|---|---|---|---|")
    show(measure(finder(""), kinds - {*NAMES}))


def show(measured: Measured, language: str = "") -> None:
    """Print a row for each kind."""
    for kind in sorted(measured.marked):
        figures = f"{measured.marked[kind]} | {measured.recall(kind):.3f} | {measured.precision(kind):.3f}"
        print(f"| {kind} | {language}{figures} |")


if __name__ == "__main__":
    main()
