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


def twins(folder: Path, family: str = "llama") -> contextlib.AbstractContextManager[Twins]:
    """Make a small model of a family, and load it twice."""
    families.save(folder / "base", family)
    return loaded_twice(folder / "base", folder / "F32.gguf")


@contextlib.contextmanager
def loaded_twice(base: Path, file: Path) -> Iterator[Twins]:
    """Load a base's folder in transformers, and its F32 GGUF, which is written, in llama.cpp."""
    export(base, None, {"F32": file}, models.TEMPLATE, "tiny")
    tokenizer, model = load_tokenizer(base), models.load(base).eval()
    with llamacpp.opened(file, WINDOW, exact=True) as llm:
        yield Twins(
            base,
            TransformersSystem(model, True, tokenizer, (tokenizer.eos,), WINDOW, Place("cpu", "float32")),
            LlamaCppSystem(llm, file, tokenizer, WINDOW),
        )
