"""One of several processes that train a model which accelerate's FSDP shards, on CPUs: `sharded.py REQUEST ANSWER`.

REQUEST and ANSWER are those of `toolkit.train.worker`. accelerate shards on GPUs only, so it is told that these CPUs
are some; sharding and collectives are torch's own, over gloo. FOUR_BIT in the environment loads the base in
bitsandbytes' 4 bits stored as that dtype, and KILL_AT ends the process when that step begins. Without RANK it trains
alone, for comparison.
"""

import os
import runpy
import signal
from pathlib import Path
from typing import Any
from unittest import mock


def pretend_gpus() -> None:
    """Meet the other processes, and have accelerate take their CPUs for GPUs."""
    import torch.distributed as dist
    import trl
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    dist.init_process_group("gloo")
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    real = trl.SFTConfig

    def configured(**values: Any) -> Any:
        return real(**{**values, "accelerator_config": {"use_configured_state": True}})

    mock.patch.object(trl, "SFTConfig", configured).start()


def insist_on_shares() -> None:
    """Fail where a parameter is not divided among the processes."""
    from torch.distributed.tensor import DTensor
    from transformers import TrainerCallback

    from toolkit.train import trainer

    class Insist(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
            assert not whole, f"not sharded: {whole}"

    real = trainer.make

    def make(*arguments: Any) -> Any:
        made = real(*arguments)
        made.add_callback(Insist())
        return made

    mock.patch.object(trainer, "make", make).start()


def load_in_four_bits(storage: str) -> None:
    """Load every base as on a GPU: 4-bit layers, their bytes named `storage`, and the rest in bf16."""
    import bitsandbytes.nn.modules
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.train import peft_backend

    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # it packs weights for itself, which no GPU does
    real = AutoModelForCausalLM.from_pretrained

    def loaded(folder: Path, **options: Any) -> Any:
        options |= {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
        quantization = peft_backend._four_bit(torch.bfloat16)
        quantization.bnb_4bit_quant_storage = getattr(torch, storage)
        model = real(folder, **options, quantization_config=quantization)
        weight = model.model.layers[0].mlp.up_proj.weight
        assert type(weight).__name__ == "Params4bit" and weight.dtype == getattr(torch, storage)
        return model

    AutoModelForCausalLM.from_pretrained = loaded


def kill_at(number: int) -> None:
    """Have this process killed when a step begins."""
    from toolkit.train.trainer import ToolkitTrainer

    real = ToolkitTrainer.training_step

    def step(trainer: Any, *arguments: Any, **named: Any) -> Any:
        if trainer.state.global_step == number - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(trainer, *arguments, **named)

    mock.patch.object(ToolkitTrainer, "training_step", step).start()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    if "RANK" in os.environ:
        pretend_gpus()
        insist_on_shares()
    if "FOUR_BIT" in os.environ:
        load_in_four_bits(os.environ["FOUR_BIT"])
    if "KILL_AT" in os.environ:
        kill_at(int(os.environ["KILL_AT"]))
    runpy.run_module("toolkit.train.worker", run_name="__main__")
