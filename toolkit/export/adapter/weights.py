"""Open a LoRA adapter as PEFT saved it: one change per tensor of the base, every tensor of the adapter used once.

PEFT's computation decides what an adapter means: `modules_to_save` and LoRA change only their own module, so on a tied
base they untie it; a copy of the base's weights next to them means the base's own, which stay tied.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.adapter.config import CONFIG, check_config, pattern
from toolkit.export.adapter.deltas import (
    EMBEDDING,
    HEAD,
    Adapter,
    Change,
    LoraDelta,
    Rows,
    Shift,
    check_shapes,
)
from toolkit.export.adapter.named_modules import check_named, unkept_promise
from toolkit.export.adapter.names import plain_names, plain_patterns
from toolkit.export.adapter.sorting import SortedTensors, sort_tensors
from toolkit.formats import checkpoint
from toolkit.formats.safetensors_header import AGAIN, TensorInfo, read_header
from toolkit.model.config_values import brief
from toolkit.model.model_config import ModelConfig

WEIGHTS = "adapter_model.safetensors"
HEAD_FROM_EMBEDDING = ("gemma2",)  # llama.cpp has no output matrix for these


def open_adapter(folder: Path, weights: Mapping[str, tuple[int, ...]], model: ModelConfig) -> Adapter:
    """Return what an adapter changes; `weights` are the base's names and shapes, `model` its shape.

    Only headers are read. Raises ToolkitError for anything that cannot be merged, for tensors that belong to no tensor
    of the base, and for shapes of another base.
    """
    config = plain_patterns(read_json(folder / CONFIG, "give the folder that PEFT's save_pretrained wrote"))
    check_config(config, folder)
    return adapter_of(config, plain_names(_open_weights(folder), folder), weights, model, folder)


def adapter_of(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    weights: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
    folder: Path,
) -> Adapter:
    """Return what an adapter of these settings and tensors changes; raises what `open_adapter` raises."""
    found = sort_tensors(folder, tensors, config, weights, model)
    changes: dict[str, Change] = {}
    for module, parts in found.parts.items():
        changes.update(_changes(config, module, parts, weights, folder))
    replaced, tied = _place(found, changes, model, folder)
    embedding = replaced.get(EMBEDDING)
    resized = embedding is not None and len(embedding.shape) == 2 and embedding.shape[1] == model.hidden
    rows = embedding.shape[0] if embedding and resized else model.vocab
    own = {name.rpartition(".")[0] for name in found.own}
    gap = unkept_promise(config, {*found.parts, *own}, weights)
    adapter = Adapter(replaced, changes, rows, tied, gap)
    check_shapes(adapter, weights, model)
    unnamed = check_named(config, found.parts, own, folder / WEIGHTS)
    _check_promises(config, found, folder)
    return replace(adapter, gap=gap or unnamed)


def _open_weights(folder: Path) -> dict[str, TensorInfo]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ToolkitError(
                f"the adapter in `{folder}` has pickled weights (`adapter_model.bin`)",
                hint="pickled files are never loaded: save it as safetensors, with PEFT's save_pretrained(…)",
            )
        raise ToolkitError(f"the adapter in `{folder}` has no weights: no `{WEIGHTS}`", hint="train it first")
    tensors = read_header(path)
    if not tensors:
        raise ToolkitError(f"the adapter in `{folder}` has no weights: `{WEIGHTS}` is empty", hint="train it first")
    return tensors


def _changes(
    config: Mapping[str, Any],
    module: str,
    parts: Mapping[str, TensorInfo],
    weights: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> list[tuple[str, Change]]:
    """Return a module's changes by tensor; raises ToolkitError if one of its parts is left over."""
    parts, weight = dict(parts), f"{module}.weight"
    changes: list[tuple[str, Change]] = []
    for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        if first in parts and second in parts and (first == "lora_embedding_A") == (weight == EMBEDDING):
            a, b = parts.pop(first), parts.pop(second)
            magnitude = parts.pop("lora_magnitude_vector", None) if config.get("use_dora") else None
            if config.get("use_dora") and magnitude is None:
                raise ToolkitError(
                    f"the adapter in `{folder}` is DoRA, but `{module}` has no lora_magnitude_vector",
                    hint=AGAIN,
                )
            scale = _scale(config, module, a, folder)
            changes.append((weight, LoraDelta(a, b, scale, magnitude, first == "lora_embedding_A")))
            if "lora_B.bias" in parts and f"{module}.bias" in weights and not magnitude and first == "lora_A":
                changes.append((f"{module}.bias", Shift(parts.pop("lora_B.bias"), scale)))
    if "token_adapter.trainable_tokens_delta" in parts and not changes:
        values = parts.pop("token_adapter.trainable_tokens_delta")
        changes.append((weight, Rows(values, _indices(config, module, values, folder))))
    if parts:
        names = ", ".join(f"`{tensor.name}`" for tensor in parts.values())
        raise ToolkitError(
            f"the adapter in `{folder}` holds tensors that lack their counterpart or cannot be merged: {names}",
            hint=AGAIN,
        )
    return changes


def _scale(config: Mapping[str, Any], module: str, a: TensorInfo, folder: Path) -> float:
    rank = pattern(config.get("rank_pattern"), module, config["r"])
    alpha = pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    if not a.shape or a.shape[0] != rank:
        raise ToolkitError(
            f"`{folder / CONFIG}` gives `{module}` rank {brief(rank)}, but its lora_A has shape {list(a.shape)}",
            hint="config and weights belong to different adapters: copy the folder again",
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _indices(config: Mapping[str, Any], module: str, values: TensorInfo, folder: Path) -> tuple[int, ...]:
    """The token ids whose rows were trained: one list for the embedding, or one per module, by the end of its name."""
    stated: Any = config.get("trainable_token_indices")
    if isinstance(stated, dict):
        of_module = [ids for name, ids in stated.items() if module == name or module.endswith(f".{name}")]
        stated = of_module[0] if of_module else next(iter(stated.values()), None)  # a tied head follows the embedding
    ids = stated if isinstance(stated, list) and all(type(index) is int and index >= 0 for index in stated) else []
    if not ids or len(set(ids)) != len(ids) or values.shape[:1] != (len(ids),):
        raise ToolkitError(
            f"`{folder / CONFIG}` names {len(ids)} trained tokens, but `{values.name}` has shape {list(values.shape)}",
            hint=AGAIN,
        )
    return tuple(ids)


def _place(
    found: SortedTensors, changes: dict[str, Change], model: ModelConfig, folder: Path
) -> tuple[dict[str, TensorInfo], bool]:
    """Return which tensors replace the base's, and whether embedding and output are still one matrix."""
    replaced = {**found.base, **found.own}
    if not model.tied:
        return replaced, False
    copies = [found.base[name] for name in (EMBEDDING, HEAD) if name in found.base]
    if copies and (len(copies) == 1 or checkpoint.same(*copies)):  # one matrix, whichever name it was saved under
        replaced = {**replaced, EMBEDDING: copies[0], HEAD: copies[0]} | found.own
    embedding, head = replaced.get(EMBEDDING), replaced.get(HEAD)
    same = head is embedding or (head is not None and embedding is not None and checkpoint.same(head, embedding))
    trained, output = changes.get(EMBEDDING), changes.get(HEAD)
    if isinstance(trained, Rows) and (output is None or _same_rows(trained, output)):
        changes.pop(HEAD, None)  # PEFT trains both ends of a tied model
        output = trained
    if same and trained is output:
        replaced.pop(HEAD, None)
        return replaced, True
    if isinstance(trained, Rows) or isinstance(output, Rows):
        raise ToolkitError(
            f"the adapter in `{folder}` trains single token embeddings and, separately, the output of a tied base",
            hint="train either of them, or both as `modules_to_save`",
        )
    if model.architecture in HEAD_FROM_EMBEDDING:
        raise ToolkitError(
            f"the adapter in `{folder}` makes embedding and output of a tied base differ, but llama.cpp computes the "
            f"output of {model.architecture} from its embedding",
            hint="train it without embed_tokens and lm_head, or with PEFT's ensure_weight_tying",
        )
    return replaced, False


def _same_rows(one: Rows, other: Change) -> bool:
    return isinstance(other, Rows) and one.indices == other.indices and checkpoint.same(one.values, other.values)


def _check_promises(config: Mapping[str, Any], found: SortedTensors, folder: Path) -> None:
    """Raise ToolkitError if trained weights that the config names are missing: PEFT would use the base's there."""
    for name in config.get("modules_to_save") or ():
        if not any(target.rpartition(".")[0].endswith(name) for target in found.own):
            raise ToolkitError(
                f"`{folder / CONFIG}` names `{name}` in modules_to_save, but `{WEIGHTS}` does not hold it",
                hint="save the adapter again, or copy the folder again",
            )
    if config.get("trainable_token_indices") and not any(
        "token_adapter.trainable_tokens_delta" in parts for parts in found.parts.values()
    ):
        raise ToolkitError(
            f"`{folder / CONFIG}` names trained tokens (`trainable_token_indices`), but `{WEIGHTS}` does not hold them",
            hint="save the adapter again, or copy the folder again",
        )
