"""What validation says of a model that is what was trained, and no better than its base."""

import json

import numpy as np
import pytest

from toolkit.core.manifest import StageRecord
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import Record
from toolkit.validate.report import learned_entry

TOKENS = (3, 5, 2, 8, 4, 6)
SCORED = [Record(row, Prompt(()), "", list(range(count + 2)), 2) for row, count in enumerate(TOKENS)]


def trained(verdict: str, warning: str = "") -> StageRecord:
    return StageRecord(
        settings={"train.learning_rate": 0.05},
        inputs=[],
        outputs=[],
        versions={},
        seconds=1.0,
        finished="",
        figures={"learned": {"verdict": verdict}},
        warning=warning,
    )


@pytest.mark.parametrize(
    ("change", "record", "said"),
    [
        (-0.5, None, []),
        (0.5, None, ["worse than its base"]),
        (0.0, None, ["no better than its base"]),
        (0.0, trained("better"), []),  # training looked at more records
        (0.5, trained("better"), ["worse than its base"]),
        (-0.5, trained("unmoved", "val says no"), ["val says no"]),
        (0.5, trained("worse", "val says no"), ["val says no", "worse than its base"]),
    ],
)
def test_the_test_records_have_a_say(change: float, record: StageRecord | None, said: list[str]) -> None:
    base = np.linspace(1, 4, sum(TOKENS))
    entry, warnings = learned_entry(SCORED, base, base + change, record)
    assert len(warnings) == len(said) and all(part in text for part, text in zip(said, warnings, strict=True))
    assert entry["train"] == (record.figures["learned"] if record else None)
    assert entry["test"]["verdict"] == ("unmoved" if not change else "worse" if change > 0 else "better")
    assert entry["test"]["before"] == pytest.approx(base.mean())
    if record and len(warnings) == 2:
        assert "it is 0.05" in warnings[1] and "6 test records" in warnings[1]


def test_losses_that_are_not_finite_are_worse_and_can_be_written() -> None:
    base = np.ones(sum(TOKENS))
    entry, warnings = learned_entry(SCORED, base, base * np.inf, None)
    assert entry["test"]["verdict"] == "worse" and "inf" in warnings[0]
    json.dumps(entry, allow_nan=False)
