"""One training run: all decisions before the first step."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.core import console, hardware
from toolkit.core.config import Config
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import ENDLESS, TrainSettings
from toolkit.model import memory_plan
from toolkit.model.base import Base
from toolkit.model.memory_plan import Device, MemoryPlan
from toolkit.model.model_config import is_four_bit, model_config, read_config
from toolkit.model.states import reason_to_pad
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.train import base_compute, batches, checkpoints, examples, parallel, unsloth_backend
from toolkit.train.backend import Backend
from toolkit.train.batches import Rows
from toolkit.train.example_table import Examples


@dataclass
class Job:
    """What a run consists of, and its progress in this process.

    `splits["val"]` holds the records that the held-out loss is measured on, out of `held_out_records`. `resume` is the
    checkpoint to continue from, `saved` the step of the last saved one. `order` holds the indices of the records that
    each step sees, shape (steps, micro-batches, records); `step_tokens` the tokens of each step. `trainable` and
    `total` count the loaded model's parameters. `stopped` is set by a signal. `packs`: the records of a micro-batch lie
    in one row; for some bases (`states.reason_to_pad`) each has a row of its own.
    """

    config: Config
    folder: RunFolder
    base: Base
    backend: Backend
    precision: str
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    splits: dict[str, Examples]
    fingerprint: str
    resume: Path | None
    plan: MemoryPlan
    order: Rows
    step_tokens: Rows
    origin: checkpoints.Origin | None = None
    held_out_records: int = 0
    saved: int = 0
    trainable: int = 0
    total: int = 0
    stopped: bool = False
    packs: bool = True
    tokens_here: int = 0
    seconds: float = 0.0

    @property
    def settings(self) -> TrainSettings:
        """The section `train`."""
        return self.config.train

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return len(self.order)

    @property
    def place(self) -> Path:
        """The folder of this run's checkpoints."""
        return checkpoints.place(self.folder, self.fingerprint)

    def checkpoint(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.place / f"checkpoint-{step}"

    @property
    def evaluates_first(self) -> bool:
        """Whether the held-out loss is measured before any step: at the start, or if a stopped run left one out."""
        if not self.splits["val"] or self.resume is None:
            return bool(self.splits["val"])
        every, due = self.settings.eval_steps, self.saved == self.steps
        due = due or (every > 0 and self.saved % every == 0)
        return due and self.saved not in checkpoints.held_out_steps(self.resume)

    @property
    def live_log(self) -> Path:
        """The log while it grows."""
        return self.folder.checkpoints / "train_log.jsonl"


def lay_out_job(
    config: Config, folder: RunFolder, base: Base, backend: Backend, precision: str, *, restart: bool, at_most: int
) -> Job:
    """Read and check the records, find the checkpoint to continue from, and divide the run into micro-batches.

    Several processes call this and get the same result. Raises ToolkitError if the records are unusable.
    """
    form = prompt_format(config.prompt)
    tokenizer = load_tokenizer(base.folder, form)
    splits = examples.load_examples(folder, tokenizer, form, config.train)
    held_out_records = len(splits["val"])
    splits["val"] = splits["val"].few(config.train.max_eval_samples or held_out_records)
    run, origin = checkpoints.fingerprint(config, folder), checkpoints.origin_of(config, folder)
    shape = model_config(base.folder)
    settings, device = config.train, _device(config, base, backend, precision)
    device = replace(device, fp8=base_compute.uses_fp8(config, backend, precision, shape))
    lengths = splits["train"].lengths
    count = settings.steps_for(len(lengths))
    resume = _checkpoint(folder, run, backend, count, restart=restart)
    if resume is None and not restart:
        _say_why_not(checkpoints.of_another_length(folder, origin), settings)
    steps = batches.step_records(len(lengths), settings.records_a_step, count, settings.seed)
    share = memory_plan.share_of(settings, device.processes)
    alone = reason_to_pad(read_config(base.folder))
    if alone:
        console.info(f"records are padded, not packed: {alone}")
    padded = unsloth_backend.pads(base.folder) if device.unsloth else bool(alone)

    def laid(records: int) -> Rows:
        return batches.pack_steps(steps, lengths, share // records * device.processes)

    @functools.cache
    def tokens_of(records: int) -> int:
        return batches.largest(laid(records), lengths, padded=padded)

    warn_over_positions(lengths, shape.context if shape else 0)
    plan = memory_plan.plan(shape, settings, device, tokens_of=tokens_of, at_most=at_most)
    order, step_tokens = laid(plan.micro_batch), lengths[steps].sum(axis=1)
    return Job(
        config, folder, base, backend, precision, tokenizer, form, splits, run, resume, plan, order, step_tokens,
        origin, held_out_records, checkpoints.step_of(resume) if resume else 0, packs=not alone,
    )  # fmt: skip


def warn_over_positions(lengths: Rows, positions: int) -> None:
    """Warn of records with more tokens than the base has positions (0 if it does not say)."""
    over = int((lengths > positions).sum()) if positions else 0
    if over:
        console.warn(
            f"{over:,} of {len(lengths):,} records have more tokens than the base has positions ({positions:,}): no "
            f"server reads what follows; set train.max_length to {positions} at most"
        )


def process_state(backend: Backend) -> Any:
    """Return accelerate's view of the processes that train together, of which this is one."""
    from accelerate import PartialState

    return PartialState(cpu=backend.device == "cpu")


def _checkpoint(folder: RunFolder, run: str, backend: Backend, steps: int, *, restart: bool) -> Path | None:
    """Return the checkpoint to continue from; the first process removes what does not count."""
    state, place = process_state(backend), checkpoints.place(folder, run)
    with state.main_process_first():
        if restart and state.is_main_process:
            checkpoints.clear_all(place)
        if state.is_main_process:
            checkpoints.clear_unfinished(place, run)
        return checkpoints.newest(place, run, steps)


def _say_why_not(other: Path | None, settings: TrainSettings) -> None:
    """Say why a run with fewer or more steps is not continued, if there is one."""
    if other is not None:
        console.info(
            f"training starts over, not from step {checkpoints.step_of(other)} of a run of another length: "
            f'with train.lr_scheduler_type = "{settings.lr_scheduler_type}" the learning rate depends on the length. '
            f"A run that started with {', '.join(ENDLESS[:-1])} or {ENDLESS[-1]} can continue with more steps"
        )


def _device(config: Config, base: Base, backend: Backend, precision: str) -> Device:
    """Return what trains, with the free memory of the process that has the least."""
    from accelerate.utils import gather_object

    state = process_state(backend)
    if backend.device == "cuda":
        import torch

        free: int | None = int(torch.cuda.mem_get_info(state.device)[0])
    else:
        free = hardware.available_memory()
        free = None if free is None else free // state.num_processes
    known = [found for found in gather_object([free]) if found is not None]
    return Device(
        free=min(known, default=None),
        cuda=backend.device == "cuda",
        unsloth=backend.name == "unsloth",
        four_bit=config.model.load_in_4bit or is_four_bit(base.folder),
        bf16=precision == "bf16",
        shards=state.num_processes if parallel.sharded() else 1,
        processes=state.num_processes,
    )
