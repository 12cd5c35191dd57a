"""The adapter alone as a GGUF file, for llama.cpp's `--lora` with the base's own GGUF.

llama.cpp computes W·x + alpha / rank · B·(A·x) with one alpha for the whole file, so the rest of an adapter's scale
is folded into that alpha, or into B if one alpha is not enough. Format: llama.cpp's src/llama-adapter.cpp.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, Keys, LlamaFileType

from toolkit.core import console, hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.files import clear_stale
from toolkit.core.manifest import Outcome
from toolkit.core.parsing import read_json
from toolkit.export import effect
from toolkit.export.adapter.config import CONFIG
from toolkit.export.adapter.deltas import LoraDelta
from toolkit.export.adapter.weights import WEIGHTS
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.export.planning import ExportPlan, plan
from toolkit.formats import gguf_writer, safetensors_header
from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.formats.tensor_values import read_tensor
from toolkit.model import families
from toolkit.model.families.family import Layout

INSTEAD = "merge it instead: `--format gguf`"

# What an adapter may hold that llama.cpp's form of it cannot, by LoraConfig's settings.
BEYOND = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules (`modules_to_save`)",
    "trainable_token_indices": "trained token embeddings (`trainable_token_indices`)",
    "layer_replication": "replicated layers (`layer_replication`)",
    "lora_bias": "a bias in lora_B (`lora_bias`)",
    "target_parameters": "LoRA on bare parameters (`target_parameters`)",
    "alora_invocation_tokens": "activated LoRA (`alora_invocation_tokens`)",
}


def size_of(base: Path, adapter: Path, planned: ExportPlan) -> int:
    """Return the bytes of tensor data that `export_lora` would write; raises what it would raise."""
    _check(adapter)
    pairs = _pairs(base, adapter, planned)
    return sum(gguf_writer.padded(4 * prod(shape)) for tensor, delta in pairs for shape in _shapes(tensor, delta))


def export_lora(base: Path, adapter: Path, target: Path, name: str) -> Outcome:
    """Write an adapter as one GGUF file in float32, completely or not at all; the base's weights are not read.

    Raises ToolkitError for what llama.cpp cannot apply to a base: DoRA, biases, fully trained modules, LoRA on the
    embedding or on the head of a tied model.
    """
    started = time.monotonic()
    _check(adapter)
    planned = plan(base, adapter, ["F32"])
    effect.say_effect(planned.tensors, planned.gap)
    trained = _pairs(base, adapter, planned)
    alpha = common_alpha([delta for _, delta in trained])
    metadata: Metadata = {
        Keys.General.TYPE: ("adapter", GGUFValueType.STRING),
        Keys.Adapter.TYPE: ("lora", GGUFValueType.STRING),
        Keys.General.NAME: (name, GGUFValueType.STRING),
        Keys.General.FILE_TYPE: (int(LlamaFileType.ALL_F32), GGUFValueType.UINT32),
        Keys.Adapter.LORA_ALPHA: (alpha, GGUFValueType.FLOAT32),
        Keys.General.QUANTIZATION_VERSION: (GGML_QUANT_VERSION, GGUFValueType.UINT32),
    }
    listed = []
    for tensor, delta in trained:
        a, b = _shapes(tensor, delta)
        listed += [(f"{tensor.name}.lora_a", a), (f"{tensor.name}.lora_b", b)]
    clear_stale([target])
    with (
        gguf_writer.gguf_file(target) as file,
        ThreadPoolExecutor(hardware.cores()) as pool,
        console.progress("export", len(trained), "pairs") as progress,
    ):
        kind = GGMLQuantizationType.F32
        file.write(gguf_writer.header(planned.model.architecture, metadata, [(*entry, kind) for entry in listed]))
        for tensor, delta in trained:
            for values in (ordered_a(delta, tensor.layout, pool), scaled_b(delta, tensor.layout, alpha, pool)):
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
                file.pad()
            progress.advance(note=tensor.name)
    figures = {"bytes": file.size, "sha256": file.sha256, "alpha": alpha, "tensors": len(listed)}
    return Outcome([target], {**figures, "seconds": round(time.monotonic() - started, 3)})


def common_alpha(deltas: list[LoraDelta]) -> float:
    """Return the one alpha that llama.cpp divides by each rank: the adapter's own if it has one for all.

    rsLoRA's alpha / sqrt(rank) becomes alpha · sqrt(rank). Zero would mean no scaling at all to llama.cpp.
    """
    wanted = [delta.scale * delta.a.shape[0] for delta in deltas]
    largest = max(wanted, key=abs, default=0.0)
    return float(np.float32(largest)) or 1.0


def ordered_a(delta: LoraDelta, layout: Layout, pool: ThreadPoolExecutor) -> Floats:
    """Return A (rank, in), its columns in ggml's order."""
    values = read_tensor(delta.a, pool)
    return layout.order.applied(values) if layout.order and layout.order.columns else values


def scaled_b(delta: LoraDelta, layout: Layout, alpha: float, pool: ThreadPoolExecutor) -> Floats:
    """Return B (out, rank) in ggml's row order, times the part of the scale that `alpha` / rank does not cover."""
    values = read_tensor(delta.b, pool)[layout.first :][: layout.shape[0]]
    rest = delta.scale * delta.a.shape[0] / alpha
    if not math.isclose(rest, 1.0, rel_tol=1e-7):
        values *= np.float32(rest)
    if not np.isfinite(values).all():
        raise ToolkitError(f"the scaled lora_B of `{layout.source}` holds infinite values", hint=INSTEAD)
    of_rows = replace(layout, order=None) if layout.order and layout.order.columns else layout
    return families.to_ggml_layout(values, of_rows)


def _shapes(tensor: PlannedTensor, delta: LoraDelta) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A (rank, in) and B (out, rank) for one tensor of the GGUF."""
    return delta.a.shape, (tensor.shape[0], delta.b.shape[1])


def _check(adapter: Path) -> None:
    config = read_json(adapter / CONFIG, "give the folder that PEFT's save_pretrained wrote")
    for key, what in BEYOND.items():
        if config.get(key):
            raise _cannot(adapter, what)
    if config.get("bias", "none") != "none":
        raise _cannot(adapter, f'trained biases (bias = "{config["bias"]}")')
    if not (adapter / WEIGHTS).is_file():
        return  # reported better when they are read
    for name in safetensors_header.read_header(adapter / WEIGHTS):
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            what = "LoRA on embeddings" if "lora_embedding_" in name else "more than LoRA on linear layers"
            raise _cannot(adapter, f"{what} (`{name}`)")


def _pairs(base: Path, adapter: Path, planned: ExportPlan) -> list[tuple[PlannedTensor, LoraDelta]]:
    """Return the trained weights with what LoRA adds to each; raises ToolkitError for a change of any other kind."""
    tied = families.family_of(base)[1].tied
    pairs = []
    for tensor in planned.tensors:
        change, source = tensor.change, tensor.layout.source
        if tensor.replaced:
            raise _cannot(adapter, f"a weight that replaces the base's (`{source}`)")
        if change is None:
            continue
        if not isinstance(change, LoraDelta):
            raise _cannot(adapter, f"more than LoRA on linear layers (`{source}`)")
        if change.embedding or tensor.name == "token_embd.weight":
            raise _cannot(adapter, f"LoRA on embeddings (`{source}`)")
        if change.magnitude:
            raise _cannot(adapter, f"DoRA (`{source}`)")
        if tensor.name == "output.weight" and tied:
            raise _cannot(adapter, "LoRA on the head of a tied model, whose GGUF has no separate head")
        pairs.append((tensor, change))
    return pairs


def _cannot(adapter: Path, what: str) -> ToolkitError:
    return ToolkitError(f"the adapter in `{adapter}` has {what}, which llama.cpp's LoRA cannot apply", hint=INSTEAD)
