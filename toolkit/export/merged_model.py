"""The merged model as a folder of safetensors in 16 bits, as transformers and vLLM load it.

Written tensor by tensor in the same constant memory as a GGUF. Every weight is stored as bfloat16, or as float16 if the
base is stored in float16 throughout. Format: https://github.com/huggingface/safetensors#format, and the index of shards
as transformers writes it.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Type

from toolkit.core import console
from toolkit.core.files import clear_stale, writing_folder
from toolkit.core.manifest import Outcome
from toolkit.core.parsing import read_json
from toolkit.export import effect, quantize, tensors
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.export.planning import ExportPlan, check_disk, check_head, plan, say_vocabulary
from toolkit.export.vocab import bpe
from toolkit.export.vocab.tokenizer_source import eos as trained_eos
from toolkit.formats.checkpoint import INDEX, SINGLE
from toolkit.formats.safetensors_header import new_header
from toolkit.model.kinds import text_alone
from toolkit.model.model_config import CONFIG, read_config
from toolkit.prompt.tokenizer import load_tokenizer

DTYPES = {Type.BF16: "bfloat16", Type.F16: "float16"}
SHARD = 5_000_000_000  # bytes of tensors in one file, as transformers' usual limit
VOCABULARY = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
# Classes of transformers 5 that split text by rules of their own, whatever a byte-level tokenizer.json says. Of Phi-3
# and Phi-4 it loads the file itself.
REBUILT = ("LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast")
COPIED = ("tokenizer_config.json", "generation_config.json", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Shard:
    """One file: its name and its tensors in order."""

    name: str
    tensors: tuple[PlannedTensor, ...]


def export_merged(base: Path, adapter: Path | None, target: Path, template: str, *, shard: int = SHARD) -> Outcome:
    """Write base + adapter as a model folder, completely or not at all, in files of at most `shard` bytes of tensors.

    config.json is the base's with the new dtype; the tokenizer is that of the plan, with `template` as its chat
    template. Where the adapter's embedding and output differ, or it has tokens added, config.json says so.
    Raises ToolkitError for damaged input, weights beyond float16's range in a float16 model, or too little disk space.
    """
    started = time.monotonic()
    planned = plan(base, adapter, ["F16"])
    check_head(base, planned)
    say_vocabulary(base, planned)
    stored = list({tensor.layout.source: tensor for tensor in planned.tensors if tensor.stored}.values())
    kind = Type.F16 if all(map(_is_half, stored)) else Type.BF16
    shards = list(split(stored, shard))
    total = sum(map(size, stored))
    clear_stale([target])
    check_disk({target: total})
    effect.say_effect(planned.tensors, planned.gap)
    digests = {}
    with writing_folder(target) as folder:
        _write_side_files(base, adapter, planned, folder, template, DTYPES[kind])
        with quantize.pool() as pool, console.progress("export", total, "B") as progress:
            for part in shards:
                digests[part.name] = _write_shard(folder / part.name, part, kind, pool, progress)
        if len(shards) > 1:
            places = {tensor.layout.source: part.name for part in shards for tensor in part.tensors}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    figures = {"bytes": total, "sha256": digests, "dtype": DTYPES[kind], "tensors": len(stored)}
    return Outcome(sorted(target.iterdir()), {**figures, "seconds": round(time.monotonic() - started, 3)})


def split(stored: Sequence[PlannedTensor], limit: int) -> Iterator[Shard]:
    """Fill files in order, each with at most `limit` bytes of tensors, one tensor at least."""
    parts: list[list[PlannedTensor]] = [[]]
    room = limit
    for tensor in stored:
        if parts[-1] and size(tensor) > room:
            parts.append([])
            room = limit
        parts[-1].append(tensor)
        room -= size(tensor)
    for number, part in enumerate(parts, 1):
        yield Shard(SINGLE if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors", tuple(part))


def size(tensor: PlannedTensor) -> int:
    """Return a tensor's bytes in 16 bits."""
    return 2 * prod(tensor.layout.stored_shape)


def _is_half(tensor: PlannedTensor) -> bool:
    """Tell whether the base has a tensor in float16, or in 4 bits quantized from float16."""
    stored = tensor.stored
    if tensor.replaced or stored is None:
        return True
    return stored.scales.state.dtype == "float16" if stored.scales else stored.dtype == "F16"


def _write_shard(path: Path, part: Shard, kind: Type, pool: ThreadPoolExecutor, progress: console.Progress) -> str:
    """Write one file and return its SHA-256. Each tensor: read → merge → round → write."""
    shapes = {tensor.layout.source: tensor.layout.stored_shape for tensor in part.tensors}
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: Any) -> None:
            file.write(data)
            digest.update(data)

        put(new_header(shapes, kind.name))
        for tensor, values in tensors.ahead(part.tensors, lambda tensor: tensors.trained(tensor, pool)):
            for chunk in quantize.quantized(values, kind, tensor.layout.source, pool):
                put(chunk)
            del values
            progress.advance(size(tensor), note=tensor.layout.source)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_side_files(
    base: Path, adapter: Path | None, planned: ExportPlan, folder: Path, template: str, dtype: str
) -> None:
    # If the adapter has its own vocabulary, its tokenizer_config.json, if there is one, replaces the base's.
    for source, patterns in ((base, COPIED), (planned.vocabulary, VOCABULARY)):
        for path in sorted(found for pattern in patterns for found in source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    config = text_alone(read_config(base))
    for key in ("quantization_config", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    config.update(dtype=dtype, vocab_size=planned.model.vocab, tie_word_embeddings=planned.model.tied)
    # Releases of transformers before 4.56 and other loaders know the dtype by its former name.
    config["torch_dtype"] = dtype
    _write_json(folder / CONFIG, config)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = load_tokenizer(planned.vocabulary, eos_from=base)
    named = folder / "tokenizer_config.json"
    if named.is_file():
        values = read_json(named, "copy the base again")
        changed = values.pop("chat_template", None) is not None  # two templates would contradict each other
        if tokenizer.bos_text and not values.get("bos_token"):  # the template names it
            values["bos_token"], changed = tokenizer.bos_text, True
        rebuilt = (
            values.get("tokenizer_class") in REBUILT and planned.model.architecture != "phi3"
        )  # as it stands there
        if rebuilt and bpe.splits_bytes(read_json(folder / "tokenizer.json", "copy the base again")):
            values["tokenizer_class"], changed = "PreTrainedTokenizerFast", True
        if changed:
            _write_json(named, values)
    eos = trained_eos(adapter, tokenizer)
    if eos != tokenizer.eos:
        _name_eos(folder, eos, tokenizer.encoder.id_to_token(eos))


def _name_eos(folder: Path, index: int, text: str) -> None:
    """Write the EOS that the adapter was trained with wherever transformers looks for one."""
    values = {
        "tokenizer_config.json": ("eos_token", text),
        "special_tokens_map.json": ("eos_token", text),
        "config.json": ("eos_token_id", index),
        "generation_config.json": ("eos_token_id", index),
    }
    for name, (key, value) in values.items():
        path = folder / name
        if path.is_file():
            _write_json(path, {**read_json(path, "copy the base again"), key: value})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
