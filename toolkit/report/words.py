"""How figures are written, and the sentences about what was found."""

import json
import math
import re
from typing import Any

from toolkit.core import console

MEASURES = {  # of an evaluation: name and unit
    "nll": ("loss on the reference answers", "nats per token; lower is better"),
    "chrf": ("chrF against the reference", "0 to 100; higher is better"),
    "rouge_l": ("ROUGE-L against the reference", "higher is better"),
    "tokens": ("length of an answer", "tokens"),
    "ended": ("answers that end by themselves", "share"),
    "language": ("answers in the data's language", "share"),
}
IN_PLAIN_WORDS = {  # the same for a reader who does not know them
    "nll": "likelihood of the reference",
    "chrf": "letters in common with the reference",
    "rouge_l": "words in common with the reference",
}
NOT_MEASURED = "not measured"
# What breaks a page or its line order: controls, marks that override the direction of what follows, halves of pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LATIN_ENDS = re.compile(r"\r\n?")


def shown(text: str) -> str:
    """Return text in which what cannot be seen, or turns the direction of other text, is U+FFFD."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", _LATIN_ENDS.sub("\n", text))


def clipped(text: str, most: int) -> str:
    """Return the first characters of a text, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def setting_text(value: Any) -> str:
    """Write a setting's value as its file does: `true`, `["base", "F16"]`; text without its quotes."""
    return clipped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 300)


def percent(share: float | None) -> str:
    """Write a share as a percentage that says 100 only if nothing is missing."""
    if share is None:
        return "-"
    return "100%" if share == 1 else f"{min(100 * share, 99.99):.2f}%"


def nats(value: float | None) -> str:
    """Write a divergence with the digits that matter."""
    return "-" if value is None else f"{value:.2e}" if value < 1e-3 else f"{value:.4f}"


def decimal(value: float) -> str:
    """Write a number with the digits that matter, without an exponent where it has few."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.{3 if size >= 0.1 else 4}f}"


def p_value(value: float) -> str:
    """Write a p-value; a very small one by its bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def merge_sentence(entry: dict[str, Any]) -> str:
    """Say how the base that was merged into differs from the one that the adapter was trained on."""
    where = f"merged into {entry['trained_on']}, which it was trained on; if merged into {entry['instead']} instead"
    if not entry["merged_as_trained"]:
        where = f"merged into {entry['instead']}, trained on {entry['trained_on']}"
    if entry["problem"]:
        return f"{where}: the cost is not measured, because {entry['problem']}"
    return (
        f"{where}: mean KL {nats(entry['mean_kl'])} from the model as trained, top-1 {percent(entry['top1'])}, "
        f"perplexity {entry['perplexity']:.3f} (as trained {entry['trained_perplexity']:.3f}); not part of any verdict"
    )


def penalty_sentence(entry: dict[str, Any]) -> str:
    """Say how far a repeat penalty moves the served model from the trained one."""
    what = f"ollama.repeat_penalty {entry['repeat_penalty']:g} changes what {entry['quantization']} serves"
    if entry["mean_kl"] is None or entry["plain_kl"] is None:
        return f"{what}: the distance cannot be measured"
    return (
        f"{what}: with it mean KL {nats(entry['mean_kl'])} instead of {nats(entry['plain_kl'])}, "
        f"top-1 {percent(entry['top1'])}, perplexity {entry['perplexity']:.3f} instead of "
        f"{entry['plain_perplexity']:.3f}; not part of any verdict"
    )


def counted(count: int, one: str, many: str = "") -> str:
    """Write a number with its noun: `1 file`, `1,200 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def and_list(names: list[str]) -> str:
    """Write names as people do: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def duration_or_nothing(seconds: float | None) -> str:
    """Write a time span, or that it was not measured."""
    return NOT_MEASURED if seconds is None else console.duration(seconds)
