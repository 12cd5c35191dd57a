"""Products of frozen FP8 weights with LoRA: outputs and every gradient, against autograd in float32."""

import pytest
import torch

from toolkit.train.fp8 import proof, weights
from toolkit.train.fp8.functions import Lora, linears, swiglu_layer

WIDTH, INNER, TOKENS, RANK, SCALE = 64, 96, 40, 4, 0.5


def frozen(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(size) * 0.1 for size in sizes]


def pairs_for(matrices: list[torch.Tensor]) -> list[Lora]:
    """LoRA pairs that add about as much as the weights do."""
    made = []
    for outputs, inputs in (matrix.shape for matrix in matrices):
        a, b = torch.randn(RANK, inputs) * 0.1, torch.randn(outputs, RANK) * 0.5
        made.append(Lora(a.requires_grad_(), b.requires_grad_(), SCALE))
    return made


def plain(x: torch.Tensor, weight: torch.Tensor, pair: Lora) -> torch.Tensor:
    return x @ weight.t() + pair.scale * (x @ pair.a.t()) @ pair.b.t()


def distances(found: list[torch.Tensor], leaves: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    """How far the outputs, and the gradients of the leaves, are from those that are wanted."""
    seeds = [torch.randn_like(one) for one in wanted]
    torch.autograd.backward(found, seeds)
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(wanted, seeds)
    pairs = [*zip(found, wanted, strict=True), *zip(gradients, [leaf.grad for leaf in leaves], strict=True)]
    return [proof.distance(one, other) for one, other in pairs if one is not None and other is not None]


@pytest.mark.parametrize("outputs", [[48], [48, 16, 16], [96, 96]])
def test_linear_layers_that_share_an_input(outputs: list[int]) -> None:
    torch.manual_seed(0)
    matrices = frozen(*((size, WIDTH) for size in outputs))
    x, pairs = torch.randn(2, TOKENS // 2, WIDTH, requires_grad=True), pairs_for(matrices)
    leaves = [x, *(matrix for pair in pairs for matrix in pair[:2])]
    found = list(linears(x, weights.make_group(matrices), pairs))
    assert [one.shape for one in found] == [(2, TOKENS // 2, size) for size in outputs]
    far = distances(found, leaves, [plain(x, *both) for both in zip(matrices, pairs, strict=True)])
    assert len(far) == len(outputs) + len(leaves)
    assert max(far[: len(outputs) + 1]) < proof.TOLERANCE  # outputs, and the input's gradient
    assert max(far[len(outputs) + 1 :]) < 1e-5  # LoRA's own products are not in FP8


def test_a_layer_without_lora_has_an_input_gradient() -> None:
    torch.manual_seed(0)
    (matrix,) = frozen((80, WIDTH))
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    far = distances(list(linears(x, weights.make_group([matrix]))), [x], [x @ matrix.t()])
    assert min(far) > 0.005 and max(far) < proof.TOLERANCE


def test_a_whole_swiglu_layer() -> None:
    torch.manual_seed(0)
    matrices = frozen((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    x, pairs = torch.randn(TOKENS, WIDTH, requires_grad=True), pairs_for(matrices)
    leaves = [x, *(matrix for pair in pairs for matrix in pair[:2])]
    found = swiglu_layer(x, weights.make_group(matrices[:2]), weights.make_group(matrices[2:]), pairs)
    gate, up = (plain(x, *both) for both in zip(matrices[:2], pairs[:2], strict=True))
    wanted = plain(torch.nn.functional.silu(gate) * up, matrices[2], pairs[2])
    far = distances([found], leaves, [wanted])
    assert len(far) == 8 and max(far) < 2 * proof.TOLERANCE  # three products follow each other


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    matrices = frozen((48, WIDTH))
    pairs = pairs_for(matrices)
    linears(torch.randn(TOKENS, WIDTH), weights.make_group(matrices), pairs)[0].sum().backward()
    assert pairs[0].a.grad is not None and pairs[0].b.grad is not None


def test_a_row_with_nan_reaches_the_loss_and_no_other_row() -> None:
    """So the trainer, which looks at the loss, still names the records."""
    matrices = frozen((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    x = torch.randn(TOKENS, WIDTH)
    x[7, 3] = float("nan")
    groups = weights.make_group(matrices[:2]), weights.make_group(matrices[2:])
    found = swiglu_layer(x, *groups, pairs_for(matrices))
    assert found.isfinite().all(dim=1).tolist() == [place != 7 for place in range(TOKENS)]


def test_a_weight_is_a_packed_weight_to_unsloth() -> None:
    """Its kernels hand over the bytes or their transposed view, also of a square weight."""
    torch.manual_seed(0)
    square, other = frozen((WIDTH, WIDTH), (INNER, WIDTH))
    group = weights.make_group([square, other])
    for weight, state in zip((square, other), group.members, strict=True):
        packed = state.rows.values.view(torch.uint8)
        x, dy = torch.randn(2, 3, state.shape[1]), torch.randn(5, state.shape[0])
        assert proof.distance(state.matmul(x, packed), x @ weight.t()) < proof.TOLERANCE
        assert proof.distance(state.matmul(dy, packed.t()), dy @ weight) < proof.TOLERANCE
        assert proof.distance(state.dequantize(packed), weight) < proof.TOLERANCE
        assert proof.distance(state.dequantize(packed.t()), weight.t()) < proof.TOLERANCE
        place = torch.empty(2, 3, state.shape[0])
        assert state.matmul(x, packed, out=place) is place


def test_the_proof_refuses_wrong_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proof.prove([(96, 160), (64, 64)], "cpu") == ""
    right = weights.product
    for wrong, said in (
        (lambda *both: right(*both) * 1.1, "the forward product of 64 × 96, 1 tokens is 1"),
        (lambda *both: right(*both).nan_to_num(), "with NaN"),
        (lambda *both: right(*both) + float("nan"), "is nan% from bf16's"),
    ):
        monkeypatch.setattr(proof, "product", wrong)
        assert said in proof.prove([(64, 96)], "cpu")
