"""The 300 made-up notes with marked spans, and how well personal data is found in them.

`python -m tests.support.personal_notes [MODEL]` prints the table in docs/guide/patients-data.md; MODEL is the
folder of a model that finds names.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.support.places import REPOSITORY
from toolkit.prepare.personal.analyzer import NAMES, Find, finder

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


def measure(find: Find, kinds: set[str]) -> Measured:
    """Compare what is found in the notes with what is marked there. A span counts as found where it is found whole."""
    measured = Measured()
    for note in notes():
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
    kinds = {mark["kind"] for note in notes() for mark in note["spans"]}
    measured = measure(finder(model), kinds if model else kinds - {*NAMES})
    print("| kind | marked | recall | precision |\n|---|---|---|---|")
    for kind in sorted(measured.marked):
        print(f"| {kind} | {measured.marked[kind]} | {measured.recall(kind):.3f} | {measured.precision(kind):.3f} |")


if __name__ == "__main__":
    main()
