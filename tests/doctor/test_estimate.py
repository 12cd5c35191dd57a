import dataclasses
from pathlib import Path

import pytest

from tests.support.bases import CONFIGS, save_base
from toolkit.core import hardware
from toolkit.core.output_settings import QUANTIZATIONS, ExportSettings
from toolkit.core.train_settings import TrainSettings
from toolkit.doctor import estimate
from toolkit.export import plan
from toolkit.model.known_models import known_model
from toolkit.model.memory import total
from toolkit.model.model_config import ModelConfig, model_config

SMOLLM2 = ModelConfig(576, 30, 9, 3, 64, 1536, 49152, tied=True)
LLAMA_8B = known_model("llama-3.1-8b")
assert LLAMA_8B is not None


def files(model: ModelConfig, quantization: str) -> int:
    return estimate.gguf_files(model, ExportSettings(quantizations=[quantization], default=quantization))[quantization]


@pytest.mark.parametrize(
    ("quantization", "gib"),
    [("F16", 14.97), ("Q8_0", 7.95), ("Q6_K", 6.14), ("Q5_K_M", 5.33), ("Q5_K_S", 5.21), ("Q4_K_M", 4.58),
     ("Q4_K_S", 4.37), ("Q3_K_M", 3.74), ("Q2_K", 2.96)],
)  # fmt: skip
def test_gguf_sizes_of_llama_8b_are_llama_cpps(quantization: str, gib: float) -> None:
    assert LLAMA_8B is not None
    assert files(LLAMA_8B, quantization) == pytest.approx(gib * 2**30, rel=0.002)


def test_every_quantization_has_a_size_and_narrow_models_fall_back() -> None:
    sizes = [files(SMOLLM2, name) for name in QUANTIZATIONS]
    assert all(0.5 * 134_515_008 < size < 4.2 * 134_515_008 for size in sizes)
    assert files(SMOLLM2, "Q4_K_M") == pytest.approx(105.5e6, rel=0.015)  # llama-quantize's file


@pytest.mark.parametrize("family", CONFIGS)
def test_the_sizes_are_those_that_the_exporter_plans(tmp_path: Path, family: str) -> None:
    names = list(QUANTIZATIONS)
    base = save_base(tmp_path, family, hidden_size=256, head_dim=64, query_pre_attn_scalar=64, rope_scaling=None)
    model = model_config(base)
    assert model is not None
    found = estimate.gguf_files(model, ExportSettings(quantizations=names, imatrix=True))
    assert found == {
        name: size + estimate.VOCABULARY * 320 for name, size in plan(base, None, names, weighed=True).bytes.items()
    }


def test_overrides_count(tmp_path: Path) -> None:
    plain = estimate.gguf_files(SMOLLM2, ExportSettings())["Q4_K_M"]
    larger = estimate.gguf_files(SMOLLM2, ExportSettings(overrides={"ffn_up": "Q8_0"}))["Q4_K_M"]
    assert larger - plain == pytest.approx(30 * 576 * 1536 * (8.5 - 5.5) / 8)  # rows of 576 fall back to Q5_0


def test_the_peak_of_a_validation_is_that_of_its_largest_step() -> None:
    assert LLAMA_8B is not None
    assert "head" in estimate.validation(SMOLLM2, ["Q4_K_M"], 128)
    assert "one layer" in estimate.validation(LLAMA_8B, ["Q4_K_M"], 512)
    longer, exact = (estimate.validation(LLAMA_8B, [name], 4096) for name in ("Q4_K_M", "F32"))
    assert exact["KV cache"] == 2 * longer["KV cache"]


def test_a_validation_of_8b_takes_no_more_than_4_gb_and_does_not_grow_with_the_layers() -> None:
    assert LLAMA_8B is not None
    for context in (256, 1024, 2048):
        one = estimate.validation(LLAMA_8B, ["F16"], context)
        assert total(one) < 4e9
        if "one layer" in one:
            assert estimate.validation(dataclasses.replace(LLAMA_8B, layers=64), ["F16"], context) == one


def test_a_validation_from_the_hub_holds_one_matrix_of_the_vocabulary() -> None:
    assert LLAMA_8B is not None
    for shape, size in ((LLAMA_8B, 2 * 128_256 * 4096), (SMOLLM2, 2 * 49_152 * 576)):
        plain, streamed = (estimate.validation(shape, ["Q4_K_M"], 512, streamed=there) for there in (False, True))
        assert streamed == {**plain, "matrix from the hub": size}
    assert total(estimate.validation(LLAMA_8B, ["F16"], 2048, streamed=True)) < 4e9


def test_checkpoints_count_only_what_will_be_saved() -> None:
    one = estimate.checkpoints(SMOLLM2, TrainSettings(max_steps=5, save_steps=20))
    assert estimate.checkpoints(SMOLLM2, TrainSettings(max_steps=60, save_steps=20)) == 3 * one
    assert estimate.checkpoints(SMOLLM2, TrainSettings(max_steps=6000, save_steps=20)) == 4 * one
    epochs = TrainSettings(num_train_epochs=1.0, save_steps=20)
    assert estimate.checkpoints(SMOLLM2, epochs, records=40 * 8) == 2 * one
    assert estimate.checkpoints(SMOLLM2, epochs) == 4 * one  # not prepared yet


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n"


def test_available_memory_without_a_limit(tmp_path: Path) -> None:
    assert hardware.available_memory(tmp_path) is None
    assert hardware.available_memory(system(tmp_path, {"proc/meminfo": MEMINFO})) == 8_000_000 * 1024


def test_a_cgroup_2_limit_above_the_process_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box/inner\n",
        "sys/fs/cgroup/box/inner/memory.max": "max\n",
        "sys/fs/cgroup/box/inner/memory.current": "5\n",
        "sys/fs/cgroup/box/memory.max": "3000000000\n",
        "sys/fs/cgroup/box/memory.current": "1000000000\n",
        "sys/fs/cgroup/box/memory.stat": "anon 4\ninactive_file 400000000\n",
    }
    assert hardware.available_memory(system(tmp_path, files)) == 2_400_000_000


def test_a_cgroup_2_limit_inside_a_container_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "2000000000\n",
        "sys/fs/cgroup/memory.current": "500000000\n",
    }
    assert hardware.available_memory(system(tmp_path, files)) == 1_500_000_000


def test_a_cgroup_1_limit_counts_and_its_absence_does_not(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/docker"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "12:cpu:/\n4:memory:/docker\n",
        f"{folder}/memory.limit_in_bytes": "1000000000\n",
        f"{folder}/memory.usage_in_bytes": "900000000\n",
        f"{folder}/memory.stat": "total_inactive_file 50000000\n",
    }
    assert hardware.available_memory(system(tmp_path, files)) == 150_000_000
    (tmp_path / folder / "memory.limit_in_bytes").write_text("9223372036854771712\n", encoding="ascii")
    assert hardware.available_memory(tmp_path) == 8_000_000 * 1024


def test_the_real_machine_tells_its_memory() -> None:
    free = hardware.available_memory()
    assert free is not None
    assert free > 100e6


def test_disk_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert hardware.existing(tmp_path / "a" / "b") == tmp_path
    assert hardware.free_disk(tmp_path / "a" / "b") > 0
    assert hardware.file_system(tmp_path / "a" / "b") == tmp_path.stat().st_dev


def test_the_drivers_version_is_the_dotted_number(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs) Thu Jan 23\n"
    (tmp_path / "version").write_text(text, encoding="utf-8")
    assert hardware.driver_version(tmp_path / "version") == "570.86.15"
    assert hardware.driver_version(tmp_path / "absent") == ""


def test_an_export_takes_blocks_of_rows_or_a_whole_tensor_of_a_four_bit_base() -> None:
    """Measured at 2 and 32 layers of Llama-3.1-8B on two cores: 761 MB (benchmarks/export.py)."""
    assert LLAMA_8B is not None
    assert total(estimate.export_memory(LLAMA_8B, 2, whole=False)) == pytest.approx(761e6, rel=0.05)
    more = total(estimate.export_memory(LLAMA_8B, 2, whole=True)) - total(
        estimate.export_memory(LLAMA_8B, 2, whole=False)
    )
    assert more == 4 * 128_256 * 4096
