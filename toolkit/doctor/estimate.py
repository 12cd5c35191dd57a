"""Memory and disk of the other stages, computed from the base's shape and the settings. All results are bytes.

Training's memory is `toolkit.memory`'s.
"""

import math
from collections.abc import Mapping

from toolkit.core.train_settings import TrainSettings
from toolkit.model import memory
from toolkit.model.memory import LIBRARIES, Parts, total
from toolkit.model.model_config import ModelConfig

CHECKPOINTS = 4  # two are kept and the best one, and another is written before the oldest goes
TOKENIZER = 20_000_000  # tokenizer.json of Llama 3 is 17 MB
ANSWER_BYTES = 1412  # MedQuAD's mean (3,500,005 bytes in 2,479 rows), where no test records exist yet
BYTES_PER_TOKEN = 3  # of English in the recipe's vocabularies at the least; 4 is usual


def conversion(shape: ModelConfig) -> Parts:
    """Return the peak of dequantizing a GGUF base with transformers: state dict and model, both float32."""
    return {"libraries": LIBRARIES, "weights": 8 * shape.parameters()}


def export_memory(shape: ModelConfig, cores: int, *, whole: bool) -> Parts:
    """Return the peak of an export; `whole` where the base has 4 bits, whose tensors stand whole in float32."""
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


# Bits a weight of a whole model whose rows are multiples of 256: sizes of Llama-3.1-8B in llama.cpp's
# tools/quantize/README.md and tools/perplexity/README.md over its 8.03e9 weights; Q8_0 and Q6_K are the formats' own,
# the rest what the exporter plans for that model.
BITS = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.71, "Q5_K_S": 5.58}
BITS |= {"Q5_1": 6.04, "Q5_0": 5.57, "Q4_K_M": 4.9, "Q4_K_S": 4.68, "Q4_1": 5.11, "Q4_0": 4.64, "IQ4_NL": 4.69}
BITS |= {"IQ4_XS": 4.46, "Q3_K_L": 4.3, "Q3_K_M": 4.0, "Q3_K_S": 3.65, "IQ3_M": 3.77, "IQ3_S": 3.67, "IQ3_XXS": 3.38}
BITS |= {"Q2_K": 3.17, "IQ2_M": 2.93, "IQ2_S": 2.74, "IQ2_XS": 2.59, "IQ2_XXS": 2.39}
# Other rows fall back to Q8_0, Q5_1, Q5_0, Q4_0 and IQ4_NL (llama.cpp, src/llama-quant.cpp).
FALLBACK_BITS = {"Q6_K": 8.5, "Q5_K_M": 6.2, "Q5_K_S": 6.0, "Q4_K_M": 5.7, "Q4_K_S": 5.5, "Q3_K_M": 4.8, "Q2_K": 4.5}
FALLBACK_BITS |= {"Q3_K_L": 4.8, "IQ3_M": 4.7}
FALLBACK_BITS |= dict.fromkeys(("IQ4_XS", "Q3_K_S", "IQ3_S", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"), 4.5)


def bits(quantization: str, row: int) -> float:
    """Return the bits a weight in rows of `row` elements."""
    fits = row % 256 == 0
    return BITS[quantization] if fits else FALLBACK_BITS.get(quantization, BITS[quantization])


def gguf_file(shape: ModelConfig, quantization: str) -> int:
    """Return the size of one GGUF file from the bits a weight; a tied table is stored as a head is, in Q6_K or Q8_0."""
    size = 0.0
    for inputs, outputs in shape.linears().values():
        size += shape.layers * inputs * outputs * bits(quantization, inputs) / 8
    table = bits(quantization, shape.hidden)
    head = max(table, bits("Q6_K", shape.hidden))
    size += shape.table() * (head if shape.tied else 2 * table) / 8  # an untied head's Q6_K is part of BITS
    small = shape.parameters() - shape.linear_weights() - shape.table() * (1 if shape.tied else 2)
    return math.ceil(size) + 4 * small + 64 * shape.vocab  # the vocabulary and merges are some 60 bytes a token


def adapter_folder(shape: ModelConfig, settings: TrainSettings) -> int:
    """Return the size of the saved adapter (float32) with its tokenizer."""
    return 4 * shape.trainable(settings.target_modules, settings.lora_r) + TOKENIZER


def checkpoints(shape: ModelConfig, settings: TrainSettings, *, moments: int = 8, records: int = 0) -> int:
    """Return the size of the checkpoints: adapter, tokenizer and Adam's moments, as often as they stand at once.

    `records` are those to train on, 0 where they are unknown: they decide the steps of `num_train_epochs`.
    """
    trained = shape.trainable(settings.target_modules, settings.lora_r)
    known = records or settings.num_train_epochs is None
    saves = min(CHECKPOINTS, math.ceil(settings.steps_for(records) / settings.save_steps)) if known else CHECKPOINTS
    return saves * (adapter_folder(shape, settings) + moments * trained)


def kept_logits(shape: ModelConfig, answer_bytes: int) -> int:
    """Return the file of float32 logits that validation keeps while it runs, for answers of so many bytes in all."""
    return 4 * shape.vocab * math.ceil(answer_bytes / BYTES_PER_TOKEN)
