"""Memory and disk of the other stages, computed from the base's shape and the settings. All results are bytes.

Training's memory is `toolkit.memory`'s.
"""

import math
from collections.abc import Mapping

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
ANSWER_BYTES = 1412  # MedQuAD's mean (3,500,005 bytes in 2,479 rows), where no test records exist yet
VOCABULARY = 64  # bytes a token of a GGUF file's header: text, kind, merges
BYTES_PER_TOKEN = 3  # of English in the recipe's vocabularies at the least; 4 is usual


def conversion(shape: ModelConfig) -> Parts:
    """Return the peak of dequantizing a GGUF base with transformers: state dict and model, both float32."""
    return {"libraries": LIBRARIES, "weights": 8 * shape.parameters()}


def export_memory(shape: ModelConfig, cores: int, *, whole: bool) -> Parts:
    """Return the peak of an export; `whole` where the base has 4 bits, whose tensors are held complete in float32."""
    largest = max(shape.table(), *(inputs * outputs for inputs, outputs in shape.linears().values()))
    return memory.export_peak(4 * largest if whole else 0, cores)


def validation(shape: ModelConfig, files: Mapping[str, int], context: int, *, on_gpu: bool = False) -> Parts:
    """Return the peak of a validation with records of `context` tokens: the reference, or after it the largest GGUF.

    The reference is the base in float32 and one record's logits with their log-probabilities; a GGUF comes with a
    16-bit KV cache (32-bit for F32) and a batch of logits.
    """
    logits = 12 * context * shape.vocab
    reference = {"weights": 4 * shape.parameters(), "logits": logits}
    if on_gpu:
        reference = {"logits": logits}
    file = max(files.values(), default=0)
    cache = 2 * shape.layers * shape.key_value * context * (4 if "F32" in files else 2)
    loaded = {"GGUF": file, "KV cache": cache, "logits": logits}
    return {"libraries": LIBRARIES, **(reference if total(reference) >= total(loaded) else loaded)}


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


def kept_logits(shape: ModelConfig, answer_bytes: int) -> int:
    """Return the file of float32 logits that validation keeps while it runs, for answers of `answer_bytes` in all."""
    return 4 * shape.vocab * math.ceil(answer_bytes / BYTES_PER_TOKEN)
