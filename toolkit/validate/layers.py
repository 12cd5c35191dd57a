"""Base and adapter computed layer by layer: all rows go through one layer before the next one's weights are read.

So a base of any size takes the memory of one layer, and its files are read once, whatever the number of rows.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import console
from toolkit.model.greedy_answer import greedy_answer
from toolkit.model.hub_range import HubShards
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import Record
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.validate.filling import check_weights, filled, sliced_head, whole
from toolkit.validate.metrics import Logits
from toolkit.validate.skeleton import HEAD, Skeleton, compute, make_skeleton, place_buffers
from toolkit.validate.spill import spill
from toolkit.validate.weights import Weights, open_weights

BOTH = (True, False)  # with the adapter, without it
LOGITS = 1 << 26  # in memory at a time: 256 MiB
SMALL = 500_000_000  # parameters of a base that may be in memory whole to answer questions: 2 GB


@dataclass(frozen=True)
class Trained:
    """Base and adapter, ready to be computed layer by layer."""

    skeleton: Skeleton
    weights: Weights


def open_trained(base: Path, adapter: Path, shards: HubShards | None = None) -> Trained:
    """Lay out base and adapter without reading the weights, on the GPU where there is one.

    With `shards`, whose folder `base` is, each weight is fetched when it is needed. Raises ToolkitError if the adapter
    does not fit the base, or the base's files lack a weight.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = Trained(make_skeleton(base, adapter, device), open_weights(base, shards))
    check_weights(found.skeleton, found.weights)
    return found


@contextlib.contextmanager
def final_states(
    trained: Trained, records: Sequence[Record], adapters: Sequence[bool], folder: Path, label: str
) -> Iterator[list[Logits]]:
    """Yield what the last layer gives for every token, shape (tokens, width), with the adapter or without it.

    `adapters` says which of both, in order. The arrays live on disk while the block runs.
    """
    skeleton, layers = trained.skeleton, trained.skeleton.decoder.layers
    spans = spans_of([len(record.seen) for record in records])
    shape = (len(adapters) * spans[-1].stop, skeleton.hidden_size)
    total = (len(layers) + 1) * len(adapters) * len(records)
    with (
        spill(folder, *shape) as states,
        console.progress(label, total, "passes") as bar,
    ):
        found = np.split(states, len(adapters))
        for layer in range(-1, len(layers)):
            with ready(trained, layer, records):
                for adapted, values in zip(adapters, found, strict=True):
                    with with_adapter(skeleton, adapted):
                        for record, span in zip(records, spans, strict=True):
                            values[span] = through(trained, layer, record, values[span])
                            bar.advance(1, f"layer {layer + 1} of {len(layers)}")
        yield found


@contextlib.contextmanager
def ready(trained: Trained, layer: int, records: Sequence[Record]) -> Iterator[None]:
    """Hold the weights of one layer, or of the embedding (-1), which a CPU looks up."""
    skeleton, weights = trained.skeleton, trained.weights
    module = skeleton.decoder.layers[layer] if layer >= 0 else skeleton.base.get_input_embeddings()
    place_buffers(skeleton, skeleton.device if layer >= 0 else "cpu")
    ids = [] if layer >= 0 else sorted({token for record in records for token in record.seen})
    device = skeleton.device if layer >= 0 else "cpu"
    with filled(skeleton, weights, skeleton.name_of(module), ids=ids, device=device):
        yield


def through(trained: Trained, layer: int, record: Record, states: Logits) -> Logits:
    """Return the states of one record after a layer, or after the embedding (-1); shape (tokens, width)."""
    import torch

    if layer < 0:
        found = compute(trained.skeleton, 0, ids=record.seen)
    else:
        given = torch.from_numpy(np.array(states)).to(trained.skeleton.device)
        found = compute(trained.skeleton, layer, hidden=given[None])
    array: Logits = found[0].float().cpu().numpy()
    return array


def with_adapter(skeleton: Skeleton, adapted: bool) -> Any:
    """Return a context in which the adapter is in use, or is not."""
    return contextlib.nullcontext() if adapted else skeleton.model.disable_adapter()


def logits_of(skeleton: Skeleton, states: Logits) -> Logits:
    """Return the logits of some positions, shape (positions, vocabulary); the head's weights must be there."""
    import torch

    given = torch.from_numpy(np.array(states)).to(skeleton.device)
    array: Logits = compute(skeleton, HEAD, hidden=given[None])[0].float().cpu().numpy()
    return array


def chunk_size(skeleton: Skeleton) -> int:
    """Return the number of positions whose logits are computed at once."""
    return max(1, LOGITS // skeleton.vocabulary)


@contextlib.contextmanager
def head(trained: Trained) -> Iterator[None]:
    """Hold what is behind the layers: the last norm, and the head in slices."""
    skeleton, weights = trained.skeleton, trained.weights
    place_buffers(skeleton, skeleton.device)
    decoder = skeleton.name_of(skeleton.decoder)
    inside = {skeleton.name_of(part) for part in (skeleton.decoder.layers, skeleton.base.get_input_embeddings())}
    rest = [f"{decoder}.{name}" for name, _ in skeleton.decoder.named_children() if f"{decoder}.{name}" not in inside]
    with filled(skeleton, weights, *rest), sliced_head(skeleton, weights):
        yield


def spans_of(lengths: list[int]) -> list[slice]:
    """Return where each of several sequences lies among the tokens of all."""
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def untrained_answers(
    trained: Trained, tokenizer: Tokenizer, prompts: list[Prompt], tokens: int, stops: tuple[str, ...]
) -> list[str | None]:
    """Return the base's greedy answers, each None if its weights are too many to be in memory at once.

    Training asks while the model is loaded; this is for an adapter from elsewhere, and for questions of a later day.
    """
    skeleton, weights = trained.skeleton, trained.weights
    if not prompts or sum(prod(tensor.shape) for tensor in weights.tensors.values()) > SMALL:
        return [None for _ in prompts]
    place_buffers(skeleton, skeleton.device)
    with whole(skeleton, weights) as model, skeleton.model.disable_adapter():
        return [greedy_answer(model, tokenizer, prompt, tokens, stops) for prompt in prompts]
