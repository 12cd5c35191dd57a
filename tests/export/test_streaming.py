"""A base that stays on the hub gives the same bytes; what is fetched is checked, counted and deleted."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.conftest import call_toolkit
from tests.support import hub as hubs
from tests.support import models
from tests.support.damage import edit_json, edit_weights
from tests.support.places import REPOSITORY
from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.input_settings import ModelSettings
from toolkit.core.output_settings import ExportSettings
from toolkit.export import export, streaming
from toolkit.formats import checkpoint
from toolkit.model import base_choice, hub_pieces, hub_range, hub_shards
from toolkit.model.hub_range import HubShards

LABEL = "owner/model"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    base = models.save_model(folder / "base", shard="500KB")
    models.save_adapter(folder / "adapter", base)
    return folder


@pytest.fixture
def hub(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """The base on a hub."""
    shutil.copytree(originals / "base", tmp_path / "hub")
    with hubs.serving(tmp_path / "hub") as made:
        hubs.use(made, tmp_path, monkeypatch)
        yield made


def targets(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.gguf" for name in ("Q8_0", "Q4_K_M")}


def streamed(hub: hubs.Hub, adapter: Path | None, out: Path) -> dict[str, Any]:
    source = hub_shards.open_shards(LABEL)
    return export(source.folder, adapter, targets(out), models.TEMPLATE, "small", shards=source).figures


def whole(base: Path, adapter: Path | None, out: Path) -> dict[str, bytes]:
    export(base, adapter, targets(out), models.TEMPLATE, "small")
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def nothing_is_left(tmp_path: Path) -> None:
    """No weights in either cache, and no piece."""
    left = [
        path for cache in ("cache", "hf") for path in (tmp_path / cache).rglob("*") if path.suffix == ".safetensors"
    ]
    left += list((tmp_path / "cache").rglob(".pieces*"))
    assert left == []


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def replaced(folder: Path, base: Path) -> Path:
    return models.save_adapter(folder, base, modules_to_save=["embed_tokens", "lm_head"], target_modules=["q_proj"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "no adapter", "own ends", "tied", "one file", "f16"])
def test_a_streamed_export_has_the_same_bytes(hub: hubs.Hub, originals: Path, tmp_path: Path, kind: str) -> None:
    adapter: Path | None = originals / "adapter"
    if kind == "no adapter":
        adapter = None
    elif kind == "own ends":
        adapter = replaced(tmp_path / "own", hub.folder)
    elif kind in ("tied", "one file", "f16"):
        shutil.rmtree(hub.folder)
        dtype = torch.float16 if kind == "f16" else torch.bfloat16
        shard = "100GB" if kind == "one file" else "300KB"
        models.save_model(hub.folder, shard=shard, dtype=dtype, tie_word_embeddings=kind == "tied")
    expected = whole(hub.folder, adapter, tmp_path / "whole")
    figures = streamed(hub, adapter, tmp_path / "out")
    assert contents(tmp_path / "out") == expected
    assert figures["Q8_0"]["sha256"] == sha256_of(tmp_path / "out" / "Q8_0.gguf")
    files = weights(hub.folder)
    assert (len(files) == 1) == (kind == "one file")
    assert {path.name: hub.bytes_of(path.name) for path in files} == {path.name: path.stat().st_size for path in files}
    nothing_is_left(tmp_path)


def stop_at(hub: hubs.Hub, name: str) -> None:
    """Let the hub answer 503 for the last piece of a file."""
    size = (hub.folder / name).stat().st_size

    def fault(asked: str, start: int, body: bytes) -> bytes | int:
        return 503 if asked == name and start + len(body) == size else body

    hub.fault = fault


@pytest.mark.slow
def test_an_interrupted_export_goes_on_with_the_next_shard(
    hub: hubs.Hub, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole(hub.folder, originals / "adapter", tmp_path / "whole")
    order = [shard.name for shard in hub_pieces.order(hub_shards.open_shards(LABEL))]
    assert len(order) > 3
    stop_at(hub, order[2])
    with pytest.raises(ToolkitError, match=f"stopped answering at byte .* of `{order[2]}`") as caught:
        streamed(hub, originals / "adapter", tmp_path / "out")
    assert "continues with this shard" in caught.value.hint
    assert f"2 of {len(order)} shards are done and kept" in capsys.readouterr().err
    assert not any(path.exists() for path in targets(tmp_path / "out").values())
    assert streaming.begun(targets(tmp_path / "out").values()) > 0
    nothing_is_left(tmp_path)
    hub.fault, hub.asked = lambda name, start, body: body, []
    streamed(hub, originals / "adapter", tmp_path / "out")
    assert contents(tmp_path / "out") == expected
    assert {name for name, _, _ in hub.asked} == {*order[2:]}, "what was done is not fetched again"
    assert streaming.begun(targets(tmp_path / "out").values()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["part", "state", "adapter", "hub"])
def test_what_was_done_is_checked_before_it_is_used(
    hub: hubs.Hub, originals: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged result is done again; another adapter or another base starts from the beginning."""
    adapter = shutil.copytree(originals / "adapter", tmp_path / "adapter")
    order = [shard.name for shard in hub_pieces.order(hub_shards.open_shards(LABEL))]
    stop_at(hub, order[2])
    with pytest.raises(ToolkitError):
        streamed(hub, adapter, tmp_path / "out")
    part = streaming.part_of(targets(tmp_path / "out")["Q8_0"])
    state = part.with_name(part.name + ".json")
    if what == "part":
        damaged = bytearray(part.read_bytes())
        place = next(index for index in range(len(damaged) - 1, 0, -1) if damaged[index])
        damaged[place] ^= 1
        part.write_bytes(damaged)
    elif what == "state":
        state.write_text(state.read_text()[:-20])
    elif what == "adapter":
        edit_weights(adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).mul_(2))
    else:
        path = hub.folder / order[0]
        edit_weights(path, lambda tensors: next(iter(tensors.values())).mul_(2))
        (tmp_path / "cache" / "toolkit").rename(tmp_path / "cache" / "elsewhere")  # as a new commit's has another name
    hub.fault, hub.asked = lambda name, start, body: body, []
    streamed(hub, adapter, tmp_path / "out")
    assert contents(tmp_path / "out") == whole(hub.folder, adapter, tmp_path / "whole")
    again = {name for name, _, _ in hub.asked} & {*order[:2]}
    assert len(again) == (1 if what == "part" else 2)
    assert ("is damaged: it is exported again" in capsys.readouterr().err) == (what == "part")


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, -1])
def test_a_shard_with_another_hash_is_refused(hub: hubs.Hub, originals: Path, tmp_path: Path, which: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in targets(out).values():
        path.write_bytes(b"former")
    name = hub_pieces.order(hub_shards.open_shards(LABEL))[which].name
    size = (hub.folder / name).stat().st_size

    def fault(asked: str, start: int, body: bytes) -> bytes:
        last = asked == name and start + len(body) == size
        return body[:-2] + bytes([body[-2] ^ 1]) + body[-1:] if last else body

    hub.fault = fault
    with pytest.raises(ToolkitError, match=f"`{name}` of `owner/model` was fetched with another hash"):
        streamed(hub, originals / "adapter", out)
    assert all(path.read_bytes() == b"former" for path in targets(out).values())
    hub.fault = lambda name, start, body: body
    streamed(hub, originals / "adapter", out)
    assert contents(out) == whole(hub.folder, originals / "adapter", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "busy", "no ranges"])
def test_a_connection_that_breaks_is_continued(hub: hubs.Hub, originals: Path, tmp_path: Path, kind: str) -> None:
    expected = whole(hub.folder, originals / "adapter", tmp_path / "whole")
    hub.ranges = kind != "no ranges"
    seen: set[tuple[str, int]] = set()

    def fault(name: str, start: int, body: bytes) -> bytes | int:
        first = (name, start) not in seen
        seen.add((name, start))
        if kind == "cut" and len(body) > 70_000:
            return body[:60_000]
        return 503 if kind == "busy" and first else body

    hub.fault = fault
    streamed(hub, originals / "adapter", tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_hub_that_falls_silent_is_asked_again(
    hub: hubs.Hub, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays open and nothing comes: one that never answers is an error, not a wait without an end."""
    from huggingface_hub import constants

    expected = whole(hub.folder, originals / "adapter", tmp_path / "whole")
    source = hub_shards.open_shards(LABEL)
    shard = next(iter(source.shards.values()))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    over, silent = threading.Event(), {*source.shards}

    def fault(name: str, start: int, body: bytes) -> bytes:
        if name in silent:
            silent.discard(name)
            over.wait(5)
        return body

    hub.fault = fault
    try:
        streamed(hub, originals / "adapter", tmp_path / "out")
        assert contents(tmp_path / "out") == expected and not silent
        hub.fault = lambda name, start, body: body if over.wait(5) else b""
        with pytest.raises(ToolkitError, match="the hub stopped answering at byte 100 of") as caught:
            hub_range.fetch(source, shard, 100, 200, lambda data: None)
        assert "timed out" in caught.value.message and "run the same command again" in caught.value.hint
    finally:
        over.set()


@pytest.mark.slow
def test_what_the_hubs_cache_has_is_read_there_and_stays(hub: hubs.Hub, originals: Path, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    mine = weights(hub.folder)[1].name
    kept = Path(hf_hub_download(LABEL, mine))
    hub.asked.clear()
    streamed(hub, originals / "adapter", tmp_path / "out")
    assert contents(tmp_path / "out") == whole(hub.folder, originals / "adapter", tmp_path / "whole")
    assert kept.read_bytes() == (hub.folder / mine).read_bytes() and hub.bytes_of(mine) == 0
    kept.resolve().unlink()  # the user empties the cache
    kept.unlink()
    streamed(hub, originals / "adapter", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def chosen(tmp_path: Path, label: str = LABEL, **changes: Any) -> HubShards | None:
    wanted = ExportSettings(**changes)
    return streaming.base_of(ModelSettings(base=label), wanted, None, targets(tmp_path / "out"))[1]


@pytest.mark.slow
def test_the_disk_decides_unless_the_settings_do(
    hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, size = shutil.disk_usage(tmp_path), sum(path.stat().st_size for path in weights(hub.folder))
    monkeypatch.setattr(base_choice, "RESERVE", 0)

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=count))

    free(size)  # the results do not fit beside it
    assert chosen(tmp_path) is not None
    assert "piece by piece and not kept: kept, it would need" in capsys.readouterr().err
    nothing_is_left(tmp_path)
    free(3 * size)
    assert chosen(tmp_path, stream_base=True) is not None
    nothing_is_left(tmp_path)
    assert chosen(tmp_path) is None, "downloaded, as there is room"
    assert len(list((tmp_path / "hf").rglob("snapshots/*/*.safetensors"))) == len(weights(hub.folder))
    free(size)
    assert chosen(tmp_path, stream_base=True) is None, "what is here is read here"


@pytest.mark.slow
def test_what_cannot_be_streamed_is_downloaded(hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(tmp_path, str(hub.folder), stream_base=True) is None, "a local folder stays as it is"
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(hub.folder / "config.json", quantization_config=quantized)
    assert chosen(tmp_path, stream_base=True, merge_base="as-trained") is None
    assert list((tmp_path / "hf").rglob("*.safetensors"))


def test_a_repository_without_whole_safetensors_is_refused(hub: hubs.Hub) -> None:
    weights(hub.folder)[0].unlink()
    with pytest.raises(ToolkitError, match="`owner/model` has no complete safetensors"):
        hub_shards.open_shards(LABEL)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["longer", "shorter", "no header"])
def test_a_header_that_does_not_fit_is_refused(hub: hubs.Hub, tmp_path: Path, change: str) -> None:
    path = weights(hub.folder)[0]
    body = path.read_bytes()
    path.write_bytes({"longer": body + b"x", "shorter": body[:-1], "no header": b"\xff" * len(body)}[change])
    with pytest.raises(ToolkitError, match=path.name):
        hub_shards.open_shards(LABEL)
    path.write_bytes(body)
    assert hub_shards.open_shards(LABEL).shards, "nothing damaged was kept"


@pytest.mark.slow
def test_a_copy_of_the_embedding_must_be_one_on_the_hub_too(hub: hubs.Hub, originals: Path, tmp_path: Path) -> None:
    shutil.rmtree(hub.folder)
    models.save_model(hub.folder, shard="300KB", tie_word_embeddings=True)
    index = json.loads((hub.folder / "model.safetensors.index.json").read_text())
    places = index["weight_map"]
    embedding = load_file(hub.folder / places["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    for name, scale in (("copy", 1), ("other", 2)):
        save_file({"lm_head.weight": embedding * scale}, hub.folder / f"{name}.safetensors")
    for name, said in (("copy", ""), ("other", "differs from its embedding")):
        index["weight_map"] = {**places, "lm_head.weight": f"{name}.safetensors"}
        (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        shutil.rmtree(tmp_path / "hf", ignore_errors=True)  # the hub has another commit
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        if said:
            with pytest.raises(ToolkitError, match=said):
                streamed(hub, None, tmp_path / name)
        else:
            streamed(hub, None, tmp_path / name)
            assert contents(tmp_path / name) == whole(hub.folder, None, tmp_path / "whole")


@pytest.mark.slow
def test_single_tensors_are_fetched_and_checked(hub: hubs.Hub, tmp_path: Path) -> None:
    source = hub_shards.open_shards(LABEL)
    tensors = checkpoint.open_folder(source.folder)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = checkpoint.stored_bytes(checkpoint.open_folder(hub.folder)[name])
    for _ in range(2):
        with hub_pieces.at_hand(source, tensors[name]) as found:
            assert checkpoint.stored_bytes(found) == expected
        nothing_is_left(tmp_path)
    hub.fault = lambda name, start, body: bytes([body[0] ^ 1]) + body[1:]
    with pytest.raises(ToolkitError, match="another hash"), hub_pieces.at_hand(source, tensors[name]):
        pass


@pytest.mark.slow
def test_an_export_that_does_not_stream_takes_the_place_of_one_that_did(
    hub: hubs.Hub, originals: Path, tmp_path: Path
) -> None:
    stop_at(hub, hub_pieces.order(hub_shards.open_shards(LABEL))[2].name)
    with pytest.raises(ToolkitError):
        streamed(hub, originals / "adapter", tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 3
    whole(hub.folder, originals / "adapter", tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["Q4_K_M.gguf", "Q8_0.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_what_other_quantizations_left_goes_too(hub: hubs.Hub, tmp_path: Path, stream: bool) -> None:
    """A later export of the same model takes their place, not that of another model in the same folder."""

    def files(model: str, *names: str) -> dict[str, Path]:
        return {name: tmp_path / "out" / f"{model}-{name}.gguf" for name in names}

    source = hub_shards.open_shards(LABEL)
    stop_at(hub, hub_pieces.order(source)[2].name)
    for model in ("mine", "mine-too"):
        with pytest.raises(ToolkitError):
            export(source.folder, None, files(model, "F16", "Q8_0"), models.TEMPLATE, "small", shards=source)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(left) == 6
    hub.fault = lambda name, start, body: body
    base, shards = (source.folder, source) if stream else (hub.folder, None)
    export(base, None, files("mine", "Q4_K_M"), models.TEMPLATE, "small", shards=shards)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"mine-Q4_K_M.gguf", *(name for name in left if name.startswith(".mine-too-"))}


@pytest.mark.slow
def test_no_more_than_two_pieces_are_on_the_disk(hub: hubs.Hub, originals: Path, tmp_path: Path) -> None:
    """One that is in work, and the next one."""
    seen: list[list[int]] = []  # the sizes of all pieces, at each answer of the hub

    def fault(name: str, start: int, body: bytes) -> bytes:
        seen.append([])
        for path in (tmp_path / "cache").rglob(".pieces.*/*"):
            with contextlib.suppress(FileNotFoundError):  # it has been used meanwhile
                seen[-1].append(path.stat().st_size)
        return body

    hub.fault = fault
    streamed(hub, originals / "adapter", tmp_path / "out")
    assert max(map(len, seen)) in (1, 2)  # whether the one in work is still there is a matter of speed
    assert max(map(sum, seen)) <= 2 * max(hub_pieces.PIECE, 524_288)


@pytest.mark.slow
def test_a_killed_command_goes_on(hub: hubs.Hub, originals: Path, tmp_path: Path) -> None:
    """On the command line, killed with SIGKILL while the third shard comes."""
    command = ["export", "--adapter", str(originals / "adapter"), "--base", LABEL, "--output", str(tmp_path / "out")]
    command += ["--quant", "Q8_0", "--quant", "Q4_K_M", "--set", "export.stream_base=true", "--json"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **hub.environment(tmp_path / "home"), **cache, "PYTHONPATH": str(REPOSITORY)}
    order = [shard.name for shard in hub_pieces.order(hub_shards.open_shards(LABEL))]
    come = threading.Event()

    def fault(name: str, start: int, body: bytes) -> bytes:
        if name == order[2] and len(body) > 10_000:
            come.set()
            time.sleep(30)
        return body

    hub.fault = fault
    process = subprocess.Popen([sys.executable, "-m", "toolkit", *command], cwd=tmp_path, env=environment)
    assert come.wait(120)
    process.kill()
    process.wait()
    hub.fault, hub.asked = lambda name, start, body: body, []
    called = call_toolkit(*command, cwd=tmp_path, timeout=600, **hub.environment(tmp_path / "home"), **cache)
    assert called.code == 0, called.err
    assert "the interrupted export continues: 2 shards are done" in called.err
    assert {name for name, _, _ in hub.asked} == {*order[2:]}
    nothing_is_left(tmp_path)
    local = [str(hub.folder) if word == LABEL else word.replace(str(tmp_path / "out"), "local") for word in command]
    assert call_toolkit(*local, cwd=tmp_path, timeout=600, **cache).code == 0
    assert {name: found for name, found in contents(tmp_path / "out").items() if name.endswith(".gguf")} == {
        name: found for name, found in contents(tmp_path / "local").items() if name.endswith(".gguf")
    }
