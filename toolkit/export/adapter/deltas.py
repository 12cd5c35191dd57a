"""What an adapter can change of its base, and whether it fits: LoRA, DoRA, single tokens, biases, complete tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.core.errors import ToolkitError
from toolkit.formats import checkpoint
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
OTHER_BASE = "give the base that the adapter was trained on (base_model_name_or_path in adapter_config.json)"


@dataclass(frozen=True)
class LoraDelta:
    """LoRA on one weight of shape (out, in): scale * B @ A, with A (rank, in) and B (out, rank).

    An `embedding` of shape (rows, width) has A (rank, rows) and B (width, rank), and gets the transpose. With a
    `magnitude` (DoRA) the sum is then scaled to that norm, row by row; an embedding's column by column.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    magnitude: TensorInfo | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Rows:
    """Trained token embeddings: these rows of the weight are replaced by `values`, one each, in this order."""

    values: TensorInfo
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """The bias of lora_B (`lora_bias`): scale * `bias` is added to the layer's own."""

    bias: TensorInfo
    scale: float


Change = LoraDelta | Rows | Shift


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes: tensors that replace the base's, and changes to the others.

    `vocabulary` is the number of rows of the embedding, `tied` says whether it is also still the output matrix.
    `gap` says which modules its settings name but its weights lack; empty if there are none.
    """

    replaced: dict[str, TensorInfo]
    changes: dict[str, Change]
    vocabulary: int
    tied: bool
    gap: str = ""


def check_shapes(adapter: Adapter, weights: Mapping[str, tuple[int, ...]], model: ModelConfig) -> None:
    """Raise ToolkitError unless every tensor of an adapter fits its place; `weights` are the base's names and shapes.

    `fan_in_fan_out` plays no part: PEFT ignores it for linear layers, whose weights all are (out, in) here.
    """
    vocabulary = (adapter.vocabulary, model.hidden)
    shapes = {**weights, EMBEDDING: vocabulary, **({} if adapter.tied else {HEAD: vocabulary})}
    if adapter.vocabulary != model.vocab and not adapter.tied:
        lost = [name for name in (EMBEDDING, HEAD) if name not in adapter.replaced]
        if lost:
            raise ToolkitError(
                f"the adapter resizes the vocabulary from {model.vocab} to {adapter.vocabulary} tokens, "
                f"but has no `{lost[0]}` of that size",
                hint="save it again with save_pretrained(…, save_embedding_layers=True)",
            )
    for name, tensor in adapter.replaced.items():
        if tensor.shape != shapes[name]:
            raise _another_base(name, shapes[name], f"the adapter's `{tensor.name}` {list(tensor.shape)}")
        checkpoint.check_readable(tensor)
    for name, change in adapter.changes.items():
        shape = shapes[name]
        if isinstance(change, LoraDelta):
            rank, across, down = change.a.shape[0], shape[-1], shape[0]
            if change.embedding:
                across, down = down, across
            wanted: list[tuple[TensorInfo, tuple[int, ...]]] = [(change.a, (rank, across)), (change.b, (down, rank))]
            if change.magnitude:
                wanted.append((change.magnitude, (shape[-1] if change.embedding else shape[0],)))
            said = f"the adapter's A {list(change.a.shape)} and B {list(change.b.shape)}"
            if len(shape) != 2:
                raise _another_base(name, shape, said)
        elif isinstance(change, Rows):
            wanted, said = [(change.values, (len(change.indices), shape[-1]))], f"its rows {list(change.values.shape)}"
            if max(change.indices) >= shape[0]:
                raise _another_base(name, shape, f"the adapter trains token {max(change.indices)}")
        else:
            wanted, said = [(change.bias, shape)], f"the adapter's `{change.bias.name}` {list(change.bias.shape)}"
        for tensor, expected in wanted:
            if tensor.shape != expected:
                raise _another_base(name, shape, said)
            checkpoint.check_readable(tensor)


def _another_base(name: str, shape: tuple[int, ...], found: str) -> ToolkitError:
    return ToolkitError(
        f"this adapter belongs to another base: `{name}` has shape {list(shape)}, {found}", hint=OTHER_BASE
    )
