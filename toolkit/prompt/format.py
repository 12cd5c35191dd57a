"""The prompt format, once: every rendering of it comes from here.

A format is a list of literal pieces and slots. From it come the training text, the Jinja chat template inside the
GGUF, Ollama's Go TEMPLATE, the stop list, and a Python function for scripts. Only the Jinja template begins with the
model's BOS: what renders it adds none, every other runtime does.

Mapping everywhere: system and developer messages fill the instruction (joined by a blank line, if there are several),
the user message fills the input. Messages of one role in a row are one message, joined by a blank line, as Ollama joins
them. A last message of the assistant is left open for the model to continue.
"""

import re
from dataclasses import dataclass
from enum import Enum

from toolkit.core.input_settings import PromptSettings

MESSAGE_SEPARATOR = "\n\n"
THINK = ("<think>", "</think>")
NO_THOUGHTS = "<think>\n\n</think>\n\n"  # as Qwen3's own template writes it with enable_thinking=false


class Slot(Enum):
    """A place that a record fills."""

    INSTRUCTION = "instruction"
    INPUT = "input"


@dataclass(frozen=True)
class IfInstruction:
    """Pieces that are used only if there is an instruction."""

    pieces: tuple[str | Slot, ...]


@dataclass(frozen=True)
class IfFirst:
    """Pieces that are used only before the first question."""

    pieces: tuple[str | Slot | IfInstruction, ...]


Piece = str | Slot | IfInstruction | IfFirst


@dataclass(frozen=True)
class PromptFormat:
    """One prompt format: `start` once, then `turn` for each question, up to where its answer starts.

    An answer ends in `eos`, a control token of the vocabulary, or in the base's own EOS if that is empty; `after`
    follows a past answer and its EOS. `instruction` is used if nothing else is given; it may be empty if its pieces are
    `IfInstruction`. `controls` must all be control tokens of the vocabulary. `stops` end an answer that runs on into
    another prompt. `closed` formats hold an empty thinking block before every answer; `thoughts` says that answers may
    begin with one of their own.
    """

    start: tuple[Piece, ...]
    turn: tuple[Piece, ...]
    after: str
    eos: str
    instruction: str
    controls: tuple[str, ...]
    stops: tuple[str, ...]
    closed: bool = False
    thoughts: bool = False

    @property
    def head(self) -> tuple[Piece, ...]:
        """What a turn has before its question."""
        return self.turn[: self.turn.index(Slot.INPUT)]

    @property
    def tail(self) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """What ends a question, and what opens its answer: the generation prompt.

        A question ends as an answer does, in `eos` and `after`; if it does not, all of it opens the answer.
        """
        pieces = self.turn[self.turn.index(Slot.INPUT) + 1 :]
        for index, piece in enumerate(pieces):
            if self.eos and isinstance(piece, str) and self.eos in piece:
                cut = piece.index(self.eos) + len(self.eos)
                cut += len(self.after) if piece.startswith(self.after, cut) else 0
                return (*pieces[:index], piece[:cut]), (piece[cut:], *pieces[index + 1 :])
        return (), pieces


@dataclass(frozen=True)
class Part:
    """A part of a prompt: the format's own text (`ours`), in which a control token is one, or data, which is text.

    `answer` marks an earlier answer of a chat; the part behind it is the EOS token's text alone.
    """

    text: str
    ours: bool
    answer: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt that still knows which of its text is the format's and which is data."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The prompt as a server gets it."""
        return "".join(part.text for part in self.parts)

    def __add__(self, answer: str) -> "Prompt":
        """Return the prompt followed by data."""
        return Prompt((*self.parts, Part(answer, ours=False)))


def prompt_format(settings: PromptSettings) -> PromptFormat:
    """Build the format that the settings name."""
    build = {
        "alpaca": _alpaca,
        "alpaca-no-input": _alpaca_no_input,
        "chatml": _chatml,
        "gemma": _gemma,
        "llama3": _llama3,
    }
    return build.get(settings.preset, _custom)(settings)


def _alpaca(settings: PromptSettings) -> PromptFormat:
    """Stanford Alpaca's wording with input; the newline after `### Response:` belongs to the prompt."""
    preamble = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        f"Write a response{_language(settings)} that appropriately completes the request."
    )
    turn = (
        f"{preamble}\n\n### Instruction:\n",
        Slot.INSTRUCTION,
        "\n\n### Input:\n",
        Slot.INPUT,
        "\n\n### Response:\n",
    )
    stops = ("### Instruction:", "### Input:", "### Response:")
    return PromptFormat((), turn, MESSAGE_SEPARATOR, "", settings.instruction, (), stops)


def _alpaca_no_input(settings: PromptSettings) -> PromptFormat:
    """Stanford Alpaca's wording without input: the question is the instruction, a given one precedes it."""
    preamble = (
        "Below is an instruction that describes a task. "
        f"Write a response{_language(settings)} that appropriately completes the request."
    )
    turn = (
        f"{preamble}\n\n### Instruction:\n",
        IfInstruction((Slot.INSTRUCTION, "\n\n")),
        Slot.INPUT,
        "\n\n### Response:\n",
    )
    return PromptFormat(
        (), turn, MESSAGE_SEPARATOR, "", settings.instruction, (), ("### Instruction:", "### Response:")
    )


def _language(settings: PromptSettings) -> str:
    return f" in {settings.language}" if settings.language else ""


def _chatml(settings: PromptSettings) -> PromptFormat:
    """ChatML. Without thoughts every answer follows a closed block, earlier ones too: that is what was trained."""
    closed = settings.thinking == "off"
    start = (IfInstruction(("<|im_start|>system\n", Slot.INSTRUCTION, "<|im_end|>\n")),)
    opening = "<|im_start|>assistant\n" + (NO_THOUGHTS if closed else "")
    turn = ("<|im_start|>user\n", Slot.INPUT, f"<|im_end|>\n{opening}")
    controls = ("<|im_start|>", "<|im_end|>")
    return PromptFormat(
        start, turn, "\n", "<|im_end|>", settings.instruction, controls, ("<|im_start|>",),
        closed=closed, thoughts=settings.thinking == "keep",
    )  # fmt: skip


def _llama3(settings: PromptSettings) -> PromptFormat:
    """Llama 3's format; Llama 3.1's own template puts dates in front of the system message, which this leaves out."""
    head, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    start = (IfInstruction((head.format("system"), Slot.INSTRUCTION, end)),)
    turn = (head.format("user"), Slot.INPUT, end + head.format("assistant"))
    controls = ("<|start_header_id|>", "<|end_header_id|>", end)
    return PromptFormat(start, turn, "", end, settings.instruction, controls, ("<|start_header_id|>",))


def _gemma(settings: PromptSettings) -> PromptFormat:
    """Gemma 2's and 3's format: it has no system message, the instruction stands before the first question."""
    instruction = IfFirst((IfInstruction((Slot.INSTRUCTION, MESSAGE_SEPARATOR)),))
    end = "<end_of_turn>"
    turn = ("<start_of_turn>user\n", instruction, Slot.INPUT, f"{end}\n<start_of_turn>model\n")
    return PromptFormat((), turn, "\n", end, settings.instruction, ("<start_of_turn>", end), ("<start_of_turn>",))


def _custom(settings: PromptSettings) -> PromptFormat:
    """The user's own format; `config` has checked the position of each slot."""
    slots = {"{instruction}": Slot.INSTRUCTION, "{input}": Slot.INPUT}

    def pieces(text: str) -> tuple[Piece, ...]:
        return tuple(slots.get(piece, piece) for piece in re.split(r"(\{instruction\}|\{input\})", text) if piece)

    controls = (settings.eos,) if settings.eos else ()
    return PromptFormat(
        pieces(settings.prefix),
        pieces(settings.user_turn),
        settings.suffix,
        settings.eos,
        settings.instruction,
        controls,
        tuple(settings.stops),
    )
