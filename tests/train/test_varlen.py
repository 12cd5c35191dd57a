"""Which attention kernel Unsloth is left with, by modules that stand in for it and for a card."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from toolkit.packed_attention import FLASH_ATTN, LOOP, VARLEN, XFORMERS
from toolkit.train import attention, varlen


def a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)


def unsloths(monkeypatch: pytest.MonkeyPatch, *, flash: bool, xformers: bool, native: bool, recent: bool) -> Any:
    """Unsloth's module as it chooses: flash-attn, else xformers unless torch's kernel was found on a recent card."""

    def select(use_varlen: bool = False) -> str:
        assert use_varlen
        kept = "xformers" if xformers and not dispatch._NATIVE_BEATS_XFORMERS else "sdpa"
        return "flash_varlen" if flash else kept

    dispatch = SimpleNamespace(
        _TORCH_VARLEN_ATTN=object() if native else None,
        _LEAN_VARLEN=native,
        _NATIVE_BEATS_XFORMERS=native and recent,
        select_attention_backend=select,
    )
    package, utils = ModuleType("unsloth"), ModuleType("unsloth.utils")
    utils.attention_dispatch = dispatch  # type: ignore[attr-defined]
    for name, module in {"unsloth": package, "unsloth.utils": utils}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return dispatch


@pytest.mark.parametrize(
    ("capability", "flash", "xformers", "native", "kernel"),
    [
        ((8, 0), False, False, False, VARLEN),
        ((9, 0), False, False, True, VARLEN),
        ((9, 0), False, True, False, VARLEN),
        ((9, 0), False, True, True, VARLEN),
        ((9, 0), True, True, True, FLASH_ATTN),
        ((7, 5), False, True, True, XFORMERS),
        ((7, 5), False, True, False, XFORMERS),
        ((7, 5), False, False, True, LOOP),
        ((7, 5), False, False, False, LOOP),
    ],
)
def test_the_kernel_is_offered_where_it_runs_and_the_name_is_that_of_what_unsloth_takes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], flash: bool, xformers: bool, native: bool, kernel: str
) -> None:
    a_card(monkeypatch, capability)
    dispatch = unsloths(monkeypatch, flash=flash, xformers=xformers, native=native, recent=capability >= (8, 0))
    before = dispatch._TORCH_VARLEN_ATTN
    assert varlen.offer_to_unsloth() == kernel
    offered = dispatch._TORCH_VARLEN_ATTN is varlen._as_torch_does
    assert offered == (before is None and capability >= (8, 0)) and (offered or dispatch._TORCH_VARLEN_ATTN is before)


def test_another_unsloth_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    a_card(monkeypatch, (9, 0))
    dispatch = unsloths(monkeypatch, flash=False, xformers=False, native=False, recent=True)
    del dispatch._TORCH_VARLEN_ATTN
    assert varlen.offer_to_unsloth() == "Unsloth's own choice"


def test_the_slow_one_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    varlen.announce(VARLEN)
    varlen.announce(LOOP)
    said = capsys.readouterr().err
    assert f"attention of packed records: {VARLEN}" in said
    assert f"warning: attention of packed records: {LOOP}" in " ".join(said.split())


def test_the_kernel_of_a_model_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    a_card(monkeypatch, (8, 0))
    llama = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert attention.kernel(llama, "cuda", torch.bfloat16) == VARLEN
    assert attention.kernel(llama, "cuda", torch.float32) == LOOP
    assert attention.kernel(llama, "cpu", torch.bfloat16) == LOOP
    assert attention.kernel(Gemma2Config(), "cuda", torch.bfloat16) == LOOP
