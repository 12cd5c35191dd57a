"""Memory of a training step and of an export, computed from the base's shape; all sizes are bytes.

Measured values are constants in capitals, with the measurement next to them.
"""

from collections.abc import Mapping

from toolkit.core.train_settings import TrainSettings
from toolkit.model.model_config import ModelConfig

Parts = dict[str, int]

# Resident after a training step of a model of 0.1 M parameters (2 cores, Linux, glibc 2.36, torch 2.14, transformers
# 5.17, peft 0.21, TRL 1.15).
LIBRARIES = 1_050_000_000
CUDA_CONTEXT = 700_000_000  # on the GPU: context, cuBLAS and kernels; from NVIDIA's and bitsandbytes' users
# glibc cannot reuse every hole between the aligned blocks that torch asks for. The holes come to this much of what all
# layers keep, by the bytes of a number, without and with checkpointing. Measured on SmolLM2-135M's shape, 512 to 2,048
# tokens a micro-batch, two vocabularies: these sums are within 5 % of 24 peaks. They are within 18 % of two other
# shapes; float32 comes out too high there, because blocks of more than 32 MB leave no holes.
HOLES = {(2, False): 0.68, (4, False): 0.83, (2, True): 0.33, (4, True): 0.83}
# Bytes a logit on a CPU, where transformers' loss has those of all positions at once: float32 log-softmax and two
# gradients. Measured as the difference between vocabularies of 49,152 and 2,048: 11.6 to 12.9 in bf16, 6.5 to 13.5 in
# float32.
LOGIT_CPU = 12.5
# What is left of Unsloth's published longest contexts (Llama-3.1-8B, rank 32, batch 1, GPUs of 8 to 80 GB) after all
# that is computed here; their 227 kB a token are `layer_activations` of one layer.
UNSLOTH_LOGITS = 600_000_000
# An export of 1.5 and of 8.0 billion weights with a vocabulary of 128,256 tokens to three quantizations took 761 MB on
# two cores (benchmarks/export.py): this much, and blocks in work.
EXPORT = 680_000_000
EXPORT_BLOCKS = 1 << 24
SCALES = 1 / 64 + 4 / (64 * 256)  # bytes per 4-bit weight: an 8-bit absmax per 64, a float32 per 256 of those
NF4 = 0.5 + SCALES
LOGIT_TOKENS, LOGIT_COLUMNS = 4096, 32768  # of a tile of TRL's loss on CUDA
# A layer's backward pass takes this much of what the layer keeps, in addition: an H100 with PEFT took 12.6 GB (12,076
# tokens, recomputed), 74.8 and 41.8 GB (9,657 and 4,071, kept), where 12.5, 78.6 and 43.3 are computed.
BACKWARD = 0.25
CHUNK = 64  # tokens that transformers' gated delta rule computes at once
# Bytes that the rule keeps, by the bytes of a number: for each dimension of all value heads, each pair of tokens of a
# chunk and head, and each number of a chunk's states. Measured by torch's saved tensors in ten sizes, to 2 %.
DELTA = {2: (66, 14, 8), 4: (71, 21, 8)}
GATHERED = 3  # layers that a GPU holds completely under FSDP: in use, being fetched, and being assembled


def total(parts: Mapping[str, int]) -> int:
    """Add the parts up."""
    return sum(parts.values())


def export_peak(whole: int, cores: int) -> Parts:
    """Return the peak of an export; `whole` is the size of the largest tensor not exported in blocks of rows."""
    return {"libraries": EXPORT, "blocks": EXPORT_BLOCKS * (2 * cores + 1), "whole tensor": whole}


def layer_activations(shape: ModelConfig, targets: list[str], width: int, *, copied: bool) -> int:
    """Return what one layer of transformers + PEFT keeps for the backward pass, per token.

    `width` is 2 under bf16 or f16 autocast, else 4. Two float32 residuals (each RMSNorm keeps its input); queries, keys
    and values repeated to all heads, and the attention's output; gate, its activation, and up; and the input of each
    LoRA pair: autocast copies it for each that is in float32, while without it (`copied` is False) pairs behind the
    same norm share it. Rank-wide tensors are left out.
    """
    adapters = _adapter_inputs(shape, shape.blocks()[0][1], targets, width, copied=copied)
    # A gate behind attention, and float32 norms of query and key: measured on Qwen3.5's layer, to 2 %.
    gated = 8 * shape.query + 3 * width * shape.key_value if shape.gated else 0
    return 8 * shape.hidden + width * (4 * shape.query + 3 * shape.intermediate) + gated + adapters


def delta_activations(shape: ModelConfig, targets: list[str], width: int, *, copied: bool) -> int:
    """Return what one layer of linear attention keeps for the backward pass, per token, as `layer_activations` does.

    Those of transformers' own code, which computes the gated delta rule in float32, CHUNK tokens at a time: what is as
    wide as all value heads, a matrix of the chunk's tokens for each head, and each head's state once a chunk.
    flash-linear-attention keeps less.
    """
    if shape.delta is None:
        return 0
    delta, (wide, square, state) = shape.delta, DELTA[width]
    rule = wide * delta.inner + square * delta.values * CHUNK + state * delta.inner * delta.size / CHUNK
    adapters = _adapter_inputs(shape, shape.blocks()[1][1], targets, width, copied=copied)
    return int(12 * shape.hidden + width * (2 * delta.mixed + 3 * shape.intermediate) + rule) + adapters


def _adapter_inputs(
    shape: ModelConfig, linears: Mapping[str, tuple[int, int]], targets: list[str], width: int, *, copied: bool
) -> int:
    inputs = {name: size[0] for name, size in linears.items() if name in targets}
    if copied:
        return width * sum(inputs.values())
    after_norms = [name for name in inputs if name not in ("o_proj", "out_proj", "down_proj", "output_linear")]
    shared = {"gate" if name.startswith(("gate", "up", "input")) else "attention" for name in after_norms}
    behind = inputs.get("down_proj", inputs.get("output_linear", 0)) + inputs.get("out_proj", 0)
    return width * (len(shared) * shape.hidden + behind)


def _layers(shape: ModelConfig, targets: list[str], width: int, *, copied: bool) -> tuple[int, int]:
    """Return what all layers together keep for the backward pass, per token, and what the largest does."""
    attending = layer_activations(shape, targets, width, copied=copied)
    linear = delta_activations(shape, targets, width, copied=copied)
    counts = ((shape.attending, attending), (shape.recurrent, linear))
    return sum(count * one for count, one in counts), max(one for count, one in counts if count)


def unsloth_activations(shape: ModelConfig) -> int:
    """Return what one layer of Unsloth keeps for the backward pass without checkpointing, per token, in 16 bits.

    The residual and two inputs of norms; queries before and after their rotation and the attention's output, keys and
    values; gate and up, of which the rest is computed again. Measured: Llama-3.1-8B takes 3.585 MB a token with one
    attention kernel for all records (60.77 less 33.42 GiB for 8,192 tokens more); these are 3.539.
    """
    return 2 * (3 * shape.hidden + 3 * shape.query + 2 * shape.key_value + 2 * shape.intermediate)


def adapter(shape: ModelConfig, settings: TrainSettings, moments: int) -> int:
    """Return float32 weights, gradients and Adam's moments (`moments` bytes a parameter) of the adapter."""
    return shape.trainable(settings.target_modules, settings.lora_r) * (4 + 4 + moments)


def logits_cuda(shape: ModelConfig, count: int) -> int:
    """Return the tile of 16-bit logits that TRL's loss holds at once; read in trl/kernels/chunked_logprob.py."""
    return 2 * min(count, LOGIT_TOKENS) * min(shape.vocab, LOGIT_COLUMNS)


def training_cpu(
    shape: ModelConfig,
    settings: TrainSettings,
    *,
    bf16: bool,
    tokens: int | None = None,
    checkpointing: bool | None = None,
) -> Parts:
    """Return the peak of one step on a CPU: float32 base weights, adapter, and `tokens` in a forward pass.

    Autocast keeps a bf16 copy of each frozen weight until the backward pass has used it. The mask that keeps a row's
    records apart has a byte for each pair of tokens; torch's attention keeps it once more in each layer, as numbers. By
    default the tokens are `batch_size` records of `max_length`, and checkpointing is as set.
    """
    count = settings.batch_size * settings.max_length if tokens is None else tokens
    width = 2 if bf16 else 4
    whole, layer = (part * count for part in _layers(shape, settings.target_modules, width, copied=bf16))
    recomputed = settings.gradient_checkpointing is True if checkpointing is None else checkpointing
    # With checkpointing: each layer's input, and one layer at a time in full, with as much again for its gradients.
    kept = shape.layers * 4 * shape.hidden * count + 2 * layer if recomputed else whole
    at_once, masks = (1, 1) if recomputed else (shape.layers, shape.attending)
    return {
        "libraries": LIBRARIES,
        "weights": 4 * shape.parameters(),
        "bf16 copies": 2 * (at_once * shape.linear_weights() // shape.layers + shape.table()) if bf16 else 0,
        "adapter": adapter(shape, settings, 8),
        "activations": int(kept + HOLES[width, recomputed] * whole),
        "attention masks": (1 + masks * width) * count**2,
        "logits": int(LOGIT_CPU * count * shape.vocab),
    }


def weights_cuda(shape: ModelConfig, *, four_bit: bool, offloaded: bool = False) -> int:
    """Return the base's weights on a GPU: nf4 with double quantization for the layers, else 16 bits.

    `offloaded`: the input embeddings are in the machine's memory, if no output head shares them.
    """
    rest = shape.parameters() - shape.linear_weights()
    away = 2 * shape.table() if offloaded and not shape.tied else 0
    return (int(NF4 * shape.linear_weights()) if four_bit else 2 * shape.linear_weights()) + 2 * rest - away


def training_cuda(
    shape: ModelConfig,
    settings: TrainSettings,
    *,
    four_bit: bool,
    unsloth: bool,
    tokens: int | None = None,
    checkpointing: bool | None = None,
    offloaded: bool = False,
    shards: int = 1,
) -> Parts:
    """Return the peak of one step on a CUDA GPU in 16-bit autocast, for `tokens` in a forward pass.

    With checkpointing each layer's input is kept (Unsloth moves it to the machine's memory) and one layer at a time in
    full. One layer's weights are dequantized at a time. `shards` GPUs divide weights and adapter by FSDP, but not the
    scales of 4-bit weights, which are no parameters; each holds a few complete layers, or the output head. By default
    the tokens are `batch_size` records of `max_length`, and checkpointing is as set, on where it is left to the plan.
    """
    count = settings.batch_size * settings.max_length if tokens is None else tokens
    whole, layer = (part * count for part in _layers(shape, settings.target_modules, 2, copied=unsloth))
    recomputed = settings.gradient_checkpointing is not False if checkpointing is None else checkpointing
    dequantized = 2 * max(inputs * outputs for inputs, outputs in shape.linears().values()) if four_bit else 0
    moments = 2 if settings.optim.endswith("8bit") and shards == 1 else 8
    scales = int(SCALES * shape.linear_weights()) if four_bit else 0
    parts = {
        "context": CUDA_CONTEXT,
        "weights": (weights_cuda(shape, four_bit=four_bit, offloaded=offloaded) - scales) // shards + scales,
        "adapter": adapter(shape, settings, moments) // shards,
    }
    if shards > 1:
        parts["whole layers"] = int(
            GATHERED * shape.linear_weights() // shape.layers * (NF4 - SCALES if four_bit else 2)
        )
    if unsloth:
        copies = 2 * shape.trainable(settings.target_modules, settings.lora_r)  # `train/lora_casts.py` makes them
        kept = layer if recomputed else shape.layers * unsloth_activations(shape) * count + layer + copies
        return {**parts, "activations": kept + dequantized, "logits": UNSLOTH_LOGITS}
    backward = int((1 + BACKWARD if recomputed else BACKWARD) * layer) + dequantized
    head = logits_cuda(shape, count) + 8 * count * shape.hidden + (2 * shape.table() if shards > 1 else 0)
    return {
        **parts,
        "activations": shape.layers * 2 * shape.hidden * count if recomputed else whole,
        "backward pass of a layer, or logits": max(backward, head),
    }
