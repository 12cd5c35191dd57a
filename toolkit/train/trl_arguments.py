"""The settings of a training under TRL's names."""

from typing import TYPE_CHECKING

from toolkit.core import console, hardware
from toolkit.model.families.refused import has_experts
from toolkit.model.model_config import read_config
from toolkit.train import batches, parallel
from toolkit.train.job import Job

if TYPE_CHECKING:
    from trl import SFTConfig

NEVER = 10**9  # steps: `Keep` decides when to save
MAX_GRAD_NORM = 1.0  # the recipe's trainer clips the gradient to this norm


def arguments(job: Job, *, packs: bool) -> "SFTConfig":
    """Return the settings under TRL's names; the records of a micro-batch are packed into one row, or padded."""
    from trl import SFTConfig

    settings, plan, cuda = job.settings, job.plan, job.backend.device == "cuda"
    evaluates = bool(job.splits["val"]) and settings.eval_steps > 0
    return SFTConfig(
        output_dir=str(job.place),
        max_steps=job.steps,
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=batches.held_out_batch(len(job.splits["val"]), plan.micro_batch)[0],
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
        padding_free=packs,
        max_length=None,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        ddp_find_unused_parameters=False,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=settings.report_to or "none",
        eval_on_start=job.evaluates_first,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_steps if evaluates else None,
        save_strategy="steps",
        save_steps=NEVER * max(1, settings.eval_steps),
        save_total_limit=3 if evaluates else 2,  # the best one, the last one, and the one before while that is written
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        # Granite-4.0's class has the coefficient without experts too; transformers then fails on a loss of none.
        router_aux_loss_coef=None if has_experts(read_config(job.base.folder)) else 0.0,
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
