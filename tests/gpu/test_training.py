"""Whole runs on the GPU: resuming, a GPU that is full, export of what Unsloth trained, and several GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.gpu_runs import call, has_unsloth, log_of, offline, settings_in
from tests.train.conftest import FSDP, KILL_ONE
from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.model.base import Base
from toolkit.train import batches, launch

pytestmark = pytest.mark.gpu

RUN = """
import json, os, signal, sys
from pathlib import Path
import torch
from toolkit.model.base import Base
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import folder_of
from toolkit.train import train
from toolkit.train.trainer import ToolkitTrainer
config = Config.model_validate_json(sys.argv[2])
folder = folder_of(config)
real = ToolkitTrainer.compute_loss
def loss(self, model, inputs, *rest, **named):
    found = real(self, model, inputs, *rest, **named)
    if torch.is_grad_enabled() and sys.argv[3] == "kill" and self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if torch.is_grad_enabled() and sys.argv[3] == "poison" and self.state.global_step == 3:
        return found * float("nan")
    return found
ToolkitTrainer.compute_loss = loss
try:
    outcome = train(config, folder, Base("base", Path(sys.argv[1])))
except ToolkitError as exc:
    print(json.dumps({"error": exc.message, **exc.details}))
else:
    print(json.dumps(outcome.figures, default=str))
"""
FILL = """
import torch
from toolkit.train.trainer import ToolkitTrainer
real = ToolkitTrainer.compute_loss
def loss(self, model, inputs, *rest, **named):
    if torch.is_grad_enabled() and self.state.global_step >= 4 and self.args.per_device_train_batch_size > 2:
        torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
    return real(self, model, inputs, *rest, **named)
ToolkitTrainer.compute_loss = loss
import runpy
runpy.run_module("toolkit.train.worker", run_name="__main__")
"""

ONE_BY_ONE = """
import runpy
from toolkit.train import lora_casts
lora_casts.cast_together = lambda *_: 0
runpy.run_module("toolkit.train.worker", run_name="__main__")
"""


def test_a_killed_run_goes_on_with_the_same_records(small_base: Base, tmp_path: Path) -> None:
    runs = {}
    for name in ("whole", "killed"):
        settings, folder = settings_in(tmp_path / name, backend="peft", lora_dropout=0.1)
        text = settings.model_dump_json(by_alias=True)
        if name == "killed":
            call(RUN, str(small_base.folder), text, "kill", expect=-9)
            assert not folder.adapter.exists()
        figures = json.loads(call(RUN, str(small_base.folder), text, "").splitlines()[-1])
        assert figures["resumed_at_step"] == (3 if name == "killed" else 0)
        runs[name] = log_of(folder.train_log)
    for one, other in zip(runs["whole"], runs["killed"], strict=True):
        assert one["tokens"] == other["tokens"]  # the very same records
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_a_full_gpu_halves_the_micro_batch(small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator itself raises, in step 5; each new process goes on from step 3."""
    logs = {}
    for name in ("", "fill"):
        settings, folder = settings_in(tmp_path / f"run{name}", backend="peft")
        with monkeypatch.context() as patch:
            if name:
                (tmp_path / "fill.py").write_text(FILL)
                patch.setattr(launch, "_launcher", lambda *_: [sys.executable, str(tmp_path / "fill.py")])
                patch.setattr(launch, "WORKER", [])
            figures = launch.run_training(settings, folder, small_base).figures
        assert figures["times_out_of_memory"] == (2 if name else 0)  # 8 records, then 4; 2 fit
        assert figures["memory_peak"] > 0 and figures["resumed_at_step"] == (3 if name else 0)
        logs[name] = log_of(folder.train_log)
    for one, other in zip(logs[""], logs["fill"], strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(small_base: Base, tmp_path: Path) -> None:
    """Nothing of it is kept."""
    settings, folder = settings_in(tmp_path, backend="peft")
    found = json.loads(call(RUN, str(small_base.folder), settings.model_dump_json(by_alias=True), "poison"))
    seen = batches.step_records(24, 8, 8, settings.train.seed)[3] + 1
    assert found["step"] == 4 and found["rows"] == sorted(int(row) for row in seen)
    assert "the loss is nan" in found["error"] and not folder.adapter.exists()
    assert len(log_of(folder.checkpoints / "train_log.jsonl")) == 3


def test_what_unsloth_trained_exports_as_it_is(small_base: Base, tmp_path: Path) -> None:
    """Train in 4 bits with Unsloth's checkpointing, merge into the 16-bit base, compare in llama.cpp."""
    if not has_unsloth():
        pytest.skip("Unsloth is not installed")
    settings, folder = settings_in(tmp_path, backend="unsloth", gradient_checkpointing=True, eval_steps=4)
    figures = launch.run_training(settings, folder, small_base).figures
    print({key: figures[key] for key in ("tokens_per_second", "memory_peak", "memory_estimate", "answers")})
    assert figures["backend"] == "unsloth" and figures["answers"]
    assert figures["held_out_loss_after"] < figures["held_out_loss_before"]
    log = log_of(folder.train_log)
    assert all(entry["grad_norm"] > 0 and entry["memory"] > 0 for entry in log)
    assert [entry["step"] for entry in log] == [*range(1, 9)]  # each was read while the next one was computed
    kept = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == small_base.folder.name
    pytest.importorskip("gguf")
    if not hardware.installed("llama_cpp"):  # importing it here would bring its CUDA libraries beside torch's
        pytest.skip("llama-cpp-python is not installed")
    from tests.support.models import kl
    from toolkit.export import export
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.templates import chat_template

    target = folder.gguf("F32")
    export(
        small_base.folder,
        folder.adapter,
        {"F32": target},
        chat_template(prompt_format(settings.prompt), bos=False),
        "r",
    )
    found = kl(small_base.folder, folder.adapter, target)
    print(f"mean KL of the F32 export from the trained model: {found:.2e}")
    assert found < 1e-6


def test_unsloth_learns_the_same_with_matrices_cast_once(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attention's gradient is not the same to the last bit in two runs, so only the first loss is."""
    if not has_unsloth():
        pytest.skip("Unsloth is not installed")
    logs = []
    for name in ("together", "one by one"):
        settings, folder = settings_in(tmp_path / name, backend="unsloth", gradient_checkpointing=False)
        with monkeypatch.context() as patch:
            if name != "together":
                (tmp_path / "one_by_one.py").write_text(ONE_BY_ONE)
                patch.setattr(launch, "WORKER", [str(tmp_path / "one_by_one.py")])
            assert launch.run_training(settings, folder, small_base).figures["backend"] == "unsloth"
        logs.append(log_of(folder.train_log))
    assert logs[0][0]["loss"] == logs[1][0]["loss"]
    for one, other in zip(*logs, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-2)


def test_two_gpus_have_the_losses_of_one(small_base: Base, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA GPU")
    logs = []
    for gpus in (1, 2):
        settings, folder = settings_in(tmp_path / str(gpus), backend="peft")
        assert launch.run_training(settings, folder, small_base, gpus=gpus).figures["devices"] == gpus
        logs.append(log_of(folder.train_log))
    for one, other in zip(*logs, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)


def test_a_run_of_four_gpus_goes_on_on_two(small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of four processes is killed in step 5; two go on from step 3, with the records of a run that was not."""
    if torch.cuda.device_count() < 4:
        pytest.skip("there are not four CUDA GPUs")
    settings, folder = settings_in(tmp_path / "whole", backend="peft")
    launch.run_training(settings, folder, small_base)
    whole = log_of(folder.train_log)
    settings, folder = settings_in(tmp_path / "killed", backend="peft")
    (tmp_path / "kill.py").write_text(KILL_ONE)
    with monkeypatch.context() as patch, pytest.raises(ToolkitError, match="training process ended"):
        patch.setattr(launch, "WORKER", [str(tmp_path / "kill.py")])
        launch.run_training(settings, folder, small_base, gpus=4)
    assert not folder.adapter.exists()
    figures = launch.run_training(settings, folder, small_base, gpus=2).figures
    assert figures["resumed_at_step"] == 3 and figures["devices"] == 2
    for one, other in zip(whole, log_of(folder.train_log), strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)


def test_fsdp_over_two_gpus_gives_the_same_files(small_base: Base, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA GPU")
    settings, folder = settings_in(tmp_path / "one", backend="peft", optim="adamw_torch")
    launch.run_training(settings, folder, small_base)
    alone = log_of(folder.train_log)
    settings, folder = settings_in(tmp_path / "two", backend="peft")  # whose 8 bits cannot be sharded
    asked, answer = tmp_path / "request.json", tmp_path / "answer.json"
    asked.write_text(json.dumps(launch.request_of(settings, folder, small_base)))
    command = [*FSDP, "toolkit.train.worker", str(asked), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=offline())
    assert done.returncode == 0, done.stderr[-4000:]
    assert "error" not in json.loads(answer.read_text())
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    for one, other in zip(alone, log_of(folder.train_log), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
