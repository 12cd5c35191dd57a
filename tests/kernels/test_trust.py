"""Kernels that are absent or that differ anywhere are not used, the user is told, and the files are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import models
from toolkit import kernels
from toolkit.export import checks, export

USUAL = ("Q4_K_M", "Q8_0", "Q3_K_M")


def forget() -> None:
    """Forget what this process remembers of its kernels."""
    for remembered in (kernels.routine, kernels.trusted, kernels.opened):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def exported(base: Path, folder: Path) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    outcome = export(base, None, {name: folder / f"{name}.gguf" for name in USUAL}, models.TEMPLATE, "small")
    files = {name: (folder / f"{name}.gguf").read_bytes() for name in USUAL}
    return files, {name: outcome.figures[name]["quantized_by"] for name in USUAL}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model") / "base", num_hidden_layers=2, intermediate_size=256)


@pytest.mark.slow
def test_files_are_the_same_without_the_library_and_it_is_said(
    library: kernels.Library,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, names = exported(base, tmp_path)
    assert set(names["Q4_K_M"].values()) == {f"kernels ({kernels.LEVELS[library.level]})"}
    assert checks.quantizer()[0].ok is True and "slower" not in capsys.readouterr().err
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "gone.so")
    forget()
    again, slower = exported(base, tmp_path)
    assert again == files
    assert {name for kinds in slower.values() for name in kinds.values()} == {"libggml"}
    assert capsys.readouterr().err.count("quantizing with libggml, up to 20 times slower") == 1
    check = checks.quantizer()[0]
    assert check.ok is None and "not compiled" in check.found and "compiler" in check.fix


@pytest.mark.slow
def test_a_kernel_that_differs_in_one_bit_is_not_used(
    library: kernels.Library,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, _ = exported(base, tmp_path)
    forget()
    real = kernels.quantize

    def wrong(
        library: kernels.Library, level: int, kind: int, rows: kernels.Rows, out: kernels.Bytes, *more: object
    ) -> int:
        sent = real(library, level, kind, rows, out, *more)  # type: ignore[arg-type]
        if kind == 12:
            out[-1] ^= 1
        return sent

    monkeypatch.setattr(kernels, "quantize", wrong)
    again, names = exported(base, tmp_path)
    assert again == files
    assert names["Q4_K_M"]["Q4_K"] == "libggml" and names["Q4_K_M"]["Q6_K"].startswith("kernels")
    assert capsys.readouterr().err.count("the Q4_K kernel differs from libggml") == 1
    check = checks.quantizer()[0]
    assert check.ok is None and "libggml for Q4_K," in check.found


def test_a_file_that_is_no_library_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "broken.so")
    assert kernels.opened() is None
    sound, found = kernels.kernels_state()
    assert not sound and "do not load here" in found


def test_types_without_a_kernel_go_to_libggml(library: kernels.Library) -> None:
    assert kernels.routine(21).name == "libggml"  # IQ3_S
