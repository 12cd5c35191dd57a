"""A base that is a GGUF file: dequantized once to float32 safetensors, with its tokenizer, in the user's cache."""

import functools
import json
from pathlib import Path

import numpy as np

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import sha256_of, write_text, writing_folder
from toolkit.core.places import cache_folder
from toolkit.formats.checkpoint import SINGLE
from toolkit.formats.gguf_reader import GgufData, open_gguf, read_values
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import new_header
from toolkit.model.families import FAMILIES
from toolkit.model.families.family import Family, from_ggml_layout
from toolkit.model.gguf_config import read_base
from toolkit.model.gguf_tokenizer import save_vocabulary
from toolkit.model.model_config import CONFIG, ModelConfig

CONVERSION = 2  # raised when a GGUF is converted differently, so that older conversions are not reused


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
    opened = open_gguf(path)
    found = read_base(path, opened)
    if found is None:
        raise other_architecture(path, opened)
    config, family, model = found
    licence = licence_in(opened)
    said = f" (licence: {licence})" if licence else ""
    console.info(f"base model: converting {path.name} to float32 safetensors, once{said}")
    with writing_folder(target) as folder:
        save_vocabulary(opened.metadata, path, folder)
        _convert_weights(path, opened, family, model, folder)
        write_text(folder / CONFIG, json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
        if licence:
            write_text(folder / "LICENSE", f"{licence}\n")
    return target


def other_architecture(path: Path, opened: GgufData) -> ToolkitError:
    """Return the error for a GGUF file whose model cannot be exported, as `read_base` found."""
    name = str(opened.metadata.get("general.architecture"))
    experts = " and is a mixture of experts" if opened.metadata.get(f"{name}.expert_count") else ""
    known = sorted({family.architecture for family in FAMILIES.values() if family.stated})
    return ToolkitError(
        f"the base model `{path}` has the architecture {visible(name)}{experts}, which cannot be exported",
        hint=f"GGUF files of these architectures can be exported: {', '.join(known)}",
        exit_code=MISSING,
    )


def licence_in(opened: GgufData) -> str:
    """Name the licence that a GGUF file's header states; empty if it states none."""
    stated = opened.metadata.get("general.license")
    return visible(stated.strip()) if isinstance(stated, str) else ""


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


def _convert_weights(path: Path, found: GgufData, family: Family, model: ModelConfig, folder: Path) -> None:
    """Write every tensor in float32 as the family's checkpoint has it, one at a time."""
    layouts = family.layouts(model)
    with (folder / SINGLE).open("wb") as file:
        file.write(new_header({layout.source: layout.stored_shape for layout in layouts}, "F32"))
        for layout in layouts:
            values = from_ggml_layout(read_values(path, found.tensors[layout.name]), layout)
            file.write(np.ascontiguousarray(values).data)
