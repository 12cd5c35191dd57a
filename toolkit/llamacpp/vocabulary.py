"""A GGUF's vocabulary alone, as llama.cpp loads it: no weights are read, so that it takes a fraction of a second."""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import open_gguf
from toolkit.llamacpp.remote import beside_file, opened_beside

_ERROR = 4  # ggml.h: GGML_LOG_LEVEL_ERROR; llama_cpp._logger has an older numbering
_lock = threading.Lock()  # llama.cpp has one listener for all threads
_listening = 0  # blocks in which it is ours
_words = threading.local()  # .said: the errors that the block of this thread heard


@dataclass(frozen=True)
class Vocabulary:
    """A loaded vocabulary; `bos` and `eos` are None if the file names none, `adds_bos` says if a server adds BOS."""

    handle: Any
    bos: int | None
    eos: int | None
    adds_bos: bool

    def text(self, index: int | None) -> str:
        """Return a token's text, empty for None."""
        return "" if index is None else _token_text(self.handle, index)

    def chat_ids(self, prompt: str) -> list[int]:
        """Return the ids that llama-server makes of a prompt which the chat template in the file rendered.

        It removes a BOS from its start if the vocabulary adds one (llama.cpp's common/chat.cpp, apply).
        """
        begin = self.text(self.bos)
        return self.served_ids(prompt.removeprefix(begin) if self.adds_bos else prompt)

    def served_ids(self, prompt: str) -> list[int]:
        """Return the ids that a server makes of a prompt, as Ollama does of its TEMPLATE's.

        BOS comes first if the vocabulary adds one; control tokens are found anywhere in the prompt (common_tokenize).
        """
        return _served_ids(self.handle, prompt)


@beside_file
def _token_text(handle: Any, index: int) -> str:
    import llama_cpp

    raw: bytes = llama_cpp.llama_vocab_get_text(handle, index)
    return raw.decode("utf-8", errors="replace")


@beside_file
def _served_ids(handle: Any, prompt: str) -> list[int]:
    import llama_cpp

    raw = prompt.encode("utf-8")
    room = len(raw) + 16
    while True:
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(handle, raw, len(raw), buffer, room, True, True)
        if count >= 0:
            return list(buffer[:count])
        room = -count


@beside_file
def _ends(handle: Any) -> tuple[int | None, int | None, bool]:
    """Return BOS, EOS, and whether BOS is added."""
    import llama_cpp

    bos, eos = llama_cpp.llama_vocab_bos(handle), llama_cpp.llama_vocab_eos(handle)
    adds = bool(llama_cpp.llama_vocab_get_add_bos(handle))
    return bos if bos >= 0 else None, eos if eos >= 0 else None, adds


def vocabulary_of(model: Any) -> Vocabulary:
    """Return the vocabulary of a model that llama.cpp has loaded in this process (its C pointer)."""
    import llama_cpp

    handle = llama_cpp.llama_model_get_vocab(model)
    return Vocabulary(handle, *_ends(handle))


def check_header(path: Path) -> None:
    """Raise ToolkitError for a header over which llama.cpp aborts: damaged, a token twice, a number too large."""
    metadata, problem = open_gguf(path).metadata, ""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        texts = {str(token).partition("\0")[0] for token in tokens}  # llama.cpp reads a text up to its first NUL
        problem = "its vocabulary has a token twice" if len(texts) < len(tokens) else ""
    sizes = f"{metadata.get('general.architecture')}."
    for key, value in metadata.items():
        if key.startswith(sizes) and type(value) is int and not 0 <= value < 2**31:
            problem = f"`{key}` is {value}"
    if problem:
        raise ToolkitError(f"`{path}` is damaged: {problem}", hint="write it again with `toolkit export --force`")


def trained_positions(path: Path) -> int | None:
    """Return how many positions the model in a GGUF file was trained on, None if the file does not say."""
    metadata = open_gguf(path).metadata
    found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return found if type(found) is int and found > 0 else None


@contextlib.contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """Load the vocabulary of a GGUF file; raises ToolkitError with llama.cpp's own words if it does not load.

    llama.cpp asks for GPUs even then, so that a build for one does it elsewhere, and sees none.
    """
    check_header(path)
    with opened_beside(_loaded_vocabulary, path, on_gpu=False) as handle:
        yield Vocabulary(handle, *_ends(handle))


@contextlib.contextmanager
def _loaded_vocabulary(path: Path) -> Iterator[Any]:
    import llama_cpp

    with _heard() as said:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode("utf-8", errors="surrogateescape"), params)
        if not model:
            raise ToolkitError("llama.cpp cannot load the vocabulary: " + (" ".join(said) or "it gives no reason"))
        try:
            yield llama_cpp.llama_model_get_vocab(model)
        finally:
            llama_cpp.llama_model_free(model)


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Yield the errors that llama.cpp says in this thread; it prints nothing while any thread is in such a block."""
    import llama_cpp

    global _listening
    before, _words.said = getattr(_words, "said", None), []
    with _lock:
        if not _listening:
            llama_cpp.llama_log_set(_listener(), ctypes.c_void_p(0))
        _listening += 1
    try:
        yield _words.said
    finally:
        _words.said = before
        with _lock:
            _listening -= 1
            if not _listening:
                llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))


@functools.cache
def _listener() -> Any:
    """Return the C function that keeps errors for the thread in which they are said."""
    import llama_cpp

    def hear(level: int, text: bytes, data: Any) -> None:
        said = getattr(_words, "said", None)
        if level == _ERROR and said is not None:
            said.append(text.decode("utf-8", errors="replace").strip())

    return llama_cpp.llama_log_callback(hear)
