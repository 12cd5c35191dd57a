"""Evaluations as `evaluation.json` holds them, made of given answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core.run_folder import RunFolder

DEFAULT = "Q4_K_M"
SYSTEMS = ("base", "trained", DEFAULT)

# Text that tries to leave its place: a script's end, markup, marks of direction, controls, formulas.
HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    "</div></section><h1>broken</h1><img src=x onerror=\"document.title='broken'\">",
    "\u202e\u2067dangerous\u200f \u0627\u0644\u0645\u0627\u0621 \u202d",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} <!-- --> ]]> &amp; &#x3c;b&#x3e;",
    "a\x00b\x0bc\x1bd\ud800e\uffffe\x85",
    '=HYPERLINK("http://127.0.0.1/","here")',
    "' onmouseover='document.title=1' \"quoted\"",
    "lines\r\nof\rthree kinds\n\n",
)


def answer_of(row: int, system: str) -> str:
    """A plain answer that names its row, and its system by one letter of no meaning."""
    return f"Rest and drink enough, says number {row}{dict(zip(SYSTEMS, 'xyz', strict=True)).get(system, 'w')}."


def make_evaluation(
    rows: int = 8,
    text: Callable[[int, str], str] = answer_of,
    systems: tuple[str, ...] = SYSTEMS,
    question: Callable[[int], str] = "What helps against complaint {}?".format,
    instruction: Callable[[int], str] = lambda row: "Explain as a general doctor",
) -> dict[str, Any]:
    """An evaluation in which each system answers so many questions."""
    answers = [
        {
            "row": row,
            "question": question(row),
            "instruction": instruction(row),
            "reference": "Rest.",
            "answers": {
                name: {"text": text(row, name), "tokens": 9, "ended": True, "chrf": 50.0, "rouge_l": 0.5}
                for name in systems
            },
        }
        for row in range(1, rows + 1)
    ]
    return {"version": 1, "run": "demo", "held_out": {"rows": rows, "answers": answers}, "votes": None, "judge": None}


def make_folder(path: Path) -> RunFolder:
    """An empty run folder."""
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, path.name)
