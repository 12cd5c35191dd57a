"""In what the frozen weights are multiplied: what is refused, what is proven, and what "auto" does."""

import pytest

from toolkit.core import config_file
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.hardware import Gpu
from toolkit.model.known_models import known_model
from toolkit.train import base_compute, checks, parallel
from toolkit.train.backend import Backend
from toolkit.train.fp8 import proof

SHAPE = known_model("llama-3.1-8b")


def uses(wanted: str, device: str = "cuda", precision: str = "bf16") -> bool:
    backend = Backend("peft", device, "", lambda *_: None, lambda _: None)
    return base_compute.uses_fp8(config_file.build({"train": {"base_compute": wanted}}), backend, precision, SHAPE)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU that multiplies in FP8 as it should."""
    monkeypatch.setattr(base_compute, "_capability", lambda: (9, 0))
    monkeypatch.setattr("toolkit.core.hardware.installed", lambda _: True)
    monkeypatch.setattr(proof, "prove", lambda _: "")
    monkeypatch.setattr(base_compute, "_first", lambda reason: reason)
    return monkeypatch


def test_auto_is_bf16_until_the_same_learning_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked of the GPU then, and nothing said."""
    assert base_compute.AUTO == "bf16"
    assert not uses("auto") and not uses("bf16")
    assert not capsys.readouterr().err


def test_fp8_is_used_where_it_was_proven(hopper: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[object] = []

    def prove(sizes: list[tuple[int, int]]) -> str:
        asked.extend(sizes)
        return ""

    hopper.setattr(proof, "prove", prove)
    assert uses("fp8")
    assert set(asked) == {(4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)}
    assert "FP8 (e4m3), proven on this GPU" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cpu", "there is no CUDA GPU"),
        ("ampere", "this GPU has capability 8.6, and FP8 products need 8.9"),
        ("f16", "FP8 products give bf16, and the precision here is f16"),
        ("fsdp", "FSDP divides the weights"),
        ("triton", "the package triton"),
        ("wrong", "the forward product of 4,096 × 4,096"),
        ("broken", "the first product failed: RuntimeError: no kernel image"),
    ],
)
def test_fp8_that_cannot_be_used_is_refused_or_auto_falls_back(
    hopper: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, said: str
) -> None:
    def broken(_: object) -> str:
        raise RuntimeError("no kernel image\nand more")

    if what == "ampere":
        hopper.setattr(base_compute, "_capability", lambda: (8, 6))
    elif what == "fsdp":
        hopper.setattr(parallel, "sharded", lambda: True)
    elif what == "triton":
        hopper.setattr("toolkit.core.hardware.installed", lambda name: name != "triton")
    elif what == "wrong":
        hopper.setattr(proof, "prove", lambda _: "the forward product of 4,096 × 4,096, 1 tokens is 9.0% from bf16's")
    elif what == "broken":
        hopper.setattr(proof, "prove", broken)
    device, precision = "cpu" if what == "cpu" else "cuda", "f16" if what == "f16" else "bf16"
    with pytest.raises(ToolkitError) as caught:
        uses("fp8", device, precision)
    assert caught.value.exit_code == MISSING and said in caught.value.message
    assert caught.value.hint == 'set train.base_compute = "auto"'
    hopper.setattr(base_compute, "AUTO", "fp8")
    assert not uses("auto", device, precision)
    (line,) = [line for line in capsys.readouterr().err.split("frozen weights: ") if line.strip()]
    assert " ".join(line.split()).startswith(f"{precision}, because {said}")


def test_the_doctor_refuses_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.core.hardware.installed", lambda name: name != "unsloth")
    config = config_file.build({"train": {"base_compute": "fp8"}})
    for gpu, said in ((None, "no CUDA GPU"), (Gpu("G", "", 0, 0, True, (8, 0), True), "capability 8.0")):
        with pytest.raises(ToolkitError, match=said):
            checks.backend(config, gpu)
    found = checks.backend(config, Gpu("G", "", 0, 0, True, (8, 9), True))
    assert found.ok and "in bf16, the frozen weights in FP8" in found.found
