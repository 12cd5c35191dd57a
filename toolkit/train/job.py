"""One run of training: what it is made of, laid out before the first step."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.model import memory_plan
from toolkit.model.base import Base
from toolkit.model.memory_plan import Device, MemoryPlan
from toolkit.model.model_config import is_four_bit, model_config
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.train import batches, checkpoints, examples, parallel, unsloth_backend
from toolkit.train.backend import Backend
from toolkit.train.batches import Rows
from toolkit.train.examples import Example


@dataclass
class Job:
    """What a run is made of, and what it has come to in this process.

    `resume` is the checkpoint to go on from. `order` holds the indices of the records that each step sees, shape
    (steps, micro-batches, records); `step_tokens` the tokens of each step. `trainable` and `total` count the loaded
    model's parameters. `stopped` is set by Ctrl-C.
    """

    config: Config
    folder: RunFolder
    base: Base
    backend: Backend
    precision: str
    tokenizer: Tokenizer
    form: PromptFormat
    splits: dict[str, list[Example]]
    fingerprint: str
    resume: Path | None
    plan: MemoryPlan
    order: Rows
    step_tokens: Rows
    trainable: int = 0
    total: int = 0
    stopped: bool = False
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

    @property
    def live_log(self) -> Path:
        """The log while it grows."""
        return self.folder.checkpoints / "train_log.jsonl"


def lay_out_job(
    config: Config, folder: RunFolder, base: Base, backend: Backend, precision: str, *, restart: bool, at_most: int
) -> Job:
    """Read and prove the records, find the checkpoint to go on from, and lay the whole run into micro-batches.

    Several processes call this alike and come to the same. Raises ToolkitError where the records are no good.
    """
    form = prompt_format(config.prompt)
    tokenizer = load_tokenizer(base.folder, form)
    splits = examples.load_examples(folder, tokenizer, form, config.train)
    run = checkpoints.fingerprint(config, folder)
    resume = _checkpoint(checkpoints.place(folder, run), run, backend, restart=restart)
    settings, device = config.train, _device(config, base, backend, precision)
    lengths = np.array([len(record.input_ids) for record in splits["train"]])
    count = settings.steps_for(len(lengths))
    steps = batches.step_records(len(lengths), settings.records_a_step, count, settings.seed)
    share = memory_plan.share_of(settings, device.processes)
    padded = device.unsloth and unsloth_backend.pads(base.folder)

    def laid(records: int) -> Rows:
        return batches.pack_steps(steps, lengths, share // records * device.processes)

    @functools.cache
    def tokens_of(records: int) -> int:
        return batches.largest(laid(records), lengths, padded=padded)

    shape = model_config(base.folder)
    plan = memory_plan.plan(shape, settings, device, tokens_of=tokens_of, at_most=at_most)
    order, step_tokens = laid(plan.micro_batch), lengths[steps].sum(axis=1)
    return Job(
        config, folder, base, backend, precision, tokenizer, form, splits, run, resume, plan, order, step_tokens
    )  # fmt: skip


def describe_steps(steps: int, per_step: int, records: int) -> str:
    """Say in one line how long a run is, and how much of its training records it sees."""
    seen = steps * per_step
    share = f"{seen:,} of {records:,} records" if seen < records else f"{records:,} records"
    count = f"{steps:,} step{'s' if steps > 1 else ''} of {per_step:,} record{'s' if per_step > 1 else ''}"
    return f"{count}: {share}, {seen / records:.2f} epochs"


def process_state(backend: Backend) -> Any:
    """Return accelerate's view of the processes that train together, of which this is one."""
    from accelerate import PartialState

    return PartialState(cpu=backend.device == "cpu")


def _checkpoint(place: Path, run: str, backend: Backend, *, restart: bool) -> Path | None:
    """Return the checkpoint to go on from; the first process clears away what does not count."""
    state = process_state(backend)
    with state.main_process_first():
        if restart and state.is_main_process:
            shutil.rmtree(place, ignore_errors=True)
        if state.is_main_process:
            checkpoints.clear_unfinished(place, run)
        return checkpoints.newest(place, run)


def _device(config: Config, base: Base, backend: Backend, precision: str) -> Device:
    """Return what trains, with the memory that is free now on the process that has least."""
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
