"""Validation takes one layer's memory, however many there are, and 8B's width fits into 4 GB."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import memory, wide
from tests.support.scored_models import tokenizer, write_rows
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import Record
from toolkit.validate import reference
from toolkit.validate.layers import open_trained

pytestmark = pytest.mark.slow

NARROW = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4,
          "vocab_size": 2048}  # fmt: skip
LIMIT = 4_000_000_000  # bytes of private writable memory, mapped or not


def records(vocabulary: int) -> list[Record]:
    draw = np.random.default_rng(0)
    return [Record(row, Prompt(()), "", draw.integers(3, vocabulary, 60).tolist(), 40) for row in range(3)]


def peak(folder: Path, layers: int) -> int:
    wide.save_wide(folder / "base", layers, **NARROW)
    wide.save_lora(folder / "adapter", layers, **NARROW)
    trained = open_trained(folder / "base", folder / "adapter")
    with memory.watched() as seen, reference.measured(trained, records(NARROW["vocab_size"]), folder) as found:
        assert np.isfinite(found.nll).all()
    return seen.taken


def test_the_peak_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peak(tmp_path / "first", 1)  # what is loaded once
    few, many = peak(tmp_path / "few", 4), peak(tmp_path / "many", 16)
    sizes = wide.shapes(1, NARROW)
    layer = 4 * sum(int(np.prod(shape)) for name, shape in sizes.items() if ".layers." in name)
    assert many - few < layer
    assert layer / 2 < many < 4 * layer  # the measure sees a layer, and the whole would take 16


VALIDATE = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
from tests.support import memory
from toolkit.core.config_file import build
from toolkit.core.manifest import Manifest
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.validate import validate
root = Path(sys.argv[1])
config = build({
    "run": {"name": "wide", "folder": str(root)},
    "export": {"quantizations": ["Q4_K_M"], "default": "Q4_K_M"},
    "validate": {"rows": 2, "answer_tokens": 4, "questions": ["Does rest help?"], "max_kl": {"Q4": 1e9}},
})
folder = RunFolder(root / "wide", "wide")
with memory.watched() as seen:
    validate(config, folder, Base("wide", root / "base"), Manifest(run_id="test"))
print(json.dumps({"anonymous": seen.most}))
"""


def test_a_model_of_8bs_width_is_validated_within_4_gb(tmp_path: Path) -> None:
    """Two layers of 4,096, an MLP of 14,336 and 128,256 tokens: the largest parts of Llama-3.1-8B, under a limit."""
    from toolkit.core.config_file import build
    from toolkit.core.run_folder import RunFolder
    from toolkit.export import export
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.templates import chat_template

    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("8 GB of disk are needed")
    try:
        base, folder = tmp_path / "base", RunFolder(tmp_path / "wide", "wide")
        wide.save_wide(base, 2)
        wide.save_lora(folder.adapter, 2)
        tokenizer(base)
        write_rows(folder.split_file("test"), [("What is a fever?", "Rest and water help."), ("Rest?", "Yes.")])
        template = chat_template(prompt_format(build({}).prompt), bos=True)
        export(base, folder.adapter, {"Q4_K_M": folder.gguf("Q4_K_M")}, template, "wide")
        done = subprocess.run(
            [sys.executable, "-c", VALIDATE, str(tmp_path), str(LIMIT)], capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1])["anonymous"] < 2.5e9
        report = json.loads(folder.report.read_text(encoding="utf-8"))
        assert report["held_out"]["rows_scored"] == 2 and report["quantizations"]["Q4_K_M"]["mean_kl"] is not None
        assert report["answers"][0]["before"] is None  # 1.5 billion parameters are not asked
    finally:
        shutil.rmtree(tmp_path)
