"""From text to token ids, the same for prepare, train and validate.

Text from users and records is always text: a `<|end_of_text|>` in it is encoded as characters, never as the control
token. Control tokens come from the prompt format alone; BOS and EOS are added here by id, where they belong.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.native import guarded
from toolkit.prompt.format import Part, Prompt, PromptFormat
from toolkit.prompt.tokenizer_json import read_encoders
from toolkit.prompt.vocabulary import check_format, check_thinking, eos_id

SAVE_IT = "save the training's tokenizer next to the adapter: tokenizer.save_pretrained(DIR)"
FAR = 16  # characters for each token: an answer with more is far too long for it


@dataclass(frozen=True)
class Tokenizer:
    """A base model's vocabulary, with the ids that begin and end every record.

    `bos` is None if the model's tokenizer adds none. `encoder` is a `tokenizers.Tokenizer`; `inner` is another for text
    that follows other text, if the first one puts a space before every text (SentencePiece, as Llama-2). `controls` are
    the control tokens: id by text.
    """

    encoder: Any
    bos: int | None
    eos: int
    eos_text: str
    inner: Any = None
    controls: dict[str, int] = field(default_factory=dict)
    _cut: dict[str, list[str | int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def bos_text(self) -> str:
        """The BOS token's text, as a chat template begins with it; empty if the model has none."""
        return "" if self.bos is None else str(self.encoder.id_to_token(self.bos))

    def encode(self, text: str) -> list[int]:
        """Return the ids of text, without BOS or EOS."""
        with guarded(_cannot_encode):
            ids: list[int] = self.encoder.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of several texts, without BOS or EOS."""
        with guarded(_cannot_encode):
            return [found.ids for found in self.encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def segments(self, prompt: Prompt | str) -> list[str | int]:
        """Cut a prompt at its control tokens: runs of text, and ids. A plain text is one run."""
        runs: list[str | int] = [""]
        parts = (Part(prompt, ours=False),) if isinstance(prompt, str) else prompt.parts
        for part in parts:
            for piece in self._pieces(part.text) if part.ours else [part.text]:
                last = runs[-1]
                if isinstance(piece, str) and isinstance(last, str):
                    runs[-1] = last + piece
                else:
                    runs.append(piece)
        return [run for run in runs if run != ""]

    def _pieces(self, text: str) -> list[str | int]:
        """Cut text of the format at control tokens, the longest first, as every runtime does; the cuts are kept."""
        if text not in self._cut and text == self.eos_text:  # behind an earlier answer
            self._cut[text] = [self.eos]
        elif text not in self._cut:
            found = sorted((token for token in self.controls if token in text), key=len, reverse=True)
            pieces = re.split("(" + "|".join(map(re.escape, found)) + ")", text) if found else [text]
            self._cut[text] = [self.controls.get(piece, piece) for piece in pieces if piece]
        return self._cut[text]

    def prompt_ids(self, prompt: Prompt | str) -> list[int]:
        """Return the ids that a runtime must see for a prompt: BOS if the model has one, then the text."""
        ids = [] if self.bos is None else [self.bos]
        for run in self.segments(prompt):
            ids += [run] if isinstance(run, int) else self.encode(run)
        return ids

    def record_ids(self, prompt: Prompt | str, answer: str, *, cut: bool = False) -> tuple[list[int], int]:
        """Return the ids of prompt, answer and EOS, and how many of them are the prompt's.

        An answer that was `cut` does not end there, so no EOS follows it.

        The prompt's ids are always those of the prompt alone, as in serving. The answer's are those it has after the
        prompt, unless that would change the prompt's.
        """
        start = self.prompt_ids(prompt)
        whole = self.prompt_ids(prompt + answer)
        if whole[: len(start)] != start:
            with guarded(_cannot_encode):
                whole = start + list((self.inner or self.encoder).encode(answer, add_special_tokens=False).ids)
        return whole if cut else [*whole, self.eos], len(start)

    def answer_spans(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Return where each earlier answer is among the ids of a prompt: its first id, and one behind its EOS.

        An id that joins the end of a question's prompt to its answer is not the answer's.
        """
        spans: list[tuple[int, int]] = []
        count = int(self.bos is not None)
        run = ""
        before: str | None = None
        for part in prompt.parts:
            before = run if part.answer else before
            for piece in self._pieces(part.text) if part.ours else [part.text]:
                if isinstance(piece, str):
                    run += piece
                    continue
                start = count + (0 if before is None else self._first_behind(before, run))
                count += (len(self.encode(run)) if run else 0) + 1
                if before is not None:
                    spans.append((start, count))
                run, before = "", None
        return spans

    def _first_behind(self, before: str, run: str) -> int:
        """Return the first id of a run that is not of `before`, the text that it begins with."""
        with guarded(_cannot_encode):
            ids, offsets = (found := self.encoder.encode(run, add_special_tokens=False)).ids, found.offsets
        prompt = self.encode(before) if before else []
        if ids[: len(prompt)] == prompt:
            return len(prompt)
        first = next((index for index, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
        # A byte-level tokenizer leaves blanks out of the offsets; an answer does not begin with one.
        joined = first < len(ids) and (offsets[first][0] < len(before) or self.decode([ids[first]])[:1].isspace())
        return first + joined

    def shorten(self, prompt: Prompt | str, answer: str, length: int) -> str | None:
        """Cut the end of an answer so that its record has at most `length` tokens, EOS included.

        Return None if the prompt leaves no room for a single token of an answer.
        """
        room = length - len(self.prompt_ids(prompt)) - 1
        answer, room = self._cut_ahead(answer, room)
        ids, _ = self.record_ids(prompt, answer)
        while len(ids) > length:
            if room < 1 or not answer:
                return None
            with guarded(_cannot_encode):
                offsets = self.encoder.encode(answer, add_special_tokens=False).offsets
            answer = answer[: offsets[room][0]].rstrip() if room < len(offsets) else answer
            room -= 1
            ids, _ = self.record_ids(prompt, answer)
        return answer or None

    def _cut_ahead(self, answer: str, room: int) -> tuple[str, int]:
        """Cut an answer that is far too long at `room` tokens, by encoding its beginning alone.

        That ends before a blank, where every pre-tokenizer begins a new word, so its tokens are those of the whole.
        """
        end = answer.rfind(" ", 0, FAR * (room + 1)) if room > 0 and len(answer) > FAR * (room + 1) else -1
        if end > 0 and answer[end - 1].isalnum():
            with guarded(_cannot_encode):
                offsets = self.encoder.encode(answer[:end], add_special_tokens=False).offsets
            if len(offsets) > room:
                return answer[: offsets[room][0]].rstrip(), room - 1
        return answer, room

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, control tokens included."""
        with guarded(_cannot_encode):
            text: str = self.encoder.decode(ids, skip_special_tokens=False)
        return text


def _cannot_encode(reason: str) -> ToolkitError:
    return ToolkitError(f"the base model's tokenizer.json fails on a text: {reason}", hint="copy the base model again")


def load_tokenizer(
    folder: Path, prompt_format: PromptFormat | None = None, *, eos_from: Path | None = None
) -> Tokenizer:
    """Load `tokenizer.json` of a model folder; EOS is the prompt format's, else what the folder's settings name.

    If they name none, it is what those of `eos_from` name: an adapter's tokenizer may leave it to the base.
    Raises ToolkitError if the folder has no fast tokenizer or names no EOS; exit 2 if the format cannot be written in
    its vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ToolkitError(
            f"the base model in `{folder}` has no tokenizer.json",
            hint="save its tokenizer there with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    there = path.stat()
    try:
        encoder, inner, bos = read_encoders(path.resolve(), there.st_mtime_ns, there.st_size)
    except ToolkitError as exc:
        if eos_from in (None, folder):
            raise
        raise ToolkitError(exc.message, hint=f"{SAVE_IT}, or delete it: the base's is then used") from None
    controls = {token.content: index for index, token in encoder.get_added_tokens_decoder().items() if token.special}
    if prompt_format is not None:
        check_format(prompt_format, controls, None if bos is None else encoder.id_to_token(bos), folder)
        check_thinking(prompt_format, encoder, controls, folder)
    eos = (
        controls[prompt_format.eos]
        if prompt_format is not None and prompt_format.eos
        else eos_id(folder, encoder, eos_from)
    )
    return Tokenizer(encoder, bos, eos, str(encoder.id_to_token(eos)), inner, controls)
