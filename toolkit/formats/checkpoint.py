"""Which tensors a checkpoint of safetensors files holds, and where: shards, 4-bit weights, and models that see images.

Only headers are read.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.formats import bnb_4bit
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import AGAIN, Scales, TensorInfo, read_header

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32] | npt.NDArray[np.uint16]  # uint16: bfloat16, its bits

READABLE = ("F32", "F16", "BF16")
FOUR_BIT = ("NF4", "FP4")
SLAB = 1 << 22  # weights that one thread reads, checks or quantizes at a time
BLOCK = 1 << 19  # weights that one thread takes through all steps at a time: they stay in its cache
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER = ".header"  # after the name of a file that is not here: its beginning, up to its first tensor
SIGHT = (
    "vision_tower.",
    "multi_modal_projector.",
    "visual.",
)  # what a model that also sees images has besides its language model


def open_folder(folder: Path) -> dict[str, TensorInfo]:
    """List the tensors of a model folder: `model.safetensors`, or the shards that its index names.

    Of a model that also sees images they are those of its language model, under the names that this has alone
    (`text_name`); each tensor's own name is that in its file.
    Only headers are read, also where a file's beginning is all that is here (HEADER). Raises ToolkitError for absent or
    truncated shards and for an index that names absent tensors. Pickled weights (`.bin`) are never read.
    """
    if _begins(folder / SINGLE):
        return _text_alone(_with_four_bit(_header_of(folder / SINGLE)), folder)
    if (folder / INDEX).is_file():
        return _text_alone(_with_four_bit(_open_shards(folder)), folder)
    if any(folder.glob("*.bin")):
        raise ToolkitError(
            f"the base model in `{folder}` has only pickled weights",
            hint="pickled files are never loaded: save it as safetensors with model.save_pretrained(…)",
        )
    raise ToolkitError(f"no `{SINGLE}` and no `{INDEX}` in `{folder}`", hint="give a folder with a complete base model")


def holds_weights(folder: Path) -> bool:
    """Tell whether a model folder has its safetensors, every shard that an index names included."""
    if (folder / SINGLE).is_file():
        return True
    return (folder / INDEX).is_file() and all((folder / file).is_file() for file in set(_places(folder).values()))


def shows_tensors(folder: Path) -> bool:
    """Tell whether a folder has the beginning of its only safetensors file, and no weight in bitsandbytes' 4 bits.

    Their shapes are not in a header.
    """
    return _begins(folder / SINGLE) and not any(bnb_4bit.STATE in name for name in _header_of(folder / SINGLE))


def promised(folder: Path) -> list[str]:
    """List the tensors that the index of a model folder names, its shards absent or not, or that its only file has.

    Empty where neither is here.

    The parts of a weight in bitsandbytes' 4 bits count as that weight. Raises ToolkitError for a damaged index.
    """
    if not (folder / INDEX).is_file():
        names = set(_header_of(folder / SINGLE)) if _begins(folder / SINGLE) else set()
    else:
        names = set(_places(folder))
    weights = {name.partition(bnb_4bit.STATE)[0] for name in names if bnb_4bit.STATE in name}
    parts = {f"{weight}.{part}" for weight in weights for part in bnb_4bit.PARTS}
    whole = [name for name in names - parts if bnb_4bit.STATE not in name]
    return sorted(filter(None, map(text_name, whole))) if _sees(whole) else sorted(whole)


def text_name(name: str) -> str:
    """Return the name that a tensor has in the language model alone; "" for a tensor of the vision tower.

    Checkpoints have two forms, of before and after transformers 4.52: `language_model.model.layers.0.…` and
    `model.language_model.layers.0.…`.
    """
    for former, own in (("model.language_model.", "model."), ("language_model.", "")):
        if name.startswith(former):
            return own + name.removeprefix(former)
    return "" if name.removeprefix("model.").startswith(SIGHT) else name


def _sees(names: Iterable[str]) -> bool:
    return any(name.startswith(("language_model.", "model.language_model.")) for name in names)


def _text_alone(tensors: dict[str, TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    if not _sees(tensors):
        return tensors
    found: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        short = text_name(name)
        if short in found:
            raise ToolkitError(
                f"the base model in `{folder}` holds `{visible(name)}` and `{visible(found[short].name)}`, which are "
                "one tensor of its language model",
                hint=AGAIN,
            )
        if short:
            found[short] = tensor
    return found


def _places(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor by the folder's index."""
    index = folder / INDEX
    places = read_json(index, AGAIN).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ToolkitError(f"`{index}` has no weight_map", hint=AGAIN)
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ToolkitError(f"`{index}` places tensor `{visible(name)}` outside the folder: {file!r}", hint=AGAIN)
    return places


def _open_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    shards: dict[str, dict[str, TensorInfo]] = {}
    tensors = {}
    for name, file in _places(folder).items():
        if file not in shards:
            if not _begins(folder / file):
                raise ToolkitError(f"shard `{file}` is missing from `{folder}`", hint="copy or download the base again")
            shards[file] = _header_of(folder / file)
        if name not in shards[file]:
            raise ToolkitError(f"`{index}` names tensor `{visible(name)}`, which `{file}` does not hold", hint=AGAIN)
        tensors[name] = shards[file][name]
    return tensors


def _beginning(path: Path) -> Path:
    return path.with_name(path.name + HEADER)


def _begins(path: Path) -> bool:
    return path.is_file() or _beginning(path).is_file()


def _header_of(path: Path) -> dict[str, TensorInfo]:
    return read_header(path) if path.is_file() else read_header(_beginning(path), of=path)


def _with_four_bit(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Combine the parts of each weight in bitsandbytes' 4 bits into one tensor."""
    for key in [key for key in tensors if bnb_4bit.STATE in key]:
        name, _, kind = key.partition(bnb_4bit.STATE)
        state = bnb_4bit.parse_state(stored_bytes(tensors.pop(key)), kind, name)
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in bnb_4bit.PARTS}
        weight, absmax, inner, code = (
            tensors.get(name),
            parts["absmax"],
            parts["nested_absmax"],
            parts["nested_quant_map"],
        )
        if weight is None or absmax is None:
            lacks = "its bytes" if absmax else "absmax"
            raise ToolkitError(f"the 4-bit weight `{visible(name)}` lacks {lacks}", hint=AGAIN)
        for part in (absmax, inner, code):
            if part and part.dtype not in ("F32", "U8" if part is absmax else "F32"):
                raise ToolkitError(f"`{visible(part.name)}` in `{part.path}` is stored as {part.dtype}", hint=AGAIN)
        nested = (inner, code) if inner and code else None
        sizes = (prod(inner.shape), prod(code.shape)) if inner and code else None
        bnb_4bit.check_parts(state, name, weight.size, (absmax.dtype, prod(absmax.shape)), sizes)
        scales = Scales(state, absmax, nested)
        tensors[name] = replace(weight, dtype=state.kind.upper(), shape=state.shape, scales=scales)
    return tensors


def stored_bytes(tensor: TensorInfo) -> bytes:
    """Return a tensor as the file holds it."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.size)


def check_readable(tensor: TensorInfo) -> None:
    """Raise ToolkitError if a tensor's dtype is not float32, float16, bfloat16 or bitsandbytes' 4 bits."""
    if tensor.dtype not in (*READABLE, *FOUR_BIT):
        raise ToolkitError(
            f"tensor `{visible(tensor.name)}` in `{tensor.path}` is stored as {tensor.dtype}, "
            f"not as {', '.join(READABLE)}",
            hint="use the 16-bit base model; of the quantized ones, only bitsandbytes in 4 bits can be exported",
        )


def same(one: TensorInfo, other: TensorInfo) -> bool:
    """Tell whether two tensors hold the same bytes; 4-bit ones, whose scales may differ, never do."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.scales or other.scales:
        return False
    with one.path.open("rb") as left, other.path.open("rb") as right:
        left.seek(one.offset)
        right.seek(other.offset)
        remaining = one.size
        while remaining:
            count = min(remaining, SLAB)
            if left.read(count) != right.read(count):
                return False
            remaining -= count
    return True
