"""The trainer: TRL's SFTTrainer, Unsloth's patched one where Unsloth was imported before.

Import this module after the backend was chosen: Unsloth changes TRL when it is imported. Five methods are overridden:

- `compute_loss`, on a CPU only: TRL's loss is a Triton kernel there is no CPU version of. transformers' own takes its
  place, divided by the same count of learned tokens.
- `training_step` keeps each micro-batch's loss on the device, so that one that is not finite is named by its rows.
- `evaluate` returns the mean over tokens. transformers' is a mean over batches, in which a token of a short answer
  weighs more.
- `save_model`, under FSDP only: the adapter is gathered, not the whole base (70B: 140 GB a save).
- `floating_point_ops` counts the model's weights once. transformers counts them in every micro-batch: 40 ms of 270 in a
  step of 8 records (one H200, 8B), in which the GPU waits.
"""

import functools
import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import constants
from transformers import AutoTokenizer, Trainer
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from toolkit.core import console, hardware
from toolkit.core.console import silence_transformers
from toolkit.train import parallel
from toolkit.train.callbacks import Keep, Report, StopEarly, StopOnSignal
from toolkit.train.examples import IGNORED
from toolkit.train.job import Job

constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL tells the hub which architecture trains on which GPU
NEVER = 10**9  # steps: `Keep` decides when to save
MAX_GRAD_NORM = 1.0  # the recipe's trainer clips the gradient to this norm
# Tokens of a row on a GPU are a multiple of this: rows of 16-bit numbers that do not begin at 16 bytes leave cuBLAS its
# slow kernels for the adapter's products, 3 to 6 % of a step on an H100.
ALIGNED = 16


class ToolkitTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the overrides that the module's docstring lists."""

    micro_losses: list[Any]
    weights: int  # of the model, without its embeddings
    stack: ExitStack  # what has to end with training: the progress line, the signals
    control: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed loss of the learned tokens divided by their count in the whole step."""
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        """Run forward and backward over one micro-batch, and keep its loss."""
        loss = super().training_step(*arguments, **named)
        self.micro_losses.append(loss)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss per learned token (nats) over the held-out records, and log it."""
        loader = self.get_eval_dataloader(eval_dataset)
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        with torch.no_grad(), console.progress("held-out loss", len(loader), "batches") as progress:
            for inputs in loader:
                inputs = self._prepare_inputs(inputs)
                learned = (inputs["labels"][:, 1:] != IGNORED).sum()
                some = learned.clamp(min=1)  # a process may have copies only, of which nothing is learned
                # The loss is multiplied by the processes, whose gradients are averaged in training.
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=some) / self.args.world_size
                sums += torch.stack([loss.double() * some, learned.double()])
                progress.advance()
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; under FSDP every process calls this, and the first one writes."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = self.adapter()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of one micro-batch, forward and backward, as transformers counts them."""
        return int(6 * inputs["input_ids"].numel() * self.weights)

    def adapter(self) -> dict[str, Any]:
        """Return the trained weights by their parameters' names, whole, in main memory."""
        trained = ((name, weight.detach()) for name, weight in self.model.named_parameters() if weight.requires_grad)
        return {name: (w.full_tensor() if hasattr(w, "full_tensor") else w).cpu() for name, w in trained}


def make(job: Job, model: Any, train: Any, held_out: Any) -> ToolkitTrainer:
    """Return the trainer of a job; `train` holds the whole run's records in order, `held_out` is None without any.

    Both are data sets with `input_ids` and `labels`.
    """
    for records in (train, held_out):
        if records is not None:  # Unsloth believes this, and else pads the rows, since nothing would cut them
            records._unsloth_truncated_to = job.settings.max_length
    silence_transformers()
    logging.getLogger("trl").setLevel(logging.ERROR)  # its advice on attention for padding-free rows was followed
    stack = ExitStack()
    report = Report(job, stack)
    callbacks = [report, Keep(job), StopOnSignal(job, stack)]
    if job.settings.early_stopping_patience and held_out is not None:
        callbacks.append(StopEarly(job.settings.early_stopping_patience))
    trainer = ToolkitTrainer(
        model=model,
        args=arguments(job),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(job.base.folder),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output
    if trainer.padding_free and job.backend.device == "cuda":
        trainer.data_collator = functools.partial(filled_up, trainer.data_collator)
    trainer.micro_losses, trainer.weights = [], model.num_parameters(exclude_embeddings=True)
    report.trainer, trainer.stack = trainer, stack
    for weight in model.parameters():  # TRL rounds a 4-bit base's adapter to bf16, where updates below 0.4 % vanish
        if weight.requires_grad:
            weight.data = weight.data.float()
    if not trainer.is_fsdp_enabled:
        remember_parts(model, stack)
    else:
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.set_state_dict_type("FULL_STATE_DICT")  # the sharded kind's metadata is a pickle
        if plugin.mixed_precision_policy is not None:
            # accelerate adds gradients up in bf16 (losses 1.4e-3 from one process's), and rounds tokens' losses to it.
            policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None)
            plugin.mixed_precision_policy = policy
    return trainer


def remember_parts(model: Any, stack: ExitStack) -> None:
    """Spare the model a walk through its modules for each `parameters()` and `train()`, until the stack closes.

    An 8B model with an adapter has 3,000 modules, and each step walks through them four times: 30 ms of 230 in a step
    of 8 records (one H200), in which the GPU waits.
    """
    model.train()  # as a whole: a loaded base is in evaluation mode below a fresh adapter that is not
    weights, switch = list(model.parameters()), model.train

    def train(mode: bool = True) -> Any:
        return model if model.training == mode else switch(mode)

    model.parameters, model.train = lambda recurse=True: iter(weights), train
    stack.callback(delattr, model, "parameters")
    stack.callback(delattr, model, "train")


def filled_up(collator: Any, records: list[dict[str, Any]]) -> Any:
    """Lay records into one row, filled up to a multiple of ALIGNED tokens by a record of which nothing is learned."""
    missing = -sum(len(record["input_ids"]) for record in records) % ALIGNED
    filling = [{"input_ids": records[0]["input_ids"][:1] * missing, "labels": [IGNORED] * missing}] * bool(missing)
    return collator([*records, *filling])


def arguments(job: Job) -> SFTConfig:
    """Return the settings under TRL's names."""
    settings, plan, cuda = job.settings, job.plan, job.backend.device == "cuda"
    evaluates = bool(job.splits["val"]) and settings.eval_steps > 0
    return SFTConfig(
        output_dir=str(job.place),
        max_steps=job.steps,
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        gradient_checkpointing=plan.strategy.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        optim=_optimizer(settings.optim, cuda=cuda),
        weight_decay=settings.weight_decay,
        max_grad_norm=MAX_GRAD_NORM,
        seed=settings.seed,
        bf16=job.precision == "bf16",
        fp16=job.precision == "f16",
        use_cpu=not cuda,
        # The records are tokenized, cut and ordered; padding-free lays those of a micro-batch into one row.
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        padding_free=True,
        max_length=None,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=settings.report_to or "none",
        eval_on_start=bool(job.splits["val"]) and job.resume is None,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_steps if evaluates else None,
        save_strategy="steps",
        save_steps=NEVER * max(1, settings.eval_steps),
        save_total_limit=3 if evaluates else 2,  # the best one, the last one, and the one before while that is written
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )


def _optimizer(name: str, *, cuda: bool) -> str:
    """Return the optimizer that this machine has: bitsandbytes' need CUDA, and cannot be sharded."""
    if not name.endswith(("8bit", "32bit")):
        return name
    if cuda and not parallel.sharded() and hardware.installed("bitsandbytes"):
        return name
    lack = "cannot be sharded" if parallel.sharded() else "needs CUDA and bitsandbytes"
    console.info(f"optimizer: adamw_torch, because {name} {lack}")
    return "adamw_torch"
