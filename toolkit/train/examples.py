"""From prepared records to token ids and labels, and the check that both are right before the first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import read_records
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.renderings import render_record
from toolkit.prompt.tokenizer import Tokenizer

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Example:
    """One record as training sees it: `input_ids` and `labels` of equal length, and the record's own row number."""

    input_ids: list[int]
    labels: list[int]
    row: int
    truncated: bool

    @property
    def learned(self) -> int:
        """The labels that are learned; the first token's is not: nothing inside the record predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenize(path: Path, tokenizer: Tokenizer, prompt_format: PromptFormat, settings: TrainSettings) -> list[Example]:
    """Read one split and turn each record into ids and labels; an answer that was cut gets no EOS.

    With `completion_only_loss` the prompt's labels are ignored. Raises ToolkitError for a record that is longer than
    `max_length`: prepare should have cut it.
    """
    found = []
    for record in read_records(path):
        prompt = render_record(prompt_format, record, tokenizer.eos_text)
        ids, start = tokenizer.record_ids(prompt, record["output"], cut=record["truncated"])
        if len(ids) > settings.max_length:
            raise ToolkitError(
                f"row {record['row']} has {len(ids)} tokens, but train.max_length is {settings.max_length}",
                hint="run `toolkit prepare` again: it fits every record to the context",
            )
        labels = [IGNORED] * start + ids[start:] if settings.completion_only_loss else list(ids)
        found.append(Example(ids, labels, record["row"], record["truncated"]))
    return found


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
        if all(label == IGNORED for label in example.labels[: -1 if ends else None]):
            raise ToolkitError(f"row {example.row}: no part of its answer is left to learn")
        if tokenizer.bos is None:
            continue
        count = example.input_ids.count(tokenizer.bos)
        if example.input_ids[0] != tokenizer.bos or count != 1:
            raise ToolkitError(f"row {example.row}: BOS occurs {count} times, not once at the start")
    cut = sum(example.truncated for example in all_examples)
    bos = "no BOS (the model has none)" if tokenizer.bos is None else "one BOS"
    console.done(
        f"{len(all_examples):,} records: all complete answers end in EOS, {bos}; {cut:,} cut answers have no EOS"
    )


def show(some: list[Example], tokenizer: Tokenizer, count: int = 3) -> None:
    """Print the first examples as the model sees them; a mark precedes the part it learns."""
    for number, example in enumerate(some[:count], 1):
        start = next(index for index, label in enumerate(example.labels) if label != IGNORED)
        prompt = tokenizer.decode(example.input_ids[:start])
        answer = tokenizer.decode(example.input_ids[start:])
        if len(answer) > 300:
            answer = f"{answer[:200]} […] {answer[-80:]}"
        console.info(f"--- example {number} of {len(some):,}: {len(example.input_ids)} tokens, learned from ▶ on ---")
        console.info(f"{prompt}▶{answer}")
    console.info("---")
