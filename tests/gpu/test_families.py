"""Every family on the GPU through Unsloth, as a user trains it: its first step is plain PEFT's, and a short run ends.

The table for the documentation is what these tests print: `pytest -m gpu -n 3 -rP tests/gpu/test_families.py`, and of
that the lines that begin with `|`.
"""

import math
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import families
from tests.support.gpu_families import CASES, targets_of, wide_base
from tests.support.gpu_runs import Probe, Step, distance, has_unsloth, log_of, probing, settings_in
from toolkit.core.errors import ToolkitError
from toolkit.model.base import Base
from toolkit.model.families import FAMILIES
from toolkit.train import launch, unsloth_backend

LOSS = 5e-3  # relative: what bf16 leaves between two backends, or two layouts
# Of a random base the gradient says more than the loss: records that saw each other in Granite 4.0 moved the loss by
# 3e-4, and the gradient by 0.51. Rounding leaves 0.01 to 0.08 (Llama).
GRADIENT = 0.2
# Families whose loss differs by more, with the reason that was measured.
FURTHER: dict[str, tuple[float, str]] = {}
# Families that Unsloth cannot train here, with what was seen; plain PEFT takes over in their runs.
BREAKS = {"gemma2": "torch 2.11 does not compile the backward pass of its blocks (InductorError)"}


def test_every_architecture_has_a_case() -> None:
    assert {families.architecture_of(name) for name in CASES} == set(FAMILIES)


@pytest.mark.gpu
@pytest.mark.parametrize("family", CASES)
def test_a_family_is_trained_through_unsloth(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes run at once: each of them imports and compiles for longer than it computes."""
    if not has_unsloth():
        pytest.skip("Unsloth is not installed")
    monkeypatch.setenv("TOOLKIT_DEBUG", "1")  # a run that fails prints where
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path / "compiled"))
    began, base, targets = time.monotonic(), wide_base(tmp_path / "base", family), targets_of(family)
    with ExitStack() as stack:
        probes = {
            backend: stack.enter_context(probing(tmp_path / backend, base, backend, target_modules=targets))
            for backend in ("unsloth", "peft")
            if backend == "peft" or family not in BREAKS
        }
        wrong = wrong_in_run(family, base, tmp_path / "run")
        ours = None if family in BREAKS else step_of(probes["unsloth"], "unsloth", wrong)
        theirs = step_of(probes["peft"], "peft", wrong)
    wrong += wrong_in_steps(family, base, ours, theirs)
    print(f"{row(family, ours, theirs)} {time.monotonic() - began:.0f} s |")
    assert not wrong, "\n\n".join(wrong)


def step_of(probe: Probe, backend: str, wrong: list[str]) -> Step | None:
    """Return what a probe computed; None where it failed, which is noted."""
    try:
        return probe.step()
    except Exception as exc:
        wrong.append(f"{backend}'s first step: {exc or type(exc).__name__}\n{probe.said()}")
        return None


def wrong_in_run(family: str, base: Base, place: Path) -> list[str]:
    """Train four steps by the backend that `auto` takes, and say what is wrong."""
    settings, folder = settings_in(
        place, max_steps=4, warmup_steps=0, learning_rate=2e-3, target_modules=targets_of(family)
    )
    try:
        figures = launch.run_training(settings, folder, base).figures
    except ToolkitError as exc:
        return [f"the run: {exc.message}; {exc.hint}"]
    wrong = []
    losses = [entry["loss"] for entry in log_of(folder.train_log)]
    wanted = "peft" if unsloth_backend.refusal(base.folder) or family in BREAKS else "unsloth"
    if figures["backend"] != wanted:
        wrong.append(f"{figures['backend']} trained, not {wanted}")
    if len(losses) != 4 or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        wrong.append(f"the losses of the run do not fall: {losses}")
    if not (folder.adapter / "adapter_model.safetensors").is_file():
        wrong.append("the run left no adapter")
    return wrong


def way_of(step: Step) -> str:
    """Return what Unsloth made of the records of a micro-batch, or that it refused the base."""
    return "refused" if step.refused else "packed" if step.rows == 1 else "padded"


def wrong_in_steps(family: str, base: Base, ours: Step | None, theirs: Step | None) -> list[str]:
    """Say where Unsloth's first step is not PEFT's, nor what the toolkit takes it for."""
    wrong = []
    for name, step in (("Unsloth", ours), ("PEFT", theirs)):
        if step and not step.refused and (said := wrong_in_layout(step)):
            wrong.append(f"{name}, {said}")
    if ours is None:
        return wrong
    reason = unsloth_backend.refusal(base.folder)
    claimed = "refused" if reason else "padded" if unsloth_backend.pads(base.folder) else "packed"
    if way_of(ours) != claimed or ours.refused != reason:
        wrong.append(f"Unsloth's way is {way_of(ours)} ({ours.refused}), not {claimed} ({reason})")
    if ours.refused or theirs is None:
        return wrong
    if ours.trained() != theirs.trained():
        odd = sorted({*ours.trained()} ^ {*theirs.trained()})
        return [*wrong, f"Unsloth trains {len(ours.trained())} matrices, PEFT {len(theirs.trained())}: {odd[:8]}"]
    far, why = FURTHER.get(family, (LOSS, ""))
    if ours.loss != pytest.approx(theirs.loss, rel=far):
        wrong.append(f"Unsloth's loss is {ours.loss:.5f}, PEFT's {theirs.loss:.5f}; {far:g} is allowed {why}".strip())
    if not distance(theirs.gradient("packed"), ours.gradient("packed")) < GRADIENT:
        wrong.append(f"the gradients differ: {differing(ours, theirs)}")
    return wrong


def wrong_in_layout(step: Step) -> str:
    """Say where eight records in one micro-batch have other losses than alone."""
    alone, row = (step.tensors[name] for name in ("single losses", "in the row"))
    if step.loss != pytest.approx(alone.sum().item(), rel=LOSS):
        return f"together: loss {step.loss:.5f}, one by one {alone.sum().item():.5f}"
    if row.tolist() != pytest.approx(alone.tolist(), rel=2e-2):
        return f"each record in the row: losses {row.tolist()}, alone {alone.tolist()}"
    far = distance(step.gradient("single"), step.gradient("packed"))
    return "" if far < GRADIENT else f"together: gradient {far:.2e} from that of one by one"


def differing(ours: Step, theirs: Step) -> str:
    """Name the matrices whose gradients are the furthest apart."""
    both = [step.tensors for step in (theirs, ours)]
    far = {name: distance(*(one[f"packed {name}"].double() for one in both)) for name in theirs.trained()}
    worst = sorted(far, key=lambda name: -far[name])[:6]
    return ", ".join(f"{name} {far[name]:.2f}" for name in worst)


def row(family: str, ours: Step | None, theirs: Step | None) -> str:
    """Return a row of the table: family, Unsloth's way, both losses, and how far its gradient is from PEFT's."""
    way = f"{way_of(ours)} {ours.refused}".strip() if ours else BREAKS.get(family, "failed")
    mine, other = (f"{step.loss:.5f}" if step and not step.refused else "–" for step in (ours, theirs))
    apart = alone = "–"
    if ours and not ours.refused:
        alone = f"{distance(ours.gradient('single'), ours.gradient('packed')):.2e}"
        if theirs and ours.trained() == theirs.trained():
            apart = f"{distance(theirs.gradient('packed'), ours.gradient('packed')):.2e}"
    return f"| {family} | {way} | {mine} | {other} | {apart} | {alone} |"
