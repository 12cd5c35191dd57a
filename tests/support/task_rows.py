"""Made-up questions in the format of the data sets that lm-eval's tasks read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNT = 6
WORDS = ["fever", "water", "sleep", "salt", "blood", "bone", "skin", "nerve"]


def medqa(number: int) -> dict[str, Any]:
    endings = {f"ending{place}": WORDS[(number + place) % 8] for place in range(4)}
    return {"id": f"q{number}", "sent1": f"What helps patient {number}?", "sent2": "", **endings, "label": number % 4}


def medmcqa(number: int) -> dict[str, Any]:
    choices = {f"op{letter}": WORDS[(number + place) % 8] for place, letter in enumerate("abcd")}
    return {"id": f"q{number}", "question": f"Which is number {number}?", **choices, "cop": number % 4, "exp": None}


def pubmedqa(number: int) -> dict[str, Any]:
    decision = ("yes", "no", "maybe")[number % 3]
    contexts = [f"Group {number} drank water.", "The other group did not."]
    return {"QUESTION": f"Does water help group {number}?", "CONTEXTS": contexts, "final_decision": decision}


def arc(number: int) -> dict[str, Any]:
    texts = [f"{WORDS[(number + place) % 8]} " * (place + 1) for place in range(4)]
    choices = {"text": [text.strip() for text in texts], "label": ["A", "B", "C", "D"]}
    return {"id": f"q{number}", "question": f"What is {number}?", "choices": choices, "answerKey": "ABCD"[number % 4]}


def hellaswag(number: int) -> dict[str, Any]:
    endings = [f"drinks {WORDS[(number + place) % 8]} {'again ' * place}[title] and rests." for place in range(4)]
    return {"ind": number, "activity_label": "Health", "ctx_a": f"A man is ill for {number} days.", "ctx_b": "he",
            "endings": endings, "label": str(number % 4)}  # fmt: skip


def mmlu(number: int) -> dict[str, Any]:
    return {"question": f"Which is {number}?", "choices": WORDS[:4], "answer": number % 4, "subject": "health"}


# Task → split that is asked, how a row is made.
ROWS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "medqa_4options": ("test", medqa),
    "medmcqa": ("validation", medmcqa),
    "pubmedqa": ("test", pubmedqa),
    "arc_easy": ("test", arc),
    "hellaswag": ("validation", hellaswag),
    "mmlu": ("test", mmlu),
}


def rows_of(task: str) -> list[dict[str, Any]]:
    """Return some rows of a task's data."""
    return [ROWS[task][1](number) for number in range(COUNT)]


def save_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as Parquet."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def save_all(folder: Path) -> Path:
    """Write the data of all five tasks, each in another of the layouts that are read; returns the folder."""
    from datasets import Dataset, DatasetDict

    save_jsonl(folder / "medqa_4options" / "test.jsonl", rows_of("medqa_4options"))
    save_parquet(folder / "openlifescienceai" / "medmcqa" / "validation.parquet", rows_of("medmcqa"))
    save_jsonl(folder / "pubmed_qa" / "pubmed_qa_labeled_fold0_source" / "test.json", rows_of("pubmedqa"))
    save_repository(folder / "allenai" / "ai2_arc")
    DatasetDict({"validation": Dataset.from_list(rows_of("hellaswag"))}).save_to_disk(folder / "hellaswag")
    return folder


def save_repository(folder: Path) -> Path:
    """Write ARC as the hub's repository has it: Parquet files of two configurations, named in README.md."""
    names = ("ARC-Easy", "ARC-Challenge")
    for name in names:
        for split in ("train", "validation", "test"):
            save_parquet(folder / name / f"{split}-00000-of-00001.parquet", rows_of("arc_easy"))
    lines = ["---", "configs:"]
    for name in names:
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "validation", "test"):
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "ARC"]))
    return folder
