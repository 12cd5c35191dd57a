"""The held-out records, as text and as the ids that training saw."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.core.records import each_record
from toolkit.core.spool import Spool
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.renderings import render_record
from toolkit.prompt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Record:
    """One held-out record: `ids` are prompt, answer and EOS, the first `start` of them the prompt's.

    Of a chat that is the last answer, and the prompt has the turns before it.
    A cut answer has no EOS, so the model is not scored on a false end.
    """

    row: int
    prompt: Prompt
    answer: str
    ids: list[int]
    start: int

    @property
    def seen(self) -> list[int]:
        """The ids that a model reads: all but the last, after which nothing is predicted."""
        return self.ids[:-1]

    @property
    def first(self) -> int:
        """The position in `seen` that predicts the answer's first token."""
        return self.start - 1

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The answer's ids, with EOS if it ends: what the positions from `first` on should predict."""
        return np.array(self.ids[self.start :], dtype=np.int64)


def read_held_out(path: Path, prompt_format: PromptFormat, tokenizer: Tokenizer) -> Sequence[Record]:
    """Read one split in file order; raises ToolkitError if it, or an answer in it, is missing, damaged or empty."""
    found = Spool(held_out_records(path, enumerate(each_record(path), 1), prompt_format, tokenizer))
    if not found:
        raise no_held_out(path)
    return found


def no_held_out(path: Path) -> ToolkitError:
    """Return the error of a split without records."""
    return ToolkitError(f"`{path}` holds no held-out records", hint="raise `data.test` and prepare again")


def held_out_records(
    path: Path, lines: Iterable[tuple[int, dict[str, Any]]], prompt_format: PromptFormat, tokenizer: Tokenizer
) -> Iterator[Record]:
    """Yield the records of a split's lines, which come with their numbers; raises ToolkitError as `read_held_out`."""
    for number, values in lines:
        try:
            found = _record(values, number, prompt_format, tokenizer)
        except (KeyError, TypeError) as exc:
            raise ToolkitError(
                f"`{path}` line {number} is not a prepared record: {exc}", hint="run `toolkit prepare --force`"
            ) from None
        if not len(found.targets):
            raise ToolkitError(
                f"`{path}` line {number} has an answer without a token", hint="run `toolkit prepare --force`"
            )
        yield found


def _record(values: dict[str, Any], number: int, prompt_format: PromptFormat, tokenizer: Tokenizer) -> Record:
    prompt = render_record(prompt_format, values, tokenizer.eos_text)
    ids, start = tokenizer.record_ids(prompt, values["output"], cut=bool(values.get("truncated")))
    return Record(int(values.get("row", number)), prompt, values["output"], ids, start)
