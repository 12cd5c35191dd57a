"""The settings of training, under TRL's and PEFT's names."""

import math
from fractions import Fraction
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from toolkit.core.section import Section

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# Their learning rate does not depend on the length of the run, so a finished run can continue with more steps.
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")


class TrainSettings(Section):
    """LoRA and the optimizer."""

    backend: Literal["auto", "unsloth", "peft"] = "auto"
    """auto: Unsloth where there is a CUDA GPU and Unsloth is installed, else plain PEFT."""
    max_length: int = Field(2048, ge=16)
    """Longest record in tokens, prompt and EOS included."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the training records, fractions allowed; the last step is always complete."""
    max_steps: int | None = Field(None, ge=1)
    """Number of optimizer steps, instead of num_train_epochs."""
    batch_size: int = Field(2, ge=1)
    """batch_size × gradient_accumulation_steps is the number of records in a step, over all GPUs."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """See batch_size; memory decides how many forward passes a step takes."""
    packing: bool = True
    """Records of a pass share one row without padding. true: as many as memory allows; false: batch_size."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises from zero."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "linear"
    """Schedule of the learning rate after the warm-up, by transformers' names."""
    optim: Literal[
        "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch", "adamw_torch_fused", "adafactor", "sgd"
    ] = "adamw_torch_fused"
    """Optimizer, by transformers' names. 8bit and 32bit ones need CUDA and bitsandbytes, else adamw_torch is used."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the optimizer."""
    lora_r: int = Field(16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(16, ge=1)
    """Scale of the adapter: alpha / r, or alpha / sqrt(r) with use_rslora."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside the adapter."""
    target_modules: list[str] = LORA_TARGETS
    """Linear layers that get an adapter."""
    use_rslora: bool = False
    """Rank-stabilized scale."""
    completion_only_loss: bool = True
    """Loss on the answer alone; false: on the prompt too."""
    turns: Literal["all", "last"] = "all"
    """The answers of a chat that are learned; the others are only read."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Recompute activations, which saves memory and takes time; "auto": only if memory is short."""
    precision: Literal["auto", "bf16", "f16", "f32"] = "auto"
    """auto: bf16 where the device has it, else f16 on CUDA and f32 on a CPU. f16 needs CUDA, f32 needs a CPU."""
    base_compute: Literal["auto", "bf16", "fp8"] = "auto"
    """What multiplies the frozen weights. auto: bf16. fp8: e4m3 on Ada, Hopper and later, faster and less exact."""
    eval_steps: int = Field(0, ge=0)
    """Measure the held-out loss every N steps and keep the best adapter; 0: before and after only."""
    max_eval_samples: int = Field(200, ge=0)
    """Number of val records that the held-out loss is measured on, spread evenly; 0: all of them."""
    early_stopping_patience: int = Field(0, ge=0)
    """Stop after N held-out losses in a row without improvement; 0: never. Needs eval_steps."""
    save_steps: int = Field(20, ge=1)
    """Save a checkpoint every N steps; an interrupted run continues from the last one."""
    logging_steps: int = Field(1, ge=1)
    """Log every N steps. Plain PEFT and several GPUs wait for each log: short steps are faster with 8 or so."""
    seed: int = Field(3407, ge=0, lt=2**32)
    """Seed of the adapter's weights, the data order and dropout."""
    report_to: list[str] = []
    """Where else the trainer reports its log, by transformers' names: tensorboard, wandb, mlflow, …"""
    allow_unexportable: bool = False
    """Train a base that cannot be exported to GGUF, for its adapter alone; false: it is refused before training."""

    @field_validator("target_modules")
    @classmethod
    def _some_targets(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one layer")
        return value

    @model_validator(mode="after")
    def _stopping_needs_losses(self) -> "TrainSettings":
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("early_stopping_patience watches the held-out loss: set eval_steps too")
        return self

    @model_validator(mode="after")
    def _turns_have_answers(self) -> "TrainSettings":
        if self.turns == "last" and not self.completion_only_loss:
            raise ValueError('turns = "last" learns last answers alone, completion_only_loss = false the whole text')
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSettings":
        if self.max_steps is not None and "num_train_epochs" in self.model_fields_set:
            raise ValueError("max_steps and num_train_epochs are both set: leave one of them out")
        return self

    @model_serializer(mode="wrap")
    def _without_the_idle_length(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the one of max_steps and num_train_epochs that does not count, so that reading works again."""
        values: dict[str, Any] = written(self)
        values.pop("max_steps" if self.max_steps is None else "num_train_epochs", None)
        return values

    @property
    def answers_alone(self) -> str:
        """What stands behind another option so that answers alone are learned: empty if they are, else an option."""
        return "" if self.completion_only_loss else " --set train.completion_only_loss=true"

    @property
    def records_a_step(self) -> int:
        """The records of a step over all GPUs."""
        return self.batch_size * self.gradient_accumulation_steps

    def steps_for(self, records: int) -> int:
        """Return the optimizer steps of a run, given the number of training records."""
        if self.max_steps is not None:
            return self.max_steps
        # As it is written: 0.7 epochs of 10 records are 7, and not the float that is a little more.
        return math.ceil(Fraction(str(self.num_train_epochs)) * records / self.records_a_step)
