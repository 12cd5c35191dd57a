"""What torch is asked about a GPU, by a torch that stands in for one."""

import inspect
import os
from pathlib import Path

import pytest

from toolkit.core import hardware
from toolkit.core.hardware import Gpu

TORCH = """
from types import SimpleNamespace
version = SimpleNamespace(hip={hip!r})
backends = SimpleNamespace(cuda=SimpleNamespace(is_flash_attention_available=lambda: {flash}))
cuda = SimpleNamespace(
    is_available=lambda: {there},
    mem_get_info=lambda: (15, 16),
    get_device_name=lambda number: "a GPU",
    get_device_capability=lambda number: {capability},
    is_bf16_supported=lambda including_emulation=True: including_emulation or {capability} >= (8, 0),
)
"""


def asked(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: object) -> Gpu | None:
    usual = {"hip": None, "flash": True, "there": True, "capability": (9, 0)}
    (folder / "torch.py").write_text(TORCH.format(**{**usual, **values}), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(hardware, "driver_offers_gpu", lambda: True)
    monkeypatch.setattr(hardware, "driver_version", lambda: "580.1")
    return hardware.gpu()


def test_a_gpu_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(tmp_path, monkeypatch)
    assert found == Gpu("a GPU", "580.1", 16, 15, bf16=True, capability=(9, 0), flash=True)


def test_emulated_bf16_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(tmp_path, monkeypatch, capability=(7, 5))
    assert found is not None and (found.bf16, found.capability) == (False, (7, 5))


@pytest.mark.parametrize("values", [{"hip": "6.4"}, {"flash": False}])
def test_a_torch_without_the_kernel(values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(tmp_path, monkeypatch, **values)
    assert found is not None and not found.flash


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(tmp_path, monkeypatch, there=False) is None


def test_the_real_torch_understands_the_question() -> None:
    import torch

    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    assert isinstance(torch.backends.cuda.is_flash_attention_available(), bool)
    assert hasattr(torch.version, "hip") and callable(torch.cuda.get_device_capability)


@pytest.mark.parametrize(
    ("devices", "visible", "offered"),
    [
        ([], None, False),
        (["nvidia0"], None, True),
        (["nvidia1", "nvidiactl"], None, True),  # a container that was given the second GPU
        (["nvidiactl", "nvidia-uvm"], None, False),  # a driver without a GPU
        (["dxg"], None, True),  # Windows' Linux
        (["nvidia0"], "", False),
        (["nvidia0"], "-1", False),
        (["nvidia0", "nvidia1"], "1", True),
    ],
)
def test_what_the_driver_offers(
    devices: list[str], visible: str | None, offered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.driver_offers_gpu() == offered
    if not offered:
        assert hardware.gpu() is None  # torch is not asked
