"""What stands on the disk already is not needed there once more."""

import shutil
from pathlib import Path

import pytest

from tests.doctor.conftest import Home, only_failure
from tests.support.places import REPOSITORY
from toolkit import pipeline
from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.config_file import load_config
from toolkit.core.console import size
from toolkit.core.manifest import Manifest, Outcome, StageRecord, record_file, write_manifest
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.core.stage import Check
from toolkit.doctor import disk as disks
from toolkit.doctor import plan
from toolkit.doctor.resources import Job
from toolkit.model.known_models import known_model
from toolkit.train import checkpoints

SHAPE = known_model("unsloth/Meta-Llama-3.1-8B")


def hold(path: Path, count: int) -> None:
    """Make a file of so many bytes, of which the disk holds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(count)


def prepared(home: Home, *changes: str) -> RunFolder:
    folder = folder_of(home.config(*changes))
    folder.data.mkdir(parents=True, exist_ok=True)
    folder.split_file("train").write_text("{}\n" * 100)
    return folder


def disk(found: list[Check]) -> str:
    return next(check.found for check in found if check.name == "disk")


STEPS = ("train.max_steps=100", "train.save_steps=1")


def place(home: Home, folder: RunFolder, *changes: str) -> Path:
    config = home.config(*changes)
    return checkpoints.place(folder, checkpoints.fingerprint(config, folder)) / "checkpoint-2" / "optimizer.pt"


def test_an_interrupted_runs_checkpoints_are_not_needed_again(home: Home) -> None:
    """Nor what a killed save left: it makes room before training."""
    folder = prepared(home)
    fresh = disk(home.examine(*STEPS, stages=("train",)))
    assert "checkpoints 81.7 MB" in fresh
    hold(place(home, folder, *STEPS), 30_000_000)
    assert "checkpoints 51.7 MB" in disk(home.examine(*STEPS, stages=("train",)))
    hold(place(home, folder, *STEPS), 300_000_000)
    assert "checkpoints 0 B" in disk(home.examine(*STEPS, stages=("train",)))


def test_checkpoints_of_other_settings_make_no_room(home: Home) -> None:
    folder = prepared(home)
    hold(place(home, folder, *STEPS, "train.seed=7"), 30_000_000)
    assert "checkpoints 81.7 MB" in disk(home.examine(*STEPS, stages=("train",)))


def test_more_steps_on_a_constant_schedule_count_what_the_finished_run_left(home: Home) -> None:
    folder, constant = prepared(home), "train.lr_scheduler_type=constant"
    hold(place(home, folder, *STEPS, constant), 30_000_000)
    longer = ("train.max_steps=200", "train.save_steps=1", constant)
    assert "checkpoints 51.7 MB" in disk(home.examine(*longer, stages=("train",)))


def test_a_resumed_run_fits_where_it_was(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free are what is left of a disk on which the whole run fitted."""
    folder, real = prepared(home), shutil.disk_usage(home.path)
    whole = 120_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=whole))
    assert disk(home.examine(*STEPS, stages=("train",))).endswith("are free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=whole - 60_000_000))
    only_failure(home.examine(*STEPS, stages=("train",)), "disk")
    hold(place(home, folder, *STEPS), 60_000_000)
    assert disk(home.examine(*STEPS, stages=("train",))).endswith("are free")


def test_a_download_that_was_cut_off_is_not_needed_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.path / "hub"))
    label = "unsloth/Meta-Llama-3.1-8B"
    assert SHAPE is not None
    [before] = plan.base_writes(label, "", SHAPE)
    repository = home.path / "hub" / "models--unsloth--Meta-Llama-3.1-8B"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    hold(repository / "blobs" / "abc.incomplete", 1_000_000_000)
    hold(repository / "blobs" / "of another revision", 7_000_000_000)
    hold(repository / "blobs" / "whole", 2_000_000_000)
    hold(snapshot / "config.json", 0)
    (snapshot / "model-00001-of-00004.safetensors").symlink_to(repository / "blobs" / "whole")
    [after] = plan.base_writes(label, "", SHAPE)
    assert before.size - after.size == 3_000_000_000


@pytest.mark.parametrize("below", ["blobs", "models/blobs"])
def test_copies_that_the_server_holds_are_not_made_again(home: Home, below: str) -> None:
    config = home.config("export.quantizations=F16,Q8_0", "export.default=F16", "ollama.tags=all")
    folder, outcome = folder_of(config), Outcome([], {})
    for name in config.export.quantizations:
        folder.gguf(name).parent.mkdir(parents=True, exist_ok=True)
        folder.gguf(name).write_text(name)
        outcome.outputs.append(folder.gguf(name))
    files = [record_file(path, folder) for path in outcome.outputs]
    record = StageRecord(
        settings={}, inputs=[], outputs=files, versions={}, seconds=0.0, finished="", figures={}, warning=""
    )
    write_manifest(folder, Manifest(run_id="r", stages={"export": record}))
    assert SHAPE is not None

    def copies(*stages: str) -> int:
        held = dict.fromkeys(stages, 0)
        return sum(write.size for write in plan.stage_writes(config, folder, SHAPE, held) if "copies" in write.what)

    all_of_them = copies("register")
    hold(home.path / "cache" / below / f"sha256-{files[0].sha256}", 10)
    assert copies("export", "register") == all_of_them  # new files are other ones
    assert 0 < copies("register") < all_of_them / 2, size(copies("register"))
    hold(home.path / "cache" / below / f"sha256-{files[1].sha256}", 10)
    assert copies("register") == 0


def writes(*given: tuple[str, int, str, bool]) -> list[plan.Write]:
    return [plan.Write(Path("/x"), what, size, stage, kept) for what, size, stage, kept in given]


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ([("a", 5, "train", True), ("b", 7, "export", True)], 12),
        ([("a", 5, "train", True), ("gone", 9, "train", False), ("b", 7, "export", True)], 14),
        ([("a", 5, "train", True), ("gone", 3, "train", False), ("b", 7, "export", True)], 12),
        ([("always", 1, "", True), ("gone", 9, "validate", False), ("later", 20, "register", True)], 21),
        ([("gone", 9, "train", False), ("gone too", 8, "validate", False)], 9),
        ([], 0),
    ],
)
def test_what_goes_with_its_stage_makes_room_for_the_next(given: list[tuple[str, int, str, bool]], most: int) -> None:
    assert disks.peak(writes(*given), tuple(pipeline.STAGES)) == most


def test_a_finished_runs_checkpoints_go_unless_it_could_continue(home: Home) -> None:
    prepared(home)
    found = disk(home.examine(*STEPS, stages=("train", "export")))
    assert "checkpoints 81.7 MB during train" in found
    endless = disk(home.examine(*STEPS, "train.lr_scheduler_type=constant", stages=("train", "export")))
    assert "checkpoints 81.7 MB," in endless


HUB = ("model.base=unsloth/Meta-Llama-3.1-8B-bnb-4bit", "model.base_16bit=unsloth/Meta-Llama-3.1-8B")


def on_gpu(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(hardware, "sees_gpu", lambda: True)
    monkeypatch.setattr(hardware, "free_disk", lambda path: free)


def job(config: Config, *stages: str) -> Job:
    assert SHAPE is not None
    return Job(config, folder_of(config), dict.fromkeys(stages, 0), SHAPE, None)


@pytest.mark.parametrize(
    ("change", "free", "pieces"),
    [
        ("export.stream_base=auto", 10**12, False),
        ("export.stream_base=auto", 30 * 10**9, True),
        ("export.stream_base=true", 10**12, True),
        ("export.stream_base=false", 30 * 10**9, False),
        ("export.imatrix=true", 30 * 10**9, False),
        ("export.merge_base=as-trained", 20 * 10**9, False),
    ],
)
def test_a_base_that_does_not_fit_is_counted_in_pieces(
    home: Home, monkeypatch: pytest.MonkeyPatch, change: str, free: int, pieces: bool
) -> None:
    on_gpu(monkeypatch, free)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.path / "hub"))
    found = "".join(check.found for check in disks.disk(job(home.config(*HUB, change), "train", "export")))
    assert ("pieces of unsloth/Meta-Llama-3.1-8B 268.4 MB during export" in found) == pieces
    assert "download of unsloth/Meta-Llama-3.1-8B-bnb-4bit 5.7 GB" in found
    sixteen = "download of unsloth/Meta-Llama-3.1-8B 16.1 GB" in found
    assert sixteen == (not pieces and change != "export.merge_base=as-trained")


@pytest.mark.parametrize(
    ("change", "free", "counted"),
    [
        ("export.stream_base=auto", 10**12, False),
        ("export.stream_base=auto", 10**10, True),
        ("export.stream_base=true", 10**12, True),
        ("export.stream_base=false", 10**10, False),
        ("export.merge_base=as-trained", 10**10, False),
    ],
)
def test_memory_counts_what_a_base_in_pieces_leaves_in_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, change: str, free: int, counted: bool
) -> None:
    on_gpu(monkeypatch, free)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.path / "hub"))
    found = home.examine(*HUB, change, stages=("validate",))
    [line] = [check.found for check in found if check.name == "memory: validation"]
    assert ("matrix from the hub 1.1 GB" in line) == counted


def test_a_cpu_trains_the_very_base_and_needs_it_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 10**9)
    monkeypatch.setattr(hardware, "sees_gpu", lambda: False)
    config = home.config(*HUB)
    assert not plan.may_stream("unsloth/Meta-Llama-3.1-8B", config, ("train", "export"))
    assert plan.may_stream("unsloth/Meta-Llama-3.1-8B", config, ("export",))
    [check] = disks.disk(job(home.config(*HUB, "export.stream_base=false"), "export"))
    assert check.ok is False and "--set export.stream_base=auto" in check.fix


RECIPE = REPOSITORY / "examples" / "medassist.toml"


@pytest.mark.parametrize(
    ("free", "change", "pieces"),
    [
        (35, "export.stream_base=auto", True),
        (36, "export.stream_base=auto", False),
        (20, "export.stream_base=auto", True),
        (20, "export.stream_base=true", True),
    ],
)
def test_the_recipe_fits_on_the_disk_that_the_guide_names(
    home: Home, monkeypatch: pytest.MonkeyPatch, free: int, change: str, pieces: bool
) -> None:
    """From the CSV to a validated report, without Ollama: 20 GB where the base is read in pieces, 36 GB to keep it."""
    on_gpu(monkeypatch, free * 10**9)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.path / "hub"))
    config = load_config(RECIPE, [change])
    [check] = disks.disk(job(config, "prepare", "train", "export", "validate"))
    assert check.ok, check.found
    assert ("pieces of" in check.found) == pieces
    guide = (REPOSITORY / "docs/guide/gpu.md").read_text(encoding="utf-8")
    assert "20 GB of disk, or 36 GB to keep the base" in guide


def test_less_than_that_is_too_little(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 19 * 10**9)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.path / "hub"))
    [check] = disks.disk(job(load_config(RECIPE), "prepare", "train", "export", "validate"))
    assert check.ok is False and "write fewer with `--set export.quantizations=Q4_K_M`" in check.fix
