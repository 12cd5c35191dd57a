"""Base and trained model in transformers: loaded once, the base with the adapter disabled; answers in batches."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from toolkit.core import hardware
from toolkit.core.console import size
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.quiet import silence_transformers
from toolkit.evaluate.batched_answers import answer_together, use_grouped_attention
from toolkit.evaluate.batched_scoring import transformers_scores
from toolkit.evaluate.scoring import Pair
from toolkit.evaluate.systems import Answer, Enough, Score, answer_of, ending, in_order
from toolkit.formats.checkpoint import open_folder
from toolkit.model.dequantized import plain_folder
from toolkit.model.model_config import is_four_bit
from toolkit.model.text_part import text_part
from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer

BATCH = 64  # prompts that are answered at once, as far as their KV cache has room
CACHE = 1_000_000_000  # bytes of it
BESIDES = 1_500_000_000  # bytes besides the weights: the KV cache of a batch, activations, torch itself


@dataclass(frozen=True)
class Place:
    """Where a model computes, and in which of torch's types."""

    device: str
    dtype: str

    @property
    def words(self) -> str:
        """The same in words."""
        return f"{'CPU' if self.device == 'cpu' else 'GPU'} ({self.dtype})"


@dataclass(frozen=True)
class TransformersSystem:
    """The loaded model with the adapter, or without it. `ends` are the tokens that end an answer."""

    model: Any
    adapted: bool
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    window: int
    place: Place

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt as training made them."""
        return self.tokenizer.prompt_ids(prompt)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS; control tokens in it are text."""
        return self.tokenizer.encode(text)

    def answers(
        self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...], enough: Enough | None = None
    ) -> Iterator[Answer]:
        """Answer each prompt greedily, a batch at once with padding on the left; in the order of the prompts."""
        given = [self.prompt_ids(prompt) for prompt in prompts]
        step = self._at_once(max(map(len, given), default=0) + tokens)
        for start in range(0, len(given), step):
            batch = given[start : start + step]
            found = answer_together(
                self.model,
                batch,
                tokens,
                self.ends,
                ending(self.tokenizer, stops, enough, start),
                self._adapter,
            )
            yield from in_order((number, answer_of(self.tokenizer, ids, ended, stops)) for number, ids, ended in found)

    def _at_once(self, length: int) -> int:
        """Return how many sequences of so many tokens are in memory at once, from 1 to 64."""
        config = self.model.get_base_model().config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        linear = (getattr(config, "layer_types", None) or []).count("linear_attention")
        rule = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
        state = 4 * linear * prod(getattr(config, key, 0) for key in rule)  # of the gated delta net
        token = 2 * (config.num_hidden_layers - linear) * heads * width * (4 if self.place.dtype == "float32" else 2)
        return int(max(1, min(BATCH, CACHE // max(1, token * length + state))))

    def scores(self, pairs: Sequence[Pair]) -> Iterator[Score]:
        """Score continuations, each after the ids before it; in order."""
        return transformers_scores(self.model, pairs, self._adapter)

    def _adapter(self) -> Any:
        return contextlib.nullcontext() if self.adapted else self.model.disable_adapter()


def weights_of(base: Path) -> int:
    """Count the weights of a base by its files' headers."""
    stored = sum(prod(tensor.shape) for tensor in open_folder(base).values())
    return 2 * stored if is_four_bit(base) else stored  # two of 4 bits are in a stored number


def choose_place(base: Path) -> Place | str:
    """Choose where a base computes: the GPU if it fits, else the CPU, in float32 if that fits; or say why nowhere."""
    weights = weights_of(base)
    gpu = hardware.gpu()
    if gpu is not None and 2 * weights + BESIDES <= gpu.free:
        return Place("cuda", "bfloat16" if gpu.bf16 else "float16")
    free = hardware.available_memory()
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        if free is None or width * weights + BESIDES <= free:
            return Place("cpu", dtype)
    need = size(2 * weights + BESIDES)
    beside = f", and {size(gpu.free)} of the GPU's" if gpu is not None else ""
    return f"in transformers it needs {need} of memory, and {size(free or 0)} are free{beside}"


@contextlib.contextmanager
def loaded(base: Path, adapter: Path, place: Place) -> Iterator[Any]:
    """Load base and adapter; gives PEFT's model. Raises ToolkitError if the adapter does not fit the base."""
    silence_transformers()
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in ("adapter_config.json", "adapter_model.safetensors"):  # PEFT would take a pickled .bin instead
        if not (adapter / name).is_file():
            raise ToolkitError(
                f"the adapter folder `{adapter}` has no {name}", hint="run `toolkit train`", exit_code=MISSING
            )
    folder = plain_folder(base)
    config, renamed = text_part(AutoConfig.from_pretrained(folder))
    # transformers would take torch's attention, which leaves out Gemma-2's soft cap.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    options: dict[str, Any] = {"attn_implementation": "eager"} if capped else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        dtype=getattr(torch, place.dtype),
        device_map={"": place.device},
        **renamed,
        **options,
    )
    try:
        peft = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError, SafetensorError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(exc).__name__)
        raise ToolkitError(
            f"the adapter in `{adapter}` does not fit the base in `{base}`: {reason}",
            hint="evaluate with the base that the adapter was trained on (`model.base`, `model.base_16bit`)",
        ) from None
    if place.device == "cpu":
        use_grouped_attention(model)
    try:
        yield peft.eval()
    finally:
        del model, peft
        if place.device != "cpu":
            torch.cuda.empty_cache()


def ends_of(base: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end an answer: the training's EOS, and those that the base's own settings name."""
    path = base / "generation_config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        named = None
    found = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([tokenizer.eos, *(index for index in found if type(index) is int)]))
