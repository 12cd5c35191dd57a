"""Load the weights of a model part by part from the files, and drop them again."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.validate.skeleton import Skeleton
from toolkit.validate.weights import Weights

# What PEFT puts between a module's name and the base's own weight if it changes that module.
WRAPPERS = re.compile(r"\.(?:base_layer|original_module|token_adapter)(?=\.)")
PREFIX = "base_model.model."
OWN = (".lora_", ".modules_to_save.", ".trainable_tokens_")  # parts of names of an adapter's own tensors
SLICE = 1 << 25  # weights of the head in use at a time: 128 MiB


@contextlib.contextmanager
def filled(
    skeleton: Skeleton, weights: Weights, *parts: str, ids: Sequence[int] = (), device: str = ""
) -> Iterator[None]:
    """Give the named parts their weights while the block runs; of an embedding, with `ids`, the rows of these only.

    Raises ToolkitError if a weight holds NaN or infinity, or its file ends early.
    """
    places = [name for name, _ in _places(skeleton.model) if name.startswith(tuple(f"{part}." for part in parts))]
    with _holding(skeleton, weights, places, ids, device):
        yield


@contextlib.contextmanager
def _holding(
    skeleton: Skeleton, weights: Weights, places: list[str], ids: Sequence[int] = (), device: str = ""
) -> Iterator[None]:
    try:
        for name in places:
            _put(skeleton.model, name, _value(skeleton, weights, name, ids).to(device or skeleton.device))
        yield
    finally:
        for name in places:
            module, leaf = _owner(skeleton.model, name)
            _put(skeleton.model, name, getattr(module, leaf).to("meta"))


@contextlib.contextmanager
def whole(skeleton: Skeleton, weights: Weights) -> Iterator[Any]:
    """Yield the model of transformers with all weights in memory, and all layers computing in turn."""
    layers = skeleton.decoder.layers
    led = [layer.__dict__.pop("forward") for layer in layers]
    used = tuple(skeleton.name_of(part) for part in (skeleton.decoder, skeleton.base.get_output_embeddings()))
    places = [name for name, _ in _places(skeleton.model) if name.startswith(used)]
    try:
        with _holding(skeleton, weights, places):
            yield skeleton.base
    finally:
        for layer, forward in zip(layers, led, strict=True):
            layer.forward = forward


def check_weights(skeleton: Skeleton, weights: Weights) -> None:
    """Raise ToolkitError unless the files hold each weight that the text model needs, in its shape."""
    decoder, head = (skeleton.name_of(part) for part in (skeleton.decoder, skeleton.base.get_output_embeddings()))
    missing, count = [], 0
    for name, place in _places(skeleton.model):
        if not name.startswith((decoder, head)) or any(part in name for part in OWN) or _saved(skeleton, name):
            continue
        count += 1
        stored = stored_name(skeleton, weights, name)
        if stored is None:
            missing.append(_plain(name))
        elif weights.tensors[stored].shape != tuple(place.shape):
            shape = list(weights.tensors[stored].shape)
            raise ToolkitError(f"`{stored}` in `{weights.folder}` has shape {shape}, not {list(place.shape)}")
    if missing:
        raise ToolkitError(
            f"`{weights.folder}` holds {count - len(missing)} of the model's {count} weights: "
            f"`{missing[0]}` is missing",
            hint="copy or download the base again",
        )


def stored_name(skeleton: Skeleton, weights: Weights, name: str) -> str | None:
    """Return the name in the files of one of the base's weights, None if they do not hold it.

    The files of a model that also sees images may have another prefix than transformers gives its text model.
    """
    plain = _plain(name)
    for wanted in (plain, skeleton.tied.get(plain, "")):
        if wanted in weights.tensors:
            return wanted
        inner = f"{_plain(skeleton.name_of(skeleton.decoder))}."
        if wanted.startswith(inner):
            tail = wanted.removeprefix(inner)
            found = [name for name in weights.tensors if f".{name}".endswith(f".{tail}") and "vision" not in name]
            if len(found) == 1:
                return found[0]
    return None


@contextlib.contextmanager
def sliced_head(skeleton: Skeleton, weights: Weights) -> Iterator[None]:
    """Give the head its weights while the block runs: where only a matrix is needed, slices of it at a time."""
    import torch

    head = skeleton.base.get_output_embeddings()
    name = skeleton.name_of(head)
    names = [place for place, _ in _places(skeleton.model) if place.startswith(f"{name}.")]
    linear = [(inner, module) for inner, module in head.named_modules() if isinstance(module, torch.nn.Linear)]
    # Both of these compute with the whole matrix.
    whole = any("lora_magnitude_vector" in place or "token_adapter" in place for place in names)
    swapped = []
    for inner, module in linear:
        full = f"{name}.{inner}.weight" if inner else f"{name}.weight"
        stored = stored_name(skeleton, weights, full)
        own = _saved(skeleton, full) or any(part in full for part in OWN)
        if whole or own or module.bias is not None or stored is None or not weights.has_rows(stored):
            continue
        module.forward = _in_slices(weights, stored, skeleton.device)
        swapped.append((full, module))
    try:
        with _holding(skeleton, weights, [place for place in names if place not in {full for full, _ in swapped}]):
            yield
    finally:
        for _, module in swapped:
            del module.forward


def _in_slices(weights: Weights, stored: str, device: str) -> Callable[[Any], Any]:
    """Return a linear layer's forward that reads some rows of its matrix at a time."""
    import torch

    count, width = weights.tensors[stored].shape
    step = max(1, SLICE // width)

    def forward(given: Any) -> Any:
        out = torch.empty(*given.shape[:-1], count, device=given.device)
        for start in range(0, count, step):
            end = min(start + step, count)
            rows = torch.from_numpy(weights.read_rows(stored, start, end)).to(device)
            out[..., start:end] = torch.nn.functional.linear(given, rows)
        return out

    return forward


def _places(model: Any) -> list[tuple[str, Any]]:
    """List every weight by its full name, tied ones under each of theirs."""
    return list(model.state_dict(keep_vars=True).items())


def _plain(name: str) -> str:
    return WRAPPERS.sub("", name).removeprefix(PREFIX)


def _owner(model: Any, name: str) -> tuple[Any, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _put(model: Any, name: str, value: Any) -> None:
    import torch

    module, leaf = _owner(model, name)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)


def _saved(skeleton: Skeleton, name: str) -> str:
    """Return the adapter's tensor that a weight has instead of the base's; empty if there is none.

    An adapter may hold a matrix of the base itself, which a tied head shares, as it shares trained tokens.
    """
    if name in skeleton.adapter:
        return name
    if any(part in name for part in OWN):
        module, leaf = _owner(skeleton.model, name)
        same = (full for full in skeleton.adapter if ".trainable_tokens_" in full and ".trainable_tokens_" in name)
        return next((full for full in same if _owner(skeleton.model, full) == (module, leaf)), "")
    plain = _plain(name)
    wanted = (plain, skeleton.tied.get(plain, plain))
    kept = (full for full in skeleton.adapter if not any(part in full for part in OWN))
    return next((full for full in kept if _plain(full) in wanted), "")


def _value(skeleton: Skeleton, weights: Weights, name: str, ids: Sequence[int] = ()) -> Any:
    """Return a weight in float32: the adapter's own, or the base's from its files."""
    import torch

    saved = _saved(skeleton, name)
    if saved:
        return skeleton.adapter[saved].float()
    if any(part in name for part in OWN):
        if ".lora_A" in name or ".lora_B" in name or ".lora_embedding_" in name:  # PEFT's fresh pair changes nothing
            module, leaf = _owner(skeleton.model, name)
            return torch.zeros(getattr(module, leaf).shape)
        raise ToolkitError(f"the adapter lacks the tensor `{name}`", hint="save the adapter again")
    stored = stored_name(skeleton, weights, name)
    if stored is None:
        raise ToolkitError(f"`{weights.folder}` holds no tensor for `{_plain(name)}`")
    if ids and weights.has_rows(stored):  # 4 bits change no embedding
        return torch.from_numpy(weights.read_some(stored, sorted(set(ids))))
    return weights.read(stored, linear=_plain(name) in skeleton.linears, device=skeleton.device)
