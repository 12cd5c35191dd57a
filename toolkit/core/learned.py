"""Has a model learned anything? Its held-out loss is compared with the base's, record by record.

A run can finish with every file as trained, although training spoiled the model or changed nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

USUAL_RATE = 2e-4  # learning rate of LoRA, in the recipe and with Unsloth and PEFT
Parts = Sequence[Sequence[float]]  # summed loss (nats) and tokens of a few records each, in the records' order

# Nats per token: below it perplexity changes by a tenth of a percent, which nobody sees in an answer, however sure it
# is. A learning rate that is far too small gives such differences, and the same sign on every record.
LEAST = 0.001
# The same records are measured before and after, so what they share cancels out, and the rest is judged against its own
# standard error: beyond two of them is chance in one of twenty runs, with five parts in one of nine (Student's t). An
# error taken from fewer parts is itself too uncertain to be held against a model.
ERRORS, FEWEST = 2.0, 5
SPOILED = 1.0  # nats per token above the base: its probabilities are a third of what they were


@dataclass(frozen=True)
class Learned:
    """The loss (nats per token) of the base and of the trained model on the same records.

    `error` is the standard error of `after - before`, None where there are too few parts. `verdict` is `better`,
    `unmoved` or `worse`.
    """

    before: float
    after: float
    error: float | None
    verdict: str

    @property
    def figures(self) -> dict[str, Any]:
        """The fields, for a report; None for a loss that is not finite."""
        values = asdict(self)
        return {**values, "after": self.after if math.isfinite(self.after) else None}


def compare_losses(before: Parts, after: Parts) -> Learned | None:
    """Compare the losses of the same parts before and after training; None where they are not the same.

    The difference is a ratio of sums, so its standard error is the ratio estimator's, over the parts.
    """
    counts = [count for _, count in before]
    tokens = sum(counts)
    if not tokens or counts != [count for _, count in after]:
        return None
    changes = [late - early for (early, _), (late, _) in zip(before, after, strict=True)]
    first, last = (sum(loss for loss, _ in parts) / tokens for parts in (before, after))
    if not math.isfinite(last):
        return Learned(first, last, None, "worse")
    change, parts = sum(changes) / tokens, len(counts)
    error = None
    if parts >= FEWEST:
        squares = sum((one - change * count) ** 2 for one, count in zip(changes, counts, strict=True))
        error = math.sqrt(squares * parts / (parts - 1)) / tokens
    least = max(LEAST, ERRORS * (error or 0.0))
    return Learned(first, last, error, "unmoved" if abs(change) <= least else "better" if change < 0 else "worse")


def is_spoiled(figures: dict[str, Any] | None) -> bool:
    """Tell whether training ruined a model, by the figures of `Learned`: its files then differ in every way."""
    if figures is None or figures["verdict"] != "worse":
        return False
    return figures["after"] is None or figures["after"] - figures["before"] > SPOILED


def warning_of(found: Learned | None, where: str, learning_rate: float | None) -> str:
    """Say what is wrong with a model that is not better than its base, and what to change; empty where it is better."""
    if found is None or found.verdict == "better":
        return ""
    rate = ("" if learning_rate is None else f"it is {learning_rate:g}; ") + f"{USUAL_RATE:g} is usual"
    if learning_rate == USUAL_RATE:
        rate = f"it is {learning_rate:g}, as usual"
    losses = f"{found.before:.4f} before training, {found.after:.4f} after (nats per token, {where})"
    if found.verdict == "worse":
        return (
            f"the trained model is worse than its base: loss {losses}. Train again with a lower train.learning_rate "
            f"({rate}), or for fewer steps"
        )
    error = "" if found.error is None else f", standard error of the difference {found.error:.4f}"
    return (
        f"the trained model is no better than its base: loss {losses}{error}. Train for longer "
        f"(train.num_train_epochs), or with another train.learning_rate ({rate})"
    )


def unmeasured(figures: dict[str, Any]) -> str:
    """Say that a training did not compare the model with its base; empty where it did, or an older one does not say."""
    if figures.get("learned", True):
        return ""
    if figures.get("held_out_loss_after") is None:
        empty = "because the val split is empty (data.val)"
        return f"held-out loss not measured, {empty}: whether the model learned is unknown"
    return "held-out loss before training not measured: whether the model learned is unknown"
