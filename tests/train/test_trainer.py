"""What the trainer does when things go wrong or stop getting better, and that it is TRL's own when they do not."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from tests.support import families
from tests.support.warm import WORKER
from tests.train.conftest import SAME, changed, distance, entries, losses, place_of, plain, steps_so_far, with_
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.prompt.format import prompt_format
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.train import (
    OutOfMemory,
    batches,
    example_table,
    examples,
    is_out_of_memory,
    job,
    launch,
    peft_backend,
    train,
)
from toolkit.train.example_table import Example
from toolkit.train.speed import remember_parts
from toolkit.train.trainer import ToolkitTrainer, make

pytestmark = pytest.mark.slow

# The process that trains: from step 5 on, no micro-batch of more than LIMIT records fits.
TIGHT = """
import runpy
import torch
from toolkit.train.trainer import ToolkitTrainer
real = ToolkitTrainer.compute_loss
def tight(self, model, inputs, *rest, **named):
    loss = real(self, model, inputs, *rest, **named)  # the GPU fills up in the middle of the work
    records = int((inputs["position_ids"] == 0).sum())
    if torch.is_grad_enabled() and self.state.global_step >= 4 and records > LIMIT:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    return loss
ToolkitTrainer.compute_loss = tight
runpy.run_module("toolkit.train.worker", run_name="__main__")
"""
ADAPTER = "adapter_model.safetensors"


def tighten(patch: pytest.MonkeyPatch, limit: int) -> None:
    """Have memory run out in the processes that are started from now on."""
    patch.setattr(launch, "WORKER", [*WORKER[:2], "-c", TIGHT.replace("LIMIT", str(limit))])


def records_of(settings: Config, folder: RunFolder, base: Base, side: str = "train") -> list[Example]:
    form = prompt_format(settings.prompt)
    return [*examples.tokenize(folder.split_file(side), load_tokenizer(base.folder, form), form, settings.train)]


def laid_out(settings: Config, records: list[Example], micro_batches: int) -> batches.Rows:
    """The indices of the records of every step's micro-batches."""
    values = settings.train
    lengths = np.array([len(record.input_ids) for record in records])
    steps = values.steps_for(len(records))
    return batches.pack_steps(
        batches.step_records(len(records), values.records_a_step, steps, values.seed), lengths, micro_batches
    )


def test_running_out_of_memory_halves_the_micro_batch_and_changes_no_result(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, warm: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings, folder = small
    settings = plain(settings, batch_size=8, gradient_accumulation_steps=1)
    train(settings, folder, base)
    undisturbed = losses(folder)
    settings, folder = with_(settings, Path(settings.run.folder) / "tight")
    with monkeypatch.context() as patch:
        tighten(patch, 2)
        outcome = launch.run_training(settings, folder, base)
    assert outcome.figures["times_out_of_memory"] == 2  # 8 records, then 4, then 2
    assert (outcome.figures["plan"]["micro_batch"], outcome.figures["plan"]["accumulation"]) == (2, 4)
    assert outcome.figures["resumed_at_step"] == 3
    assert losses(folder) == pytest.approx(undisturbed, rel=1e-5)
    said = " ".join(capfd.readouterr().err.split())
    for more, fewer in ((8, 4), (4, 2)):
        assert f"out of memory with {more} records in a micro-batch; continuing from the last checkpoint" in said
        assert f"in micro-batches of {fewer}, and more of them per step" in said


def test_one_record_that_does_not_fit_is_the_end(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    settings, folder = small
    settings = plain(settings, batch_size=1, gradient_accumulation_steps=4)
    tighten(monkeypatch, 0)
    with pytest.raises(ToolkitError, match="out of memory with a single record of up to 249 tokens") as caught:
        launch.run_training(settings, folder, base)
    assert "gradient_checkpointing" in caught.value.hint
    assert steps_so_far(folder) == [1, 2, 3, 4] and not folder.adapter.exists()


@pytest.mark.parametrize(("batch_size", "smaller"), [(6, 3), (3, 1), (1, 0)])
def test_want_of_memory_says_what_to_try_next(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, batch_size: int, smaller: int
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(ToolkitTrainer, "training_step", full)
    settings, folder = small
    with pytest.raises(OutOfMemory) as caught:
        train(changed(settings, batch_size=batch_size, gradient_accumulation_steps=1), folder, base)
    assert caught.value.smaller == smaller


def test_another_error_is_not_taken_for_want_of_memory(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(ToolkitTrainer, "training_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(*small, base)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_named_by_step_and_rows(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings, folder = small
    settings = plain(settings, packing=False)
    records = records_of(settings, folder, base)
    [place] = [place for place, record in enumerate(records) if record.row == 5]
    bad = ",".join(map(str, records[place].input_ids))
    real = ToolkitTrainer.compute_loss

    def poisoned(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        loss = real(self, model, inputs, *rest, **named)
        if torch.is_grad_enabled() and bad in ",".join(map(str, inputs["input_ids"][0].tolist())):
            if where == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(ToolkitTrainer, "compute_loss", poisoned)
    with pytest.raises(ToolkitError, match=r"step \d: the loss is") as caught:
        train(settings, folder, base)
    laid = laid_out(settings, records, 2)
    steps, micro_batches, _ = np.nonzero(laid == place)
    step, micro_batch = steps[0], micro_batches[0]
    suspects = laid[step, micro_batch] if where == "loss" else laid[step]
    assert suspects.size == (2 if where == "loss" else 4)
    rows = sorted(records[index].row for index in suspects.reshape(-1))
    assert caught.value.details == {"step": step + 1, "rows": rows}
    assert ", ".join(map(str, rows)) in str(caught.value)
    assert steps_so_far(folder) == list(range(1, step + 1)) and step > 0
    assert not folder.adapter.exists()


def tell(monkeypatch: pytest.MonkeyPatch, told: dict[int, float]) -> None:
    """Have the held-out loss of these steps be these."""
    real = ToolkitTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            return real(self, *arguments, **named)
        return torch.tensor(told[self.state.global_step])

    monkeypatch.setattr(ToolkitTrainer, "compute_loss", compute_loss)


TOLD = {0: 5.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 1.0, 12: 1.0, 14: 1.0}


@pytest.mark.parametrize("save_steps", [3, 4, 100])
def test_early_stopping_keeps_the_best_adapter(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    save_steps: int,
) -> None:  # fmt: skip
    settings, folder = small
    settings = plain(settings, max_steps=20, eval_steps=2, early_stopping_patience=2, save_steps=save_steps)
    tell(monkeypatch, TOLD)
    outcome = train(settings, folder, base)
    assert outcome.figures["steps"] == 8 and outcome.figures["kept_step"] == 4
    assert outcome.figures["held_out_loss_after"] == 2.0
    said = " ".join(capsys.readouterr().err.split())
    assert "early stopping after step 8: 2 held-out losses in a row were not better" in said
    assert "the adapter of step 4 is kept: its held-out loss is the lowest, 2.0000" in said
    place = place_of(settings, folder)
    kept = {3: {3, 4, 6}, 4: {2, 4, 8}, 100: {2, 4}}[save_steps]
    assert {int(path.name[11:]) for path in place.glob("checkpoint-*")} == kept
    best = place / "checkpoint-4" / ADAPTER
    assert (folder.adapter / ADAPTER).read_bytes() == best.read_bytes()
    for other in kept - {4}:
        assert (place / f"checkpoint-{other}" / ADAPTER).read_bytes() != best.read_bytes()


@pytest.mark.parametrize(("killed_in", "moved"), [(4, False), (7, False), (7, True)])
def test_a_resumed_run_stops_where_one_go_does(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, killed_in: int, moved: bool
) -> None:
    """The best loss and the count of those that were no better come back with the checkpoint, wherever it lies now."""
    settings, folder = small
    settings = plain(settings, max_steps=20, eval_steps=2, early_stopping_patience=2, save_steps=6)
    tell(monkeypatch, TOLD)
    real = ToolkitTrainer.training_step

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == killed_in - 1:
            raise SystemExit
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ToolkitTrainer, "training_step", killed)
        train(settings, folder, base)
    if moved:
        folder = RunFolder(folder.path.rename(folder.path.with_name("moved")), "moved")
    outcome = train(settings, folder, base)
    assert outcome.figures["resumed_at_step"] == {4: 2, 7: 6}[killed_in]
    assert outcome.figures["steps"] == 8 and outcome.figures["kept_step"] == 4
    best = place_of(settings, folder) / "checkpoint-4" / ADAPTER
    assert (folder.adapter / ADAPTER).read_bytes() == best.read_bytes()
    held_out = [(entry["step"], entry["eval_loss"]) for entry in entries(folder) if "eval_loss" in entry]
    assert held_out == [(step, TOLD[step]) for step in (0, 2, 4, 6, 8)]


def test_early_stopping_may_be_switched_on_for_a_resumed_run(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = small
    real = ToolkitTrainer.training_step

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 4:
            raise SystemExit
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ToolkitTrainer, "training_step", killed)
        train(settings, folder, base)
    tell(monkeypatch, {4: 2.0, 6: 3.0})
    outcome = train(changed(settings, eval_steps=2, early_stopping_patience=1), folder, base)
    assert outcome.figures["resumed_at_step"] == 3
    assert [entry["step"] for entry in entries(folder) if "eval_loss" in entry] == [0, 4, 6]
    assert (outcome.figures["steps"], outcome.figures["kept_step"]) == (6, 4)


def test_without_held_out_records_nothing_stops_early(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    folder.split_file("val").write_text("")
    outcome = train(changed(settings, max_steps=3, eval_steps=1, early_stopping_patience=1), folder, base)
    assert outcome.figures["steps"] == outcome.figures["kept_step"] == 3
    assert outcome.figures["held_out_loss_after"] is None


def test_the_hub_is_not_told_of_a_training(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL sends what is trained on which GPU, unless told not to."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _telemetry

    told: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: told.append("told"))
    train(plain(small[0], max_steps=1), small[1], base)
    assert not told


@pytest.mark.parametrize("layout", ["in one row", "of one record", "recomputed"])
def test_the_losses_are_those_of_trls_trainer(small: tuple[Config, RunFolder], base: Base, layout: str) -> None:
    """The recipe's own trainer over the same records, padded and unpacked, in the order in which ours saw them."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings, folder = small
    hows: dict[str, dict[str, Any]] = {
        "in one row": {"batch_size": 4, "gradient_accumulation_steps": 1},
        "of one record": {"batch_size": 1, "gradient_accumulation_steps": 4},
        "recomputed": {"gradient_checkpointing": True},
    }
    settings = plain(settings, warmup_steps=2, weight_decay=0.1, **hows[layout])
    outcome = train(settings, folder, base)
    assert outcome.figures["plan"]["accumulation"] == settings.train.gradient_accumulation_steps
    assert outcome.figures["plan"]["checkpointing"] == (layout == "recomputed")
    ours = [entry for entry in entries(folder) if "loss" in entry]

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: object) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            assert inputs["input_ids"].shape[0] == 2
            padded.append(not inputs["attention_mask"].all())
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)  # no Triton on a CPU

        def log(self, logs: dict[str, float], *_: object) -> None:
            if "loss" in logs:
                theirs.append(dict(logs))

    padded: list[bool] = []
    theirs: list[dict[str, float]] = []
    values = settings.train
    records = records_of(settings, folder, base)
    order = laid_out(settings, records, values.gradient_accumulation_steps).reshape(-1)
    data = Dataset.from_dict(
        {"input_ids": [records[i].input_ids for i in order], "labels": [records[i].labels for i in order]}
    )
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    torch.manual_seed(values.seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=values.target_modules)
    arguments = SFTConfig(
        output_dir=str(folder.path / "trl"), max_steps=values.max_steps, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=values.learning_rate, warmup_steps=2, weight_decay=0.1,
        lr_scheduler_type="linear", optim="adamw_torch", max_length=values.max_length, packing=False, bf16=False,
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, report_to="none", seed=values.seed,
        gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    trainer = InOrder(get_peft_model(model, lora), arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert len(ours) == len(theirs) == 8 and any(padded)
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=1e-4)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6)
    trained = {n.replace(".default", ""): p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert distance({n: p.detach() for n, p in trained.items()}, load_file(folder.adapter / ADAPTER)) < 1e-4


def test_the_operations_are_counted_as_transformers_counts_them(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every micro-batch, from weights that were counted once."""
    real, seen = ToolkitTrainer.floating_point_ops, []

    def counted(self: Any, inputs: dict[str, Any]) -> int:
        seen.append((real(self, inputs), Trainer.floating_point_ops(self, inputs)))
        return seen[-1][0]

    monkeypatch.setattr(ToolkitTrainer, "floating_point_ops", counted)
    train(*with_(small[0], Path(small[0].run.folder) / "counted", max_steps=2), base)
    assert seen and all(one == other > 0 for one, other in seen)


def test_a_model_that_remembers_its_parts_switches_as_a_whole() -> None:
    """A fresh adapter trains while the base below it was loaded for evaluation."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout(0.5)))
    model[1].eval()
    weights = list(model.parameters())
    with ExitStack() as stack:
        remember_parts(model, stack)
        assert all(part.training for part in model.modules())
        assert [*model.parameters()] == weights == [*model.parameters()]
        for mode in (False, False, True):
            assert model.train(mode) is model and {part.training for part in model.modules()} == {mode}
        assert model.eval() is model and not any(part.training for part in model.modules())
    assert not {"parameters", "train"} & set(vars(model))


def test_the_adapter_of_a_four_bit_base_stays_in_float32(
    small: tuple[Config, RunFolder], four_bit: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL rounds it to bf16, in which small updates vanish; also where a killed run goes on."""
    rounded = []
    real_make, real_step = ToolkitTrainer.__init__, ToolkitTrainer.training_step

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        real_make(self, *arguments, **named)
        rounded.append({p.dtype for p in self.model.parameters() if p.requires_grad})

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 4:
            raise SystemExit
        return real_step(self, *arguments, **named)

    monkeypatch.setattr(ToolkitTrainer, "__init__", made)
    runs = [with_(small[0], Path(small[0].run.folder) / name, max_steps=6) for name in ("once", "killed")]
    train(*runs[0], four_bit)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ToolkitTrainer, "training_step", killed)
        train(*runs[1], four_bit)
    assert train(*runs[1], four_bit).figures["resumed_at_step"] == 3
    assert rounded == [{torch.bfloat16}] * 3  # what TRL itself leaves
    one, other = (load_file(folder.adapter / ADAPTER) for _, folder in runs)
    assert distance(one, other) < SAME
    for name, weight in one.items():
        assert weight.dtype == torch.float32
        assert (weight != weight.bfloat16().float()).float().mean() > 0.9, name


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"sliding_window": 24}, "phi3": {"sliding_window": 24}, "gemma2": {}, "gemma3": {},
    "qwen3": {}, "qwen2.5": {}, "ministral3": {}, "smollm3": {}, "granite": {}, "olmo2": {}, "olmo3": {},
}  # fmt: skip
OFTEN = ("llama", "mistral", "phi3", "gemma2", "gemma3", "qwen3")  # the others in `make exhaustive`


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.exhaustive) for name in sorted(FAMILIES)]
)
def test_records_in_one_row_have_the_losses_they_have_alone(
    family: str, completion_only: bool, small: tuple[Config, RunFolder], tmp_path: Path
) -> None:
    """For each family of the recipe, soft-capping and sliding windows included, in float32; nothing reaches across."""
    from transformers import AutoModelForCausalLM

    settings, folder = small
    settings = plain(
        settings,
        max_steps=3,
        batch_size=4,
        gradient_accumulation_steps=1,
        completion_only_loss=completion_only,
        max_length=500,
    )
    saved = families.save(tmp_path / "base", family, **FAMILIES[family])
    base = Base("base", saved)
    backend = peft_backend.make_peft_backend("cpu", "")
    work = job.lay_out_job(settings, folder, base, backend, "f32", restart=False, at_most=0)
    assert work.plan.micro_batch == 4
    model = backend.load(base, settings, work.plan, "cpu", torch.float32)
    data = example_table.dataset(work.splits["train"]).select(work.order.reshape(-1))
    trainer = make(work, model, data, None)
    reference = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32, attn_implementation="eager")
    records, one = work.splits["train"], torch.ones(())
    for places, inputs in zip(work.order.reshape(3, 4), trainer.get_train_dataloader(), strict=True):
        alone = 0.0
        for record in (records[place] for place in places):
            logits = reference(torch.tensor([record.input_ids])).logits[0, :-1].double()
            labels = torch.tensor(record.labels[1:])
            alone += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        assert inputs["input_ids"].shape == (1, sum(len(records[place].input_ids) for place in places))
        with torch.no_grad():
            model.eval()
            found = trainer.compute_loss(model, dict(inputs), num_items_in_batch=one).item()
            inputs.pop("position_ids")
            mixed = trainer.compute_loss(model, dict(inputs), num_items_in_batch=one).item()
        assert found == pytest.approx(alone, rel=1e-5)
        if not completion_only:  # an answer stands too far from the record before it for the windows
            assert abs(mixed - alone) > 4e-5 * alone  # what is seen where records reach across
