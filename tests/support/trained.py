"""Adapters as PEFT leaves them after training, with the logits that the live PEFT model computes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support import models
from toolkit.export import export

ATTENTION = ["q_proj", "v_proj"]


@dataclass(frozen=True)
class Trained:
    """A saved adapter, the token ids it was asked, and PEFT's float32 log probabilities for them."""

    folder: Path
    ids: list[int]
    expected: np.ndarray


def train(
    folder: Path,
    base: Path,
    *,
    resize: int = 0,
    embeddings: Any = "auto",
    reload: bool = True,
    alone: bool = False,
    **settings: Any,
) -> Trained:
    """Move every trainable parameter of a PEFT adapter as training would, save it by PEFT's default, and ask it.

    With `reload` the asked model is a fresh base with the saved adapter, as another machine would load it. Of a base
    that also sees images the whole model is trained, or the language model `alone`.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    def load() -> Any:
        model = models.load(base, alone=alone)
        if resize:
            model.resize_token_embeddings(resize)
        return model

    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 12, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    model: Any = get_peft_model(load(), LoraConfig(**{**options, **settings}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                change = torch.randn(weight.shape)
                weight.copy_(0.1 * change if "lora_" in name and "magnitude" not in name else weight + 0.05 * change)
    model.save_pretrained(folder, save_embedding_layers=embeddings)
    if reload:
        model = PeftModel.from_pretrained(load(), folder)
    ids = np.random.default_rng(0).integers(0, resize or 480, 192).tolist()
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0].numpy()
    return Trained(folder, ids, models.log_softmax(logits))


def distance(base: Path, trained: Trained, target: Path) -> float:
    """Export base + adapter as F32 and return llama.cpp's mean KL divergence from PEFT, in nats."""
    from toolkit import llamacpp

    export(base, trained.folder, {"F32": target}, models.TEMPLATE, "small")
    with llamacpp.opened(target, len(trained.ids), exact=True) as llm:
        found = models.log_softmax(llamacpp.logits(llm, trained.ids, 0))
    return float((np.exp(trained.expected) * (trained.expected - found)).sum(axis=-1).mean())
