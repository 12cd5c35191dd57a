"""From prepared records to token ids and labels, and the check that both are right before the first step."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from toolkit.core import console, hardware
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.records import each_record
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.prompt.format import THINK, PromptFormat
from toolkit.prompt.renderings import render_record
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.train.example_table import IGNORED, Example, Examples, examples_of, features

LARGE = 32 << 20  # bytes of a split whose tokens are not kept in memory
KEPT = ".tokens"  # the folder of a run with the tokens of its large splits
LAYOUT = 1  # of these files
SHOWN = 12  # turns and answers of a chat that are printed


def tokenize(path: Path, tokenizer: Tokenizer, prompt_format: PromptFormat, settings: TrainSettings) -> Examples:
    """Read one split and turn each record into ids and labels; an answer that was cut gets no EOS.

    With `completion_only_loss` all labels but the answers' are ignored: of a chat those of every answer count, or of
    the last one (`turns`). A large split is tokenized once, by all cores, and its table stays in the run's folder.
    Raises ToolkitError for a record that is longer than `max_length`: prepare should have cut it.
    """
    if not path.is_file() or path.stat().st_size <= LARGE:
        return examples_of(_tokenized([(str(path), 0, None)], tokenizer, prompt_format, settings))
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    decisive = (settings.turns, settings.completion_only_loss, settings.max_length, tokenizer.bos, tokenizer.eos)
    encoders = [one.to_str() for one in (tokenizer.encoder, tokenizer.inner) if one is not None]
    text = repr((sha256_of(path), encoders, repr(prompt_format), decisive, sorted(tokenizer.controls), LAYOUT))
    key = f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    place = path.parent.with_name(KEPT)
    for other in place.glob(f"{path.stem}-*"):
        if other.name != key:
            shutil.rmtree(other, ignore_errors=True)
    if not (place / key).is_dir():
        console.info(f"{path.name} is tokenized once, and its tokens are kept in {place}")
    rest: dict[str, Any] = {"tokenizer": tokenizer, "prompt_format": prompt_format, "settings": settings}
    parts = _parts(path, hardware.cores())
    try:
        rows = Dataset.from_generator(
            _as_rows, features=features(), cache_dir=str(place / key), gen_kwargs={"parts": parts, **rest},
            num_proc=len(parts) if len(parts) > 1 else None, fingerprint=key,
        )  # fmt: skip
    except DatasetGenerationError:
        for _ in _tokenized([(str(path), 0, None)], **rest):  # which says what is wrong, and in which line
            pass
        raise
    return Examples(rows)


def _parts(path: Path, count: int) -> list[tuple[str, int, int | None]]:
    """Divide a file at ends of lines, into parts of about the same size."""
    starts = [0]
    with path.open("rb") as file:
        for number in range(1, count):
            file.seek(path.stat().st_size * number // count)
            file.readline()
            starts.append(file.tell())
    ends: list[int | None] = [*starts[1:], None]
    return [(str(path), start, end) for start, end in zip(starts, ends, strict=True) if start != end]


def _as_rows(**given: Any) -> Iterator[dict[str, Any]]:
    return (vars(record) for record in _tokenized(**given))


def _tokenized(
    parts: list[tuple[str, int, int | None]],
    tokenizer: Tokenizer,
    prompt_format: PromptFormat,
    settings: TrainSettings,
) -> Iterator[Example]:
    for record in (record for path, start, end in parts for record in each_record(Path(path), start, end)):
        prompt = render_record(prompt_format, record, tokenizer.eos_text)
        _refuse_lost_thoughts(record, settings)
        ids, start = tokenizer.record_ids(prompt, record["output"], cut=record["truncated"])
        if len(ids) > settings.max_length:
            raise ToolkitError(
                f"row {record['row']} has {len(ids)} tokens, but train.max_length is {settings.max_length}",
                hint="run `toolkit prepare` again: it fits every record to the context",
            )
        if not settings.completion_only_loss:
            yield Example(ids, list(ids), record["row"], record["truncated"])
            continue
        earlier = tokenizer.answer_spans(prompt) if settings.turns == "all" else []
        answers = (*earlier, (start, len(ids)))
        labels = [IGNORED] * len(ids)
        for first, last in answers:
            labels[first:last] = ids[first:last]
        yield Example(ids, labels, record["row"], record["truncated"], answers)


def _refuse_lost_thoughts(record: dict[str, Any], settings: TrainSettings) -> None:
    """Raise ToolkitError if thoughts that prepare took out of earlier answers would be learned to be left out."""
    thinks = record["output"].lstrip().startswith(THINK[0])
    if thinks and record.get("history") and settings.turns == "all":
        raise ToolkitError(
            f"row {record['row']} is a chat whose last answer begins with `{THINK[0]}`; the earlier ones stand there "
            "as Ollama sends them, without thoughts",
            hint=f"`--set train.turns=last{settings.answers_alone}` learns the last answer alone",
            exit_code=USAGE,
        )


def load_examples(
    folder: RunFolder, tokenizer: Tokenizer, prompt_format: PromptFormat, settings: TrainSettings
) -> dict[str, Examples]:
    """Return the records of the splits `train` and `val`, checked and shown; raises ToolkitError if one is bad."""
    splits = {name: tokenize(folder.split_file(name), tokenizer, prompt_format, settings) for name in ("train", "val")}
    if not splits["train"]:
        raise ToolkitError(f"`{folder.split_file('train')}` holds no records", hint="run `toolkit prepare` again")
    prove_examples(chain(*splits.values()), tokenizer)
    show(splits["train"], tokenizer)
    return splits


def prove_examples(all_examples: Iterable[Example], tokenizer: Tokenizer) -> None:
    """Check that a record's labels end in EOS if its answer ends, and that BOS occurs once if the model has one.

    Raises ToolkitError with the row: training on such records gives a model that never stops, that stops in the middle
    of a sentence, or that has never seen the prompt it will be served.
    """
    count = cut = turns = 0
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
        count, cut, turns = count + 1, cut + example.truncated, turns + len(example.answers)
    bos = "no BOS (the model has none)" if tokenizer.bos is None else "one BOS"
    of_chats = f" with {turns:,} learned answers" if turns > count else ""
    what = "answers" if turns else "records"  # learned whole, a record is known to end in EOS, and no answer inside it
    console.done(f"{count:,} records{of_chats}: all complete {what} end in EOS, {bos}; {cut:,} cut {what} have no EOS")


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


def show(some: Sequence[Example], tokenizer: Tokenizer, count: int = 3) -> None:
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
