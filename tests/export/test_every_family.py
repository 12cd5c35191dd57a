"""What every family must do with an adapter: a new entry of `families.FAMILIES` is tested by each of these."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import families, gelu, models
from tests.support.trained import distance, train
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.export import export, plan
from toolkit.export.adapter.weights import HEAD_FROM_EMBEDDING
from toolkit.export.lora_gguf import export_lora
from toolkit.export.merged_model import export_merged
from toolkit.formats import checkpoint
from toolkit.model.families import family_of, gguf_shapes
from toolkit.model.model_config import model_config

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAST = ("qwen3",)
# A value that falls on the other side of a rounding to float16 before GELU costs this much over Gemma-3's seven layers.
BOUNDS = {"gemma3": 2e-8}
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": "all-linear"},
    "rsLoRA": {"target_modules": "all-linear", "use_rslora": True},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "trained ends": {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
    "LoRA on both ends": {"target_modules": ["o_proj", "embed_tokens", "lm_head"]},
}


@pytest.fixture(autouse=True)
def table_gelu() -> Iterator[None]:
    with gelu.table_gelu():
        yield


def marked(*fast: Any) -> list[Any]:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in families.FAMILIES]


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", marked())
def test_an_adapter_is_merged_into_what_peft_computes(family: str, kind: str, tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", family)
    settings = ADAPTERS[kind]
    if kind in ("trained ends", "LoRA on both ends") and family_of(base)[0].architecture in HEAD_FROM_EMBEDDING:
        settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True, "target_modules": ["o_proj"]}
    trained = train(tmp_path / "adapter", base, **settings)
    assert distance(base, trained, tmp_path / "a.gguf") <= BOUNDS.get(family, 1e-9)
    assert models.kl(base, None, tmp_path / "a.gguf", 96) > 1e-5  # the adapter does make a difference


@pytest.mark.slow
@pytest.mark.parametrize("family", marked(*FAST))
def test_every_form_of_an_adapter_computes_the_same(family: str, tmp_path: Path) -> None:
    """Merged as a GGUF, merged as safetensors that transformers loads, and alone in llama.cpp with the base's GGUF."""
    from transformers import AutoModelForCausalLM

    base = families.save(tmp_path / "base", family)
    trained = train(tmp_path / "adapter", base, target_modules="all-linear", use_rslora=True)
    assert distance(base, trained, tmp_path / "merged.gguf") <= BOUNDS.get(family, 1e-9)
    export_merged(base, trained.folder, tmp_path / "merged", models.TEMPLATE)
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype="auto", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    with torch.no_grad():
        found = models.log_softmax(model.float().eval()(torch.tensor([trained.ids])).logits[0].numpy())
    assert divergence(trained.expected, found) < 1e-2  # bfloat16's rounding
    export(base, None, {"F32": tmp_path / "base.gguf"}, models.TEMPLATE, "small")
    export_lora(base, trained.folder, tmp_path / "lora.gguf", "small")
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    lora = str(tmp_path / "lora.gguf")
    llm = llama_cpp.Llama(str(tmp_path / "base.gguf"), n_ctx=256, n_batch=256, lora_path=lora, verbose=False, **exact)
    try:
        found = models.log_softmax(llamacpp.logits(llm, trained.ids, 0))
    finally:
        llm.close()
    assert divergence(trained.expected, found) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["alone", "whole", "whole, of before 4.52"])
@pytest.mark.parametrize("family", families.THAT_SEE)
def test_the_text_of_a_model_that_sees(family: str, form: str, tmp_path: Path) -> None:
    """An adapter of the language model alone, as this toolkit trains it, or of the whole model, as others do."""
    from transformers import AutoModelForCausalLM

    base = families.save(tmp_path / "base", family)
    named = "|".join(LANGUAGE)
    targets: Any = LANGUAGE if form == "alone" else rf".*language_model.*\.({named})"
    trained = train(tmp_path / "adapter", base, target_modules=targets, alone=form == "alone")
    if form.endswith("4.52"):
        rename(trained.folder / "adapter_model.safetensors", "model.language_model.", "language_model.model.")
    assert distance(base, trained, tmp_path / "a.gguf") <= BOUNDS.get(family.split()[0], 1e-9)
    assert models.kl(base, None, tmp_path / "a.gguf", 96) > 1e-5
    export_merged(base, trained.folder, tmp_path / "merged", models.TEMPLATE)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        found = models.log_softmax(model.float().eval()(torch.tensor([trained.ids])).logits[0].numpy())
    assert divergence(trained.expected, found) < 1e-2
    shape = model_config(base)
    assert shape is not None
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())


@pytest.mark.slow
def test_an_adapter_of_the_vision_tower_is_refused(tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", "gemma3 that sees")
    trained = train(tmp_path / "adapter", base, target_modules=["q_proj"])
    with pytest.raises(ToolkitError, match="changes the vision tower, but the text alone is exported") as caught:
        plan(base, trained.folder, ["F16"])
    assert "exclude_modules" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("family", families.THAT_SEE)
def test_a_checkpoint_of_before_transformers_4_52(family: str, tmp_path: Path) -> None:
    """Its names have the language model in front; the GGUF is the same."""
    base = families.save(tmp_path / "base", family)
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    for new in ("language_model.model.", "vision_tower.", "multi_modal_projector."):
        former = "model.language_model." if new.startswith("language") else f"model.{new}"
        rename(base / "model.safetensors", former, new)
    export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "small")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def rename(path: Path, former: str, new: str) -> None:
    tensors = load_file(path)
    save_file({name.replace(former, new): tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_sizes_are_those_of_the_weights(family: str, tmp_path: Path) -> None:
    """What the memory plan, the adapter's size and the type of each tensor are computed from."""
    base = families.save(tmp_path / "base", family)
    shape = model_config(base)
    assert shape is not None
    stored = checkpoint.open_folder(base)
    assert shape.parameters() == sum(prod(tensor.shape) for tensor in stored.values())
    matrices = {
        name.split(".")[-2]: tensor.shape for name, tensor in stored.items() if ".layers." in name and
        len(tensor.shape) == 2
    }  # fmt: skip
    assert {name: (inputs, outputs) for name, (outputs, inputs) in matrices.items()} == shape.linears()
    ours = sum(prod(size) for name, size in gguf_shapes(family_of(base)[1]).items())
    assert ours == shape.parameters()
