"""The export stage: an importance matrix is measured once for the same inputs, and odd records are warned of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.support import models
from tests.support.texts import ACCENTED
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.export import imatrix, imatrix_file
from toolkit.pipeline.performing import perform

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Config, RunFolder]]:
    """A run that was prepared and trained, as far as export can tell; settings of its export are given."""
    monkeypatch.chdir(tmp_path)
    base = models.save_model(tmp_path / "base", hidden_size=64, num_attention_heads=4, intermediate_size=128)
    folder = RunFolder(Path("exports") / "small", "small")
    models.save_adapter(folder.adapter, base)
    write(folder, "train", [f"Question {n}?" for n in range(90)])
    for side in ("val", "test"):
        write(folder, side, [f"Held-out {side}?"])

    def settings(*quantizations: str, imatrix: bool = True, **model: Any) -> tuple[Config, RunFolder]:
        export = {"quantizations": list(quantizations), "default": quantizations[0], "imatrix": imatrix}
        config = config_file.build({"run": {"name": "small"}, "model": {"base": "base", **model}, "export": export})
        assert folder_of(config) == folder
        return config, folder

    return settings


def write(folder: RunFolder, side: str, questions: list[str]) -> None:
    folder.data.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": "Explain:", "input": text, "output": "Rest, and drink water."} for text in questions]
    folder.split_file(side).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a model is measured."""
    counted: list[int] = []
    compute = imatrix.compute

    def counting(*given: Any) -> Any:
        counted.append(1)
        return compute(*given)

    monkeypatch.setattr(imatrix, "compute", counting)
    return counted


def test_an_imatrix_is_measured_once_for_the_same_model_adapter_and_records(
    run: Callable[..., tuple[Config, RunFolder]], measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = run("IQ4_NL")
    first = perform("export", config, folder)
    assert (first.figures["imatrix_reused"], len(measured)) == (False, 1)
    written = folder.imatrix.read_bytes()
    config, _ = run("IQ4_NL", "Q4_0")
    second = perform("export", config, folder)
    assert second.why == "settings changed: export.quantizations"
    assert (second.figures["imatrix_reused"], len(measured)) == (True, 1)
    assert second.figures["IQ4_NL"]["sha256"] == first.figures["IQ4_NL"]["sha256"]
    assert folder.imatrix.read_bytes() == written
    assert "measured on this model and these records" in capsys.readouterr().err
    assert perform("export", config, folder, force=True).figures["imatrix_reused"] is False
    assert folder.imatrix.read_bytes() == written  # measured again, it is the same to the bit
    adapter = folder.adapter / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace('"lora_alpha": 16', '"lora_alpha": 8'))
    assert perform("export", config, folder).figures["imatrix_reused"] is False
    write(folder, "train", [f"Other question {n}?" for n in range(90)])
    assert perform("export", config, folder).figures["imatrix_reused"] is False
    models.save_model(Path("base"), hidden_size=64, num_attention_heads=4, intermediate_size=128, initializer_range=0.1)
    assert perform("export", config, folder).figures["imatrix_reused"] is False
    assert len(measured) == 5
    write(folder, "test", ["Other question 7?"])
    folder.gguf("Q4_0").unlink()
    with pytest.raises(ToolkitError, match="also held out for validation"):  # checked even if it could be taken up
        perform("export", config, folder)


def test_an_export_that_failed_behind_the_imatrix_goes_on_with_it(
    run: Callable[..., tuple[Config, RunFolder]], measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = run("IQ4_NL")
    with monkeypatch.context() as broken:
        broken.setattr(
            "toolkit.formats.gguf_writer.GgufFile.sync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            perform("export", config, folder)
    assert [path.name for path in folder.imatrix.parent.iterdir()] == ["small-imatrix.gguf"]
    assert perform("export", config, folder).figures["imatrix_reused"] is True
    assert len(measured) == 1


def test_an_imatrix_that_is_not_the_runs_own_is_neither_taken_nor_overwritten(
    run: Callable[..., tuple[Config, RunFolder]], measured: list[int]
) -> None:
    config, folder = run("IQ4_NL")
    perform("export", config, folder)
    whole = imatrix_file.read_imatrix(folder.imatrix)
    for path in (folder.manifest, folder.gguf("IQ4_NL")):
        path.unlink()
    imatrix_file.write_imatrix(
        folder.imatrix, imatrix_file.Imatrix(whole.sums, whole.counts, whole.chunks, whole.chunk_size, "wiki")
    )
    foreign = folder.imatrix.read_bytes()
    with pytest.raises(ToolkitError, match=r"did not write, or that changed since: gguf/small-imatrix\.gguf"):
        perform("export", config, folder)
    assert folder.imatrix.read_bytes() == foreign and len(measured) == 1
    fields = gguf.GGUFReader(folder.imatrix).fields
    assert imatrix_file.INPUTS not in fields and whole.inputs


def test_records_that_llama_cpp_reads_otherwise_are_counted_in_a_warning(
    run: Callable[..., tuple[Config, RunFolder]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = run("Q8_0", imatrix=False)
    models.save_tokenizer(Path("base"), "tekken", more=[ACCENTED] * 9)
    perform("export", config, folder)
    assert "splits" not in capsys.readouterr().err
    write(folder, "train", ["plain", f"What is {ACCENTED}?"])
    perform("export", config, folder, force=True)
    assert "1 of 4 records get different tokens than in training, the first at `हिन्दी`" in capsys.readouterr().err
