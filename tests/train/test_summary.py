"""What training says at its end of how much it saw."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.core.run_folder import RunFolder
from toolkit.train.stage import STAGE, describe_steps

FIGURES: dict[str, Any] = {
    "backend": "peft", "device": "cpu", "precision": "bf16", "tokens_seen": 463, "seconds": 12.0,
    "steps": 3, "records": 712, "records_a_step": 8, "held_out_records": 500, "held_out_used": 200,
    "held_out_loss_before": 2.5, "held_out_loss_after": 2.25,
}  # fmt: skip


def summary(**values: Any) -> str:
    return STAGE.summary({**FIGURES, **values}, RunFolder(Path("exports/r"), "r"))


@pytest.mark.parametrize(
    ("steps", "per_step", "records", "said"),
    [
        (3, 8, 712, "3 steps of 8 records: 24 of 712 records, 0.03 epochs"),
        (1, 1, 1, "1 step of 1 record: 1 record, 1.00 epochs"),
        (89, 8, 712, "89 steps of 8 records: 712 records, 1.00 epochs"),
        (1000, 8, 712, "1,000 steps of 8 records: 712 records, 11.24 epochs"),
    ],
)
def test_how_many_records_and_passes_a_run_is(steps: int, per_step: int, records: int, said: str) -> None:
    assert describe_steps(steps, per_step, records) == said
    assert summary(steps=steps, records_a_step=per_step, records=records).startswith(f"{said} (peft, cpu, bf16): 463")


def test_the_held_out_records_that_the_loss_is_of_are_counted() -> None:
    assert "held-out loss 2.5000 → 2.2500 nats per token on 200 of 500 held-out records" in summary()
    assert "held-out" not in summary(held_out_loss_before=None, held_out_loss_after=None)
    unknown = "whether the model learned is unknown; `toolkit validate` compares it with its base"
    for values, said in (
        ({"held_out_loss_before": None, "held_out_loss_after": None}, "because the val split is empty (data.val): "),
        ({"held_out_loss_before": None}, "held-out loss before training not measured: "),
    ):
        assert said + unknown in summary(learned=None, **values)
    assert "unknown" not in summary(learned={"verdict": "better"})
    assert "held-out loss unknown → 2.2500" in summary(held_out_loss_before=None)


def test_a_manifest_of_an_earlier_version_is_summarised() -> None:
    older = {key: value for key, value in FIGURES.items() if key not in ("records_a_step", "held_out_used")}
    text = STAGE.summary(older, RunFolder(Path("exports/r"), "r"))
    assert text.startswith("3 steps on 712 records (peft") and "2.5000 → 2.2500" in text


@pytest.mark.parametrize(
    ("computed", "said"), [("fp8", "(peft, cpu, bf16, frozen weights in FP8): 463"), ("bf16", "(peft, cpu, bf16): 463")]
)
def test_frozen_weights_in_fp8_are_said(computed: str, said: str) -> None:
    assert said in summary(base_compute=computed)
