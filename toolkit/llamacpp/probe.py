"""Does llama.cpp compute on this machine? A tiny model is evaluated in a process of its own, which may die.

A library that was built for another machine, or a fault of its code for this one's matrix units, ends a process by a
signal: no error can be caught then. What computed once is remembered, for this library on this CPU and these GPUs.
A build for a GPU is asked as the stages use it (`remote.py`): without torch, with the GPU and where that is hidden.
"""

import contextlib
import functools
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from toolkit.core import hardware, places
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import write_text
from toolkit.core.ggml_libraries import gpu_libraries, library_folder
from toolkit.llamacpp import compiling
from toolkit.llamacpp.remote import end_of_process, environment, without_torch

WIDTH, FORWARD, TOKENS, CONTEXT = 256, 512, 64, 256  # of the tiny model; quantized kernels take rows of 256 and more
SECONDS = 120


@functools.cache
def require() -> None:
    """Raise ToolkitError if llama.cpp cannot compute here; asked once for a library, a third of a second."""
    reason = failure()
    if reason:
        raise ToolkitError(
            f"llama.cpp does not work on this machine: {reason}", hint=compiling.advice(), exit_code=MISSING
        )
    mark = _mark()
    if mark is not None and not mark.exists():
        with contextlib.suppress(OSError):  # it is asked again next time
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_text(mark, "")


def failure() -> str:
    """Return how llama.cpp fails to compute here, or an empty string; writes nothing."""
    mark = _mark()
    if mark is not None and mark.exists():
        return ""
    ways = [True, False] if gpu_libraries() and hardware.driver_offers_gpu() else [False]
    return next(filter(None, map(_failure, ways)), "")


def _failure(on_gpu: bool) -> str:
    where = " on the GPU" if on_gpu else ""
    with tempfile.TemporaryDirectory(prefix="toolkit-") as folder:  # made here: what dies there removes nothing
        code = f"from {__name__} import evaluate_tiny_model\nevaluate_tiny_model({folder!r})"
        try:
            done = subprocess.run(
                without_torch(code),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                env=environment(on_gpu=on_gpu),
            )
        except subprocess.TimeoutExpired:
            return f"a model of 1 MB took more than {SECONDS} seconds{where}"
    if done.returncode < 0:
        return f"evaluating a model of 1 MB{where} ended the process ({end_of_process(done.returncode)})"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return (said[-1][:200] if said else end_of_process(done.returncode)) + where
    return ""


def _mark() -> Path | None:
    """Return the file that says that this library computed here; None where there is no library."""
    try:
        libraries = library_folder()
    except ImportError:
        return None
    parts = [hardware.cpu_name(), str(hardware.cpu_has_amx()), str(hardware.driver_offers_gpu())]
    for path in sorted(libraries.glob("*.so*")):
        there = path.stat()
        parts.append(f"{path} {there.st_size} {there.st_mtime_ns}")
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return places.cache_folder() / "llama.cpp" / f"computes-{name}"


def _write_model(path: Path) -> None:
    """Write a Llama of one layer without a vocabulary, its weights in F16, Q8_0 and Q4_0."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(TOKENS)

    def add(name: str, kind: gguf.GGMLQuantizationType, rows: int, columns: int = WIDTH) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(0.1)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    kinds = gguf.GGMLQuantizationType
    add("token_embd.weight", kinds.F16, TOKENS)
    add("output.weight", kinds.Q8_0, TOKENS)
    for name in ("q", "k", "v", "output"):
        add(f"blk.0.attn_{name}.weight", kinds.F16, WIDTH)
    add("blk.0.ffn_gate.weight", kinds.Q4_0, FORWARD)
    add("blk.0.ffn_up.weight", kinds.Q8_0, FORWARD)
    add("blk.0.ffn_down.weight", kinds.Q8_0, WIDTH, FORWARD)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def evaluate_tiny_model(folder: str) -> None:
    """Evaluate a tiny model, written into `folder`, with all cores, many tokens and one; on the GPU that is seen."""
    import llama_cpp
    import numpy as np

    path = Path(folder) / "tiny.gguf"
    _write_model(path)
    llm = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=hardware.cores(), logits_all=True, verbose=False,
        n_gpu_layers=-1 if llama_cpp.llama_supports_gpu_offload() else 0,
    )  # fmt: skip
    llm.eval(list(range(TOKENS)))
    llm.eval([1])
    if not np.isfinite(np.asarray(llm.scores[: TOKENS + 1])).all():
        sys.exit("logits are not finite")
    llm.close()
