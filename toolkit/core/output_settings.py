"""The settings of the GGUF files, of their comparison with the trained model, and of the model in Ollama."""

import difflib
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.core.section import Section

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
ALL = "all"  # as an entry of ollama.tags
# By bits: at least twice what the coarsest published file of Llama-3-8B has (llama.cpp's tools/perplexity/README.md),
# and what the better mixtures of a class keep of a model of 135 million parameters (SmolLM2 on MedQuAD, measured).
MAX_KL = {"F32": 1e-6, "F16": 1e-4, "BF16": 2e-3, "Q8_0": 0.02, "Q6": 0.05, "Q5": 0.1, "Q4": 0.25, "Q3": 0.5, "Q2": 1.0}


LEAST_ROWS = 10  # that validate.rows = "auto" scores, where there are as many


class ExportSettings(Section):
    """The GGUF files."""

    quantizations: list[str] = ["Q8_0", "Q4_K_M"]
    """Which quantizations to write, all in one pass over the base."""
    default: str = "Q4_K_M"
    """Quantization that Ollama serves as `latest` and that answers are tested with."""
    imatrix: bool = False
    """Weigh rounding errors by an importance matrix, computed from the training split."""
    merge_base: Literal["16bit", "as-trained"] = "16bit"
    """Merge into the 16-bit weights, or as-trained: into model.base itself, 4-bit weights dequantized."""
    stream_base: Literal["auto", True, False] = "auto"
    """Fetch a hub base piece by piece and keep none of it; "auto" does so where the disk is too small for all of it."""
    overrides: dict[str, str] = {}
    """Types of single tensors, as { "output.weight" = "Q8_0" }; each key is a regex searched in GGUF names."""

    @field_validator("overrides")
    @classmethod
    def _patterns_and_types(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern, kind in value.items():
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f'"{pattern}" is not a regular expression: {exc}') from None
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
    def _streams_once(self) -> "ExportSettings":
        if self.stream_base is True and self.imatrix:
            raise ValueError(
                "stream_base = true keeps nothing of the base, which imatrix = true reads twice; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _default_is_written(self) -> "ExportSettings":
        if self.default not in self.quantizations:
            raise ValueError(f'default "{self.default}" is not among quantizations: {", ".join(self.quantizations)}')
        return self


class ValidateSettings(Section):
    """How close each GGUF must be to the trained model."""

    rows: Literal["auto"] | int = "auto"
    """Held-out rows to score, spread over the test split; "auto": what takes about five minutes a file, at least 10."""
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

    @field_validator("rows", mode="before")
    @classmethod
    def _automatic_or_a_number(cls, value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError(f'write "auto" or a whole number of rows from 1 on, got {value!r}')
        return value

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
    tags: list[str] = []
    """Quantizations that get a tag of their own besides export.default: names, or "all"; each is a copy on the disk."""
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
    """Sample only from the most likely tokens whose probabilities sum to this."""
    top_k: int = Field(40, ge=1)
    """Sample from this many tokens at most."""
    repeat_penalty: float = Field(1.0, gt=0)
    """Above 1 makes repetition less likely; that is not what was trained, and validate says how far off it is."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Seed of the sampling, so that the same question gets the same answer."""
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

    @field_validator("tags", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("tags")
    @classmethod
    def _known_tags(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(ALL if name.lower() == ALL else check_quantization(name) for name in value))


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
