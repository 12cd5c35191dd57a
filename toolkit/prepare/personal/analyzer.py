"""Find what is personal in a text with Presidio's analyzer. Nothing is downloaded, and no model is loaded unasked."""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.prepare.personal.passages import passages

NAMES = ("PERSON", "LOCATION")  # what a model finds
LANGUAGE = "en"  # Presidio asks for one
LEAST = 0.4  # score of a finding
LONGEST, OVERLAP = 4_000, 200  # characters that are looked at together
# Spaces and hyphens at which no line breaks, as word processors and web pages have them in numbers.
_TYPED = str.maketrans("\u00a0\u2007\u2009\u202f\u2010\u2011", "    --")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")  # such as a soft hyphen
INSTALL = "pip install -c constraints.txt '.[privacy]'"


@dataclass(frozen=True)
class Span:
    """One finding: its kind, Presidio's score from 0 to 1, and where it stands in the text (characters)."""

    kind: str
    score: float
    start: int
    end: int


Find = Callable[[str], list[Span]]


def presidio_there() -> bool:
    """Tell whether Presidio is there: `presidio_analyzer` and `presidio_anonymizer`."""
    return all(find_spec(name) is not None for name in ("presidio_analyzer", "presidio_anonymizer"))


def finder(model: str) -> Find:
    """Return a function that finds what is personal in a text, without overlap, in its order.

    `model` is the folder of a spaCy or transformers model that finds names and places; "" looks for none. Raises
    ToolkitError (exit 3) if the folder holds no such model.
    """
    return _as_typed(_with_model(Path(model).expanduser()) if model else _without_model)


def _as_typed(find: Find) -> Find:
    """Let a text be looked at as a keyboard writes it: with plain spaces and hyphens, without what cannot be seen."""

    def found(text: str) -> list[Span]:
        if text.isascii():
            return find(text)
        plain = text.translate(_TYPED)
        if _UNSEEN.search(plain) is None:
            return find(plain)
        places = [at for at, char in enumerate(plain) if _UNSEEN.match(char) is None]
        spans = find("".join(plain[at] for at in places))
        return [replace(span, start=places[span.start], end=places[span.end - 1] + 1) for span in spans]

    return found


def _without_model(text: str) -> list[Span]:
    found = []
    for start, end in _pieces(passages(text)):
        engine, may_hold_something = _engine()
        for span in _analyzed(engine, text[start:end]) if may_hold_something(text[start:end]) else ():
            found.append(Span(span.kind, span.score, span.start + start, span.end + start))
    return _apart(found)


def _pieces(parts: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Divide long passages, because some patterns take the square of a length; what is cut is in the next piece."""
    for start, end in parts:
        yield start, min(end, start + LONGEST)
        for later in range(start + LONGEST - OVERLAP, end - OVERLAP, LONGEST - OVERLAP):
            yield later, min(end, later + LONGEST)


def _with_model(folder: Path) -> Find:
    if not folder.is_dir():
        raise ToolkitError(
            f"there is no folder `{folder}` with a model that finds names",
            hint="set `data.personal_model` to the folder of a spaCy model or of a transformers token-classification "
            'model, or to "" to look for no names',
            exit_code=MISSING,
        )
    try:
        engine = _model_engine(folder.resolve())
        engine.analyze("", LANGUAGE)
    except Exception as exc:  # spaCy, thinc, transformers and torch each have errors of their own
        raise ToolkitError(
            f"`{folder}` holds no model that finds names: {next(iter(str(exc).splitlines()), type(exc).__name__)}",
            hint="`data.personal_model` names the folder with spaCy's config.cfg, or that with the config.json and the "
            "tokenizer of a transformers token-classification model",
            exit_code=MISSING,
        ) from exc
    return lambda text: _analyzed(engine, text)


def _analyzed(engine: Any, text: str) -> list[Span]:
    results = engine.analyze(text, LANGUAGE, score_threshold=LEAST)
    return _apart([Span(result.entity_type, round(result.score, 2), result.start, result.end) for result in results])


def _apart(spans: list[Span]) -> list[Span]:
    """Keep the longest of findings that overlap, and of a name and a number the number; in the order of the text."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.kind in NAMES, span.start - span.end, -span.score)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


@functools.cache
def _engine() -> tuple[Any, Callable[[str], bool]]:
    """Return what analyzes a text, and a test of whether that may find anything."""
    with _absent("torch", "transformers"):
        from presidio_analyzer.nlp_engine import NoOpNlpEngine

        from toolkit.prepare.personal.recognizers import may_hold_something, recognizers

        found_by = recognizers()
        engine = _built(NoOpNlpEngine([{"lang_code": LANGUAGE, "model_name": ""}]), found_by)
        return engine, may_hold_something(found_by)


@functools.lru_cache(1)
def _model_engine(folder: Path) -> Any:
    from presidio_analyzer.nlp_engine import NoOpNlpEngine, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import HuggingFaceNerRecognizer, SpacyRecognizer

    from toolkit.prepare.personal.recognizers import recognizers

    if (folder / "config.cfg").is_file():  # spaCy's; a folder that is there is never downloaded
        spacy_engine = SpacyNlpEngine([{"lang_code": LANGUAGE, "model_name": str(folder)}])
        names = SpacyRecognizer(supported_language=LANGUAGE, supported_entities=[*NAMES])
        return _built(spacy_engine, [*recognizers(), names])
    _give_libraries()
    labels = dict.fromkeys(("PER", "PERSON", "PESSOA", "PATIENT", "NAME"), "PERSON")
    labels |= dict.fromkeys(("LOC", "LOCATION", "LOCAL", "GPE", "ADDRESS"), "LOCATION")
    model = HuggingFaceNerRecognizer(
        model_name=str(folder), supported_entities=[*NAMES], supported_language=LANGUAGE, label_mapping=labels
    )
    return _built(NoOpNlpEngine([{"lang_code": LANGUAGE, "model_name": ""}]), [*recognizers(), model])


def _give_libraries() -> None:
    """Give Presidio's module for such models the libraries that `_absent` may have hidden when it was imported."""
    import torch
    import transformers
    from presidio_analyzer.predefined_recognizers.ner import huggingface_ner_recognizer as module

    module.torch, module.hf_pipeline = torch, transformers.pipeline


def _built(nlp_engine: Any, found_by: list[Any]) -> Any:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

    registry = RecognizerRegistry(found_by, supported_languages=[LANGUAGE])
    return AnalyzerEngine(registry, nlp_engine, supported_languages=[LANGUAGE])


@contextlib.contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Let Presidio import without torch and transformers, which patterns do not need: 1 s of CPU instead of 5."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
