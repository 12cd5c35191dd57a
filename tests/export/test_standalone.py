"""`toolkit export --adapter`: an adapter that plain PEFT trained and saved outside this project, in one command."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Called
from tests.support.models import TEMPLATE, kl, save_adapter, save_model
from toolkit import llamacpp
from toolkit.core import console
from toolkit.export import export


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    base = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    return base, save_adapter(tmp_path / "mine", base)


@pytest.mark.slow
def test_one_command_writes_files_that_llama_cpp_loads(
    toolkit: Callable[..., Called], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = trained
    call = ["export", "--adapter", str(adapter), "--base", str(base), "--quant", "q8_0", "--quant", "F16"]
    planned = toolkit(*call, "--output", "out", "--dry-run", "--json")
    assert planned.code == 0 and not (tmp_path / "out").exists(), planned.err
    called = toolkit(*call, "--output", "out", "--json")
    assert called.code == 0, called.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["Modelfile", "mine-F16.gguf", "mine-Q8_0.gguf"]
    for quantization, file in called.json["files"].items():
        assert (tmp_path / file["path"]).name == f"mine-{quantization}.gguf"
    with llamacpp.opened(tmp_path / "out" / "mine-Q8_0.gguf", 64) as llm:
        assert llamacpp.tokenize(llm, "Drink water.")[0] == llm.token_bos()
    again = toolkit(*call, "--output", "out", "--json")
    assert again.code == 1 and "already there" in again.json["error"]
    shown = toolkit(*call, "--output", "out", "--force")
    assert shown.code == 0
    heading, *rows = [line for line in shown.out.splitlines() if line.strip()]
    assert heading.split() == ["quantization", "size", "bits/weight", "file", "sha256"]
    for quantization, file in called.json["files"].items():
        [row] = [row.split() for row in rows if row.split()[0] == quantization]
        path = tmp_path / file["path"]
        assert row[1:4] == [*console.size(path.stat().st_size).split(), str(file["bits_per_weight"])]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"] and row[-1] == file["sha256"][:16]


@pytest.mark.slow
def test_a_gguf_file_is_a_base_like_any_other(
    toolkit: Callable[..., Called], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its weights in float32 are those of the folder, so the adapter on it computes what it computes there."""
    base, adapter = trained
    export(base, None, {"F32": tmp_path / "base.gguf"}, TEMPLATE, "base")
    called = toolkit(
        "export", "--adapter", "mine", "--base", "base.gguf", "--quant", "F32", "--output", "out", "--json",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert called.code == 0, called.err
    assert kl(base, adapter, tmp_path / "out" / "mine-F32.gguf") <= 1e-9
    assert kl(base, None, tmp_path / "out" / "mine-F32.gguf") > 1e-6


@pytest.mark.slow
def test_the_base_is_taken_from_the_adapter_where_none_is_named(
    toolkit: Callable[..., Called], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    _, adapter = trained
    called = toolkit("export", "--adapter", str(adapter), "--quant", "Q8_0", "--output", "out", "--json")
    assert called.code == 0, called.err
    assert "prompt.preset = alpaca" in called.err  # which chat template it got is said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--quant", "Q4_K_L"], "unknown quantization"),
        (["--base", "gone/base/model"], "does not exist"),
        (["--adapter", "gone"], "not an adapter folder"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    toolkit: Callable[..., Called], trained: tuple[Path, Path], tmp_path: Path, change: list[str], said: str
) -> None:
    base, adapter = trained
    call = ["export", "--adapter", str(adapter), "--base", str(base), "--output", "out", *change, "--json"]
    called = toolkit(*call)
    assert called.code in (1, 2, 3) and said in called.json["error"], called
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_adapter_of_another_base_names_the_shapes(
    toolkit: Callable[..., Called], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    _, adapter = trained
    other = save_model(tmp_path / "other", hidden_size=128, intermediate_size=128)
    called = toolkit("export", "--adapter", str(adapter), "--base", str(other), "--output", "out", "--json")
    assert called.code == 1 and "another base" in called.json["error"] + called.json["hint"], called
    assert not list(tmp_path.rglob("*.gguf"))
