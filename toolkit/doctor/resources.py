"""The checks of memory and disk: what the configured run needs, computed, against what is free."""

from dataclasses import dataclass

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.console import size
from toolkit.core.errors import ToolkitError
from toolkit.core.hardware import Gpu
from toolkit.core.run_folder import RunFolder
from toolkit.core.stage import Check
from toolkit.doctor import estimate, plan
from toolkit.model import base, memory_plan
from toolkit.model.gguf_base import converted
from toolkit.model.memory import Parts, total
from toolkit.model.memory_plan import Device
from toolkit.model.model_config import ModelConfig
from toolkit.model.precision import precision_of, uses_unsloth


@dataclass(frozen=True)
class Job:
    """What is to be done, on what: the settings, the stages, the base's shape, and the GPU if there is one.

    `held` are the bytes on disk by stage that an interrupted run left and the next one continues with.
    """

    config: Config
    folder: RunFolder
    held: dict[str, int]
    shape: ModelConfig
    gpu: Gpu | None

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(self.held)


def adapter(config: Config, shape: ModelConfig) -> Check:
    """Count the trainable parameters, and check that every target names a layer of this base."""
    unknown = shape.unknown_targets(config.train.target_modules)
    layers = ", ".join(shape.linears())
    if unknown:
        found = f"train.target_modules names layers that this base does not have: {', '.join(unknown)}"
        return Check("adapter", False, found, f"choose among its layers: {layers}")
    count = shape.trainable(config.train.target_modules, config.train.lora_r)
    return Check("adapter", True, f"{count:,} trainable of {shape.parameters() + count:,} parameters", "")


def positions(config: Config, shape: ModelConfig) -> list[Check]:
    """Say if records may have more tokens than the base has positions."""
    length = config.train.max_length
    if not 0 < shape.context < length:
        return []
    found = f"train.max_length is {length:,}, but the base has {shape.context:,} positions: no server reads more"
    return [Check("positions", None, found, f"--set train.max_length={shape.context}")]


def memory(job: Job, *, streamed: bool = False) -> list[Check]:
    """Compare what training, conversion, export and validation need at their peak with what is free.

    `streamed` says that the base to merge into is read from the hub in pieces.
    """
    checks = []
    free = hardware.available_memory()
    if "train" in job.stages:
        checks.append(_training(job, free))
    if unconverted(job.config, job.stages):
        checks.append(_compare("memory: conversion", estimate.conversion(job.shape), free, MORE))
    if "export" in job.stages:
        whole = base.merge_label(job.config.model, job.config.export).endswith(base.FOUR_BIT)
        parts = estimate.export_memory(job.shape, hardware.cores(), whole=whole)
        checks.append(_compare("memory: export", parts, free, MORE))
    if "validate" in job.stages:
        quantizations, context = job.config.export.quantizations, job.config.train.max_length
        parts = estimate.validation(job.shape, quantizations, context, streamed=streamed)
        checks.append(_compare("memory: validation", parts, free, MORE))
    return checks


MORE = "use a machine with that much memory, or a smaller `model.base`"


def _training(job: Job, free: int | None) -> Check:
    """Compare the plan that training will choose with what is free, and describe the plan."""
    settings = job.config.train
    name = "memory: training" if job.gpu is None else "gpu memory: training"
    there = training_machine(job, free)
    chosen = memory_plan.plan(job.shape, settings, there)
    parts = memory_plan.peak(job.shape, settings, there, chosen.tokens, chosen.strategy)
    check = _compare(name, parts, there.free, "")
    if not chosen.fits:
        return Check(name, False, check.found, _what_fits(job, there))
    return Check(name, check.ok, f"{check.found}; {memory_plan.describe_plan(chosen)}", "")


def training_machine(job: Job, free: int | None) -> Device:
    """Return what training will run on; `free` is the machine's memory, which a CPU trains in."""
    four_bit = job.config.model.load_in_4bit or job.config.model.base.endswith(base.FOUR_BIT)
    bf16 = precision_of(job.config, job.gpu) == "bf16"
    on_gpu = job.gpu is not None
    return Device(
        free=job.gpu.free if job.gpu is not None else free,
        cuda=on_gpu,
        unsloth=uses_unsloth(job.config, job.gpu),
        four_bit=four_bit,
        bf16=bf16,
        fp8=on_gpu and job.config.train.base_compute == "fp8",
    )


def _what_fits(job: Job, there: Device) -> str:
    """Find the mildest change of the settings that fits, and return it as options of the command line."""
    settings = job.config.train
    changes: dict[str, int | str] = {}
    steps: list[dict[str, int | str]] = []
    if settings.gradient_checkpointing is False:
        steps.append({"gradient_checkpointing": "auto"})
    length = settings.max_length // 2
    while length >= 128:
        steps.append({"max_length": length})
        length //= 2
    for step in steps:
        changes |= step
        if memory_plan.plan(job.shape, settings.model_copy(update=changes), there).fits:
            return " ".join(f"--set train.{key}={value}" for key, value in changes.items())
    return MORE


def unconverted(config: Config, stages: tuple[str, ...]) -> bool:
    """Tell whether one of the bases is a GGUF file that was not converted yet."""
    for label in plan.labels(config, stages):
        path = base.local_path(label)
        if path is not None and path.is_file() and converted(path) is None:
            return True
    return False


def _compare(name: str, parts: Parts, free: int | None, fix: str) -> Check:
    listed = ", ".join(f"{part} {size(count)}" for part, count in parts.items() if count >= 50e6)
    need = f"needs {size(total(parts))} ({listed})"
    if free is None:
        return Check(name, None, f"{need}; this system does not say how much is free", "")
    fits = total(parts) <= free
    return Check(name, fits, f"{need}, {'' if fits else 'only '}{size(free)} are free", "" if fits else fix)


def least_memory(label: str, revision: str) -> Check:
    """Judge a base of unknown shape by its weights alone: they must fit, the rest is unknown."""
    try:
        count = plan.parameters_of(label, revision)
    except (ToolkitError, ValueError, KeyError, TypeError):
        return Check("memory", None, "unknown until the base model is in order", "")
    free = hardware.available_memory()
    if not count and base.local_path(label) is not None:
        return Check("memory", None, "unknown: the base model's sizes are not known here", "")
    if not count:
        fix = f"fetch its configuration, then ask again: hf download {label} config.json"
        return Check("memory", None, f"unknown: the shape of {label} is not known here", fix)
    if free is not None and 4 * count > free and not hardware.sees_gpu():
        return Check(
            "memory", False, f"the float32 weights alone take {size(4 * count)}, only {size(free)} are free", MORE
        )
    found = f"{count:,} parameters of a kind whose activations cannot be computed: weights {size(4 * count)} in float32"
    return Check("memory", None, found, "watch the first steps")


def shape_or_none(label: str, revision: str) -> ModelConfig | None:
    """Find a base's shape; None where it is unknown or the base's own check reports what is wrong with it."""
    try:
        return plan.shape_of(label, revision)
    except (ToolkitError, ValueError, OSError, KeyError, TypeError, ZeroDivisionError):
        return None
