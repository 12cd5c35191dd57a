"""What a run needs on machines of several sizes, computed by the same plans as in training and `doctor`."""

from collections.abc import Sequence

from toolkit.core.config import Config
from toolkit.core.console import size
from toolkit.doctor import estimate
from toolkit.model import base, memory, memory_plan
from toolkit.model.memory import total
from toolkit.model.memory_plan import Device, MemoryPlan
from toolkit.model.model_config import ModelConfig

RAM = (8.0, 12.7, 16.0, 32.0)  # GB: a laptop, Colab, workstations
GPUS = (8, 15, 24, 80)  # GB: the T4 has 15
SYSTEM = 1_000_000_000  # bytes of main memory that are never free
CORES = 2


def machines_table(config: Config, shape: ModelConfig, ram: Sequence[float] = RAM, gpus: Sequence[int] = GPUS) -> str:
    """Return a Markdown table: main memory by rows, GPUs by columns, and what fits where."""
    heads = ["main memory", *(f"GPU of {gpu} GB" for gpu in gpus)]
    rows = [[f"{there:g} GB", *(what_fits(config, shape, there, gpu) for gpu in gpus)] for there in ram]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def what_fits(config: Config, shape: ModelConfig, ram: float, gpu: int) -> str:
    """Say what of a run fits into `ram` and `gpu` GB where nothing else runs.

    That is the micro-batch of training, or else the stages that lack memory, with what they need.
    """
    chosen = training_plan(config, shape, gpu)
    offloaded = 2 * shape.table() if chosen.strategy.offloaded else 0
    whole, context = config.export.merge_base == "as-trained", config.train.max_length
    needs = {
        "train": memory.LIBRARIES + offloaded,
        "export": total(estimate.export_memory(shape, CORES, whole=whole)),
        "validate": total(estimate.validation(shape, config.export.quantizations, context)),
    }
    lacking = [f"{stage} needs {size(need)}" for stage, need in needs.items() if need > ram * 1e9 - SYSTEM]
    if not chosen.fits:
        lacking.insert(0, f"train needs {size(chosen.estimate or 0)} of the GPU")
    if lacking:
        return "; ".join(lacking)
    return f"all, {chosen.micro_batch} of {chosen.micro_batch * chosen.accumulation} records at a time"


def training_plan(config: Config, shape: ModelConfig, gpu: int) -> MemoryPlan:
    """Return the plan of training under Unsloth on a GPU of so many GB with nothing on it but the CUDA context."""
    four_bit = config.model.load_in_4bit or config.model.base.endswith(base.FOUR_BIT)
    device = Device(int(gpu * 1e9) - memory.CUDA_CONTEXT, cuda=True, unsloth=True, four_bit=four_bit, bf16=True)
    return memory_plan.plan(shape, config.train, device)
