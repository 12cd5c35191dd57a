"""One of several processes that train a model which accelerate's FSDP shards, on CPUs: `sharded.py ORDER ANSWER`.

ORDER and ANSWER are those of `toolkit.train.child`. accelerate shards on cards only, so it is told that these CPUs are
some; sharding and collectives are torch's own, over gloo. PIECE in the environment is how many positions get logits at
once, FOUR_BIT loads the base in bitsandbytes' 4 bits stored as that dtype, and KILL_AT ends the process when that step
begins. Without RANK it trains alone, for comparison.
"""

import os
import runpy
import signal
from pathlib import Path
from typing import Any


def pretend_cards() -> None:
    """Meet the other processes, and have accelerate take their CPUs for cards."""
    import torch.distributed as dist
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from toolkit.train import workers

    dist.init_process_group("gloo")
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    place = workers.Workers(dist.get_rank(), dist.get_world_size(), dist.get_rank(), sharded=True)
    workers.join = lambda: place


def insist_on_shares() -> None:
    """Fail where a parameter is not divided among the processes."""
    from torch.distributed.tensor import DTensor

    from toolkit.train.sharding import Whole

    real = Whole.of

    def of(*arguments: Any) -> Whole:
        made = real(*arguments)
        whole = [name for name, parameter in made.model.named_parameters() if not isinstance(parameter, DTensor)]
        assert not whole, f"not sharded: {whole}"
        return made

    Whole.of = staticmethod(of)


def load_in_four_bits(storage: str) -> None:
    """Load every base as on a card: 4-bit layers, their bytes named `storage`, and the rest in bf16."""
    import bitsandbytes.nn.modules
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.train import peft_backend

    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # it packs weights for itself, which no card does
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
    from toolkit.train import step

    real = step.launch

    def launch(job: Any, now: int) -> Any:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(job, now)

    step.launch = launch


if __name__ == "__main__":
    import torch

    from toolkit.train import loss

    torch.set_num_threads(1)
    loss.LOGITS = int(os.environ["PIECE"])
    if "RANK" in os.environ:
        pretend_cards()
        insist_on_shares()
    if "FOUR_BIT" in os.environ:
        load_in_four_bits(os.environ["FOUR_BIT"])
    kill_at(int(os.environ.get("KILL_AT", "0")))
    runpy.run_module("toolkit.train.child", run_name="__main__")
