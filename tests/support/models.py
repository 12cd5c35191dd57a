"""Small models with random weights, made by transformers and PEFT, that the export tests take apart."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support import cache
from toolkit.formats.pretokenizers import LLAMA3_SPLIT, QWEN2_SPLIT, QWEN35_SPLIT

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
TEXT = [
    "Drink enough water, sleep well, and see a doctor if a fever lasts for more than 3 days or exceeds 39.5 degrees.",
    "I've been told he's there; they'll say we're 100% sure it isn't so. 1234567890 times!\r\n\r\n\tTab, spaces   end",
    "Häufige Ursachen sind Müdigkeit, naïve Erwartung – и усталость. これは水です。 물을 마셔요 🙂🙃",
]


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_WORD = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
]
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = "|".join([*_WORD, r"\p{N}", _REST])
GPT4O_SPLIT = "|".join([*(word + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for word in _WORD), r"\p{N}{1,3}", _REST])
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "llama-bpe": lambda: _split(LLAMA3_SPLIT),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen2": lambda: _split(QWEN2_SPLIT),
    "qwen35": lambda: _split(QWEN35_SPLIT),
    "tekken": lambda: _split(TEKKEN_SPLIT),
    "gpt-4o": lambda: _split(GPT4O_SPLIT),
    "dbrx": lambda: _split(LLAMA3_SPLIT),
}


def save_tokenizer(
    folder: Path,
    pre: str = "llama-bpe",
    size: int = 500,
    bos: bool = True,
    controls: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Tokenizer:
    """Train a byte-level BPE of at most `size` tokens and save it as a base model's folder has it.

    `controls` are more control tokens than the three that it always has, `more` texts to train on.
    """
    specials = [*SPECIALS, *controls]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.normalizer = normalizers.NFC() if pre in ("qwen2", "qwen35") else None
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - len(specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXT, *more] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    first = SPECIALS[0]
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "pre.txt").write_text(pre)  # for the converter that the tests compare with
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIALS, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return tokenizer


def save_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "100GB",
    pre: str = "llama-bpe",
    controls: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Save a Llama with random weights, norms included; `settings` are LlamaConfig's."""

    def build(target: Path) -> None:
        _build_model(target, dtype, shard, pre, controls, settings)

    cache.copied(folder, build, dtype, shard, pre, [*controls], sorted(settings.items()))
    torch.manual_seed(0)  # whether it was made or copied
    return folder


def _build_model(
    folder: Path, dtype: torch.dtype, shard: str, pre: str, controls: Sequence[str], settings: dict[str, Any]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(folder, pre, controls=controls)
    shape = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "initializer_range": 0.08, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **settings})).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight")):
                weight.copy_(1 + 0.1 * torch.randn(weight.shape))
            elif name.endswith(".bias"):
                weight.copy_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(folder, max_shard_size=shard)


def save_adapter(folder: Path, base: Path, **settings: Any) -> Path:
    """Save a PEFT LoRA adapter of a base, both matrices random."""

    def build(target: Path) -> None:
        _build_adapter(target, base, settings)

    known = hashlib.sha256()
    for path in sorted([base / "config.json", *base.glob("*.safetensors")]):
        known.update(path.read_bytes())
    cache.copied(folder, build, known.hexdigest(), sorted(settings.items()))
    config = folder / "adapter_config.json"
    stated = {**json.loads(config.read_text()), "base_model_name_or_path": str(base)}
    config.write_text(json.dumps(stated, indent=2, sort_keys=True))
    torch.manual_seed(1)  # whether it was made or copied
    return folder


def _build_adapter(folder: Path, base: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options = {"r": 8, "lora_alpha": 16, "target_modules": targets, "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(**{**options, **settings}))
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                weight.copy_(0.05 * torch.randn(weight.shape))
    peft.save_pretrained(folder, save_embedding_layers=False)  # PEFT would copy the base's lm_head beside its LoRA


def add_tokens(source: Path, target: Path, *texts: str, special: bool = True) -> None:
    """Save a base's tokenizer with tokens added, as tokenizer.save_pretrained leaves it beside an adapter."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add([AddedToken(text, special=special, normalized=False) for text in texts])
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    logs: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return logs


def load(base: Path, *, alone: bool = False) -> Any:
    """Load a base as transformers does, in float32; one that also sees images whole, or its language model `alone`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from toolkit.model.text_part import text_part

    config = AutoConfig.from_pretrained(base)
    inner, renamed = text_part(config)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if renamed and not alone:
        return AutoModelForImageTextToText.from_pretrained(base, **options)
    return AutoModelForCausalLM.from_pretrained(base, config=inner, **renamed, **options)


def reference_logits(base: Path, adapter: Path | None, ids: list[int]) -> np.ndarray:
    """Return transformers' float32 logits of base + adapter, the adapter applied by PEFT unmerged."""
    from peft import PeftModel

    model: Any = load(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: np.ndarray = model.eval()(torch.tensor([ids])).logits[0].numpy()
    return logits


def kl(base: Path, adapter: Path | None, gguf: Path, length: int = 256) -> float:
    """Return the mean KL divergence, in nats, of a GGUF in llama.cpp from transformers, over random tokens."""
    from toolkit import llamacpp

    ids = np.random.default_rng(0).integers(0, 480, length).tolist()
    expected = log_softmax(reference_logits(base, adapter, ids))
    with llamacpp.opened(gguf, length, exact=True) as llm:
        found = log_softmax(llamacpp.logits(llm, ids, 0))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())
