"""A base with 4-bit weights as a folder that transformers loads without bitsandbytes, kept in the user's cache."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.files import sha256_of, write_text, writing_folder
from toolkit.core.places import cache_folder
from toolkit.formats.bnb_4bit import plain_tensors
from toolkit.model.model_config import CONFIG, is_four_bit, read_config

SHARD = 2_000_000_000  # bytes of one file of a dequantized folder, in memory while it is written


def plain_folder(folder: Path) -> Path:
    """Return a folder that transformers loads without bitsandbytes: the same one, or its dequantized copy.

    The copy has the dtype that the weights had before they were quantized; it is written once, shard by shard, and kept
    in the user's cache under the SHA-256 of the original's weights.
    """
    if not is_four_bit(folder):
        return folder
    weights = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256("".join(sha256_of(path) for path in weights).encode()).hexdigest()
    target = cache_folder() / "bases" / f"{folder.name}-16bit-{digest[:16]}"
    if (target / CONFIG).is_file():
        return target
    console.info(f"base model: dequantizing {folder.name} from 4 bits, once")
    with writing_folder(target) as fresh:
        _dequantize_folder(folder, fresh)
    return target


def _dequantize_folder(folder: Path, target: Path) -> None:
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    shard: dict[str, Any] = {}
    size = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        number += 1
        file = f"model-{number:05}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard, size = {}, 0

    for name, tensor in plain_tensors(folder):
        shard[name] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD:
            flush()
    if shard:
        flush()
    for path in folder.iterdir():
        if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".gguf")):
            shutil.copyfile(path, target / path.name)
    config = read_config(folder)
    config.pop("quantization_config", None)
    write_text(target / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": places}) + "\n")
    write_text(target / CONFIG, json.dumps(config, indent=2) + "\n")
