"""Which attention kernel a model takes, and how it is told where records begin, by what stands in for a GPU."""

import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from tests.support import families
from toolkit.model.attention_kernels import FLASH_ATTN, MASK, VARLEN, XFORMERS
from toolkit.train import varlen


def a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)


def unsloths(monkeypatch: pytest.MonkeyPatch, *, flash: bool, xformers: bool, native: bool, recent: bool) -> Any:
    """Unsloth's module as it chooses: flash-attn, else xformers unless torch's kernel was found on a recent GPU."""

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
        ((7, 5), False, False, True, MASK),
        ((7, 5), False, False, False, MASK),
    ],
)
def test_the_kernel_is_offered_where_it_runs_and_the_name_is_that_of_what_unsloth_takes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], flash: bool, xformers: bool, native: bool, kernel: str
) -> None:
    a_gpu(monkeypatch, capability)
    dispatch = unsloths(monkeypatch, flash=flash, xformers=xformers, native=native, recent=capability >= (8, 0))
    before = dispatch._TORCH_VARLEN_ATTN
    assert varlen.offer_to_unsloth() == kernel
    offered = dispatch._TORCH_VARLEN_ATTN is varlen._as_torch_does
    assert offered == (before is None and capability >= (8, 0)) and (offered or dispatch._TORCH_VARLEN_ATTN is before)


def test_another_unsloth_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, (9, 0))
    dispatch = unsloths(monkeypatch, flash=False, xformers=False, native=False, recent=True)
    del dispatch._TORCH_VARLEN_ATTN
    assert varlen.offer_to_unsloth() == "Unsloth's own choice"


def test_the_slow_one_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    varlen.announce(VARLEN)
    varlen.announce(MASK)
    said = capsys.readouterr().err
    assert f"attention of packed records: {VARLEN}" in said
    assert f"warning: attention of packed records: {MASK}" in " ".join(said.split())


def test_the_kernel_of_a_model_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, (8, 0))
    llama = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert varlen.choose(llama, "cuda", torch.bfloat16) == VARLEN
    assert varlen.choose(llama, "cuda", torch.float32) == MASK
    assert varlen.choose(llama, "cpu", torch.bfloat16) == MASK
    assert varlen.choose(LlamaConfig(head_dim=320), "cuda", torch.bfloat16) == MASK
    assert varlen.choose(Gemma2Config(), "cuda", torch.bfloat16) == MASK
    a_gpu(monkeypatch, (7, 5))
    assert varlen.choose(llama, "cuda", torch.float16) == MASK


def test_a_row_is_told_where_its_records_begin() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 0, 1]])
    arguments = (torch.zeros(1, 10),)
    given = {"position_ids": positions, "labels": positions, "use_cache": False}
    passed, named = varlen.add_lengths(None, arguments, given)
    assert passed is arguments and {name: named[name] for name in given} == given
    assert named["cu_seq_lens_q"].dtype == torch.int32
    assert named["cu_seq_lens_q"].tolist() == [0, 3, 4, 8, 10] and named["max_length_q"] == 4


@pytest.mark.parametrize("missing", ["position_ids", "labels"])
def test_generation_is_told_nothing(missing: str) -> None:
    """A step with a cache has one position; it has no labels."""
    positions = torch.zeros(1, 3, dtype=torch.long)
    given = {name: positions for name in ("position_ids", "labels") if name != missing}
    assert varlen.add_lengths(None, (), given) == ((), given)


def one_by_one(
    query: Any, key: Any, value: Any, ends: Any, longest: int, *, scale: float | None, window: int | None
) -> Any:
    """What the kernel computes, record by record, with the arguments of `varlen.attention`."""
    groups = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    lengths = []
    for start, end in itertools.pairwise(ends.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        seen = (back >= 0) & (back < (window or end))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        weights = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf).softmax(-1)
        out[start:end] = (weights @ v).transpose(0, 1)
        lengths.append(end - start)
    assert max(lengths) == longest
    return out


@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 24), ("mistral", 200), ("phi3", 24)])
def test_a_model_attends_inside_each_record_by_the_kernel(
    family: str, window: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of the records' own losses; a window wider than the records is left out."""
    windows = []

    def kernel(*arguments: Any, **named: Any) -> Any:
        windows.append(named["window"])
        return one_by_one(*arguments, **named)

    monkeypatch.setattr(varlen, "attention", kernel)
    folder = families.save(tmp_path / "base", family, **({"sliding_window": window} if window else {}))
    records = [torch.randint(3, 480, (length,)) for length in (40, 7, 90, 61)]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=varlen.register_kernel()
    )
    model.register_forward_pre_hook(varlen.add_lengths, with_kwargs=True)
    with torch.no_grad():
        alone = sum(float(reference(ids[None], labels=ids[None]).loss) * (len(ids) - 1) for ids in records)
        labels = torch.cat(records)
        positions = torch.cat([torch.arange(len(ids)) for ids in records])
        labels = labels.masked_fill(positions == 0, -100)
        one = torch.ones(())
        found = model(
            torch.cat(records)[None], position_ids=positions[None], labels=labels[None], num_items_in_batch=one,
            use_cache=False,
        )  # fmt: skip
    assert windows == [window if window == 24 else None] * 2
    assert float(found.loss) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_without_lengths_torchs_own_attention_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in generation: the same words come out, and the kernel for packed records is not called."""

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("called")

    monkeypatch.setattr(varlen, "attention", never)
    folder = families.save(tmp_path / "base", "llama")
    prompt = torch.randint(3, 480, (1, 30), generator=torch.Generator().manual_seed(3))
    found = []
    for name in ("sdpa", varlen.register_kernel()):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=name)
        model.register_forward_pre_hook(varlen.add_lengths, with_kwargs=True)
        options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 12}
        found.append(model.generate(prompt, **options, eos_token_id=None, pad_token_id=0)[0].tolist())
    assert len(found[0]) == 42 and found[0] == found[1]
