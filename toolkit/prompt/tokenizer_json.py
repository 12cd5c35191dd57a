"""A tokenizer.json as llama.cpp reads it: the encoder that training uses sees what the runtime will see."""

import contextlib
import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.native import guarded
from toolkit.core.parsing import read_json

# Tokens that llama.cpp stops at and never finds in text, whatever their kind in the file (src/llama-vocab.cpp).
STOPS = {"</s>", "<eos>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"}
# Letters, digits, spaces, other scripts, characters of two to four bytes, controls, and a text of no token at all.
TRIED = ("", " ", "a", "What helps against 38.5 °C?\n\n  Ünïcödé — 发烧 😀 ﷺ\u200b\t<|x|>", "\x00\x7f\ufffd", "ab" * 40)


Layouts = dict[tuple[Path, int, int], dict[str, Any]]
_kept: ContextVar[Layouts | None] = ContextVar("_kept", default=None)


@contextlib.contextmanager
def keeping_layouts() -> Iterator[None]:
    """Parse each tokenizer.json once during the block: one of 128,256 tokens takes half a second and 60 MB."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def read_layout(folder: Path, hint: str) -> dict[str, Any]:
    """Return what a folder's tokenizer.json holds, not to be changed; raises ToolkitError with `hint` if damaged."""
    path, kept = folder / "tokenizer.json", _kept.get()
    if kept is None:
        return read_json(path, hint)
    there = path.resolve(), path.stat().st_mtime_ns, path.stat().st_size
    if there not in kept:
        kept[there] = read_json(path, hint)
    return kept[there]


@functools.lru_cache(maxsize=2)
def read_encoders(path: Path, modified: int, size: int) -> tuple[Any, Any, int | None]:
    """Return the encoder of a tokenizer.json, the one without its prefix if it has one, and the id of BOS.

    `modified` (ns) and `size` say which state of the file it is: one is read once, as 128,256 tokens take a second.
    Raises ToolkitError if it cannot be read.
    """
    layout = read_layout(path.parent, "copy the base model again")
    with guarded(
        lambda reason: ToolkitError(f"`{path}` cannot be read: {reason}", hint="copy the base model again"), silent=True
    ):
        return _encoders(layout, path)


def _encoders(layout: dict[str, Any], path: Path) -> tuple[Any, Any, int | None]:
    """Make the encoders and find BOS.

    Both are tried with texts of all kinds, so that damage shows here and not at the user's ten-thousandth row.
    """
    from tokenizers import Tokenizer as Encoder

    model = layout.get("model")
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if isinstance(model, dict) and prefix and model.get("type") != "WordPiece":
        # The tokenizers library cuts each merge at that many bytes, and aborts the process inside a character.
        raise ToolkitError(
            f"`{path}` sets `model.continuing_subword_prefix` to {prefix!r:.80}, which no language model's BPE has",
            hint="set it to null if the base was made so, or copy the base model again",
        )
    layout = _with_space_always(layout)
    with_space = _prefixed(layout)
    layout = {**layout, "added_tokens": [{**entry} for entry in layout.get("added_tokens") or []]}
    for entry in layout["added_tokens"]:
        text = entry["content"]
        entry["special"] = bool(entry.get("special")) or looks_special(text) or text in STOPS
        # llama.cpp finds added tokens as they are written; training must see what the runtime will see.
        entry.update(lstrip=False, rstrip=False, single_word=False)
        if "▁" not in text and not entry["special"]:
            entry["normalized"] = False
    encoder = Encoder.from_str(json.dumps(layout))
    inner = Encoder.from_str(json.dumps(_without_prefix(layout))) if with_space else None
    for each in (encoder, inner or encoder):
        each.no_truncation()
        each.no_padding()
    with_specials = encoder.encode("x", add_special_tokens=True).ids
    plain = encoder.encode("x", add_special_tokens=False).ids
    bos = with_specials[0] if with_specials[: len(plain)] != plain else None
    for each in (encoder, inner or encoder):
        each.encode_special_tokens = True
        for text in TRIED:
            each.decode(each.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    return encoder, inner, bos


def looks_special(text: str) -> bool:
    """Tell whether llama.cpp's converter takes an added token for a control token, whatever its flag says."""
    bars = (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>"))
    unused = text.startswith("<unused") and text.endswith(">")
    return bars or unused or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


def _with_space_always(layout: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that puts a space before a text even if it begins with one, as SentencePiece does.

    Metaspace leaves it out there, llama.cpp does not: training must see what the runtime will see.
    """
    step = layout.get("pre_tokenizer")
    if not isinstance(step, dict) or step.get("type") != "Metaspace" or layout.get("normalizer"):
        return layout
    if (
        step.get("prepend_scheme", "always") == "never"
        or step.get("split", True)
        or not step.get("add_prefix_space", True)
    ):
        return layout
    mark = step.get("replacement", "▁")
    steps = [{"type": "Prepend", "prepend": mark}, {"type": "Replace", "pattern": {"String": " "}, "content": mark}]
    return {**layout, "pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": steps}}


def _prefixed(layout: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json puts a space before every text, by its normalizer or its pre-tokenizer."""
    return _without_prefix(layout) != layout


def _without_prefix(layout: dict[str, Any]) -> dict[str, Any]:
    return {
        **layout,
        "normalizer": _plain_step(layout.get("normalizer"), "normalizers"),
        "pre_tokenizer": _plain_step(layout.get("pre_tokenizer"), "pretokenizers"),
    }


def _plain_step(step: Any, inner: str) -> Any:
    """Return a step of a tokenizer.json, or a sequence of them, without what prepends a space."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence":
        steps = [_plain_step(each, inner) for each in step.get(inner) or []]
        return {**step, inner: [each for each in steps if each is not None]}
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace":
        plain = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return step if step.get("prepend_scheme") == "never" else {**plain, "prepend_scheme": "never"}
    return step
