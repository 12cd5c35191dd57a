"""The sizes of the recipes' bases by name, for a base that is not on this machine yet."""

from typing import Any

from toolkit.model.model_config import ModelConfig


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, wide: int, vocab: int, **other: Any) -> ModelConfig:
    head_dim = other.pop("head_dim", hidden // heads)
    return ModelConfig(hidden, layers, heads, kv_heads, head_dim, wide, vocab, **other)


_GEMMA_2: dict[str, Any] = {"architecture": "gemma2", "tied": True, "norms": 4}
# From the public config.json of each; a hub id is known by these words in its name, all of them. Phi-3 repositories of
# Unsloth hold the same weights with separate projections.
KNOWN: tuple[tuple[tuple[str, ...], ModelConfig], ...] = (
    (("llama-3.1", "8b"), _llama(4096, 32, 32, 8, 14336, 128256)),
    (("llama-3.1", "70b"), _llama(8192, 80, 64, 8, 28672, 128256)),
    (("llama-3.1", "405b"), _llama(16384, 126, 128, 8, 53248, 128256)),
    (("mistral-7b", "v0.3"), _llama(4096, 32, 32, 8, 14336, 32768)),
    (("mistral-nemo",), _llama(5120, 40, 32, 8, 14336, 131072, head_dim=128)),
    (("unsloth/", "phi-3.5-mini"), _llama(3072, 32, 32, 32, 8192, 32064)),
    (("phi-3.5-mini",), _llama(3072, 32, 32, 32, 8192, 32064, architecture="phi3", fused=True)),
    (("unsloth/", "phi-3-medium"), _llama(5120, 40, 40, 10, 17920, 32064)),
    (("phi-3-medium",), _llama(5120, 40, 40, 10, 17920, 32064, architecture="phi3", fused=True)),
    (("gemma-2-9b",), _llama(3584, 42, 16, 8, 14336, 256000, head_dim=256, **_GEMMA_2)),
    (("gemma-2-27b",), _llama(4608, 46, 32, 16, 36864, 256000, head_dim=128, **_GEMMA_2)),
)


def known_model(label: str) -> ModelConfig | None:
    """Return the sizes of a base that is known by name, None for others."""
    name = label.lower()
    return next((shape for words, shape in KNOWN if all(word in name for word in words)), None)
