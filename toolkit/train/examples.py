"""From prepared records to token ids and labels, and the check that both are right before the first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import read_records
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.prompt.format import THINK, PromptFormat
from toolkit.prompt.renderings import render_record
from toolkit.prompt.tokenizer import Tokenizer

IGNORED = -100  # the label that PyTorch's cross entropy leaves out
SHOWN = 12  # turns and answers of a chat that are printed

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One record as training sees it: `input_ids` and `labels` of equal length, and the record's own row number.

    `answers` says where each answer that is learned begins, and one behind where it ends: of a chat one or several. It
    is empty where the whole text is learned.
    """

    input_ids: list[int]
    labels: list[int]
    row: int
    truncated: bool
    answers: tuple[Span, ...] = ()

    @property
    def learned(self) -> int:
        """The labels that are learned; the first token's is not: nothing inside the record predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenize(path: Path, tokenizer: Tokenizer, prompt_format: PromptFormat, settings: TrainSettings) -> list[Example]:
    """Read one split and turn each record into ids and labels; an answer that was cut gets no EOS.

    With `completion_only_loss` all labels but the answers' are ignored: of a chat those of every answer count, or of
    the last one (`turns`). Raises ToolkitError for a record that is longer than
    `max_length`: prepare should have cut it.
    """
    found = []
    for record in read_records(path):
        prompt = render_record(prompt_format, record, tokenizer.eos_text)
        _refuse_lost_thoughts(record, settings)
        ids, start = tokenizer.record_ids(prompt, record["output"], cut=record["truncated"])
        if len(ids) > settings.max_length:
            raise ToolkitError(
                f"row {record['row']} has {len(ids)} tokens, but train.max_length is {settings.max_length}",
                hint="run `toolkit prepare` again: it fits every record to the context",
            )
        if not settings.completion_only_loss:
            found.append(Example(ids, list(ids), record["row"], record["truncated"]))
            continue
        earlier = tokenizer.answer_spans(prompt) if settings.turns == "all" else []
        answers = (*earlier, (start, len(ids)))
        labels = [IGNORED] * len(ids)
        for first, end in answers:
            labels[first:end] = ids[first:end]
        found.append(Example(ids, labels, record["row"], record["truncated"], answers))
    return found


def _refuse_lost_thoughts(record: dict[str, Any], settings: TrainSettings) -> None:
    """Raise ToolkitError if thoughts that prepare took out of earlier answers would be learned to be left out."""
    thinks = record["output"].lstrip().startswith(THINK[0])
    if thinks and record.get("history") and settings.turns == "all" and settings.completion_only_loss:
        raise ToolkitError(
            f"row {record['row']} is a chat whose last answer begins with `{THINK[0]}`; the earlier ones stand there "
            "as Ollama sends them, without thoughts",
            hint="`--set train.turns=last` learns the last answer alone",
            exit_code=USAGE,
        )


def dataset(records: list[Example], *, multiple: int = 1) -> Any:
    """Return records as a `datasets.Dataset` with the columns `input_ids` and `labels`.

    Copies fill it up to a multiple of `multiple` records. Nothing is learned from these: accelerate would repeat
    records there, and they would count twice.
    """
    from datasets import Dataset

    missing = -len(records) % multiple
    ids = [record.input_ids for record in [*records, *records[:1] * missing]]
    labels = [record.labels for record in records] + [[IGNORED] * len(records[0].labels)] * missing
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def load_examples(
    folder: RunFolder, tokenizer: Tokenizer, prompt_format: PromptFormat, settings: TrainSettings
) -> dict[str, list[Example]]:
    """Return the records of the splits `train` and `val`, checked and shown; raises ToolkitError if one is bad."""
    splits = {name: tokenize(folder.split_file(name), tokenizer, prompt_format, settings) for name in ("train", "val")}
    if not splits["train"]:
        raise ToolkitError(f"`{folder.split_file('train')}` holds no records", hint="run `toolkit prepare` again")
    prove_examples(splits["train"] + splits["val"], tokenizer)
    show(splits["train"], tokenizer)
    return splits


def prove_examples(all_examples: list[Example], tokenizer: Tokenizer) -> None:
    """Check that a record's labels end in EOS if its answer ends, and that BOS occurs once if the model has one.

    Raises ToolkitError with the row: training on such records gives a model that never stops, that stops in the middle
    of a sentence, or that has never seen the prompt it will be served.
    """
    for example in all_examples:
        ends = example.labels[-1] == tokenizer.eos
        if ends is example.truncated:
            raise ToolkitError(
                f"row {example.row}: its answer was cut, but EOS (`{tokenizer.eos_text}`) follows the cut"
                if ends
                else f"row {example.row}: its labels do not end in EOS (`{tokenizer.eos_text}`)"
            )
        first = example.answers[-1][0] if example.answers else 0
        if all(label == IGNORED for label in example.labels[first : -1 if ends else None]):
            raise ToolkitError(f"row {example.row}: no part of its answer is left to learn")
        _prove_bos(example, tokenizer)
        _prove_answers(example, tokenizer)
    cut = sum(example.truncated for example in all_examples)
    bos = "no BOS (the model has none)" if tokenizer.bos is None else "one BOS"
    turns = sum(len(example.answers) for example in all_examples)
    of_chats = f" with {turns:,} learned answers" if any(len(example.answers) > 1 for example in all_examples) else ""
    console.done(
        f"{len(all_examples):,} records{of_chats}: all complete answers end in EOS, {bos}; {cut:,} cut answers have no "
        "EOS"
    )


def _prove_bos(example: Example, tokenizer: Tokenizer) -> None:
    if tokenizer.bos is None:
        return
    count = example.input_ids.count(tokenizer.bos)
    if tokenizer.bos == tokenizer.eos:  # GPT-2's: each answer ends in it too
        count -= example.input_ids[1:].count(tokenizer.eos)
    if example.input_ids[0] != tokenizer.bos or count != 1:
        raise ToolkitError(f"row {example.row}: BOS occurs {count} times, not once at the start")


def _prove_answers(example: Example, tokenizer: Tokenizer) -> None:
    """Check that each answer is learned to its end, which is EOS in earlier ones, and nothing between answers is."""
    last = 0
    for number, (first, end) in enumerate(example.answers, 1):
        what = f"row {example.row}, answer {number} of {len(example.answers)}"
        if any(label != IGNORED for label in example.labels[last:first]):
            raise ToolkitError(f"{what}: something before it is learned too")
        if example.labels[first:end] != example.input_ids[first:end]:
            raise ToolkitError(f"{what}: not all of it is learned")
        if end < len(example.labels) and (end - first < 2 or example.labels[end - 1] != tokenizer.eos):
            raise ToolkitError(f"{what}: it does not end in EOS (`{tokenizer.eos_text}`)")
        last = end


def show(some: list[Example], tokenizer: Tokenizer, count: int = 3) -> None:
    """Print the first examples as the model sees them; marks stand where what it learns begins, and ends in a chat."""
    for number, example in enumerate(some[:count], 1):
        if len(example.answers) > 1:
            _show_turns(example, f"example {number} of {len(some):,}", tokenizer)
            continue
        start = next(index for index, label in enumerate(example.labels) if label != IGNORED)
        prompt = tokenizer.decode(example.input_ids[:start])
        answer = tokenizer.decode(example.input_ids[start:])
        console.info(f"--- example {number} of {len(some):,}: {len(example.input_ids)} tokens, learned from ▶ on ---")
        console.info(f"{prompt}▶{_brief(answer)}")
    console.info("---")


def _show_turns(example: Example, name: str, tokenizer: Tokenizer) -> None:
    """Print a chat, with where each of its learned answers begins and ends."""
    count = len(example.answers)
    console.info(f"--- {name}: {len(example.input_ids)} tokens, {count} answers learned, each from ▶ to ◀ ---")
    places = [f"{number}: tokens {first + 1} to {end}" for number, (first, end) in enumerate(example.answers, 1)]
    console.info(f"answer {'; '.join(_shortened(places))}")
    pieces, last = [], 0
    for first, end in example.answers:
        pieces.append(tokenizer.decode(example.input_ids[last:first]))
        pieces.append(f"▶{_brief(tokenizer.decode(example.input_ids[first:end]))}◀")
        last = end
    console.info("".join(_shortened(pieces)))


def _shortened(pieces: list[str]) -> list[str]:
    """Leave out the middle of what would fill the screen: a chat may have hundreds of turns."""
    return pieces if len(pieces) <= SHOWN else [*pieces[: SHOWN // 2], " […] ", *pieces[-SHOWN // 2 :]]


def _brief(answer: str) -> str:
    return f"{answer[:200]} […] {answer[-80:]}" if len(answer) > 300 else answer
