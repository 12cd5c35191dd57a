"""Load a GGUF file in llama.cpp (through llama-cpp-python): tokenize, logits, generate."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.ggml_libraries import gpu_libraries
from toolkit.core.native import silenced
from toolkit.formats.gguf_reader import open_gguf
from toolkit.llamacpp.layout import fitting_layout
from toolkit.llamacpp.remote import beside_file, opened_beside
from toolkit.llamacpp.vocabulary import check_header, vocabulary_of
from toolkit.prompt.format import Part, Prompt

BATCH = 256  # tokens evaluated at once; limits the logits in memory besides the result
GPU_RESERVE = 1_500_000_000  # bytes of a GPU for the KV cache, a batch of logits, and llama.cpp's own
SMALL = 64 * 2**20  # bytes of a file up to which threads would wait for each other longer than they compute


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repeat_penalty: float = 1.0
    seed: int = 42


@dataclass(frozen=True)
class Facts:
    """What a loaded GGUF says of itself: tokens of its vocabulary, EOS, chat template (None without one), weights.

    `bits` are those of a weight, on average.
    """

    vocabulary: int
    eos: int
    chat_template: str | None
    bits: float


@contextlib.contextmanager
def opened(path: Path, context: int, *, exact: bool = False) -> Iterator[Any]:
    """Load a GGUF with room for `context` tokens; it is closed at the end. The functions here take what this gives.

    That is a `llama_cpp.Llama`, or where llama.cpp computes on a GPU what stands for it (`remote.py`).

    `exact` keeps the KV cache in float32 and flash attention off: with an F32 GGUF the logits then equal float32
    transformers to rounding; a GPU rounds more. Otherwise it runs as llama.cpp does by default, on a GPU as far as the
    file fits there (`gpu_layers`), and copies weights into a faster layout only where memory is plenty. Raises
    ToolkitError if it does not load, or if llama.cpp cannot compute on this machine.
    """
    from toolkit.llamacpp import probe

    if not path.is_file():
        raise ToolkitError(f"no GGUF file `{path}`", hint="write it with `toolkit export`")
    check_header(path)
    probe.require()
    layers = 0 if exact else gpu_layers(path)
    with opened_beside(loaded_file, path, context, exact, layers, on_gpu=layers != 0) as llm:
        yield llm


@contextlib.contextmanager
def loaded_file(path: Path, context: int, exact: bool, layers: int) -> Iterator[Any]:
    """Load a GGUF in this very process, with that many layers on the GPU; `opened` chooses process and layers."""
    import llama_cpp

    options: dict[str, Any] = {}
    if exact:
        options = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    try:
        with silenced(), fitting_layout(path):
            llm = llama_cpp.Llama(
                str(path),
                n_ctx=context,
                n_batch=max(BATCH, min(context, 512)),
                n_threads=hardware.cores() if path.stat().st_size > SMALL else 1,  # else half of them
                n_gpu_layers=layers,
                verbose=False,
                **options,
            )
    except (ValueError, RuntimeError) as exc:
        raise ToolkitError(
            f"llama.cpp cannot load `{path}`: {exc}", hint="write it again with `toolkit export --force`"
        ) from None
    try:
        yield llm
    finally:
        llm.close()


def gpu_layers(path: Path) -> int:
    """Return how many layers of a GGUF go to the GPU: 0 in a build for the CPU, -1 for all, or as many as fit there."""
    built = gpu_libraries()
    if not built:
        return 0
    gpu = hardware.gpu()
    if gpu is None:  # a build for another kind of GPU knows best
        return 0 if built == ["cuda"] else -1
    metadata = open_gguf(path).metadata
    layers = int(metadata.get(f"{metadata.get('general.architecture')}.block_count") or 0)
    share = max(0, gpu.free - GPU_RESERVE) / path.stat().st_size
    return -1 if share >= 1 else int(share * layers)


@beside_file
def facts(llm: Any) -> Facts:
    """Return what a loaded GGUF says of itself."""
    import llama_cpp

    # Not llm.metadata: it cuts a value that exactly fills its buffer.
    raw = llama_cpp.llama_model_chat_template(llm.model, None)
    bits = 8 * llama_cpp.llama_model_size(llm.model) / llama_cpp.llama_model_n_params(llm.model)
    template = None if raw is None else raw.decode("utf-8", errors="replace")
    return Facts(llm.n_vocab(), llm.token_eos(), template, bits)


@beside_file
def text_ids(llm: Any, text: str, *, bos: bool = False) -> list[int]:
    """Return the ids of a plain text, with BOS where the vocabulary adds one if `bos`; control tokens are text."""
    ids: list[int] = llm.tokenize(text.encode("utf-8"), add_bos=bos, special=False)
    return ids


@beside_file
def tokenize(llm: Any, prompt: Prompt | str) -> list[int]:
    """Return the ids of a prompt by the GGUF's own vocabulary: BOS if it says so, control tokens in data as text.

    The format's own text is cut at that vocabulary's control tokens; a plain text is data.
    """
    runs: list[tuple[str, bool]] = [("", False)]
    for part in [Part(prompt, ours=False)] if isinstance(prompt, str) else prompt.parts:
        found = _controls(llm, part.text) if part.ours else []
        cut = re.split("(" + "|".join(map(re.escape, found)) + ")", part.text) if found else [part.text]
        for index, piece in enumerate(cut):
            if index % 2 == 0 and not runs[-1][1]:
                runs[-1] = (runs[-1][0] + piece, False)
            else:
                runs.append((piece, index % 2 == 1))
    ids: list[int] = llm.tokenize(b"", add_bos=True)
    for text, control in runs:
        if text:
            ids += llm.tokenize(text.encode("utf-8"), add_bos=False, special=control)
    return ids


@beside_file
def served(llm: Any, text: str) -> list[int]:
    """Return the ids of a prompt as a server makes them (`Vocabulary.served_ids`)."""
    return vocabulary_of(llm.model).served_ids(text)


def _controls(llm: Any, text: str) -> list[str]:
    """Return the texts of the control tokens that llama.cpp finds in a text, longest first."""
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
    found = {
        llama_cpp.llama_vocab_get_text(vocabulary, index).decode("utf-8")
        for index in llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        if llama_cpp.llama_vocab_get_attr(vocabulary, index) & control
    }
    return sorted(found, key=len, reverse=True)


@beside_file
def logits(llm: Any, ids: Sequence[int], first: int) -> npt.NDArray[np.float32]:
    """Return the logits after each of `ids[first:]`, shape (len(ids) - first, vocabulary), float32.

    The context is cleared first. Only the wanted rows are computed, a batch of tokens at a time.
    """
    import llama_cpp

    rows = np.empty((len(ids) - first, llm.n_vocab()), dtype=np.float32)
    llm.reset()  # what `generate` remembers of its own last prompt is overwritten here
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    try:
        for start in range(0, len(ids), BATCH):
            end = min(start + BATCH, len(ids))
            batch.n_tokens = end - start
            for index, position in enumerate(range(start, end)):
                batch.token[index] = ids[position]
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = position >= first
            status = llama_cpp.llama_decode(llm.ctx, batch)
            if status != 0:
                raise ToolkitError(f"llama.cpp could not evaluate tokens {start} to {end} (status {status})")
            wanted = max(start, first)
            if wanted < end:
                pointer = llama_cpp.llama_get_logits(llm.ctx)
                found = np.ctypeslib.as_array(pointer, shape=(end - wanted, llm.n_vocab()))
                rows[wanted - first : end - first] = found
    finally:
        llama_cpp.llama_batch_free(batch)
    return rows


@beside_file
def generate(llm: Any, ids: Sequence[int], tokens: int, stops: Sequence[str], sampling: Sampling) -> Iterator[str]:
    """Yield the answer to a tokenized prompt piece by piece, until EOS, a stop string or `tokens` tokens."""
    from llama_cpp import StoppingCriteriaList

    def enough(seen: Sequence[int], _: Any) -> bool:
        # llama-cpp-python looks at `max_tokens` only where a token ends a character: one that never does never ends.
        return len(seen) >= len(ids) + tokens

    for chunk in llm.create_completion(
        list(ids),
        max_tokens=tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=0.0,
        repeat_penalty=sampling.repeat_penalty,
        seed=sampling.seed,
        stop=list(stops),
        stream=True,
        stopping_criteria=StoppingCriteriaList([enough]),
    ):
        yield chunk["choices"][0]["text"]
