"""Whole runs on the card: resuming, a card that is full, export of what Unsloth trained, and several cards."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.gpu.small_runs import call, has_unsloth, log_of, offline, settings_in
from tests.train.conftest import FSDP
from toolkit.base import Base
from toolkit.train import apart, batches

pytestmark = pytest.mark.gpu

RUN = """
import json, os, signal, sys
from pathlib import Path
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.run import folder_of
from toolkit.train import peft_backend, train
config = Config.model_validate_json(sys.argv[2])
folder = folder_of(config)
real = peft_backend.packed_loss
def logged():
    log = folder.checkpoints / "train_log.jsonl"
    return log.read_text().count('"loss"') if log.is_file() else 0
def loss(model, batch, total):
    import torch
    if torch.is_grad_enabled():
        if sys.argv[3] == "kill" and logged() == 4:  # the 5th is not read yet, the 6th being launched
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[3] == "fill" and logged() >= 3 and len(batch.rows) > 2:
            torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
        if sys.argv[3] == "poison" and 5 in batch.rows:
            return real(model, batch, total) * float("nan")
    return real(model, batch, total)
peft_backend.packed_loss = loss
try:
    outcome = train(config, folder, Base("base", Path(sys.argv[1])))
except ToolkitError as exc:
    print(json.dumps({"error": exc.message, **exc.details}))
else:
    print(json.dumps(outcome.figures, default=str))
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


def test_a_full_card_halves_the_pass(small_base: Base, tmp_path: Path) -> None:
    """The allocator itself raises, in the middle of step 4."""
    logs = {}
    for name in ("", "fill"):
        settings, folder = settings_in(tmp_path / f"run{name}", backend="peft")
        out = call(RUN, str(small_base.folder), settings.model_dump_json(by_alias=True), name)
        figures = json.loads(out.splitlines()[-1])
        assert figures["times_out_of_memory"] == (2 if name else 0)  # 8 records, then 4; 2 fit
        assert figures["memory_peak"] > 0
        logs[name] = log_of(folder.train_log)
    for one, other in zip(logs[""], logs["fill"], strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(small_base: Base, tmp_path: Path) -> None:
    """Although the next step is launched by then; nothing of either is kept."""
    settings, folder = settings_in(tmp_path, backend="peft")
    found = json.loads(call(RUN, str(small_base.folder), settings.model_dump_json(by_alias=True), "poison"))
    step = found["step"]
    seen = [row + 1 for row in batches.of_step(step - 1, 8, 24, settings.train.seed)]
    assert 5 in seen and 5 in found["rows"] and set(found["rows"]) <= set(seen)
    assert "the loss is nan" in found["error"] and not folder.adapter.exists()
    assert len(log_of(folder.checkpoints / "train_log.jsonl")) == step - 1


def test_what_unsloth_trained_exports_as_it_is(small_base: Base, tmp_path: Path) -> None:
    """Train in 4 bits with Unsloth's checkpointing, merge into the 16-bit base, compare in llama.cpp."""
    if not has_unsloth():
        pytest.skip("Unsloth is not installed")
    settings, folder = settings_in(tmp_path, backend="unsloth", gradient_checkpointing=True, eval_steps=4)
    figures = apart.train_apart(settings, folder, small_base).figures
    print({key: figures[key] for key in ("tokens_per_second", "memory_peak", "memory_estimate", "answer")})
    assert figures["backend"] == "unsloth" and figures["answer"]
    assert figures["held_out_loss_after"] < figures["held_out_loss_before"]
    assert all(entry["grad_norm"] > 0 and entry["memory"] > 0 for entry in log_of(folder.train_log))
    kept = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == small_base.folder.name
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from tests.small import kl
    from toolkit.export import export
    from toolkit.prompt import chat_template, prompt_format

    target = folder.gguf("F32")
    export(small_base.folder, folder.adapter, {"F32": target}, chat_template(prompt_format(settings.prompt)), "r")
    found = kl(small_base.folder, folder.adapter, target)
    print(f"mean KL of the F32 export from the trained model: {found:.2e}")
    assert found < 1e-6


def test_two_cards_have_the_losses_of_one(small_base: Base, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA card")
    logs = []
    for gpus in (1, 2):
        settings, folder = settings_in(tmp_path / str(gpus), backend="peft")
        assert apart.train_apart(settings, folder, small_base, gpus=gpus).figures["devices"] == gpus
        logs.append(log_of(folder.train_log))
    for one, other in zip(*logs, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)


def test_fsdp_over_two_cards_gives_the_same_files(small_base: Base, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA card")
    settings, folder = settings_in(tmp_path / "one", backend="peft", optimizer="adamw_torch")
    apart.train_apart(settings, folder, small_base)
    alone = log_of(folder.train_log)
    settings, folder = settings_in(tmp_path / "two", backend="peft")  # whose 8 bits cannot be sharded
    asked, answer = tmp_path / "order.json", tmp_path / "answer.json"
    asked.write_text(json.dumps(apart.order(settings, folder, small_base)))
    command = [*FSDP, "toolkit.train.child", str(asked), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=offline())
    assert done.returncode == 0, done.stderr[-4000:]
    assert "error" not in json.loads(answer.read_text())
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    for one, other in zip(alone, log_of(folder.train_log), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
