"""Models that keep a state from token to token in llama.cpp: it cannot be cut back, nor shared from some token on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.formats.gguf_reader import open_gguf

STATES = 750_000_000  # bytes of the states of all sequences


def keeps_state(llm: Any) -> bool:
    """Tell whether some layers of a loaded model keep a state."""
    import llama_cpp

    return bool(llama_cpp.llama_model_is_recurrent(llm.model) or llama_cpp.llama_model_is_hybrid(llm.model))


def recurrent_layers(metadata: Mapping[str, Any]) -> int:
    """Count the layers with a state by a GGUF file's header; 0 for a model of attention alone.

    Those that `attention.recurrent_layers` marks, else all but every fourth (or `full_attention_interval`th) one.
    """
    name = metadata.get("general.architecture")
    if not metadata.get(f"{name}.ssm.inner_size"):
        return 0
    marks = metadata.get(f"{name}.attention.recurrent_layers")
    if isinstance(marks, list):
        return sum(map(bool, marks))
    layers, every = metadata.get(f"{name}.block_count", 0), metadata.get(f"{name}.full_attention_interval", 4)
    return sum((layer + 1) % int(every or 4) != 0 for layer in range(int(layers)))


def state_bytes(metadata: Mapping[str, Any]) -> int:
    """Return the bytes of one sequence's state, float32, whatever its length.

    Formula: llama.cpp's llama-hparams.cpp (`n_embd_r`, `n_embd_s`).
    """

    def size(key: str) -> int:
        return int(metadata.get(f"{metadata.get('general.architecture')}.ssm.{key}") or 0)

    inner, state = size("inner_size"), size("state_size")
    kept = max(0, size("conv_kernel") - 1) * (inner + 2 * size("group_count") * state) + state * inner
    return 4 * kept * recurrent_layers(metadata)


def sequences(path: Path, most: int) -> int:
    """Return how many sequences a GGUF file's states have room for, from 1 to `most`."""
    each = state_bytes(open_gguf(path).metadata)
    return max(1, min(most, STATES // each)) if each else most
