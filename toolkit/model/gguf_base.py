"""A base that is a GGUF file: dequantized once to float32 safetensors, with its tokenizer, in the user's cache."""

import functools
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.console import silence_transformers
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import sha256_of, write_text, writing_folder
from toolkit.core.native import alone
from toolkit.core.places import cache_folder
from toolkit.model.gguf_config import gguf_config

CONVERSION = 1  # raised when a GGUF is converted differently, so that older conversions are not reused


def folder_from_gguf(path: Path) -> Path:
    """Convert a GGUF file to a model folder, once."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ToolkitError(
            f"the base model `{path}` is neither safetensors nor GGUF: it starts with {magic!r}",
            hint="set `model.base` to a folder with safetensors, or to a GGUF file",
            exit_code=MISSING,
        )
    target = converted_folder(path)
    if is_whole(target):
        return target
    gguf_config(path)  # the libraries below trust every length and count in the file
    console.info(f"base model: converting {path.name} to float32 safetensors, once")
    with writing_folder(target) as folder:
        _convert_weights(path, folder)
        try:
            _convert_tokenizer(path, folder)
        except (ToolkitError, OSError, UnicodeEncodeError):
            raise
        except Exception as exc:  # keys that are absent, of another type, or that contradict each other
            raise ToolkitError(
                f"the vocabulary in `{path}` cannot be read: {type(exc).__name__} {exc}",
                hint="the file is damaged: copy it again, or use a folder with safetensors",
            ) from exc
    return target


def is_whole(folder: Path) -> bool:
    """Tell whether a conversion is done."""
    return (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def converted_folder(path: Path) -> Path:
    """Return where a GGUF file's conversion is kept."""
    state = path.stat()
    return cache_folder() / "bases" / f"{path.stem}-{_hash_of(path, state.st_size, state.st_mtime_ns)}-{CONVERSION}"


def converted(path: Path) -> Path | None:
    """Return the folder of a GGUF file's conversion if it is done."""
    if not any((cache_folder() / "bases").glob(f"{path.stem}-*")):
        return None  # spares hashing the file
    folder = converted_folder(path)
    return folder if is_whole(folder) else None


@functools.cache
def _hash_of(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)[:16]


@alone()
def _convert_weights(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    silence_transformers()
    try:
        modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors  # its progress bar cannot be turned off
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as exc:  # a damaged or unknown GGUF fails in many ways inside the reader
        raise ToolkitError(
            f"the base model `{path}` cannot be read: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}",
            hint="the file is damaged or its architecture is unknown: copy it again, or use a folder with safetensors",
        ) from exc
    # save_pretrained refuses to write a model that still calls itself quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder, max_shard_size="100GB")


# Pre-tokenizers by the name that `tokenizer.ggml.pre` gives them, as llama.cpp's src/llama-vocab.cpp defines them.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    splits = {"llama-bpe": LLAMA3_SPLIT, "qwen2": QWEN2_SPLIT}
    if name not in splits:
        raise ToolkitError(
            f"the base GGUF's pre-tokenizer `{name}` is unknown",
            hint="use the model's folder with tokenizer.json instead of its GGUF",
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(splits[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _convert_tokenizer(path: Path, folder: Path) -> None:
    """Build tokenizer.json from a GGUF's vocabulary.

    transformers' own conversion forgets the pre-tokenizer (digits of SmolLM2) and takes a wrong EOS; llama.cpp reads
    these very keys, so what it does is what the tokenizer must do.
    """
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    fields = gguf.GGUFReader(str(path)).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    if value("model") != "gpt2":
        raise ToolkitError(
            f"the base GGUF has a `{value('model')}` vocabulary, but only byte-level BPE (`gpt2`) can be converted",
            hint="use the model's folder with safetensors and tokenizer.json instead of its GGUF",
        )
    tokens, kinds, pre = value("tokens"), value("token_type"), value("pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in value("merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    control = int(gguf.TokenType.CONTROL)
    added = {control, int(gguf.TokenType.USER_DEFINED)}
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == control, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in added
        ]
    )
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = value(f"{key}_token_id")
        if index is not None and not 0 <= index < len(tokens):
            raise ToolkitError(
                f"`{path}` cannot be used: `tokenizer.ggml.{key}_token_id` is {index}, but it has {len(tokens)} tokens",
                hint="copy it again, or use a folder with safetensors",
            )
        if index is not None:
            special[f"{name}_token"] = tokens[index]
    # llama.cpp adds BOS for a Llama-3 vocabulary even where the key is absent.
    if value("add_bos_token", pre == "llama-bpe"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    licence = fields.get("general.license")
    if licence is not None:
        write_text(folder / "LICENSE", f"{licence.contents()}\n")
