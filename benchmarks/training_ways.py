"""The ways to train that train.py compares, and what it measures of each."""

from dataclasses import dataclass

WARM_UP = 8  # a multiple of every way's logging_steps
RANK, ALPHA, SEED, MAX_LENGTH = 16, 16, 3407, 2048
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Way:
    """One way to train: by the toolkit's backend, or by Unsloth's trainer; `steps` is relative to --steps."""

    label: str
    batch: int
    accumulation: int
    backend: str = ""  # of the toolkit; empty: Unsloth with TRL's trainer, as the recipe has it
    packing: bool = True
    checkpointing: bool = True
    kernel: bool = True  # offer Unsloth the packed attention kernel
    steps: float = 1.0
    optimizer: str = "adamw_torch_fused"
    gpus: int = 1
    logging_steps: int = 1
    base_compute: str = ""  # train.base_compute; empty: as the toolkit has it
    checkout: str = ""  # another one's toolkit; empty: this one's
    fp8: str = ""  # scales of Unsloth's own FP8, see unsloth_fp8.py; empty: bf16


WAYS = {
    "recipe": Way("Unsloth, the recipe's settings", 2, 4, packing=False, kernel=False),
    "unsloth-packed": Way("Unsloth, packed, the same attention kernel", 2, 4, steps=0.6),
    "unsloth-wide": Way("Unsloth, packed, the same kernel, no checkpointing", 8, 1, checkpointing=False, steps=0.6),
    "unsloth-fp8": Way("Unsloth, packed, its FP8 with block scales", 2, 4, steps=0.6, fp8="block"),
    "unsloth-fp8-wide": Way(
        "Unsloth, packed, its FP8 with block scales, no checkpointing",
        8,
        1,
        checkpointing=False,
        steps=0.6,
        fp8="block",
    ),
    "unsloth-fp8-row": Way(
        "Unsloth, packed, its FP8 with row scales, no checkpointing", 8, 1, checkpointing=False, steps=0.6, fp8="row"
    ),
    "unsloth-fp8-torchao": Way(
        "Unsloth, packed, FP8 by torchao, no checkpointing", 8, 1, checkpointing=False, steps=0.6, fp8="torchao"
    ),
    "toolkit": Way("toolkit, 8 records a step as the recipe", 2, 4, backend="unsloth"),
    "toolkit-log8": Way("toolkit, 8 records a step, logged every 8", 2, 4, backend="unsloth", logging_steps=8),
    "toolkit-wide": Way("toolkit, 64 records a step", 8, 8, backend="unsloth", steps=0.7),
    "toolkit-fp8": Way("toolkit, 8 records a step, frozen weights in FP8", 2, 4, backend="unsloth", base_compute="fp8"),
    "toolkit-fp8-wide": Way(
        "toolkit, 64 records a step, frozen weights in FP8", 8, 8, backend="unsloth", steps=0.7, base_compute="fp8"
    ),
    "toolkit-full": Way("toolkit, 104 records a step, in passes of 16,000", 8, 13, backend="unsloth", steps=0.5),
    "toolkit-8bit": Way("toolkit, 8 records a step, adamw_8bit", 2, 4, backend="unsloth", optimizer="adamw_8bit"),
    "toolkit-two": Way("toolkit, 64 records a step on two GPUs", 8, 8, backend="unsloth", steps=0.7, gpus=2),
    "toolkit-256": Way("toolkit, 256 records a step", 8, 32, backend="unsloth", steps=0.5),
    "toolkit-256-two": Way("toolkit, 256 records a step on two GPUs", 8, 32, backend="unsloth", steps=0.5, gpus=2),
    "toolkit-256-four": Way("toolkit, 256 records a step on four GPUs", 8, 32, backend="unsloth", steps=0.5, gpus=4),
    "toolkit-peft": Way("toolkit without Unsloth (peft), 64 records a step", 8, 8, backend="peft", steps=0.5),
}
BASELINES = ("recipe", "unsloth-packed", "unsloth-wide", "unsloth-fp8", "unsloth-fp8-wide")
BY_NAME = ("unsloth-fp8-row", "unsloth-fp8-torchao")  # only where --only asks for them
BESIDE = ("toolkit", "toolkit-wide")
SAME_RECORDS = (
    ("recipe", "toolkit"), ("toolkit", "toolkit-fp8"), ("toolkit-wide", "toolkit-fp8-wide"),
    ("toolkit-256", "toolkit-256-two"), ("toolkit-256", "toolkit-256-four"),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one run gave: per step its seconds, tokens, loss and gradient norm; peak in bytes, weights in a product."""

    seconds: list[float]
    tokens: list[int]
    losses: list[float]
    norms: list[float]
    peak: int

    def speed(self) -> float:
        """Return real tokens per second after the warm-up."""
        return sum(self.tokens[WARM_UP:]) / sum(self.seconds[WARM_UP:])


def steps_of(way: Way, steps: int) -> int:
    """Return how many steps this way takes."""
    return max(WARM_UP + 4, round(way.steps * steps))
