"""Plain transformers + PEFT: LoRA on a CPU or a CUDA card, QLoRA through bitsandbytes on CUDA."""

from typing import Any

from toolkit import fourbit, machine
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import MISSING, ToolkitError
from toolkit.memory import Plan
from toolkit.train import attention, loss, varlen
from toolkit.train.backend import Backend, dequantize
from toolkit.train.batches import Batch


def backend(device: str, reason: str) -> Backend:
    """Return this backend for a device, `cpu` or `cuda`."""
    return Backend("peft", device, reason, load, packed_loss, lambda _: False, infer)


def load(base: Base, config: Config, plan: Plan, device: Any, compute: Any) -> Any:
    """Load the base and put a fresh adapter on it; on a CPU the weights are float32.

    `device` is where the weights go; None is main memory, from where FSDP moves each card its share: no card ever holds
    the whole model. On CUDA the base stays in 16 bits, `compute`, where it is not quantized: PEFT's own preparation
    would turn embeddings and head into float32, 2 GB more for an 8B model.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = config.train
    cuda = torch.cuda.is_available() and str(device) != "cpu"
    options: dict[str, Any] = {"dtype": torch.float32}
    if cuda:
        options = {"dtype": compute, "device_map": {"": device or "cpu"}}
        if config.model.load_in_4bit and not fourbit.is_four_bit(base.folder):
            options["quantization_config"] = _four_bit(compute)
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, use_safetensors=True, attn_implementation=attention.register(), **options
    )
    if cuda:
        varlen.announce(attention.kernel(model.config, device or "cuda", compute))
        for module in model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = compute  # a 4-bit repository names bf16, which older cards only emulate
    if plan.way.dequantized:
        model = dequantize(model, compute)
    model.config.use_cache = False
    model.requires_grad_(False)
    if plan.way.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(settings.seed)  # the adapter's first weights
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=settings.lora_targets,
            use_rslora=settings.rslora,
            bias="none",
        ),
    )
    loss.attach(model.get_base_model())
    return model


def _four_bit(compute: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if not machine.installed("bitsandbytes"):
        raise ToolkitError(
            "4-bit loading needs the package bitsandbytes",
            hint='install it with `pip install -c constraints.txt ".[cuda]"`, or set model.load_in_4bit = false',
            exit_code=MISSING,
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,  # what FSDP can shard; without it nothing changes
    )


def packed_loss(model: Any, batch: Batch, total: Any) -> Any:
    """Return the batch's summed cross entropy divided by `total`."""
    return model(**loss.inputs(batch), labels=batch.labels, total=total).loss


def infer(model: Any) -> None:
    """Ready the model for generation."""
    model.eval()
    model.config.use_cache = True
