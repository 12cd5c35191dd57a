"""The number format in which frozen weights are multiplied: bf16, or FP8 if this GPU passed its test."""

from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.model.model_config import ModelConfig
from toolkit.model.precision import check_base_compute, fp8_refusal
from toolkit.train import parallel
from toolkit.train.backend import Backend, said_of

# What train.base_compute = "auto" means. FP8 rounds each frozen product by 3.7 %; docs/benchmarks/fp8.md shows what
# that does to learning. It stays bf16 until the held-out loss is shown to be within 0.005 nats of bf16's.
AUTO = "bf16"


def uses_fp8(config: Config, backend: Backend, precision: str, shape: ModelConfig | None) -> bool:
    """Decide whether the frozen weights are multiplied in FP8, prove that this GPU can, and say so in one line.

    Processes that train together decide the same. Raises ToolkitError if the settings demand FP8 and it cannot be used.
    """
    wanted = config.train.base_compute
    if wanted == "bf16" or (wanted == "auto" and AUTO == "bf16"):
        return False
    capability = _capability() if backend.device == "cuda" else None
    check_base_compute(config, capability, precision, sharded=parallel.sharded())
    refusal = fp8_refusal(capability, precision, sharded=parallel.sharded()) or _first(_unproven(shape))
    if not refusal:
        console.info("frozen weights: FP8 (e4m3), proven on this GPU against bf16 in products of this base's sizes")
        return True
    if wanted == "fp8":
        hint = 'set train.base_compute = "auto"'
        raise ToolkitError(f"train.base_compute is fp8, but {refusal}", hint=hint, exit_code=MISSING)
    console.info(f"frozen weights: {precision}, because {refusal}")
    return False


def quantize_frozen(model: Any, fast_lora: Any = None) -> None:
    """Put a model's frozen linear layers into FP8, in place; `fast_lora` is Unsloth's module of fused functions."""
    import torch

    from toolkit.train.fp8 import install

    count = install.convert(model)
    fused = install.fuse(model, fast_lora) if fast_lora else 0
    console.info(f"frozen weights: {count} linear layers in FP8" + (f", {fused} fused with LoRA" if fused else ""))
    torch.cuda.empty_cache()


def _capability() -> tuple[int, int]:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return major, minor


def _unproven(shape: ModelConfig | None) -> str:
    """Return why this GPU cannot be trusted with FP8 products of a base's sizes; empty if it can."""
    from toolkit.train.fp8 import proof, weights

    if shape is None:
        return "the sizes of this base's weights are unknown"
    sizes = [size for size in shape.linears().values() if weights.fits(*size)]
    if not sizes:
        return f"no layer's sizes are multiples of {weights.ALIGNED}"
    try:
        return proof.prove(sizes)
    except Exception as exc:  # a kernel that does not compile, a product that this GPU or torch does not have
        return f"the first product failed: {said_of(exc)}"


def _first(reason: str) -> str:
    """Return the first reason that any of the processes has."""
    from accelerate.utils import gather_object

    return next((found for found in gather_object([reason]) if found), "")
