"""Training in float16 on a GPU that is told to have no bf16, as a T4 has none. A real T4 may show more."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_runs import call, has_unsloth, log_of, settings_in
from toolkit.model.base import Base

pytestmark = pytest.mark.gpu

# Every operation of torch is looked at, in the backward pass too. A bf16 file must be converted: copies are allowed.
RUN = """
import contextlib, json, sys
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import driver
capability, scale = sys.argv[3], float(sys.argv[4])
if capability:
    driver.active.get_current_target()  # kernels are still built for the GPU that is there
    torch.cuda.is_bf16_supported = lambda including_emulation=True: including_emulation  # as a T4 answers
    torch.cuda.get_device_capability = lambda *_, **__: tuple(map(int, capability.split(".")))
real = torch.amp.GradScaler.__init__
if scale:
    torch.amp.GradScaler.__init__ = lambda self, device="cuda", **named: real(self, device, init_scale=scale)
from toolkit.core.config import Config
from toolkit.core.run_folder import folder_of
from toolkit.model.base import Base
from toolkit.train import train
COPIES = {"_to_copy", "copy_", "clone", "detach", "alias", "view", "slice", "select", "t"}
COPIES |= {"empty_like", "empty_strided"}
computed = set()
class Look(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        for one in tree_leaves((args, kwargs, out)):
            if isinstance(one, torch.Tensor) and one.is_cuda and one.dtype == torch.bfloat16 and name not in COPIES:
                computed.add(name)
        return out
config = Config.model_validate_json(sys.argv[2])
with Look() if capability else contextlib.nullcontext():
    outcome = train(config, folder_of(config), Base("base", Path(sys.argv[1])))
print(json.dumps({**outcome.figures, "computed": sorted(computed)}, default=str))
"""


def run(base: Base, place: Path, backend: str, capability: str, scale: float = 0) -> tuple[dict[str, Any], list[Any]]:
    """Train in a process of its own; return its figures and its log."""
    precision = "f16" if capability else "bf16"
    settings, folder = settings_in(place, backend=backend, precision=precision, optim="adamw_8bit")
    text = settings.model_dump_json(by_alias=True)
    said = call(RUN, str(base.folder), text, capability, str(scale)).splitlines()[-1]
    return json.loads(said), log_of(folder.train_log)


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_without_bf16_nothing_computes_in_it_and_the_losses_are_the_same(
    small_base: Base, tmp_path: Path, backend: str
) -> None:
    if backend == "unsloth" and not has_unsloth():
        pytest.skip("Unsloth is not installed")
    _, wanted = run(small_base, tmp_path / "bf16", backend, "")
    figures, found = run(small_base, tmp_path / "f16", backend, "7.5")
    assert figures["precision"] == "f16" and figures["computed"] == [] and figures["skipped_steps"] == 0
    apart = [abs(one["loss"] - other["loss"]) for one, other in zip(wanted, found, strict=True)]
    print(f"{backend}: losses of f16 and bf16 at most {max(apart):.1e} apart")
    assert max(apart) < 2e-2
    assert figures["answers"]


def test_a_step_whose_gradient_overflows_is_named(small_base: Base, tmp_path: Path) -> None:
    """A loss scale that is far too large: its first steps overflow, and each halves it."""
    figures, log = run(small_base, tmp_path, "peft", "7.5", scale=2.0**40)
    skipped = [entry for entry in log if entry.get("skipped_steps")]
    assert figures["skipped_steps"] == len(skipped) > 0
    assert all(entry["grad_norm"] is None and entry["loss"] > 0 for entry in skipped)
