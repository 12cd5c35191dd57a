"""A damaged base, weights out of range, a full disk: one clear error, and the former files are as they were."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import models
from tests.support.damage import Q_PROJ, Tensors, edit_json, edit_weights, fails, former_files_are_intact, targets
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.export import export, plan
from toolkit.export.adapter import merge
from toolkit.formats import checkpoint, gguf_writer, safetensors_header
from toolkit.formats.tensor_values import read_rows


def test_the_undamaged_export_replaces_the_former_files(work: Path) -> None:
    outcome = export(work / "base", work / "adapter", targets(work), models.TEMPLATE, "small")
    assert outcome.outputs == list(targets(work).values())
    assert sorted(path.name for path in (work / "out").iterdir()) == ["F16.gguf", "Q4_K_M.gguf"]
    assert all(path.read_bytes()[:4] == b"GGUF" for path in outcome.outputs)


# The base


def test_a_truncated_file(work: Path) -> None:
    path = work / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    fails(work, "damaged or truncated")


@pytest.mark.parametrize("size", [0, 5, 8, 60])
def test_a_file_cut_in_its_header(work: Path, size: int) -> None:
    path = work / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    fails(work, "damaged or truncated")


def test_a_truncated_shard(work: Path) -> None:
    path = sorted((work / "sharded").glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    fails(work, path.name, base="sharded")


def test_a_missing_shard(work: Path) -> None:
    path = sorted((work / "sharded").glob("model-*.safetensors"))[-1]
    path.unlink()
    fails(work, f"shard `{path.name}` is missing", base="sharded")


def test_an_index_that_names_an_absent_tensor(work: Path) -> None:
    index = work / "sharded" / checkpoint.INDEX
    places = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**places, "model.ghost.weight": next(iter(places.values()))})
    fails(work, "names tensor `model.ghost.weight`", base="sharded")


@pytest.mark.parametrize("file", ["../base/model.safetensors", "/etc/passwd", 5])
def test_an_index_that_leaves_the_folder(work: Path, file: Any) -> None:
    index = work / "sharded" / checkpoint.INDEX
    edit_json(index, weight_map={**json.loads(index.read_text())["weight_map"], Q_PROJ: file})
    fails(work, "outside the folder", base="sharded")


def test_a_missing_tensor(work: Path) -> None:
    edit_weights(work / "base" / "model.safetensors", lambda tensors: tensors.pop(Q_PROJ))
    fails(work, f"lacks tensor `{Q_PROJ}`")


def test_an_unknown_tensor(work: Path) -> None:
    edit_weights(work / "base" / "model.safetensors", lambda t: t.update({"model.extra.weight": torch.ones(3)}))
    fails(work, "1 unknown tensors: `model.extra.weight`")


def test_a_tensor_of_another_shape(work: Path) -> None:
    edit_json(work / "base" / "config.json", intermediate_size=768)
    fails(work, "has shape [512, 256], but config.json says [768, 256]")


def test_rotary_buffers_of_old_checkpoints_are_passed_over(work: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(work / "base" / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(16)}))
    assert plan(work / "base", None, ["Q8_0"]).bytes == plan(work / "sharded", None, ["Q8_0"]).bytes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_in_the_base(work: Path, value: float, dtype: torch.dtype) -> None:
    def change(tensors: Tensors) -> None:
        tensors[Q_PROJ] = tensors[Q_PROJ].to(dtype)
        tensors[Q_PROJ][3, 7] = value

    edit_weights(work / "base" / "model.safetensors", change)
    fails(work, f"tensor `{Q_PROJ}`")


def test_a_quantized_base(work: Path) -> None:
    edit_weights(work / "base" / "model.safetensors", lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.uint8)}))
    fails(work, "is stored as U8")
    for method, words in (
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"bits": 4}, "an unnamed method"),
        ("fp8", "fp8"),
    ):
        edit_json(work / "base" / "config.json", quantization_config=method)
        fails(work, f"is quantized with {words}, which cannot be undone here")


def test_a_tied_model_with_another_head(work: Path) -> None:
    edit_json(work / "base" / "config.json", tie_word_embeddings=True)
    fails(work, "has an lm_head that differs from its embedding")


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, "LlamaForCausalLM", [["x"]]])
def test_another_architecture_is_refused_before_anything_is_read(work: Path, architectures: Any) -> None:
    (work / "base" / "model.safetensors").unlink()
    edit_json(work / "base" / "config.json", architectures=architectures)
    assert "LlamaForCausalLM" in fails(work, "which cannot be exported").hint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "`num_attention_heads` 8 is not a multiple of `num_key_value_heads` 3"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "rope scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "original_max_position_embed"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": [1]}, "rope parameters"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ],
)
def test_a_damaged_config(work: Path, values: dict[str, Any], words: str) -> None:
    edit_json(work / "base" / "config.json", **values)
    fails(work, words)


def test_no_config_no_weights_pickled_weights(work: Path) -> None:
    (work / "base" / "model.safetensors").rename(work / "base" / "pytorch_model.bin")
    fails(work, "only pickled weights")
    (work / "base" / "pytorch_model.bin").unlink()
    fails(work, "no `model.safetensors`")
    (work / "base" / "config.json").write_text("[1")
    fails(work, "cannot be read as JSON")
    (work / "base" / "config.json").unlink()
    fails(work, "no `config.json`")


def test_a_file_that_shrinks_while_it_is_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_then_read(tensor: safetensors_header.TensorInfo, start: int, end: int) -> Any:
        if tensor.name == Q_PROJ:
            with tensor.path.open("r+b") as file:
                file.truncate(tensor.offset + tensor.size // 2)
        return read_rows(tensor, start, end)

    monkeypatch.setattr("toolkit.export.tensors.read_rows", cut_then_read)
    fails(work, f"ends in the middle of tensor `{Q_PROJ}`")


# The outputs


@pytest.mark.parametrize(("kind", "value"), [("F16", 1e5), ("Q4_K_M", -1e30)])
def test_weights_beyond_what_a_type_can_hold(work: Path, kind: str, value: float) -> None:
    edit_weights(work / "base" / "model.safetensors", lambda tensors: tensors[Q_PROJ].view(-1)[5:6].fill_(value))
    fails(work, f"tensor `{Q_PROJ}` holds weights beyond ±65504")
    wide = {name: work / f"{name}.gguf" for name in ("F32", "BF16")}
    export(work / "base", None, wide, models.TEMPLATE, "small")
    assert all(path.is_file() for path in wide.values())


def test_no_room_is_seen_before_anything_is_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(work))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr("toolkit.export.tensors.read_tensor", None)
    monkeypatch.setattr("toolkit.export.tensors.read_rows", None)
    problem = fails(work, "the export needs 3.6 MB in ")
    assert "only 1.0 MB is free" in problem.message


@pytest.mark.parametrize("after", [0, 10_000, 1_500_000])
def test_a_disk_that_fills_midway(work: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    written = 0
    write = gguf_writer.GgufFile.write

    def full(self: gguf_writer.GgufFile, data: Any) -> None:
        nonlocal written
        written += len(data)
        if written > after:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, data)

    monkeypatch.setattr(gguf_writer.GgufFile, "write", full)
    fails(work, "the disk is full: ")


LIMITED = """
import resource, signal, sys
from pathlib import Path
from toolkit.core.errors import explain
from toolkit.export import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
work = Path(sys.argv[1])
try:
    targets = {k: work / "out" / f"{k}.gguf" for k in ("F16", "Q4_K_M")}
    export(work / "base", work / "adapter", targets, "{{ messages }}", "x")
except Exception as exc:
    print(explain(exc).message)
"""


@pytest.mark.parametrize(
    "limit", [pytest.param(100, marks=pytest.mark.slow), 20_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_a_real_write_that_fails(work: Path, limit: int) -> None:
    """RLIMIT_FSIZE stops a process's writes as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(work), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    written = (
        "/vocabulary.gguf" if limit == 100 else f"File too large: {work / 'out'}"
    )  # the first, in a temporary folder
    assert done.stdout.startswith("File too large: ") and written in done.stdout
    former_files_are_intact(work)


FILLING = """
import errno, shutil, sys
from pathlib import Path
from toolkit.core.errors import explain
from toolkit.export import export
from toolkit.formats import gguf_writer
work, out = Path(sys.argv[1]), Path(sys.argv[2])
write, started = gguf_writer.GgufFile.write, []
def filled(self, data):
    if len(started) == 9:  # somebody else takes what was left
        with open(out / "filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)): pass
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
    started.append(1)
    write(self, data)
gguf_writer.GgufFile.write = filled
targets = {k: out / f"{k}.gguf" for k in ("F16", "Q4_K_M")}
try:
    export(work / "base", work / "adapter", targets, "{{ messages }}", "x")
except Exception as exc:
    print(explain(exc).message)
print(sorted(path.name for path in out.iterdir()))
(out / "filler").unlink()
export(work / "base", work / "adapter", targets, "{{ messages }}", "x")
print(sorted(path.name for path in out.iterdir()))
"""


@pytest.mark.slow
def test_a_real_disk_that_fills_midway(work: Path, tmp_path: Path) -> None:
    """A small tmpfs of the test's own, full after the ninth write; with room again the same export succeeds."""
    out = tmp_path / "disk"
    out.mkdir()
    mounted = f'mount -t tmpfs -o size=8m none {out} || exit 77; exec {sys.executable} -c "$1" {work} {out}'
    call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", FILLING]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no `unshare` here to make a small disk with")
    if done.returncode == 77 or "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    first, left, again = done.stdout.splitlines()
    assert first.startswith(f"the disk is full: {out}")
    assert (left, again) == ("['filler']", "['F16.gguf', 'Q4_K_M.gguf']")


@pytest.mark.parametrize("place", ["read", "sync"])
def test_an_interrupt(work: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *((merge, "add_rows", interrupt) if place == "read" else (gguf_writer.GgufFile, "sync", interrupt))
    )
    with pytest.raises(KeyboardInterrupt):
        export(work / "base", work / "adapter", targets(work), models.TEMPLATE, "small")
    former_files_are_intact(work)


def test_targets_that_cannot_be(work: Path) -> None:
    base = work / "base"
    for wrong, words in (
        ({}, "no quantization"),
        ({"Q4_K_X": work / "a.gguf"}, 'unknown quantization "Q4_K_X"; did you mean'),
        ({"Q4_K_M": work / "out"}, "is a folder"),
        ({"Q4_K_M": work / "a.gguf", "Q8_0": work / "out" / ".." / "a.gguf"}, "more than one quantization"),
    ):
        with pytest.raises(ToolkitError, match=words) as caught:
            export(base, None, wrong, models.TEMPLATE, "small")
        assert caught.value.exit_code == USAGE
    former_files_are_intact(work)
