"""Unsloth: QLoRA on CUDA with its own kernels. It patches transformers and TRL when it is imported."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.model.base import Base
from toolkit.model.memory_plan import MemoryPlan
from toolkit.model.model_config import read_config
from toolkit.model.states import keeps_state, reason_to_pad
from toolkit.train.backend import Backend, UnslothFailed, dequantize, said_of

# Families whose records Unsloth 2026.10.9 pads (`PADDING_FREE_BLOCKLIST` in its trainer.py): it takes those of every
# other one packed into a row, in a forward pass of its own or in transformers'.
PADDED = ("gemma2", "gpt_oss")


def make_unsloth_backend() -> Backend:
    """Return this backend; imports Unsloth, which must come before transformers. Raises UnslothFailed."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would fetch a file from the hub, only to be counted
    with _working():
        import unsloth  # noqa: F401
    return Backend("unsloth", "cuda", "Unsloth", load_with_unsloth, infer)


@contextlib.contextmanager
def _working() -> Iterator[None]:
    """Turn whatever Unsloth raises into UnslothFailed; a GPU that is too small is not its fault."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as exc:  # it fails in many ways: a version clash, an unsupported GPU, a missing compiler
        raise UnslothFailed(said_of(exc)) from exc


def load_with_unsloth(base: Base, config: Config, plan: MemoryPlan, device: Any, compute: Any) -> Any:
    """Load the base in 4 bits (unless settings say otherwise) and put a fresh adapter on it.

    Unsloth finds the device of this process on its own, from the launcher's environment.
    """
    from unsloth import FastLanguageModel  # before transformers and trl, which it patches

    from toolkit.train import base_compute, lora_casts, varlen

    settings = config.train
    if reason := refusal(base.folder):
        raise UnslothFailed(reason)
    with _working():
        varlen.announce(varlen.offer_to_unsloth())
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(base.folder),
            max_seq_length=settings.max_length,
            dtype=compute,
            load_in_4bit=config.model.load_in_4bit,
            offload_embedding=plan.strategy.offloaded,  # otherwise Unsloth decides from its own figures
            use_exact_model_name=True,  # the folder we resolved, not a namesake on the hub
        )
        if plan.strategy.dequantized:
            model = dequantize(model, compute)
        # Its trainer resets embeddings that it takes for untrained, in memory: the export would not know of that.
        ignored = "UNSLOTH_IGNORED_TOKENIZER_NAMES"
        os.environ[ignored] = f"{os.environ.get(ignored, '')}\n{model.config._name_or_path}"
        model = FastLanguageModel.get_peft_model(
            model,
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=settings.target_modules,
            bias="none",
            use_gradient_checkpointing="unsloth" if plan.strategy.checkpointing else False,
            random_state=settings.seed,
            use_rslora=settings.use_rslora,
            loftq_config=None,
        )
        from unsloth.kernels import fast_lora

        if plan.strategy.fp8:
            base_compute.quantize_frozen(model, fast_lora)  # its functions cast what shares an input at once
        elif plan.processes == 1 and not plan.strategy.checkpointing and not pads(base.folder):
            lora_casts.cast_together(model, fast_lora, compute)  # padded passes are compiled, with casts of their own
        return model


def refusal(folder: Path) -> str:
    """Say why Unsloth must not train this base, although it might; empty if nothing is against it."""
    config = read_config(folder)
    if "vision_config" in config:
        return "this base also sees images, and Unsloth would train its vision tower too"
    if keeps_state(config):
        return "this base keeps a state from token to token, which is proven with PEFT only"
    return ""


def pads(folder: Path) -> bool:
    """Tell whether the records of a micro-batch are padded under Unsloth for this base, not packed into one row."""
    config = read_config(folder)
    return config.get("model_type") in PADDED or bool(reason_to_pad(config))


def infer(model: Any) -> None:
    """Prepare the model for Unsloth's fast generation."""
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(model)
