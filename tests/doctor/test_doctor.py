import dataclasses
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doctor.conftest import Home, Serving, failing, only_failure
from tests.support.places import REPOSITORY
from toolkit import kernels, pipeline
from toolkit.core import hardware, places
from toolkit.core.input_settings import MEDQUAD_CSV
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.doctor import Check, checks, checks_table, plan
from toolkit.llamacpp import checks as library_checks
from toolkit.model import attention_kernels, base, gguf_base
from toolkit.prepare import checks as data_checks


def test_a_healthy_small_run_is_in_order(home: Home) -> None:
    found = home.examine()
    assert failing(found) == []
    names = [check.name for check in found]
    for name in ("python", "libraries", "llama.cpp", "cpu", "gpu", "backend", "data", "adapter", "disk", "run folder"):
        assert name in names
    assert {"memory: training", "memory: export", "memory: validation"} <= {*names}
    assert next(check for check in found if check.name == "ollama").found == f"version 0.34.1 at {home.ollama}"


def test_nothing_is_written(home: Home) -> None:
    before = sorted(home.path.rglob("*"))
    home.examine()
    assert sorted(home.path.rglob("*")) == before


@pytest.mark.slow
def test_nothing_heavy_is_imported_without_a_gpu() -> None:
    script = """
import sys
from toolkit.core.config import Config
from toolkit import pipeline
from toolkit.doctor import doctor
from toolkit.core.run_folder import folder_of
config = Config()
doctor(config, folder_of(config), offline=True, stages=pipeline.records([*pipeline.STAGES]))
print([name for name in ("torch", "transformers", "trl", "peft", "datasets", "pandas") if name in sys.modules])
"""
    if hardware.driver_offers_gpu():
        pytest.skip("there is a GPU: torch is asked about it")
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert answer.stdout.strip() == "[]"


def test_stages_limit_what_is_looked_at(home: Home) -> None:
    train = {check.name for check in home.examine(stages=("train",))}
    assert {"memory: training", "backend", "disk", f"base {home.path / 'base'}"} <= train
    assert not train & {"ollama", "data", "memory: export", "memory: validation", "llama.cpp"}
    register = {check.name for check in home.examine(stages=("register",))}
    assert register == {"python", "libraries", "cpu", "gpu", "run folder", "ollama"}


@pytest.mark.slow
def test_a_check_that_raises_does_not_stop_the_rest(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Check:
        raise RuntimeError("no\nsuch thing")

    usual = [check.name for check in home.examine()]
    monkeypatch.setattr(data_checks, "data", broken)
    monkeypatch.setattr(hardware, "gpu", lambda: 1 / 0)
    found = home.examine()
    assert [check.name for check in found] == usual
    assert {check.name: check.found for check in failing(found)} == {
        "data": "the check itself failed: RuntimeError: no such thing",
        "gpu": "the check itself failed: ZeroDivisionError: division by zero",
    }


def test_a_target_that_no_layer_has(home: Home) -> None:
    check = only_failure(home.examine("train.target_modules=q_proj,query_key_value"), "adapter")
    assert "query_key_value" in check.found
    assert "gate_proj" in check.fix


@pytest.mark.slow
def test_records_longer_than_the_positions_of_the_base(home: Home) -> None:
    room = 128  # of the home's base
    for length, said in ((room, False), (room + 1, True)):
        found = [check for check in home.examine(f"train.max_length={length}") if check.name == "positions"]
        assert bool(found) is said
        assert all(check.ok is None and check.fix == f"--set train.max_length={room}" for check in found)


@pytest.mark.parametrize("content", [None, b"", "folder"])
def test_missing_empty_or_folder_data(home: Home, content: bytes | str | None) -> None:
    path = home.path / "other.csv"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    check = only_failure(home.examine(f"data.source={path}"), "data")
    assert str(path) in check.found
    assert "data.source" in check.fix


@pytest.mark.slow
def test_medquad_offline_must_be_there(home: Home) -> None:
    assert "--offline" in only_failure(home.examine("data.source=medquad"), "data").found
    MEDQUAD_CSV.parent.mkdir(parents=True)
    MEDQUAD_CSV.write_text("x", encoding="utf-8")
    assert "is not MedQuAD's file" in only_failure(home.examine("data.source=medquad"), "data").found


def test_medquad_online_must_be_downloadable(home: Home, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_checks, "MEDQUAD_URL", serving({"/m.zip": (200, "x" * 2_000_000, {})}) + "/m.zip")
    found = data_checks.data(home.config("data.source=medquad"), lambda: None, offline=False)
    assert found == Check("data", True, "MedQuAD can be downloaded (2.0 MB)", "")
    monkeypatch.setattr(data_checks, "MEDQUAD_URL", serving({}) + "/m.zip")
    gone = data_checks.data(home.config("data.source=medquad"), lambda: None, offline=False)
    assert gone.ok is False
    assert "404" not in gone.fix and gone.fix


@pytest.mark.parametrize("gpu", [True, False])
def test_the_doctor_looks_at_the_base_that_training_loads(
    home: Home, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """A 4-bit repository with a GPU, and its 16-bit namesake without one; both are local folders here."""
    four, sixteen = home.path / "small-bnb-4bit", home.path / "small"
    for folder in (four, sixteen):
        shutil.copytree(home.path / "base", folder)
    monkeypatch.setattr(hardware, "sees_gpu", lambda: gpu)
    config = home.config(f"model.base={four}")
    wanted = four if gpu else sixteen
    assert plan.labels(config, ("train",)) == [str(wanted)]
    read = pipeline.stage("train").files(config, folder_of(config)).inputs
    assert {path.parent for path in read if path.suffix == ".safetensors"} == {wanted}


def test_a_small_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(home.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1_000_000))
    check = only_failure(home.examine(), "disk")
    assert "only 1.0 MB are free" in check.found
    assert check.fix.startswith("free ")


@pytest.mark.slow
def test_disk_counts_the_copies_of_a_local_ollama_only(home: Home) -> None:
    def copies(host: str) -> bool:
        found = home.examine(f"ollama.host={host}", stages=("export", "register"))
        return any("Ollama's copies" in check.found for check in found if check.name == "disk")

    assert copies(home.ollama)
    assert not copies("http://192.0.2.1:1")


def test_disk_counts_what_validation_keeps(home: Home) -> None:
    folder = folder_of(home.config())
    assert plan.answer_bytes(folder, 50, 2048) == 50 * 1412
    folder.data.mkdir(parents=True)
    lines = [json.dumps({"output": "é" * 100}), json.dumps({"output": "x" * 10_000})]
    folder.split_file("test").write_text("\n".join(lines), encoding="utf-8")
    assert plan.answer_bytes(folder, 50, 1000) == 200 + 3000
    assert plan.answer_bytes(folder, 1, 1000) == 200
    folder.split_file("test").write_text('{"output": "a\u2028b"}\n', encoding="utf-8")
    assert plan.answer_bytes(folder, 50, 1000) == 5


@pytest.mark.parametrize(("rows", "there", "counted"), [(10**9, 7, 7), (3, 7, 3), ("auto", 7, 7), ("auto", 40, 10)])
def test_disk_counts_no_more_rows_than_there_are(home: Home, rows: object, there: int, counted: int) -> None:
    config = home.config(f"validate.rows={rows}")
    folder = folder_of(config)
    folder.data.mkdir(parents=True)
    folder.split_file("test").write_text('{"output": "x"}\n' * there)
    assert plan.scored_rows(config, folder) == counted
    folder.split_file("test").unlink()
    assert plan.scored_rows(config, folder) == 1  # a tenth of a small file
    assert all(
        check.ok for check in home.examine(f"validate.rows={rows}", stages=("validate",)) if check.name == "disk"
    )


def test_too_little_memory_names_settings_that_fit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("train.max_length=4096", "train.batch_size=64", "train.gradient_checkpointing=false")
    monkeypatch.setattr(hardware, "available_memory", lambda: int(1.065e9))
    found = home.examine(*settings, stages=("train",))
    check = only_failure(found, "memory: training")
    assert check.fix == "--set train.gradient_checkpointing=auto --set train.max_length=512"
    changes = [word for word in check.fix.split() if word != "--set"]
    assert failing(home.examine(*settings, *changes, stages=("train",))) == []


def test_far_too_little_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: int(1e8))
    found = home.examine()
    assert {check.name for check in failing(found)} == {"memory: training", "memory: export", "memory: validation"}
    assert all("smaller `model.base`" in check.fix for check in failing(found))


def test_memory_that_the_system_does_not_tell(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: None)
    assert failing(home.examine()) == []


GPU = hardware.Gpu("a GPU", "570.86.15", int(16e9), int(15e9), bf16=True, capability=(8, 9), flash=True)


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: hardware.Gpu, *packages: str) -> None:
    monkeypatch.setattr(hardware, "driver_offers_gpu", lambda: True)
    monkeypatch.setattr(hardware, "gpu", lambda: gpu)
    monkeypatch.setattr(hardware, "sees_gpu", lambda: True)
    monkeypatch.setattr(hardware, "installed", lambda package: package in packages)


def test_a_gpu_is_shown_and_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, GPU, "unsloth", "bitsandbytes")
    found = {check.name: check for check in home.examine("model.base=unsloth/Meta-Llama-3.1-8B-bnb-4bit")}
    assert found["gpu"].found == "a GPU, 15.0 of 16.0 GB free, driver 570.86.15"
    assert found["backend"].found == "Unsloth in bf16"
    assert found["gpu memory: training"].ok
    assert "base unsloth/Meta-Llama-3.1-8B-bnb-4bit" in found  # trained in 4 bits,
    assert "base unsloth/Meta-Llama-3.1-8B" in found  # merged in 16


@pytest.mark.parametrize("built", [True, False])
def test_a_llama_cpp_built_for_the_gpu_is_recommended_where_there_is_one(
    home: Home, monkeypatch: pytest.MonkeyPatch, built: bool
) -> None:
    monkeypatch.setattr(library_checks, "gpu_libraries", lambda: ["cuda"] if built else [])
    monkeypatch.setattr(hardware, "cpu_has_amx", lambda: False)
    assert "llama.cpp on the GPU" not in {check.name for check in home.examine(stages=("validate",))}
    with_gpu(monkeypatch, GPU)
    check = next(check for check in home.examine(stages=("validate",)) if check.name == "llama.cpp on the GPU")
    assert check.ok is (True if built else None)
    line = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36'
    assert (line in check.fix) is not built


@pytest.mark.slow
def test_a_small_gpu(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(
        monkeypatch,
        hardware.Gpu("a GPU", "", int(8e9), int(6.5e9), bf16=True, capability=(8, 6), flash=True),
        "unsloth",
    )
    settings = ("model.base=unsloth/Meta-Llama-3.1-8B-bnb-4bit", "train.max_length=2048")
    found = {check.name: check for check in home.examine(*settings)}
    assert found["gpu memory: training"].ok is False
    assert found["gpu memory: training"].fix == "--set train.max_length=512"


@pytest.mark.slow
def test_what_training_needs_but_this_machine_has_not(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no CUDA GPU" in only_failure(home.examine("train.backend=unsloth"), "backend").found
    assert "auto" in only_failure(home.examine("train.precision=f16"), "backend").fix
    with_gpu(monkeypatch, GPU)
    assert "bitsandbytes" in only_failure(home.examine(stages=("train",)), "backend").found
    assert "[cuda]" in only_failure(home.examine("train.backend=unsloth", stages=("train",)), "backend").fix
    old = hardware.Gpu("an old GPU", "", int(16e9), int(15e9), bf16=False, capability=(7, 5), flash=True)
    with_gpu(monkeypatch, old, "unsloth")
    assert "an old GPU" in only_failure(home.examine("train.precision=bf16", stages=("train",)), "backend").found
    found = {check.name: check for check in home.examine(stages=("train",))}
    assert found["backend"].found == "Unsloth in f16"


@pytest.mark.parametrize(
    ("capability", "flash", "packages", "kernel", "fix"),
    [
        ((8, 0), True, ("unsloth",), attention_kernels.VARLEN, ""),
        ((8, 0), True, ("unsloth", "xformers"), attention_kernels.VARLEN, ""),
        ((8, 0), True, ("unsloth", "flash_attn"), attention_kernels.FLASH_ATTN, ""),
        ((8, 0), True, ("bitsandbytes", "flash_attn"), attention_kernels.VARLEN, ""),
        ((8, 0), False, ("unsloth", "xformers"), attention_kernels.XFORMERS, ""),
        ((7, 5), True, ("unsloth", "xformers", "flash_attn"), attention_kernels.XFORMERS, ""),
        ((7, 5), True, ("unsloth",), attention_kernels.MASK, "pip install xformers"),
        ((7, 5), True, ("bitsandbytes", "xformers"), attention_kernels.MASK, "[cuda]"),
    ],
)
def test_the_attention_kernel_is_named_and_the_slow_one_warned_of(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    flash: bool,
    packages: tuple[str, ...],
    kernel: str,
    fix: str,
) -> None:
    with_gpu(monkeypatch, dataclasses.replace(GPU, capability=capability, flash=flash), *packages)
    check = next(check for check in home.examine(stages=("train",)) if check.name == "attention")
    assert check.found == kernel and check.ok is (None if fix else True)
    assert fix in check.fix and bool(fix) == bool(check.fix)
    assert check.fix in checks_table([check])


def test_without_a_gpu_there_is_no_kernel_to_name(home: Home) -> None:
    assert "attention" not in {check.name for check in home.examine()}


def test_a_gpu_that_torch_does_not_see(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "driver_offers_gpu", lambda: True)
    monkeypatch.setattr(hardware, "gpu", lambda: None)
    check = next(check for check in home.examine() if check.name == "gpu")
    assert check.ok is None
    assert "nvidia-smi" in check.fix


def test_an_old_ollama(home: Home, serving: Serving) -> None:
    url = serving({"/api/version": (200, '{"version":"0.5.1"}', {})})
    check = only_failure(home.examine(f"ollama.host={url}"), "ollama")
    assert "0.5.1" in check.found and url in check.found
    assert "upgrade Ollama" in check.fix


def test_something_that_is_not_ollama(home: Home, serving: Serving) -> None:
    url = serving({"/api/version": (200, "<html>", {"Content-Type": "text/html"})})
    check = only_failure(home.examine(f"ollama.host={url}"), "ollama")
    assert "not an Ollama server" in check.found


def test_an_absent_ollama_only_matters_for_registering(home: Home) -> None:
    where = "ollama.host=http://127.0.0.1:9"
    found = home.examine(where)
    assert failing(found) == []
    assert "ollama serve" in next(check for check in found if check.name == "ollama").fix
    assert "127.0.0.1:9" in only_failure(home.examine(where, stages=("register",)), "ollama").found


@pytest.mark.slow
def test_a_run_folder_that_cannot_be_written(home: Home) -> None:
    (home.path / "file").write_text("x", encoding="utf-8")
    for place in (home.path / "file", Path("/proc")):
        check = only_failure(home.examine(f"run.folder={place}", stages=("register",)), "run folder")
        assert str(place) in check.found
        assert "run.folder" in check.fix


HOLD = """
import sys
from pathlib import Path
from toolkit.core.run_folder import RunFolder, locked
with locked(RunFolder(Path(sys.argv[1]), "x")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_of_another_process_is_found_and_its_own_is_not(home: Home) -> None:
    from toolkit.core.run_folder import locked

    folder = folder_of(home.config())
    with locked(folder):
        assert checks.run_folder(folder).ok
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    here = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        check = checks.run_folder(folder)
        assert check.ok is False
        assert f"process {holder.pid}" in check.found
        holder.communicate("")
    assert checks.run_folder(folder).ok
    with (folder.path / ".lock").open() as file:  # looking at a lock leaves none behind
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_libraries_are_held_against_what_is_required() -> None:
    found = checks.libraries(["pydantic>=2", "pydantic<1", "no-such-package-here>=1", "click>=1 ; python_version<'3'"])
    assert [(check.name, check.ok) for check in found] == [("pydantic", False), ("no-such-package-here", False)]
    assert "<1 is needed" in found[0].found
    assert "not installed" in found[1].found
    assert all("constraints.txt" in check.fix for check in found)
    assert "llama-cpp-python" in " ".join(hardware.requirements())
    assert not any("extra" in line for line in hardware.requirements())


def test_a_package_that_clashes_is_a_warning() -> None:
    check = library_checks.second_ggml(("pydantic", "no-such-package-here"))
    assert check.ok is None
    assert check.fix.startswith("pip uninstall pydantic && ")


def test_a_llama_cpp_that_does_not_load(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_checks, "ggml", kernels.ggml.__wrapped__)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(home.path))
    (home.path / "libggml-base.so").write_bytes(b"\x7fELF of another machine")
    check = only_failure(home.examine(stages=("export",)), "llama.cpp")
    assert "does not load" in check.found and "llama-cpp-python==0.3.36" in check.fix


def test_the_table_has_marks_and_every_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("a", True, "fine", "never shown"), Check("b", False, "bad", "mend b"), Check("c", None, "so", "")]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    text = checks_table(found)
    assert all(mark in text for mark in "✓✗–")
    assert "✗ b: mend b" in text
    assert "never shown" not in text
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    plain = checks_table(found)
    assert "FAIL b: mend b" in plain
    assert "What to do" not in checks_table(found[:1])


def test_the_conversion_is_found_where_base_puts_it(home: Home) -> None:
    path = home.path / "some.gguf"
    path.write_bytes(b"GGUF")
    assert gguf_base.converted(path) is None
    from toolkit.core.files import sha256_of

    folder = places.cache_folder() / "bases" / f"some-{sha256_of(path)[:16]}-{gguf_base.CONVERSION}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    assert gguf_base.converted(path) == folder
    assert base.resolve(str(path)).folder == folder


def test_an_address_that_is_none_is_one_failure(home: Home) -> None:
    check = only_failure(home.examine("ollama.host=ftp://x"), "ollama")
    assert "not an address of an Ollama server" in check.found


def test_the_folder_need_not_exist(home: Home) -> None:
    assert checks.run_folder(RunFolder(home.path / "a" / "b" / "c", "c")).ok
    assert not (home.path / "a").exists()
