"""Plain transformers + PEFT: LoRA on a CPU or a CUDA GPU, QLoRA through bitsandbytes on CUDA."""

from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.quiet import silence_transformers
from toolkit.model.attention_kernels import VARLEN
from toolkit.model.base import Base
from toolkit.model.memory_plan import MemoryPlan
from toolkit.model.model_config import is_four_bit, read_config
from toolkit.model.states import reason_to_pad
from toolkit.model.text_part import text_part
from toolkit.train import base_compute, varlen
from toolkit.train.backend import Backend, dequantize


def make_peft_backend(device: str, reason: str) -> Backend:
    """Return this backend for a device, `cpu` or `cuda`."""
    return Backend("peft", device, reason, load_with_peft, infer)


def load_with_peft(base: Base, config: Config, plan: MemoryPlan, device: Any, compute: Any) -> Any:
    """Load the base and put a fresh adapter on it; on a CPU the weights are float32.

    On CUDA the base stays in 16 bits, `compute`, if it is not quantized: PEFT's own preparation would turn
    embeddings and head into float32, 2 GB more for an 8B model.
    """
    silence_transformers()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = config.train
    cuda = torch.cuda.is_available() and str(device) != "cpu"
    options: dict[str, Any] = {"dtype": torch.float32}
    if cuda:
        options = {"dtype": compute, "device_map": {"": device or "cpu"}}
        if config.model.load_in_4bit and not is_four_bit(base.folder):
            options["quantization_config"] = _four_bit(compute)
    values, renamed = text_part(AutoConfig.from_pretrained(base.folder))
    if renamed:
        console.info("the base also sees images: its language model alone is trained, without the vision tower")
    packs = not reason_to_pad(read_config(base.folder))
    kernel = varlen.choose(values, device or "cuda", compute) if cuda and packs else ""
    if kernel == VARLEN:
        options["attn_implementation"] = varlen.register_kernel()
    elif getattr(values, "attn_logit_softcapping", None) is not None:
        options["attn_implementation"] = "eager"  # transformers would take torch's, which leaves out Gemma-2's soft cap
    model = AutoModelForCausalLM.from_pretrained(base.folder, config=values, use_safetensors=True, **renamed, **options)
    if cuda:
        if kernel:
            varlen.announce(kernel)
        for module in model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = compute  # a 4-bit repository names bf16, which older GPUs only emulate
    if plan.strategy.dequantized:
        model = dequantize(model, compute)
    model.config.use_cache = False
    model.requires_grad_(False)
    torch.manual_seed(settings.seed)  # the adapter's first weights
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=settings.target_modules,
            use_rslora=settings.use_rslora,
            bias="none",
        ),
    )
    if plan.strategy.fp8:
        base_compute.quantize_frozen(model)
    if kernel == VARLEN:
        model.register_forward_pre_hook(varlen.add_lengths, with_kwargs=True)
    if device is None:
        _make_shardable(model)
    return model


def _four_bit(compute: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,  # what FSDP can shard; without it nothing changes
    )


def _make_shardable(model: Any) -> None:
    """View uint8 4-bit weights as bf16: FSDP leaves integer tensors whole on every GPU."""
    import torch

    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8:
            weight.data = weight.data.flatten().view(torch.bfloat16).unsqueeze(1)
            weight.quant_storage = module.quant_storage = torch.bfloat16


def infer(model: Any) -> None:
    """Prepare the model for generation."""
    model.eval()
    model.config.use_cache = True
