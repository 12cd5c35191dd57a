"""The GPU beside the CPU in an export: what it takes over, and what happens when it fails; ggml plays the GPU."""

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from tests.support import models
from tests.support.places import REPOSITORY
from toolkit import kernels
from toolkit.core import hardware
from toolkit.export import checks, export, plan, quantize
from toolkit.export import gpu_quantizer as gpus
from toolkit.kernels import gpu

FILES = ("Q4_K_M", "Q8_0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model") / "base", num_hidden_layers=3, intermediate_size=256)


@pytest.fixture(scope="module")
def expected(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return exported(base, tmp_path_factory.mktemp("expected"))[0]


def exported(
    base: Path, folder: Path, imatrix: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    targets = {name: folder / f"{name}.gguf" for name in FILES}
    outcome = export(base, None, targets, models.TEMPLATE, "small", imatrix=imatrix)
    files = {name: path.read_bytes() for name, path in targets.items()}
    return files, {name: outcome.figures[name]["quantized_by"] for name in FILES}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Type]]:
    """A GPU that is there, always right, and worth its while; yields the types that it was given, slab by slab."""
    done: list[Type] = []

    def quantize_into(kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None) -> None:
        done.append(kind)
        out[:] = gpu.reference(kind, kernels.widened(rows), importance)

    monkeypatch.setattr(gpu, "available", lambda: gpu._given_up[0] if gpu._given_up else None)
    monkeypatch.setattr(gpu, "gpu_name", lambda: "Fake")
    monkeypatch.setattr(gpu, "gpu_count", lambda: 1)
    monkeypatch.setattr(gpu, "self_test", lambda kind, weighted, bf16: None)
    monkeypatch.setattr(gpu, "quantize_into", quantize_into)
    monkeypatch.setattr(gpu, "_given_up", [])
    monkeypatch.setattr(gpus, "SECONDS", 0.0)
    monkeypatch.setattr(gpus, "LEAST", 1)
    yield done


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the GPU prove all its types before the first tensor is quantized."""
    monkeypatch.setattr(gpus, "in_background", gpus.prove_types)


@pytest.mark.slow
def test_the_gpu_writes_the_same_files(
    fake: list[Type], base: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch)
    files, names = exported(base, tmp_path)
    assert files == expected
    assert {Type.Q4_K, Type.Q6_K, Type.Q8_0} == set(fake)
    assert names["Q4_K_M"] == {"Q4_K": "CUDA (Fake)", "Q6_K": "CUDA (Fake)"} and names["Q8_0"]["Q8_0"] == "CUDA (Fake)"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_several_gpus_one_quantizes_and_a_line_says_why(
    fake: list[Type], count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "gpu_count", lambda: count)
    found = gpus.GpuQuantizer()
    gpus.prove_types(found, {(Type.Q4_K, False): 1 << 30})
    assert found.trusted == {(Type.Q4_K, False)}
    said = capsys.readouterr().err
    assert said.count(f"one of the {count} GPUs quantizes") == (count > 1) and bool(said) == (count > 1)


@pytest.mark.slow
def test_with_an_importance_matrix_too(
    fake: list[Type], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(base, None, list(FILES)).tensors
    random = np.random.default_rng(1)
    imatrix = {t.name: random.random(t.shape[1], np.float32) for t in planned if t.name.startswith("blk.0.ffn_d")}
    monkeypatch.setattr(gpus, "SECONDS", 1e9)
    (tmp_path / "cpu").mkdir()
    expected, _ = exported(base, tmp_path / "cpu", imatrix)
    assert not fake
    monkeypatch.setattr(gpus, "SECONDS", 0.0)
    needs = gpus.needed(planned, imatrix)
    assert {weighted for kind, weighted in needs if kind == Type.Q4_K} == {True, False}
    assert list(needs.values()) == sorted(needs.values(), reverse=True)
    at_once(monkeypatch)
    assert exported(base, tmp_path, imatrix)[0] == expected and fake


@pytest.mark.slow
def test_the_gpu_takes_over_in_the_middle_of_a_file(
    fake: list[Type], base: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, proved = threading.Event(), threading.Event()

    def trusted(kind: Type, weighted: bool, bf16: bool) -> None:
        if kind == Type.Q8_0:  # the first: more weights are Q8_0 than anything else
            assert begun.wait(30)
        else:
            proved.set()

    run = kernels.quantize

    def slowly(library: object, level: int, kind: int, *more: object) -> int:
        if kind == Type.Q8_0 and threading.current_thread() is not threading.main_thread():
            begun.set()
            assert proved.wait(30)
        return run(library, level, kind, *more)  # type: ignore[arg-type]

    cpu = quantize.routine(Type.Q8_0).name
    if not cpu.startswith("kernels"):
        pytest.skip("the kernels are not compiled: python setup.py build_ext --inplace")
    monkeypatch.setattr(kernels, "quantize", slowly)
    monkeypatch.setattr(gpu, "self_test", trusted)
    files, names = exported(base, tmp_path)
    assert files == expected and fake.count(Type.Q8_0) > 0
    assert names["Q8_0"]["Q8_0"] == f"{cpu}, CUDA (Fake)"


@pytest.mark.slow
def test_a_gpu_that_fails_in_the_middle_loses_nothing(
    fake: list[Type],
    base: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_once(monkeypatch)
    right = gpu.quantize_into

    def breaking(kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None) -> None:
        if len(fake) > 3:
            out[:7] = 255
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
        right(kind, rows, out, importance)

    monkeypatch.setattr(gpu, "quantize_into", breaking)
    files, names = exported(base, tmp_path)
    assert files == expected
    said = capsys.readouterr().err
    assert said.count("the CUDA GPU failed while it quantized") == 1 and "more of it" not in said
    assert any(name.endswith(", CUDA (Fake)") for name in (*names["Q4_K_M"].values(), *names["Q8_0"].values()))
    done = len(fake)
    again, names = exported(base, tmp_path)  # the next export in this process leaves it alone, and says nothing
    assert again == expected and len(fake) == done and "CUDA" not in str(names) and not capsys.readouterr().err
    assert gpu.gpu_state(["Q4_K"]) is None


def test_a_type_that_differs_is_the_cpus(
    fake: list[Type],
    base: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = "its Q4_K differs from ggml's in 3 test blocks"
    monkeypatch.setattr(gpu, "self_test", lambda kind, weighted, bf16: wrong if kind == Type.Q4_K else None)
    at_once(monkeypatch)
    files, names = exported(base, tmp_path)
    assert files == expected and Type.Q4_K not in fake and Type.Q6_K in fake
    assert names["Q4_K_M"]["Q4_K"] == quantize.routine(Type.Q4_K).name
    assert capsys.readouterr().err.count("is not used for Q4_K") == 1
    check = checks.quantizer(["Q4_K_M", "F16"])[1]
    assert check.ok is None and "Fake is not used for Q4_K: its Q4_K differs" in check.found and check.fix
    check = checks.quantizer(["Q6_K", "Q8_0"])[1]
    assert check.ok is True and "Fake quantizes Q6_K, Q8_0" in check.found
    assert len(checks.quantizer(["F16", "IQ4_XS"])) == 1


@pytest.mark.slow
def test_the_self_test_finds_one_wrong_bit_and_any_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def right(kind: Type, rows: np.ndarray, importance: np.ndarray | None, device: str) -> np.ndarray:
        return gpu.reference(kind, kernels.widened(rows), importance)

    def wrong(*given: object) -> np.ndarray:
        out = right(*given)  # type: ignore[arg-type]
        out[1000] ^= 1
        return out

    def failing(*given: object) -> np.ndarray:
        raise RuntimeError("out of memory\nand more")

    for function, reason in (
        (right, None), (wrong, "its Q4_K differs from ggml's in 1 test blocks"),
        (failing, "its kernel for Q4_K failed: out of memory"),
    ):  # fmt: skip
        monkeypatch.setattr(gpu, "quantize", function)
        for weighted in (False, True):
            for bf16 in (False, True):
                assert gpu._tested.__wrapped__(Type.Q4_K, weighted, bf16, "cuda") == reason


def test_small_exports_and_small_slabs_leave_the_gpu_alone(
    fake: list[Type], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "LEAST", 1 << 19)
    at_once(monkeypatch)
    exported(base, tmp_path)
    assert not fake
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "available", lambda: pytest.fail("a small export asked for a GPU"))
    at_once(monkeypatch)
    exported(base, tmp_path)


@pytest.mark.slow
def test_without_a_gpu_neither_torch_nor_triton_is_imported(base: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from toolkit.core import hardware
from toolkit.export import export, gpu_quantizer
gpu_quantizer.SECONDS = 0
hardware.DEVICES = Path({str(tmp_path)!r})
export(Path({str(base)!r}), None, {{"Q4_K_M": Path({str(tmp_path / "x.gguf")!r})}}, "{{{{ messages }}}}", "small")
sys.exit(" ".join({{"torch", "triton"}} & {{*sys.modules}}) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_hidden_gpu_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    monkeypatch.setattr(gpu, "_given_up", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.available() == "there is no CUDA GPU"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.available() == "PyTorch is not installed"
