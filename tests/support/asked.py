"""The same random weights twice, as systems that an evaluation asks: in transformers, and as F32 GGUF in llama.cpp."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import families, models
from toolkit import llamacpp
from toolkit.evaluate.llamacpp_system import LlamaCppSystem
from toolkit.evaluate.transformers_system import Place, TransformersSystem
from toolkit.export import export
from toolkit.prompt.tokenizer import load_tokenizer

WINDOW = 512


@dataclass(frozen=True)
class Twins:
    """The base's folder, and both systems."""

    folder: Path
    in_transformers: TransformersSystem
    in_llamacpp: LlamaCppSystem


@contextlib.contextmanager
def twins(folder: Path, family: str = "llama") -> Iterator[Twins]:
    """Make a small model of a family, and load it twice."""
    base = folder / "base"
    families.save(base, family)
    export(base, None, {"F32": folder / "F32.gguf"}, models.TEMPLATE, "tiny")
    tokenizer, model = load_tokenizer(base), models.load(base).eval()
    with llamacpp.opened(folder / "F32.gguf", WINDOW, exact=True) as llm:
        yield Twins(
            base,
            TransformersSystem(model, True, tokenizer, (tokenizer.eos,), WINDOW, Place("cpu", "float32")),
            LlamaCppSystem(llm, folder / "F32.gguf", tokenizer, WINDOW),
        )
