"""Memory and disk of the other stages, computed from the base's shape and the settings. All results are bytes.

Training's memory is `toolkit.memory`'s.
"""

import math
from collections.abc import Collection

from toolkit.core.output_settings import ExportSettings
from toolkit.core.train_settings import TrainSettings
from toolkit.formats.ggml_types import stored_size
from toolkit.formats.gguf_writer import padded
from toolkit.model import families, memory
from toolkit.model.memory import LIBRARIES, Parts, total
from toolkit.model.model_config import ModelConfig
from toolkit.model.tensor_types import tensor_types

CHECKPOINTS = 4  # two are kept and the best one, and another is written before the oldest goes
TOKENIZER = 20_000_000  # tokenizer.json of Llama 3 is 17 MB
HEAD_SLICE, HEAD_LOGITS = 4 << 25, 4 << 26  # bytes of the head and of logits that validation holds at a time
GGUF_BATCH = 512  # tokens that llama.cpp evaluates at a time
ANSWER_BYTES = 1412  # MedQuAD's mean (3,500,005 bytes in 2,479 rows), where no test records exist yet
VOCABULARY = 64  # bytes a token of a GGUF file's header: text, kind, merges
PROMPT = 128  # tokens of a question in its prompt; MedQuAD's have 60
BYTES_PER_TOKEN = 3  # of English in the recipe's vocabularies at the least; 4 is usual


def conversion(shape: ModelConfig) -> Parts:
    """Return the peak of dequantizing a GGUF base with transformers: state dict and model, both float32."""
    return {"libraries": LIBRARIES, "weights": 8 * shape.parameters()}


def export_memory(shape: ModelConfig, cores: int, *, whole: bool) -> Parts:
    """Return the peak of an export; `whole` where the base has 4 bits, whose tensors are held complete in float32."""
    largest = max(shape.table(), *(inputs * outputs for inputs, outputs in shape.linears().values()))
    return memory.export_peak(4 * largest if whole else 0, cores)


def validation(shape: ModelConfig, quantizations: Collection[str], context: int, *, streamed: bool = False) -> Parts:
    """Return the peak of a validation with records of `context` tokens, beside the files, which are mapped.

    The reference holds one layer in float32 and what a record becomes in it, or 256 MiB of logits twice with a slice of
    the head. A GGUF has a 16-bit KV cache (32-bit for F32), one record's logits, and a batch of them. Of a base that is
    `streamed` from the hub the head or the embedding stays in memory, as the hub has it (16 bits).
    """
    layer = 4 * shape.linear_weights() // shape.layers
    inside = 4 * context * (4 * shape.hidden + 4 * shape.query + 3 * shape.intermediate)
    head = min(4 * shape.table(), HEAD_SLICE) + 2 * HEAD_LOGITS
    cache = 2 * shape.attending * shape.key_value * context * (4 if "F32" in quantizations else 2)
    state = 4 * shape.recurrent * shape.delta.state() if shape.delta else 0
    steps: list[Parts] = [
        {"one layer": layer, "activations": inside},
        {"head": head},
        {"KV cache": cache + state, "logits": 4 * (context + GGUF_BATCH) * shape.vocab},
    ]
    largest: Parts = max(steps, key=total)
    fetched = {"matrix from the hub": 2 * shape.table()} if streamed else {}
    return {"libraries": LIBRARIES, **fetched, **largest}


def gguf_files(shape: ModelConfig, settings: ExportSettings) -> dict[str, int]:
    """Return the size of each GGUF file that the settings name: every tensor in the type that the exporter gives it."""
    shapes = families.gguf_shapes(shape)
    files = {}
    for name in settings.quantizations:
        types = tensor_types(name, shapes, shape, settings.overrides, has_imatrix=settings.imatrix)
        tensors = sum(padded(stored_size(types[tensor][0], size)) for tensor, size in shapes.items())
        files[name] = tensors + VOCABULARY * shape.vocab
    return files


def adapter_folder(shape: ModelConfig, settings: TrainSettings) -> int:
    """Return the size of the saved adapter (float32) with its tokenizer."""
    return 4 * shape.trainable(settings.target_modules, settings.lora_r) + TOKENIZER


def checkpoints(shape: ModelConfig, settings: TrainSettings, *, moments: int = 8, records: int = 0) -> int:
    """Return the size of the checkpoints: adapter, tokenizer and Adam's moments, as often as they exist at once.

    `records` are those to train on, 0 where they are unknown: they decide the steps of `num_train_epochs`.
    """
    trained = shape.trainable(settings.target_modules, settings.lora_r)
    known = records or settings.max_steps is not None
    saves = min(CHECKPOINTS, math.ceil(settings.steps_for(records) / settings.save_steps)) if known else CHECKPOINTS
    return saves * (adapter_folder(shape, settings) + moments * trained)


def kept_states(shape: ModelConfig, answer_bytes: int, rows: int) -> int:
    """Return the files of the last layer's states that validation keeps while it runs, for answers of so many bytes.

    They are float32: with the adapter, without it, and on another base.
    """
    return 3 * 4 * shape.hidden * (math.ceil(answer_bytes / BYTES_PER_TOKEN) + PROMPT * rows)
