"""The importance matrix: how much each input column of a matrix matters, measured on the run's own training records.

For every linear layer of the trained model: the sum of its squared inputs over all tokens, column by column. The
conventions are those of llama.cpp's tools/imatrix (chunks of 512 tokens, matrices of the layers only, never the
embedding or the output). The model's layers are brought into memory one at a time, merged
as for export, so this needs no more memory than the export itself.
"""

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core import console, hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import path_name
from toolkit.core.native import alone
from toolkit.core.records import Records, each_record
from toolkit.core.run_folder import RunFolder
from toolkit.export import tensors
from toolkit.export.imatrix_file import Imatrix
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.export.planning import ExportPlan
from toolkit.formats.checkpoint import Floats
from toolkit.model.text_part import text_part
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.renderings import earlier_turns, render_record
from toolkit.prompt.tokenizer import Tokenizer

CHUNK = 512  # tokens that see each other, llama.cpp's default
# From 1,000 to 10 million tokens Q2_K's divergence falls by 1.5 % (llama.cpp's tools/perplexity/README.md).
CHUNKS = 32
METHOD = 1  # raised when something is measured differently, so that an older matrix does not count as the same


@dataclass(frozen=True)
class Chunks:
    """Token ids of shape (chunks, length), and the name of the file that they come from."""

    ids: list[list[int]]
    dataset: str


def chunks_of_run(folder: RunFolder, planned: ExportPlan, prompt_format: PromptFormat, tokenizer: Tokenizer) -> Chunks:
    """Choose what a run's trained model is measured on: its training split, never what it is validated with.

    Raises ToolkitError if the training split is missing, holds a held-out record, or is too short.
    """
    ids = chunks(folder, prompt_format, tokenizer, min(CHUNK, planned.model.context))
    return Chunks(ids, path_name(folder.split_file("train"), folder))


def digest(chosen: Chunks, model: Sequence[str]) -> str:
    """Return the SHA-256 of everything that decides an importance matrix: token ids, and the hashes of the model."""
    stated = json.dumps([METHOD, chosen.ids, list(model)], separators=(",", ":"))
    return hashlib.sha256(stated.encode()).hexdigest()


def measure(base: Path, planned: ExportPlan, chosen: Chunks, inputs: str) -> Imatrix:
    """Run the trained model over the chosen chunks; `inputs` is their `digest`."""
    sums, counts = compute(base, planned, chosen.ids)
    return Imatrix(sums, counts, len(chosen.ids), len(chosen.ids[0]), chosen.dataset, inputs)


def chunks(folder: RunFolder, prompt_format: PromptFormat, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Join training records, as training saw them and in random order, and cut them into at most CHUNKS equal pieces.

    As in llama.cpp each piece starts with BOS if the model has one; it replaces the piece's first token.
    """
    records = Records(folder.split_file("train"))
    held_out = (record for side in ("val", "test") for record in each_record(folder.split_file(side)))
    trained, held = (np.fromiter((hash(_key(one)) for one in some), np.int64) for some in (records, held_out))
    leaked = int(np.isin(trained, held).sum())
    if leaked:
        raise ToolkitError(
            f"{leaked:,} records of `{folder.split_file('train')}` are also held out for validation",
            hint="an importance matrix must not see them: run `toolkit prepare --force`",
        )
    order = array("Q", range(len(records)))
    random.Random(0).shuffle(order)
    ids: list[int] = []
    for record in map(records.__getitem__, order):
        if len(ids) >= CHUNKS * length:
            break
        prompt = render_record(prompt_format, record, tokenizer.eos_text)
        ids += tokenizer.record_ids(prompt, record["output"], cut=bool(record.get("truncated")))[0]
    length = min(length, len(ids))  # a very small training split makes one shorter piece
    if length < 16:
        raise ToolkitError(f"`{folder.split_file('train')}` has {length} tokens, too few for an importance matrix")
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:CHUNKS]
    return pieces if tokenizer.bos is None else [[tokenizer.bos, *piece[1:]] for piece in pieces]


def _key(record: dict[str, Any]) -> tuple[object, ...]:
    return record["instruction"], *earlier_turns(record), record["input"], record["output"]


def compute(base: Path, planned: ExportPlan, ids: Sequence[Sequence[int]]) -> tuple[dict[str, Floats], dict[str, int]]:
    """Run token ids of shape (chunks, length) through the trained model, layer by layer in float32.

    Returns sums of squares and token counts by GGUF name. transformers' own forward is used, with each layer's weights
    loaded just before it runs and freed after it. Raises ToolkitError if an activation is not finite.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = _skeleton(base, planned)
    for module in decoder.modules():  # rotary tables; the modules with weights get them later
        if not any(True for _ in module.parameters()):
            module.to(device)
    by_layer: dict[int, list[PlannedTensor]] = {index: [] for index in range(planned.model.layers)}
    for tensor in planned.tensors:
        if tensor.name.startswith("blk."):
            by_layer[int(tensor.name.split(".")[1])].append(tensor)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    with ThreadPoolExecutor(hardware.cores()) as pool, torch.inference_mode():
        embedding = next(tensor for tensor in planned.tensors if tensor.name == "token_embd.weight")
        # The embedding's own forward: some families scale its output.
        weights = {"weight": torch.from_numpy(tensors.trained(embedding, pool))}
        decoder.embed_tokens.load_state_dict(weights, strict=True, assign=True)
        hidden = decoder.embed_tokens(torch.tensor(ids)).to(device)
        decoder.embed_tokens, weights = torch.nn.Identity(), {}
        with console.progress("imatrix", planned.model.layers * len(ids), "chunks through layers") as progress:
            for index, layer in enumerate(decoder.layers):
                layer.forward = _streamed(layer, by_layer[index], sums, pool, progress)
            decoder(inputs_embeds=hidden, use_cache=False)
    for name, values in sums.items():
        if not np.isfinite(values).all():
            raise ToolkitError(
                f"the trained model's activations before `{name}` are not finite",
                hint="its weights hold NaN or infinity, or it diverged: train again with a lower `train.learning_rate`",
            )
    count = len(ids) * len(ids[0])
    return {name: values.astype(np.float32) for name, values in sums.items()}, dict.fromkeys(sums, count)


@alone()
def _skeleton(base: Path, planned: ExportPlan) -> Any:
    """Build the decoder without weights (its rotary tables are real), with nothing after the last layer."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config, _ = text_part(AutoConfig.from_pretrained(base))
    config.vocab_size = planned.model.vocab
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    decoder = model.eval().get_decoder()
    decoder.norm = torch.nn.Identity()
    return decoder


def _streamed(
    layer: Any,
    parts: Sequence[PlannedTensor],
    sums: dict[str, npt.NDArray[np.float64]],
    pool: ThreadPoolExecutor,
    progress: console.Progress,
) -> Callable[..., Any]:
    """Return a layer's forward that fetches its weights, runs chunk by chunk, counts, and frees the weights."""
    import torch

    prefix = parts[0].layout.source.split(".layers.")[0] + f".layers.{parts[0].name.split('.')[1]}."
    forward = layer.forward
    linear = {
        f"{prefix}{name}.weight": module for name, module in layer.named_modules() if type(module) is torch.nn.Linear
    }
    same: dict[str, list[PlannedTensor]] = {}  # two tensors may be parts of one: they get the same input
    for tensor in parts:
        same.setdefault(tensor.layout.source, []).append(tensor)

    wholes = {tensor.layout.source: tensor for tensor in parts}

    def watch(fed: list[PlannedTensor]) -> Callable[[Any, Any], None]:
        def hook(module: Any, given: Any) -> None:
            rows = given[0].float().flatten(0, -2)
            found = rows.square().sum(0, dtype=torch.float64).cpu().numpy()
            for tensor in fed:
                order = tensor.layout.order
                square = order.applied(found[None])[0] if order and order.columns else found
                sums[tensor.name] = sums[tensor.name] + square if tensor.name in sums else square

        return hook

    def run(hidden: Any, **given: Any) -> Any:
        weights = {
            source.removeprefix(prefix): torch.from_numpy(tensors.trained(tensor, pool)).to(hidden.device)
            for source, tensor in wholes.items()
        }
        layer.load_state_dict(weights, strict=True, assign=True)
        hooks = [module.register_forward_pre_hook(watch(same[source])) for source, module in linear.items()]
        out = torch.empty_like(hidden)
        for index in range(len(hidden)):
            mine = {key: _row(value, index, len(hidden)) for key, value in given.items()}
            out[index : index + 1] = forward(hidden[index : index + 1], **mine)
            progress.advance(note=parts[0].name.rsplit(".", 2)[0])
        for hook in hooks:
            hook.remove()
        layer.to("meta")
        return out

    return run


def _row(value: Any, index: int, count: int) -> Any:
    """Return one chunk's part of a value for all chunks (a mask); a value without such parts is returned as it is."""
    if isinstance(value, tuple):
        return tuple(_row(part, index, count) for part in value)
    whole = not hasattr(value, "shape") or not value.shape or value.shape[0] != count
    return value if whole else value[index : index + 1]
