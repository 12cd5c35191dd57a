"""What the toolkit adds to the trainer's loop: the log and progress line, complete checkpoints, and Ctrl-C."""

import gc
import json
import math
import random
import signal
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback

from toolkit.core import console, signals, streams
from toolkit.core.errors import ToolkitError
from toolkit.core.files import naming, write_text
from toolkit.train import checkpoints, late_log
from toolkit.train.job import Job


class Report(TrainerCallback):  # type: ignore[misc]
    """Add tokens, speed and memory to the trainer's log, show it, and stop a run whose numbers are not finite."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self.job = job
        self.stack = stack
        self.trainer: Any = None
        self.progress: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the log up to the checkpoint that the run continues from."""
        if state.is_world_process_zero:
            write_text(self.job.live_log, log_text(state.log_history))
        self.progress = self.stack.enter_context(console.progress("training", state.max_steps, "steps"))
        self.progress.skip_to(state.global_step)
        gc.collect()
        gc.freeze()  # the libraries' million objects: walking through them again and again costs 6 % of a short step
        self.stack.callback(gc.unfreeze)
        self.clock, self.logged = late_log.now(args.device), state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the random states if a step may be abandoned: on a CPU, which is slow, with every step logged."""
        if args.device.type == "cpu" and args.world_size == 1 and args.logging_steps == 1:
            self.trainer.random_states = (
                (random.setstate, random.getstate()),
                (np.random.set_state, np.random.get_state()),
                (torch.set_rng_state, torch.get_rng_state()),
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count epochs over the records; the trainer's data set is the whole run in order."""
        state.epoch = state.global_step * self.job.order[0].size / len(self.job.splits["train"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Complete the entry that the trainer has just logged."""
        entry = state.log_history[-1]
        step, loss, job = state.global_step, entry.get("loss"), self.job
        if loss is not None:
            skipped = self._check(step, loss, entry.get("grad_norm", 0.0))
            ended = self.trainer.ended or late_log.now(args.device)
            elapsed = late_log.between(self.clock, ended)
            tokens = int(job.step_tokens[self.logged : step].sum())
            job.tokens_here += tokens
            job.seconds += elapsed
            entry["tokens"] = int(job.step_tokens[:step].sum())
            entry["tokens_per_second"] = round(tokens / max(1e-9, elapsed), 1)
            parts = [f"loss {loss:.3f}", f"grad {entry['grad_norm']:.2f}", f"lr {entry['learning_rate']:.1e}"]
            parts.append(f"{job.tokens_here / max(1e-9, job.seconds):,.0f} tokens/s")
            if skipped:
                entry["skipped_steps"] = skipped
                parts.append("gradient too large for f16: step skipped")
            if not math.isfinite(entry["grad_norm"]):
                entry["grad_norm"] = None  # JSON has no infinity
            if args.device.type == "cuda":
                entry["memory"] = int(torch.cuda.max_memory_allocated(args.device))
                parts.append(console.size(entry["memory"]))
            self.progress.advance(step - self.logged, note="  ".join(parts))
            self.logged, self.clock = step, ended
        elif "eval_loss" in entry:
            entry["eval_parts"] = self.trainer.parts
            self.clock = late_log.now(args.device)
        else:
            return
        if state.is_world_process_zero:
            with naming(job.live_log), job.live_log.open("a", encoding="utf-8") as file:
                file.write(log_text([entry]))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Report the held-out loss."""
        console.info(f"held-out loss at step {state.global_step}: {metrics['eval_loss']:.4f} nats per token")
        self.clock = late_log.now(args.device)

    def on_save(self, args: Any, *_: Any, **__: Any) -> None:
        """Leave the time for saving out of the speed."""
        self.clock = late_log.now(args.device)

    def _check(self, step: int, loss: float, norm: float) -> int:
        """Return how many steps since the last log the scaler of f16 skipped, because their gradient overflowed.

        Raises ToolkitError for the first other step whose loss or gradient is not finite. It names the rows of the
        micro-batches whose loss is not finite, or else all rows of the step.
        """
        trainer, args = self.trainer, self.trainer.args
        # Of later steps nothing is read yet: that would wait for them.
        losses = {one: trainer.micro_losses.pop(one) for one in [*trainer.micro_losses] if one <= step}
        norms = {one: float(trainer.norms.pop(one)) for one in [*trainer.norms] if one <= step}
        scaler = trainer.accelerator.scaler
        overflow = scaler is not None and scaler.get_scale() > 1  # of f16: the step was skipped, its scale is halved
        if math.isfinite(loss) and (math.isfinite(norm) or overflow):
            return sum(not math.isfinite(one) for one in norms.values()) if overflow else 0
        found = {one: float(sum(losses[one])) * args.world_size for one in losses}  # of this process
        wrong = [one for one in found if not (math.isfinite(found[one]) and (overflow or math.isfinite(norms[one])))]
        step = min(gather_object([min(wrong, default=step)]))
        mine = self.job.order[step - 1, args.process_index :: args.world_size]
        bad = [batch for batch, one in zip(mine, losses[step], strict=True) if not one.isfinite()]
        suspects = bad if any(gather_object([bool(bad)])) else mine
        numbers = [self.job.splits["train"][place].row for batch in suspects for place in batch]
        rows = sorted(set(gather_object(numbers)))
        raise ToolkitError(
            f"step {step}: the loss is {found[step]}, the gradient norm {norms[step]}; the batch holds rows "
            + ", ".join(map(str, rows)),
            hint="check these rows, or lower `train.learning_rate`; the last checkpoint before this step is kept",
            details={"step": step, "rows": rows},
        )


class Keep(TrainerCallback):  # type: ignore[misc]
    """Decide when to save and to measure the held-out loss, and mark each complete checkpoint.

    transformers saves at evaluations only if save_steps is a multiple of eval_steps. Here the best adapter is saved
    whenever it is found, and a checkpoint every save_steps too.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Use eval_steps and the best checkpoint's path as they are now, not as a checkpoint restored them."""
        state.compute_steps(args, state.max_steps)
        best = self.job.checkpoint(state.best_global_step or 0)
        state.best_model_checkpoint = str(best) if best.is_dir() else None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint every save_steps, and for the held-out loss after the last step."""
        if state.global_step % self.job.settings.save_steps == 0:
            control.should_save = True
        if state.global_step >= state.max_steps and self.job.splits["val"]:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Ask for a checkpoint of an adapter that is better than all earlier ones."""
        best = math.inf if state.best_metric is None else state.best_metric
        if self.job.settings.eval_steps and state.global_step and metrics["eval_loss"] < best:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint once every process has written its part."""
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.mark(self.job.checkpoint(state.global_step), self.job.fingerprint, self.job.origin)
        self.job.saved = state.global_step


class StopEarly(EarlyStoppingCallback):  # type: ignore[misc]
    """transformers' early stopping, but a resumed run keeps its count; transformers' own starts again at zero."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the held-out losses since the best one."""
        best = state.best_global_step or 0
        since = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] > best]
        self.early_stopping_patience_counter = len(since)
        # The trainer looks this up when it saves, even if the checkpoint's run had no early stopping.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """End the run after the current step or held-out batch, with a checkpoint; a second signal ends it at once.

    On a CPU, where a step may take minutes, the run ends after the current micro-batch (see `training_step`).
    """

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self.job = job
        self.stack = stack
        self.request = signals.Request()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Handle the signals until training ends."""
        self.stack.enter_context(signals.handled(self.stop))

    def stop(self, number: int, frame: object) -> None:
        """Note that the run must stop."""
        if number == signal.SIGHUP:
            streams.hang_up()
        count = self.request.count(number)
        if count == 2:
            raise KeyboardInterrupt
        if not count:
            return
        self.job.stopped = True
        console.info("stopping as soon as a checkpoint can be saved; a second signal stops at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let all processes decide the same; whatever is saved, measured or final was logged and checked before."""
        if state.global_step < state.max_steps and stop_asked(self.job, args):
            self.job.stopped = True
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True


def stop_asked(job: Job, args: Any) -> bool:
    """Tell whether any of the processes was asked to stop."""
    return any(gather_object([job.stopped])) if args.world_size > 1 else job.stopped


def log_text(history: list[dict[str, Any]]) -> str:
    """Return the trainer's log as JSON lines: an object for each step, and one for each held-out loss.

    The keys have one order, also of entries that a checkpoint brought back.
    """
    kept = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    first = ("step", "loss", "eval_loss")
    ordered = [{key: entry[key] for key in (*first, *sorted({*entry} - {*first})) if key in entry} for entry in kept]
    return "".join(json.dumps(entry) + "\n" for entry in ordered)
