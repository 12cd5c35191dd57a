"""The trainer: TRL's SFTTrainer, Unsloth's patched one if Unsloth was imported before.

Import this module after the backend was chosen: Unsloth changes TRL when it is imported. Seven methods are overridden:

- `compute_loss`, on a CPU only: TRL's loss is a Triton kernel that has no CPU version. transformers' own takes its
  place, divided by the same count of learned tokens.
- `training_step` and `_clip_grad_norm` keep each micro-batch's loss and each step's norm on the device until they are
  logged, so that an error can name the rows of one that is not finite.
- `_maybe_log_save_evaluate`, under Unsloth on one GPU: a step is logged while the GPU computes the next one
  (`late_log.py`).
- `evaluate` returns the mean over tokens. transformers' is a mean over batches, in which a token of a short answer
  weighs more. It keeps the sums that `core/learned.py` compares, stops when asked to, and saves before the last one.
- `save_model`, under FSDP only: the adapter is gathered, not the whole base (70B: 140 GB a save).
- `floating_point_ops` counts the model's weights once. transformers counts them in every micro-batch: 40 ms of 270 in a
  step of 8 records (one H200, 8B), in which the GPU waits.
"""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from huggingface_hub import constants
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from toolkit.core import console
from toolkit.core.files import write_text
from toolkit.core.quiet import silence_transformers
from toolkit.model.kinds import attends_only
from toolkit.train import batches, checkpoints, late_log
from toolkit.train.backend import Backend
from toolkit.train.callbacks import Keep, Report, StopEarly, StopOnSignal, stop_asked
from toolkit.train.example_table import IGNORED
from toolkit.train.job import Job
from toolkit.train.library_tokenizer import library_tokenizer
from toolkit.train.speed import filled_up, remember_parts
from toolkit.train.trl_arguments import arguments

constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL tells the hub which architecture trains on which GPU


class ToolkitTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the overrides that the module's docstring lists."""

    job: Job
    micro_losses: dict[int, list[Any]]  # by step, of those that are not logged yet
    norms: dict[int, Any]
    _globalstep_last_logged: int  # the base class sets it
    unread: late_log.Unread | None = None  # what is to be logged of the step before
    ended: Any = None  # when the step ended that is logged late
    parts: list[list[float]]  # summed loss and tokens of the last evaluation
    random_states: Sequence[tuple[Callable[[Any], object], Any]] = ()  # as the step began, if it may be abandoned
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
        """Run forward and backward over one micro-batch, and keep its loss.

        Raises KeyboardInterrupt if the run must stop and the step may take long: the step is repeated later.
        """
        if self.job.stopped and self.random_states:
            for restore, state in self.random_states:
                restore(state)
            self.leave()
        loss = super().training_step(*arguments, **named)
        self.micro_losses.setdefault(self.state.global_step + 1, []).append(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradients, and keep their norm."""
        self.norms[self.state.global_step + 1] = norm = super()._clip_grad_norm(model)
        return norm

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any,
        start_time: float, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        """Log the step before, and note this one, which is logged later; at once if more follows than the next step."""
        wanted = self.control.should_log
        self.finish_log()
        self.control.should_log = wanted
        state = self.state
        if not (wanted and state.global_step > self._globalstep_last_logged and self.may_log_late()):
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
            )
            return
        steps = list(range(self._globalstep_last_logged + 1, state.global_step + 1))
        numbers, ended = late_log.copy([tr_loss, *(self.norms[step] for step in steps)])
        rate = self._get_learning_rate() if learning_rate is None else learning_rate
        self.unread = late_log.Unread(state.global_step, state.epoch, rate, start_time, steps, numbers, ended)
        tr_loss -= tr_loss
        self._globalstep_last_logged = state.global_step
        self.control.should_log = False

    def may_log_late(self) -> bool:
        """Tell whether this step may be logged one step later: nothing is saved, measured or ended before."""
        control = self.control
        more = control.should_save or control.should_evaluate or control.should_training_stop
        alone = self.args.world_size == 1 and not self.is_deepspeed_enabled and self.accelerator.scaler is None
        return alone and not more and reads_late(self.job.backend)

    def finish_log(self) -> None:
        """Log the step that was noted, if there is one, under its own number."""
        unread, self.unread = self.unread, None
        if unread is None:
            return
        loss, norms = unread.read()
        self.norms.update(norms)
        self._total_loss_scalar += loss
        self.store_flos()
        logs = {"loss": loss / len(norms), "grad_norm": norms[unread.step], "learning_rate": unread.learning_rate}
        present = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch, self.ended = unread.step, unread.epoch, unread.ended
        try:
            self.log(logs, unread.start)
        finally:
            self.state.global_step, self.state.epoch = present
            self.ended = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss per learned token (nats) over the held-out records, and log it.

        A checkpoint is saved before the last one. Raises KeyboardInterrupt if the run must stop, once one is saved.
        """
        state, loader, sums = self.state, self.get_eval_dataloader(eval_dataset), []
        if state.global_step >= state.max_steps and self.control.should_save:
            self.save_now()
        self.model.eval()
        with torch.no_grad(), console.progress("held-out loss", len(loader), "batches") as progress:
            for inputs in loader:
                if stop_asked(self.job, self.args):
                    self.leave()
                inputs = self._prepare_inputs(inputs)
                learned = (inputs["labels"][:, 1:] != IGNORED).sum()
                some = learned.clamp(min=1)  # a process may have only copies, from which nothing is learned
                # The loss is multiplied by the processes, whose gradients are averaged in training.
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=some) / self.args.world_size
                sums.append(torch.stack([loss.double() * some, learned.double()]))
                progress.advance()
        if self.is_fsdp_enabled:  # a forward pass leaves some modules whole; the best adapter loads into shares only
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()
        # The processes take the batches in turn; copies fill up the last turn.
        dealt = self.accelerator.gather(torch.stack(sums)).reshape(self.args.world_size, -1, 2)
        self.parts = batches.held_out_parts(
            dealt.transpose(0, 1).reshape(-1, 2).tolist(), len(self.job.splits["val"]), self.job.plan.micro_batch
        )
        metrics = {f"{metric_key_prefix}_loss": sum(one for one, _ in self.parts) / sum(two for _, two in self.parts)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, state, self.control, metrics)
        if state.global_step and self.job.saved == state.global_step:
            self._add_to_checkpoint(metrics)
        return metrics

    def save_now(self) -> None:
        """Save a checkpoint of this step, unless it is saved already or there was no step."""
        self.finish_log()
        if self.state.global_step != self.job.saved:
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def leave(self) -> NoReturn:
        """Save a checkpoint of the last complete step, and raise KeyboardInterrupt."""
        self.job.stopped = True
        self.save_now()
        raise KeyboardInterrupt

    def _add_to_checkpoint(self, metrics: dict[str, float]) -> None:
        """Write a held-out loss into the state of the checkpoint that was saved before it."""
        state, checkpoint = self.state, self.job.checkpoint(self.state.global_step)
        self._determine_best_metric(metrics, None)
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(checkpoint)
        if state.is_world_process_zero:
            write_text(checkpoint / checkpoints.STATE, json.dumps(asdict(state), indent=2, sort_keys=True) + "\n")
        self.control.should_save = False

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
    """Return the trainer of a job; `train` holds the whole run's records in order, `held_out` may be None.

    Both are data sets with `input_ids` and `labels`.
    """
    for records in (train, held_out):
        if records is not None:  # Unsloth relies on this; otherwise it pads the rows, since nothing would cut them
            records._unsloth_truncated_to = job.settings.max_length
    silence_transformers()
    logging.getLogger("trl").setLevel(logging.ERROR)  # its advice on attention for padding-free rows was followed
    stack = ExitStack()
    report = Report(job, stack)
    callbacks = [report, Keep(job), StopOnSignal(job, stack)]  # in this order: what one asks for the next one sees
    if job.settings.early_stopping_patience and held_out is not None:
        callbacks.append(StopEarly(job.settings.early_stopping_patience))
    trainer = ToolkitTrainer(
        model=model,
        args=arguments(job, packs=job.packs and not _keeps_state(model)),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=library_tokenizer(job.base.folder),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output
    if trainer.padding_free and job.backend.device == "cuda":
        trainer.data_collator = functools.partial(filled_up, trainer.data_collator)
    trainer.job, trainer.weights = job, model.num_parameters(exclude_embeddings=True)
    trainer.micro_losses, trainer.norms = {}, {}
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


def reads_late(backend: Backend) -> bool:
    """Tell whether reading a step's loss late spares a wait. Without Unsloth, TRL reads other numbers in each pass."""
    return backend.device == "cuda" and backend.name == "unsloth"


def _keeps_state(model: Any) -> bool:
    """Tell whether transformers says that a loaded model's class keeps a state, and not all its layers attend."""
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(inside, "_is_stateful", False)) and not attends_only(inside.config.to_dict())
