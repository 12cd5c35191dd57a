"""The packed attention kernel against torch's attention record by record, in float32."""

import pytest
import torch

from tests.support.gpu_runs import call, has_unsloth
from toolkit.core import hardware
from toolkit.model import attention_kernels
from toolkit.train import varlen

pytestmark = pytest.mark.gpu
LENGTHS = [1, 313, 64, 7, 2048, 129, 0, 500]


def by_record(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], window: int | None
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for one, two, three in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True):
        two, three = (tensor.repeat_interleave(groups, dim=1) for tensor in (two, three))
        place = torch.arange(len(one), device=one.device)
        seen = (place[None] <= place[:, None]) & (place[None] > place[:, None] - (window or len(one) + 1))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor.transpose(0, 1) for tensor in (one, two, three)), attn_mask=seen
            ).transpose(0, 1)
        )
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(32, 8), (16, 16)])
@pytest.mark.parametrize("width", [64, 128])
def test_forward_and_gradients_equal_attention_record_by_record(
    width: int, heads: tuple[int, int], window: int | None
) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(total, heads[0], width), (total, heads[1], width), (total, heads[1], width)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    query, key, value = inputs
    assert varlen.supported("cuda", torch.bfloat16, width)
    ends = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    gradient = torch.randn(shapes[0], device="cuda", dtype=torch.bfloat16)
    found = varlen.attention(query, key, value, ends, max(LENGTHS), window=window)
    found.backward(gradient)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    wanted = by_record(exact[0], exact[1], exact[2], LENGTHS, window)
    wanted.backward(gradient.float())
    pairs = [(found, wanted), *((one.grad, two.grad) for one, two in zip(inputs, exact, strict=True))]
    for one, two in pairs:
        assert float((one.float() - two).norm() / two.norm()) < 1e-2  # bf16 operands


OFFER = """
import unsloth
from unsloth.utils import attention_dispatch as dispatch
from toolkit.train import varlen
print(varlen.offer_to_unsloth())
print(dispatch.HAS_FLASH_ATTENTION or dispatch._TORCH_VARLEN_ATTN is not None)
"""


def test_unsloth_is_offered_the_kernel() -> None:
    if not has_unsloth():
        pytest.skip("Unsloth is not installed")
    gpu = hardware.gpu()
    assert gpu is not None
    taken, there = call(OFFER).splitlines()[-2:]
    assert taken == attention_kernels.expected(gpu, unsloth=True)
    assert there == "True"
