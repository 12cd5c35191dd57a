"""How many layers of a file go to the GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import remote, scored_models
from toolkit import llamacpp
from toolkit.core import hardware
from toolkit.export import export

GPU = hardware.Gpu("a GPU", "", int(16e9), 0, bf16=True, capability=(8, 9), flash=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    scored_models.base_model(folder / "base")
    export(folder / "base", None, {"F32": folder / "a.gguf"}, "{{ messages }}", "a")
    return folder / "a.gguf"


@pytest.mark.parametrize(
    ("free", "layers"), [(2.0, -1), (1.0, -1), (0.99, 1), (0.5, 1), (0.49, 0), (0.0, 0), (-9.0, 0)]
)
def test_as_many_as_fit(path: Path, monkeypatch: pytest.MonkeyPatch, free: float, layers: int) -> None:
    """The file has two layers; `free` is the GPU's memory beside the reserve, as a share of the file."""
    room = int(llamacpp.GPU_RESERVE + free * path.stat().st_size) + 1
    monkeypatch.setattr(llamacpp, "gpu_libraries", lambda: ["cuda"])
    monkeypatch.setattr(hardware, "gpu", lambda: hardware.Gpu(**{**vars(GPU), "free": room}))
    assert llamacpp.gpu_layers(path) == layers


def test_a_build_for_the_cpu_does_not_ask_for_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu", lambda: pytest.fail("asked"))
    assert llamacpp.gpu_layers(path) == 0


@pytest.mark.parametrize(("built", "layers"), [("cuda", 0), ("vulkan", -1), ("metal", -1)])
def test_a_build_for_a_gpu_that_torch_does_not_see(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str, layers: int
) -> None:
    """One for CUDA has no other to use; the others know best."""
    remote.pretend(monkeypatch, tmp_path, built)
    monkeypatch.setattr(hardware, "gpu", lambda: None)
    assert llamacpp.gpu_layers(path) == layers


@pytest.mark.parametrize(("exact", "layers"), [(True, 0), (False, 7)])
def test_float32_is_compared_on_the_cpu(path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, layers: int) -> None:
    """A GPU multiplies float32 in fewer bits."""
    import llama_cpp

    given: list[int] = []
    real = llama_cpp.Llama

    def loaded(*arguments: Any, **named: Any) -> Any:
        given.append(named["n_gpu_layers"])
        return real(*arguments, **{**named, "n_gpu_layers": 0})

    monkeypatch.setattr(llamacpp, "gpu_layers", lambda path: 7)
    monkeypatch.setattr(llama_cpp, "Llama", loaded)
    with llamacpp.opened(path, 32, exact=exact):
        assert given == [layers]
