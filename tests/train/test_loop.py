"""What the loop does when things go wrong or stop getting better, and that it equals TRL's trainer when they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import SAME, distance
from tests.train.test_train import losses, with_
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.run import RunFolder
from toolkit.train import batches, checkpoints, examples, loop, peft_backend, step, train

pytestmark = pytest.mark.slow


def entries(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.train_log.read_text().splitlines()]


def plain(settings: Config, **values: object) -> Config:
    """The settings in float32 without dropout, so that the layout of a step changes nothing but rounding."""
    return settings.model_copy(
        update={"train": settings.train.model_copy(update={"precision": "f32", "lora_dropout": 0.0, **values})}
    )


def test_running_out_of_memory_halves_the_pass_and_changes_no_result(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = small
    settings = plain(settings, batch_size=8, accumulation=1)
    outcome = train(settings, folder, base)
    assert outcome.figures["times_out_of_memory"] == 0
    undisturbed = losses(folder)

    sizes: list[int] = []
    real = peft_backend.packed_loss

    def tight(model: Any, batch: batches.Batch, total: Any) -> Any:
        found = real(model, batch, total)  # the card fills up in the middle of the work
        if torch.is_grad_enabled():
            if len(entries_so_far(folder)) >= 4 and len(batch.lengths) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(batch.lengths))
        return found

    monkeypatch.setattr(peft_backend, "packed_loss", tight)
    settings, folder = with_(settings, Path(settings.run.folder) / "tight")
    outcome = train(settings, folder, base)
    assert outcome.figures["times_out_of_memory"] == 2  # 8 records, then 4, then 2
    assert losses(folder) == pytest.approx(undisturbed, rel=1e-5)
    assert sizes[:3] == [8, 8, 8] and set(sizes[4:]) <= {1, 2}
    said = capsys.readouterr().err
    assert "step 4: out of memory with 8 records" in said and "the same records, the same result" in said


def entries_so_far(folder: RunFolder) -> list[str]:
    return (folder.checkpoints / "train_log.jsonl").read_text().splitlines()


def test_one_record_that_does_not_fit_is_the_end(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        return torch.zeros(())

    monkeypatch.setattr(peft_backend, "packed_loss", full)
    with pytest.raises(ToolkitError, match=r"step 1: out of memory with a single record") as caught:
        train(*small, base)
    assert "gradient_checkpointing" in caught.value.hint


def test_another_error_is_not_taken_for_want_of_memory() -> None:
    assert not step.is_out_of_memory(RuntimeError("shapes do not match"))
    assert step.is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_what_is_not_finite_is_named_by_step_and_rows(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, where: str, ahead: int
) -> None:
    monkeypatch.setattr(loop, "_ahead", lambda _: ahead)
    settings, folder = small
    settings = plain(settings, packing=False, batch_size=1, accumulation=4)
    real = peft_backend.packed_loss

    def poisoned(model: Any, batch: batches.Batch, total: Any) -> Any:
        loss = real(model, batch, total)
        if torch.is_grad_enabled() and batch.rows == [5]:
            if where == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(peft_backend, "packed_loss", poisoned)
    with pytest.raises(ToolkitError, match=r"step \d: the loss is") as caught:
        train(settings, folder, base)
    step = caught.value.details["step"]
    rows = [row + 1 for row in batches.of_step(step - 1, 4, 24, settings.train.seed)]
    assert 5 in rows
    assert caught.value.details["rows"] == ([5] if where == "loss" else sorted(rows))
    assert not folder.adapter.exists()
    assert len([e for e in entries_so_far(folder) if '"loss"' in e]) == step - 1


@pytest.mark.parametrize("eval_steps", [0, 2])
def test_a_step_launched_before_the_last_is_read_changes_nothing(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, eval_steps: int
) -> None:
    """As on a card: the same log but for the speed, the same checkpoints, the same adapter."""
    from safetensors.torch import load_file

    def noting(order: list[tuple[str, int]], what: str, real: Any) -> Any:
        def called(job: Any, one: Any) -> Any:
            order.append((what, one if isinstance(one, int) else one.number))
            return real(job, one)

        return called

    found = []
    for ahead in (0, 1):
        settings, folder = with_(small[0], Path(small[0].run.folder) / str(ahead), eval_steps=eval_steps)
        order: list[tuple[str, int]] = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_ahead", lambda _, ahead=ahead: ahead)
            for what in ("launch", "finish"):
                patch.setattr(step, what, noting(order, what, getattr(step, what)))
            train(settings, folder, base)
        assert order.index(("finish", 1)) == 1 + ahead
        log = [{key: value for key, value in entry.items() if key != "tokens_per_second"} for entry in entries(folder)]
        kept = sorted(path.name for path in folder.checkpoints.glob("checkpoint-*"))
        found.append((log, kept, load_file(folder.adapter / "adapter_model.safetensors")))
    assert len(found[0][0]) == len(found[1][0])
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert other == pytest.approx(one, rel=SAME)
    assert found[0][1] == found[1][1] and len(found[0][1]) > 1
    assert distance(found[0][2], found[1][2]) < SAME


def test_early_stopping_keeps_the_best_adapter(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    settings, folder = small
    settings = plain(settings, steps=20, eval_steps=2, early_stopping=2, save_steps=100)
    told = iter([5.0, 3.0, 2.0, 2.5, 2.0, 1.0, 1.0, 1.0])  # before, then steps 2, 4, 6, 8
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(told))
    outcome = train(settings, folder, base)
    assert outcome.figures["steps"] == 8 and outcome.figures["kept_step"] == 4
    assert outcome.figures["held_out_loss_after"] == 2.0
    assert "early stopping after step 8" in capsys.readouterr().err
    best = checkpoints.best(folder.checkpoints, checkpoints.fingerprint(settings, folder))
    assert best is not None and best.step == 4
    kept, saved = checkpoints.read(best)[0], load_file(folder.adapter / "adapter_model.safetensors")
    assert len(saved) == len(kept)
    for name, tensor in kept.items():
        assert torch.equal(saved[name.replace(".default", "")], tensor)


def test_the_losses_are_those_of_trls_trainer(small: tuple[Config, RunFolder], base: Base) -> None:
    """The recipe's own trainer over the same records, padded and unpacked, in the order in which ours saw them."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
    from trl import SFTConfig, SFTTrainer

    from toolkit import tokens
    from toolkit.prompt import prompt_format

    settings, folder = small
    settings = plain(settings, warmup_steps=2, weight_decay=0.1)
    train(settings, folder, base)
    ours = [entry for entry in entries(folder) if "loss" in entry]

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: object) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)  # no Triton on a CPU

        def log(self, logs: dict[str, float], *_: object) -> None:
            if "loss" in logs:
                theirs.append(dict(logs))

    theirs: list[dict[str, float]] = []
    values = settings.train
    form = prompt_format(settings.prompt)
    records = examples.tokenize(folder.side("train"), tokens.load(base.folder, form), form, values)
    seen = [records[place] for step in range(values.steps) for place in batches.of_step(step, 4, 24, values.seed)]
    data = Dataset.from_dict({"input_ids": [e.input_ids for e in seen], "labels": [e.labels for e in seen]})
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    torch.manual_seed(values.seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=values.lora_targets)
    arguments = SFTConfig(
        output_dir=str(folder.path / "trl"), max_steps=values.steps, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=values.learning_rate, warmup_steps=2, weight_decay=0.1,
        lr_scheduler_type="linear", optim="adamw_torch", max_length=values.max_length, packing=False, bf16=False,
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, report_to="none", seed=values.seed,
        gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    InOrder(get_peft_model(model, lora), arguments, train_dataset=data, processing_class=tokenizer).train()
    assert len(ours) == len(theirs) == 8
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=1e-3)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6)
