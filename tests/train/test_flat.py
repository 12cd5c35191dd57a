"""The adapter in one vector: the same steps as matrix by matrix, whatever happens to a gradient in between."""

from typing import Any

import pytest
import torch

from tests.train.conftest import SAME, distance
from toolkit.base import Base
from toolkit.train.flat import BLOCK, Flat

SHAPES = ((16, 40), (3, 5), (1, 256), (7,))


def layers() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def backward(parameters: list[Any], step: int) -> None:
    loss = sum(((parameter * (number + step)).sin() ** 2).sum() for number, parameter in enumerate(parameters))
    loss.backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("most", [1 << 30, 800, 1])
def test_steps_are_those_of_the_matrices(most: int) -> None:
    """In float32, clipping by the common norm and two backward passes a step included."""
    plain, ours = layers(), layers()
    flat = Flat.of(ours, most=most)
    assert len(flat.vectors) == {1 << 30: 1, 800: 2, 1: 4}[most]
    assert all(vector.numel() % BLOCK == 0 for vector in flat.vectors)
    one, other = torch.optim.AdamW(plain, lr=0.1), torch.optim.AdamW(flat.vectors, lr=0.1)
    for step in range(6):
        for parameters in (plain, ours):
            backward(parameters, step)
            backward(parameters, step + 3)
        if step == 2:
            ours[1].grad = ours[1].grad.clone()  # something replaced it
        if step == 3:
            ours[0].grad, plain[0].grad = None, torch.zeros_like(plain[0])
        flat.gather()
        norms = [float(torch.nn.utils.clip_grad_norm_(some, 1.0)) for some in (plain, flat.vectors)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        one.step()
        other.step()
        one.zero_grad(set_to_none=True)
        flat.zero()
        for wanted, found in zip(plain, ours, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not any(vector.grad.any() for vector in flat.vectors)


def test_a_copy_in_16_bits_has_the_steps_of_rounding_every_matrix_in_every_pass() -> None:
    """As autocast does: each pass's gradient is in bf16 and adds up in float32; equal to the last bit."""
    plain, ours = layers(), layers()
    flat = Flat.of(ours, torch.bfloat16, most=1000)
    assert all(parameter.dtype == torch.bfloat16 for parameter in ours)
    assert all(vector.dtype == torch.float32 for vector in flat.vectors) and len(flat.copies) == 2
    one, other = torch.optim.AdamW(plain, lr=0.1), torch.optim.AdamW(flat.vectors, lr=0.1)
    for step in range(6):
        for start in (step, step + 3):
            backward([parameter.to(torch.bfloat16) for parameter in plain], start)
            backward(ours, start)
            if step == 2:
                ours[1].grad = ours[1].grad.clone()  # something replaced it
            flat.gather()
        for wanted, part in zip(plain, flat.parts, strict=True):
            assert torch.equal(part.gradient, wanted.grad)
        one.step()
        other.step()
        one.zero_grad(set_to_none=True)
        flat.publish()
        flat.zero()
        for wanted, found, part in zip(plain, ours, flat.parts, strict=True):
            assert torch.equal(part.weight, wanted) and torch.equal(found, wanted.to(torch.bfloat16))
    flat.release()
    for wanted, found in zip(plain, ours, strict=True):
        assert found.dtype == torch.float32 and found.grad is None and torch.equal(found, wanted)


@pytest.mark.slow
def test_an_adapter_trains_alike(base: Base) -> None:
    """PEFT under autocast, two passes a step: rounded in every pass, and with a copy that is rounded once a step."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from toolkit.config import LORA_TARGETS

    found = []
    for dtype in (None, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16)
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LORA_TARGETS))
        flat = Flat.of([parameter for parameter in model.parameters() if parameter.requires_grad], dtype)
        optimizer = torch.optim.AdamW(flat.vectors, lr=1e-2)
        for start in range(0, 60, 20):
            for ids in (torch.arange(start, start + 20)[None], torch.arange(start + 5, start + 12)[None]):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                flat.gather()
            optimizer.step()
            flat.publish()
            flat.zero()
        flat.release()
        found.append({name: tensor.clone() for name, tensor in model.named_parameters() if tensor.requires_grad})
    assert all(tensor.dtype == torch.float32 for tensor in found[1].values())
    assert distance(found[0], found[1]) < SAME


def test_each_matrix_begins_a_block_and_stays_apart() -> None:
    parameters = layers()
    [vector] = Flat.of(parameters).vectors
    starts = [(p.data_ptr() - vector.data_ptr()) // 4 for p in parameters]
    assert starts == [0, 768, 1024, 1280] and vector.numel() == 1536
    with torch.no_grad():
        parameters[1].fill_(3.0)
    assert vector.data[768:783].eq(3).all() and not vector.data[783:1024].any()


def test_dtypes_are_not_mixed() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    flat = Flat.of(parameters)
    assert [vector.dtype for vector in flat.vectors] == [torch.float32, torch.bfloat16]
    assert [parameter.dtype for parameter in parameters] == [torch.float32, torch.bfloat16]


def test_what_is_saved_is_each_matrix_alone(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    parameters = layers()
    before = [parameter.detach().clone() for parameter in parameters]
    Flat.of(parameters)
    save_file({str(number): parameter.data for number, parameter in enumerate(parameters)}, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[str(number)], wanted) for number, wanted in enumerate(before))
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * sum(map(torch.numel, before)) + 1000
