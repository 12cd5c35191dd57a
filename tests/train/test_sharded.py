"""A model that FSDP shards over two processes trains as the whole one does: gloo, on CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.places import REPOSITORY
from tests.support.warm import WORKER
from tests.train.conftest import FSDP, entries, with_
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.train import launch, parallel, peft_backend, train, trl_arguments


def trained(run: tuple[Config, RunFolder], base: Base, *, sharded: bool = False, **more: str) -> dict[str, Any] | None:
    """Train in a process, or two that shard the model; return the answer's figures, None where they were killed."""
    settings, folder = run
    asked, answer = (Path(settings.run.folder) / name for name in ("request.json", "answer.json"))
    asked.write_text(json.dumps(launch.request_of(settings, folder, base)))
    called = [*WORKER[1:2], "-m", "tests.support.sharded", str(asked), str(answer)]
    command = [*(FSDP if sharded else [sys.executable, "-m"]), *called]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TOOLKIT_DEBUG": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    if "KILL_AT" in more:
        assert done.returncode and "SIGKILL" in done.stderr, done.stderr[-3000:]
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(answer.read_text())["figures"]
    assert figures["devices"] == (2 if sharded else 1)
    return figures


def curves(folder: RunFolder) -> list[tuple[int, float]]:
    """The losses of the steps and the held-out losses, in the log's order."""
    return [(entry["step"], entry["loss"] if "loss" in entry else entry["eval_loss"]) for entry in entries(folder)]


def norms(folder: RunFolder) -> list[float]:
    """The steps' gradient norms."""
    return [entry["grad_norm"] for entry in entries(folder) if "grad_norm" in entry]


def two_runs(small: tuple[Config, RunFolder], **train: Any) -> list[tuple[Config, RunFolder]]:
    """Settings and records of two runs; without dropout, because each process draws its own."""
    settings, _ = small
    place = Path(settings.run.folder)
    return [with_(settings, place / name, lora_dropout=0.0, **train) for name in ("whole", "sharded")]


@pytest.mark.slow
def test_a_sharded_model_trains_as_the_whole_one(small: tuple[Config, RunFolder], base: Base, warm: None) -> None:
    """Killed and gone on with; the best checkpoint is brought back at the end."""
    options = {"precision": "f32", "batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "eval_steps": 2}
    one, two = two_runs(small, **options, learning_rate=0.1)
    alone, together = one[1], two[1]
    whole = trained(one, base)
    assert trained(two, base, sharded=True, KILL_AT="5") is None
    figures = trained(two, base, sharded=True)
    assert whole and figures
    assert (whole["resumed_at_step"], figures["resumed_at_step"]) == (0, 4)
    assert figures["tokens_seen"] == whole["tokens_seen"]
    assert figures["kept_step"] == whole["kept_step"] == 4
    assert len(curves(alone)) == 6 + 1 + 3
    near: list[tuple[int, Any]] = [(step, pytest.approx(loss, rel=1e-4)) for step, loss in curves(alone)]
    assert curves(together) == near
    assert norms(together) == pytest.approx(norms(alone), rel=1e-3)
    expected, found = (load_file(folder.adapter / "adapter_model.safetensors") for folder in (alone, together))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and (found[name] - tensor).norm() < 1e-3 * tensor.norm()
    names = [sorted(path.name for path in folder.adapter.iterdir()) for folder in (alone, together)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_sharded_model_in_four_bits_trains_as_the_whole_one(
    small: tuple[Config, RunFolder], base: Base, warm: None
) -> None:
    """QLoRA: weights are divided as the hub's 4-bit repositories store them."""
    options = {"precision": "bf16", "batch_size": 2, "gradient_accumulation_steps": 1, "gradient_checkpointing": True}
    one, two = two_runs(small, **options, max_steps=4, eval_steps=0)
    alone, together = one[1], two[1]
    whole = trained(one, base, FOUR_BIT="uint8")
    figures = trained(two, base, sharded=True, FOUR_BIT="uint8")
    assert whole and figures and figures["total_parameters"] == whole["total_parameters"]
    # bf16 has 8 bits: a product whose terms are added up in another order parts in the last of them.
    near: list[tuple[int, Any]] = [(step, pytest.approx(loss, rel=1e-3)) for step, loss in curves(alone)]
    assert curves(together) == near
    assert norms(together) == pytest.approx(norms(alone), rel=2e-2)
    first, last = (load_file(folder.adapter / "adapter_model.safetensors") for folder in (alone, together))
    assert set(first) == set(last)


def test_fsdp_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ToolkitError, match="version 1") as caught:
        parallel.check()
    assert "fsdp_version: 2" in caught.value.hint
    monkeypatch.setenv("FSDP_VERSION", "2")
    parallel.check()
    assert parallel.sharded()


def test_fsdp_in_f16_is_refused(
    monkeypatch: pytest.MonkeyPatch, small: tuple[Config, RunFolder], base: Base, tmp_path: Path
) -> None:
    """Each process would choose the scale of its own gradients, and skip steps of its own."""
    settings, folder = with_(small[0], tmp_path / "run", precision="f16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr("toolkit.train.choose_backend", lambda *_: peft_backend.make_peft_backend("cuda", ""))
    monkeypatch.setattr("toolkit.train.gpu_name", lambda: "a GPU")
    with pytest.raises(ToolkitError, match="FSDP trains in bf16"):
        train(settings, folder, base)


def test_an_optimizer_in_8_bits_is_not_sharded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """bitsandbytes' kernels refuse the tensors that FSDP makes."""
    monkeypatch.setattr("toolkit.core.hardware.installed", lambda *_: True)
    assert trl_arguments._optimizer("adamw_8bit", cuda=True) == "adamw_8bit"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert trl_arguments._optimizer("adamw_8bit", cuda=True) == "adamw_torch"
    assert "adamw_8bit cannot be sharded" in " ".join(capsys.readouterr().err.split())
    assert trl_arguments._optimizer("adafactor", cuda=True) == "adafactor"
