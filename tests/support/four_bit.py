"""Write a checkpoint as transformers saves a model in bitsandbytes' 4 bits, from a folder in 16 bits."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toolkit.formats.bnb_4bit import CODES

BLOCK = 64
NESTED_BLOCK = 256


def state_tensor(values: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def quantize(name: str, weight: torch.Tensor, kind: str, nested: bool) -> dict[str, torch.Tensor]:
    """Quantize one weight as the QLoRA paper does; the map of the scales is an even one, any would do."""
    flat = weight.float().reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
    absmax = padded.abs().amax(dim=1)
    code = torch.from_numpy(CODES[kind].copy())
    index = ((padded / absmax.clamp(min=1e-30)[:, None])[..., None] - code).abs().argmin(-1).reshape(-1)
    index = index[: flat.numel() + flat.numel() % 2].to(torch.uint8)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": BLOCK, "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }  # fmt: skip
    tensors = {name: (index[0::2] << 4 | index[1::2])[:, None], f"{name}.absmax": absmax, f"{name}.quant_map": code}
    if nested:
        offset = absmax.mean()
        rest = absmax - offset
        blocks = torch.nn.functional.pad(rest, (0, -rest.numel() % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
        scale = blocks.abs().amax(dim=1)
        levels = torch.linspace(-1, 1, 256)
        found = ((blocks / scale.clamp(min=1e-30)[:, None] + 1) * 127.5).round().reshape(-1)[: rest.numel()]
        tensors[f"{name}.absmax"] = found.to(torch.uint8)
        tensors |= {f"{name}.nested_absmax": scale, f"{name}.nested_quant_map": levels}
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset.item()}
    tensors[f"{name}.quant_state.bitsandbytes__{kind}"] = state_tensor(state)
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def quantized_folder(
    base: Path, target: Path, kind: str, nested: bool, skip: str = "never", shard: int = 10**9
) -> Path:
    """Quantize the linear layers of a base but those named `skip`; shards may part a weight from its scales."""
    shutil.copytree(base, target)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(target / "model.safetensors").items():
        linear = "_proj.weight" in name and skip not in name
        tensors |= quantize(name, weight, kind, nested) if linear else {name: weight}
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name in sorted(tensors):
        if sum(tensor.nbytes for tensor in parts[-1].values()) > shard:
            parts.append({})
        parts[-1][name] = tensors[name]
    if len(parts) == 1:
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target
    (target / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(part, target / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return target
