"""report.json: every field that `validate` writes. docs/reference/report.md is made from these classes.

KL divergences are in nats, the mean over answer tokens; EOS counts as one. A field that may be null was not measured.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of a file: what it holds beyond these keys is left to others."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Quantization(Part):
    """One GGUF file against the trained model."""

    file: str
    """Path in the run's folder."""
    bytes: int
    """Size."""
    sha256: str
    """SHA-256, hexadecimal."""
    bits_per_weight: float
    """Bits of all tensors over the number of weights."""
    mean_kl: float | None
    """Mean KL divergence from the trained model."""
    mean_kl_low: float | None = None
    """Lower end of the mean's 95 % interval over rows; null for a single row."""
    mean_kl_high: float | None = None
    """Upper end of it. With fewer than 30 rows it must be within `bound`, else the mean."""
    kl_99: float | None
    """99th percentile of the KL divergence."""
    max_kl: float | None = None
    """Largest KL divergence of a token."""
    top1: float | None
    """Share of tokens whose most likely token is the same."""
    perplexity: float | None
    """Perplexity of the answers."""
    kl_counts: list[int] | None = None
    """Number of tokens with a KL below the first of `kl_edges`, between each two of them, and above the last."""
    bound: float
    """Highest mean KL divergence allowed (`validate.max_kl`)."""
    prompts: int = 0
    """Number of held-out prompts whose token ids were compared."""
    unequal_prompts: int = 0
    """Number of prompts with other token ids than in training."""
    unequal_records: int = 0
    """Number of records, prompt and answer, with other token ids."""
    unequal_examples: list[dict[str, Any]] = []
    """Some of these: `row`, `what`, the ids `expected` and `found`."""
    problems: list[str]
    """What is wrong, in words."""
    passed: bool
    """True where there is no problem."""


class Base(Part):
    """The base model that was merged into."""

    label: str
    """What `model.base` or `model.base_16bit` names."""
    commit: str
    """Commit of a hub's model; empty for any other."""
    licence: str
    """Licence, empty if unknown."""


class Scored(Part):
    """How many held-out rows and tokens a validation scored."""

    rows: int
    """Rows of the test split."""
    rows_scored: int
    """Rows that were scored (`validate.rows`)."""
    tokens_scored: int
    """Answer tokens of these rows."""


class Reference(Part):
    """The trained model in transformers, with its adapter unmerged."""

    dtype: str
    """Type that it is computed in."""
    device: str
    """Device that it is computed on."""
    perplexity: float
    """Perplexity of the trained model."""
    base_perplexity: float
    """Perplexity of its base before training."""


class Losses(Part):
    """The loss before and after training on the same records, in nats per token."""

    before: float
    """Loss of the base."""
    after: float | None
    """Loss of the trained model."""
    error: float | None = None
    """Standard error of the difference."""
    verdict: str
    """better, unmoved or worse."""


class Learned(Part):
    """Whether the trained model is better than its base."""

    train: Losses | None = None
    """On the `val` records, as training measured it."""
    test: Losses | None = None
    """On the scored test records."""


class Asked(Part):
    """A question of `validate.questions`."""

    question: str
    """The question."""
    instruction: str
    """Its instruction (`validate.instruction`)."""
    before: str | None
    """Answer of the base in transformers; null if it is too large here and training did not ask it."""
    after: str
    """Answer of the default GGUF in llama.cpp."""


class ScoredRow(Part):
    """A scored row, of the default quantization."""

    row: int
    """Number of the row in the data."""
    tokens: int
    """Answer tokens."""
    kl: float | None
    """Mean KL divergence."""


class Report(Part):
    """The whole file."""

    version: int = 1
    """Version of this format."""
    run: str = ""
    """Name of the run."""
    passed: bool
    """True where every quantization passed."""
    versions: dict[str, str]
    """Versions of the toolkit, Python and the libraries on both sides of the comparison."""
    base: Base
    """See Base."""
    held_out: Scored
    """See Scored."""
    reference: Reference
    """See Reference."""
    learned: Learned = Learned()
    """See Learned."""
    warnings: list[str] = []
    """What is wrong with the trained model itself, in words."""
    kl_edges: list[float] = []
    """KL divergences between which `kl_counts` counts."""
    quantizations: dict[str, Quantization]
    """By name; see Quantization."""
    merge: dict[str, Any] | None = None
    """What the choice of `export.merge_base` costs: `trained_on`, `instead` (the other base), `merged_as_trained`; of
    the adapter on the other base, against the model as trained, `mean_kl`, `kl_99`, `max_kl`, `top1`, `perplexity`;
    `trained_perplexity`; `problem` where it could not be measured. Null if the adapter has one base only."""
    penalty: dict[str, Any] | None = None
    """What `ollama.repeat_penalty` costs: `repeat_penalty`, `quantization`; with it `mean_kl`, `kl_99`, `max_kl`,
    `top1`, `perplexity`, without it `plain_kl`, `plain_perplexity`. Null if the penalty is 1."""
    answers: list[Asked]
    """See Asked."""
    rows: list[ScoredRow] = []
    """See ScoredRow."""
    sources: dict[str, str]
    """SHA-256 by path of what went in: records, adapter, data and base."""
