"""Put another base's weights into a loaded model in place, one at a time: the adapter on it stays."""

from typing import Any

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.formats import bnb_4bit
from toolkit.model.merge_base import OtherBase

# What PEFT puts between a module's name and the base's own weight if it trains that module.
WRAPPERS = (".base_layer", ".original_module", ".token_adapter")
NOT_QUANTIZED = ("lm_head", ".lora_", ".modules_to_save.")


def exchange(model: Any, other: OtherBase) -> None:
    """Give a PEFT model the weights of another base, in its own dtype and on its own device.

    Raises ToolkitError if they are not on this machine, or are those of another model.
    """
    if other.folder is None:
        raise ToolkitError(f"the base `{other.label}` is not on this machine")
    if other.through:
        _through_four_bits(model, other.through)
    else:
        _replace(model, other)


def _replace(model: Any, other: OtherBase) -> None:
    import torch

    assert other.folder is not None
    places = {}
    for name, weight in model.get_base_model().named_parameters():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        places[name] = weight
    used = 0
    for name, tensor in bnb_4bit.plain_tensors(other.folder):
        place = places.get(name)
        if place is None:  # rotary buffers of old checkpoints, a tied model's copy of its embedding
            continue
        if place.shape != tensor.shape:
            raise ToolkitError(f"`{name}` in `{other.folder}` has shape {list(tensor.shape)}, not {list(place.shape)}")
        with torch.no_grad():
            place.copy_(tensor)
        used += 1
    expected = sum(".lora_" not in name and ".default" not in name for name in places)
    if used < expected:
        raise ToolkitError(f"`{other.folder}` holds {used} of the model's {expected} weights")


def _through_four_bits(model: Any, dtype: str) -> None:
    """Quantize and dequantize every linear layer but the head, as QLoRA does when it loads a 16-bit base."""
    import torch

    if not hardware.installed("bitsandbytes"):
        raise ToolkitError("bitsandbytes, which quantized the base for training, is not installed here")
    from bitsandbytes import functional

    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, torch.nn.Linear) or any(part in name for part in NOT_QUANTIZED):
            continue
        with torch.no_grad():
            weight = module.weight.to(getattr(torch, dtype))
            packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
            module.weight.copy_(functional.dequantize_4bit(packed, state))
