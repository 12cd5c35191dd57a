"""kill -9 at any moment leaves nothing that looks finished, and the next export clears what was left."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.support.damage import edit_json, former_files_are_intact, targets, thorough
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.core.files import clear_stale, writing, writing_folder
from toolkit.export import export, plan
from toolkit.export.lora_gguf import export_lora
from toolkit.export.merged_model import export_merged

SLOW = """
import sys, time
from pathlib import Path
from toolkit.export import export, tensors
from toolkit.export.merged_model import export_merged
usual, seen = {name: getattr(tensors, name) for name in ("source", "trained")}, 0
name = "source" if sys.argv[3] == "gguf" else "trained"
def slow(*given):
    global seen
    seen += 1
    if seen > int(sys.argv[2]):
        print("now", flush=True)
        time.sleep(60)
    return usual[name](*given)
setattr(tensors, name, slow)
work = Path(sys.argv[1])
if sys.argv[3] == "gguf":
    targets = {k: work / "out" / f"{k}.gguf" for k in ("F16", "Q4_K_M")}
    export(work / "base", work / "adapter", targets, "{{ messages }}", "x")
else:
    export_merged(work / "base", work / "adapter", work / "out" / "merged", "{{ messages }}")
"""


def killed(work: Path, after: int, form: str) -> None:
    """Start an export in a process of its own and kill it when it has come to tensor `after`."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(work), str(after), form], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 9])
def test_a_killed_export_is_cleared_by_the_next(work: Path, after: int) -> None:
    killed(work, after, "gguf")
    left = [path for path in (work / "out").iterdir() if path.name.endswith(".part")]
    assert len(left) == 2
    assert all(path.read_bytes() == b"former" for path in targets(work).values())
    (work / "out" / ".F16.gguf.notes").write_text("the user's own")
    export(work / "base", work / "adapter", targets(work), models.TEMPLATE, "small")
    assert sorted(path.name for path in (work / "out").iterdir()) == [".F16.gguf.notes", "F16.gguf", "Q4_K_M.gguf"]


@pytest.mark.slow
def test_a_failing_export_clears_them_too(work: Path) -> None:
    killed(work, 5, "gguf")
    export_lora(work / "base", work / "adapter", work / "out" / "other.gguf", "x")  # names of others are left alone
    assert len(list((work / "out").glob(".*.part"))) == 2
    (work / "out" / "other.gguf").unlink()
    edit_json(work / "base" / "config.json", vocab_size=511)
    with pytest.raises(ToolkitError):
        export(work / "base", work / "adapter", targets(work), models.TEMPLATE, "small")
    former_files_are_intact(work)


@pytest.mark.slow
def test_a_killed_merge_is_cleared_by_the_next(work: Path) -> None:
    killed(work, 4, "safetensors")
    assert not (work / "out" / "merged").exists()
    assert len(list((work / "out").glob(".merged.*.part"))) == 1
    export_merged(work / "base", work / "adapter", work / "out" / "merged", models.TEMPLATE)
    assert sorted(path.name for path in (work / "out").iterdir()) == ["F16.gguf", "Q4_K_M.gguf", "merged"]


def test_a_kill_between_the_two_renames_loses_nothing(work: Path) -> None:
    """A folder is replaced by moving the former one aside: it comes back where the new one never came."""
    target = work / "out" / "merged"
    export_merged(work / "base", None, target, models.TEMPLATE)
    target.rename(target.with_name(".merged.old"))
    clear_stale([target])
    assert (target / "config.json").is_file()


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.gguf", tmp_path / "merged"
    with writing(path) as file, writing_folder(folder) as fresh:
        file.write(b"half")
        clear_stale([path, folder])
        (fresh / "x").write_text("x")
    assert path.read_bytes() == b"half"
    assert (folder / "x").read_text() == "x"


@pytest.mark.slow
def test_any_damage_to_a_gguf_base_is_a_toolkit_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.model import base as bases

    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    path = work / "base.gguf"
    export(work / "base", None, {"Q8_0": path}, models.TEMPLATE, "small")
    whole = path.read_bytes()
    header = len(whole) - plan(work / "base", None, ["Q8_0"]).bytes["Q8_0"]

    @settings(max_examples=tries(60), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(4, header), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
    def check(edits: list[tuple[int, bytes]]) -> None:
        data = bytearray(whole)
        for place, new in edits:
            data[place : place + len(new)] = new
        path.write_bytes(data[: len(whole)])
        try:
            bases.resolve(str(path))
        except ToolkitError as problem:
            assert problem.hint

    check()


KEYS = [
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "target_modules",
    "fan_in_fan_out", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "task_type",
    "trainable_token_indices", "layer_replication", "lora_bias", "target_parameters", "corda_config", "eva_config",
]  # fmt: skip


@thorough(40, 600)
def test_any_adapter_config_is_understood_or_refused(work: Path, examples: int) -> None:
    path = work / "adapter" / "adapter_config.json"
    whole = path.read_text()
    values: Any = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=6) | st.just("LORA"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["q_proj", "(", "", "k_proj"]), inner, max_size=3)
        ),
        max_leaves=6,
    )

    vast = 10**400  # more than a float can be

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @example({"lora_alpha": vast}, None)
    @example({"alpha_pattern": {"q_proj": vast}}, None)
    @example({"r": vast, "use_rslora": True}, None)
    @given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3), st.none() | st.integers(0, len(whole)))
    def check(changes: dict[str, Any], cut: int | None) -> None:
        path.write_text(whole)
        edit_json(path, **changes)
        if cut is not None:
            path.write_text(path.read_text()[:cut])
        for look in (
            lambda: plan(work / "base", work / "adapter", ["Q4_K_M"]),
            lambda: export_lora(work / "base", work / "adapter", work / "out" / "lora.gguf", "x"),
        ):
            try:
                look()
            except ToolkitError as problem:
                assert problem.hint

    check()
