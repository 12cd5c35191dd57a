"""Prepare: from files of questions and answers to train, val and test records, each row accounted for."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.files import naming, sha256_of, writing_folder
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare.bounds import TokenBound
from toolkit.prepare.clean import Record, Rejection, group_id
from toolkit.prepare.columns import ReadTable, columns_taken, lost_meaning
from toolkit.prepare.division import divide, read_rows
from toolkit.prepare.fit import fit
from toolkit.prepare.groups import reworded
from toolkit.prepare.language import foreign_prompt, identifier, languages_said, several_languages, some_answers
from toolkit.prepare.near import near_duplicates
from toolkit.prepare.personal import for_screen
from toolkit.prepare.personal import said as personal_said
from toolkit.prepare.refusals import brief, hints_for_some, useless
from toolkit.prepare.remarks import (
    Tally,
    chat_figures,
    cut_records,
    few_questions,
    groups_found,
    groups_tied,
    reworded_questions,
)
from toolkit.prepare.source import Source
from toolkit.prepare.split import asked, leaked
from toolkit.prepare.spoiled import DAMAGE, Damage
from toolkit.prepare.thoughts import thoughts_unsaid
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.text_language import language_shares, main_language
from toolkit.prompt.tokenizer import Tokenizer

SHOWN_PAIRS = 3  # near-duplicates named on the screen


def prepare(config: Config, folder: RunFolder, sources: Path | Sequence[Source], tokenizer: Tokenizer) -> Outcome:
    """Write `data/{train,val,test,rejected,personal}.jsonl` of a run from its data files, all five or none.

    Every row of a source is kept, counted as a duplicate, or in rejected.jsonl with its number and reason, and with
    its file where there are several. Raises ToolkitError if a file cannot be used or a split would be empty; former
    results then stay.
    """
    form, bound = prompt_format(config.prompt), TokenBound(tokenizer)
    rows = read_rows([Source(sources)] if isinstance(sources, Path) else sources, config)
    with identifier(some_answers(rows.records)) as identify:
        for taken in columns_taken(rows.tables):
            console.info(taken)
        for lost in dict.fromkeys(lost for one in rows.tables for lost in lost_meaning(one.columns, one.left)):
            console.warn(lost)
        damage = [rows.seen.damage[kind] for kind in DAMAGE if kind in rows.seen.damage]
        repaired = rows.seen.repaired
        divided = divide(rows, config, lambda records: fit(records, form, bound, config))
        splits, records, rejected = divided.splits, divided.records, divided.rejected
        near = near_duplicates(splits, config.data.near_duplicate)
        answers = some_answers(records)
        language, shares = main_language(answers, identify), language_shares(answers, identify)
        foreign = foreign_prompt(config.prompt, records, language, identify)

    tally = Tally(_control_like(form, tokenizer))
    with writing_folder(folder.data) as fresh:
        for name in SPLITS:
            _write(fresh, folder.split_file(name), map(_row, tally.each(splits[name])))
        _write(fresh, folder.rejected, map(_rejected_row, rejected))
        _write(fresh, folder.personal, map(asdict, rows.personal.findings))

    questions = asked(splits)
    held_out = [*questions["val"], *questions["test"]]
    seen = sum(map(set(questions["train"]).__contains__, held_out))
    figures = {
        "rows": rows.count,
        "kept": tally.rows,
        "duplicates": divided.duplicates,
        "rejected": len(rejected),
        "reasons": dict(Counter(rejection.reason for rejection in rejected).most_common()),
        "truncated": tally.truncated,
        "dropped_too_long": len(divided.too_long),
        **{name: len(splits[name]) for name in SPLITS},
        "questions": len({one for some in questions.values() for one in some}),
        "near_duplicates": len(near),
        "leaked_questions": leaked(questions),
        "reworded_questions": reworded(splits) if rows.seen.instructions else seen,
        "instruction_as_question": tally.instruction_as_question,
        "control_like": tally.control_like,
        "language": language,
        "languages": shares,
        **_of_files(rows.tables, rejected),
        "damaged": {found.kind: found.count for found in damage},
        "repaired": dict(repaired),
        "personal": rows.personal.figures(),
        **chat_figures(tally, rows.seen.unanswered),
    }
    for pair in near[:SHOWN_PAIRS]:
        question, other = (brief(for_screen(text, config.data)) for text in (pair.question, pair.other))
        console.info(f"near-duplicate ({pair.overlap:.2f}): {pair.split} `{question}` and {pair.other_split} `{other}`")
    shown = [replace(found, excerpt=for_screen(found.excerpt, config.data)) for found in damage]
    _warn_of_damage(shown, repaired, rows.count)
    for said in useless(rows.tables, rejected):
        console.warn(said)
    _warn(figures, folder, f"{seen} of {len(held_out)}", hints_for_some(rows.tables, rejected))
    found = personal_said(rows.personal, f", listed in {folder.personal}")
    if found:
        (console.warn if config.data.personal == "warn" and rows.personal.findings else console.info)(found)
    for said in filter(None, (groups_found(records, config.data), languages_said(shares))):
        console.info(said)
    remarks = (
        groups_tied(records) if config.data.group_column else "",
        *cut_records(tally, divided, config),
        few_questions(questions),
        reworded_questions(figures, splits),
        foreign,
        several_languages(config.prompt, shares),
        thoughts_unsaid(records, config.prompt, tokenizer),
    )
    for said in filter(None, remarks):
        console.warn(said)
    return Outcome([*(folder.split_file(name) for name in SPLITS), folder.rejected, folder.personal], figures)


def _of_files(tables: list[ReadTable], rejected: Sequence[Rejection]) -> dict[str, Any]:
    """Return the figures of each file: its columns, its hash, and its rows where there are several."""
    if len(tables) == 1:
        one = tables[0]
        found = {"columns": one.columns.taken(), "unused_columns": one.left}
        return {**found, "source_sha256": sha256_of(one.table.path)} if one.table.path.is_file() else found
    refused = Counter(rejection.file for rejection in rejected)
    return {
        "files": {
            one.table.name: {
                "rows": len(one.table.rows),
                "rejected": sum(refused[file] for file in one.files),
                "columns": one.columns.taken(),
                "unused_columns": one.left,
            }
            for one in tables
        }
    }


def _row(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "row": record.number,
        "instruction": record.instruction,
        **({"history": record.history} if record.history else {}),
        "input": record.question,
        "output": record.answer,
        "group": group_id(record.normalised),
        "truncated": record.truncated,
        **({"file": record.file} if record.file else {}),
    }


def _rejected_row(rejection: Rejection) -> dict[str, Any]:
    values = {"file": rejection.file, "row": rejection.number, **asdict(rejection)}
    del values["number"], values["tokens"]
    return {key: value for key, value in values.items() if value or (key == "text" and value is not None)}


def _write(fresh: Path, target: Path, rows: Iterable[dict[str, Any]]) -> None:
    with naming(target), (fresh / target.name).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _control_like(form: PromptFormat, tokenizer: Tokenizer) -> Callable[[Record], bool]:
    """Return what finds records whose text looks like a control token or a part of the prompt; both stay text."""
    marks = "|".join(re.escape(mark) for mark in (*form.stops, tokenizer.eos_text) if mark)
    pattern = re.compile(rf"<\|[^|>\s]{{1,64}}\|>|{marks}")
    bracketed = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")

    def found(text: str) -> bool:
        return bool(pattern.search(text)) or any(mark in tokenizer.controls for mark in bracketed.findall(text))

    return lambda record: any(map(found, record.texts))


def _warn(figures: dict[str, Any], folder: RunFolder, seen: str, hints: list[str]) -> None:
    if figures["rejected"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in figures["reasons"].items())
        console.warn(f"{figures['rejected']} of {figures['rows']} rows rejected ({reasons}), see {folder.rejected}")
        for hint in hints:
            console.info(hint)
    if figures["control_like"]:
        console.warn(
            f"{figures['control_like']} rows contain text like `### Response:` or a control token; it stays text, "
            "but a model may learn to write it"
        )
    if figures["leaked_questions"]:
        console.warn(
            f"{figures['leaked_questions']} questions are in more than one split: {seen} held-out rows "
            "were seen in training; `--set data.split=grouped` keeps them apart"
        )
    if figures["near_duplicates"]:
        console.info(
            f"{figures['near_duplicates']} held-out questions have a near-duplicate in another split; "
            "`--set data.near_duplicates=drop-across` drops such rows from training"
        )


def _warn_of_damage(damage: list[Damage], repaired: Counter[str], rows: int) -> None:
    for kind, count in repaired.items():
        console.info(f"{count} of {rows} rows repaired (data.clean {kind})")
    clean_too = sorted({*repaired, *(found.kind for found in damage if found.kind != "lost")})
    what = {
        "html": "rows hold HTML tags or entities",
        "mojibake": "rows hold UTF-8 that was read as another encoding",
        "lost": "rows hold characters that were lost (U+FFFD)",
    }
    for found in damage:
        clean = f"`--set 'data.clean={json.dumps(clean_too)}'` repairs them"
        if found.kind == "lost":
            clean = "they cannot be restored: export the data again from its source"
        elif found.kind in repaired:
            clean = "the repair did not remove them"
        console.warn(f"{found.count} of {rows} {what[found.kind]}, first {found.row}: `{found.excerpt}`; {clean}")
