"""The checkpoints' marks, the plot, and the choice of backend."""

import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.conftest import changed
from toolkit.core import config_file, hardware, signals
from toolkit.core import files as core_files
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Manifest
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.core.stage import Context
from toolkit.model import precision
from toolkit.train import (
    backend_choice,
    checkpoints,
    checks,
    job,
    parallel,
    peft_backend,
    plot,
    unsloth_backend,
)
from toolkit.train.backend import UnslothFailed
from toolkit.train.stage import STAGE


def save(folder: Path, step: int) -> Path:
    """Write the files of a checkpoint, as the trainer does, without the mark."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (checkpoint / name).write_text(name)
    return checkpoint


def test_a_full_disk_names_the_mark_that_has_no_room(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 9)
    unfinished = checkpoint / f"{checkpoints.MARKER}.new"
    unfinished.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoints.mark(checkpoint, "a")
    assert caught.value.filename == str(unfinished) and not checkpoints.is_whole(checkpoint, "a")


def test_only_a_marked_checkpoint_of_the_same_run_counts(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path, "a") is None
    for step, run in ((9, "a"), (20, "a"), (100, "a"), (300, "b")):
        checkpoints.mark(save(tmp_path, step), run)
    save(tmp_path, 400)
    for step, text in ((500, "{"), (600, "[]"), (700, "{}"), (800, '{"fingerprint": null}')):
        (save(tmp_path, step) / checkpoints.MARKER).write_text(text)
    found = checkpoints.newest(tmp_path, "a")
    assert found == tmp_path / "checkpoint-100" and checkpoints.step_of(found) == 100
    assert checkpoints.newest(tmp_path, "b") == tmp_path / "checkpoint-300"
    assert checkpoints.newest(tmp_path, "c") is None


@pytest.mark.parametrize("name", ["checkpoint-3-backup", "checkpoint-best", "checkpoint-3 (copy)", "checkpoint-"])
def test_a_copy_that_a_user_keeps_is_neither_used_nor_removed(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path, "r")
    own, other = (checkpoints.place(folder, run) for run in ("a", "b"))
    origin = checkpoints.Origin({"train.seed": 1}, "")
    for place, run in ((own, "a"), (other, "b")):
        checkpoints.mark(save(place, 3), run, origin)
        shutil.copytree(place / "checkpoint-3", place / name)
    assert checkpoints.newest(own, "a") == own / "checkpoint-3"
    assert checkpoints.of_another_length(folder, origin) in (own / "checkpoint-3", other / "checkpoint-3")
    (own / name / checkpoints.MARKER).unlink()
    checkpoints.clear_unfinished(own, "a")
    checkpoints.clear_other_runs(folder, "a")
    assert [path.name for path in other.iterdir()] == [name]
    checkpoints.clear_all(own)
    assert [path.name for path in own.iterdir()] == [name]


def test_what_a_killed_save_left_is_cleared_away_and_the_rest_stays(tmp_path: Path) -> None:
    whole = checkpoints.place(RunFolder(tmp_path, "r"), "a")
    checkpoints.mark(save(whole, 3), "a")
    save(whole, 6)
    (save(whole, 9) / f"{checkpoints.MARKER}.new").write_text(json.dumps({"fingerprint": "a"}))
    (whole / "runs").mkdir()
    checkpoints.clear_unfinished(whole, "a")
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoint-3", "runs"]
    assert len(list((whole / "checkpoint-3").iterdir())) == 4
    checkpoints.clear_unfinished(tmp_path / "none", "a")


@pytest.mark.parametrize(("schedule", "kept"), [("linear", False), ("cosine", False), ("constant", True)])
def test_a_recorded_run_keeps_only_checkpoints_that_could_continue(tmp_path: Path, schedule: str, kept: bool) -> None:
    config = config_file.build({"run": {"folder": str(tmp_path)}, "train": {"lr_scheduler_type": schedule}})
    folder = folder_of(config)
    folder.data.mkdir(parents=True)
    folder.split_file("train").write_text("{}\n")
    place = checkpoints.place(folder, checkpoints.fingerprint(config, folder))
    for name in (2, 4):
        save(place, name)
    (place / "runs").mkdir()
    shutil.copytree(place / "checkpoint-4", place / "checkpoint-4-mine")
    STAGE.after(Context(config, folder, Manifest(run_id="x")))
    own = ["checkpoint-2", "checkpoint-4"] if kept else []
    assert sorted(path.name for path in place.iterdir()) == [*own, "checkpoint-4-mine", "runs"]


@pytest.mark.parametrize("killed_at", ["a file", "the mark's text", "the mark's rename"])
def test_a_checkpoint_counts_from_its_mark_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    """Whatever is being brought to disk when the process dies."""

    def dying(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        calls = []

        def called(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == at:
                raise SystemExit
            return real(*arguments)

        return called

    checkpoint = save(tmp_path, 3)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        if killed_at == "the mark's rename":
            patch.setattr(Path, "replace", dying(Path.replace, 1))
        else:
            patch.setattr("os.fsync", dying(lambda _: None, {"a file": 2, "the mark's text": 4}[killed_at]))
        checkpoints.mark(checkpoint, "a")
    assert not checkpoints.is_whole(checkpoint, "a") and checkpoints.newest(tmp_path, "a") is None
    checkpoints.mark(checkpoint, "a")
    assert checkpoints.is_whole(checkpoint, "a") and not checkpoints.is_whole(checkpoint, "b")


def test_every_file_is_on_disk_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may not leave a mark beside files whose bytes were never written."""
    order: list[str] = []
    real = core_files.to_disk

    def to_disk(path: Path) -> None:
        order.append(path.name)
        real(path)

    def replace(path: Path, target: Path) -> Path:
        order.append("renamed")
        return path.rename(target)

    monkeypatch.setattr(checkpoints, "to_disk", to_disk)
    monkeypatch.setattr(Path, "replace", replace)
    checkpoints.mark(save(tmp_path, 3), "a")
    files = ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"]
    assert sorted(order[:3]) == files
    assert order[3:] == [f"{checkpoints.MARKER}.new", "renamed", "checkpoint-3"]


def test_other_runs_checkpoints_are_removed_and_the_own_log_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "r")
    for run in ("a", "b" * 64, "c"):
        checkpoints.mark(save(checkpoints.place(folder, run), 3), run)
    (folder.checkpoints / "train_log.jsonl").write_text("{}\n")
    checkpoints.clear_other_runs(folder, "b" * 64)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["b" * 12, "train_log.jsonl"]
    assert checkpoints.newest(checkpoints.place(folder, "b" * 64), "b" * 64) is not None


def test_the_fingerprint_covers_what_decides_the_weights(small: tuple[Config, RunFolder]) -> None:
    settings, folder = small
    first = checkpoints.fingerprint(settings, folder)

    def with_train(**values: object) -> str:
        return checkpoints.fingerprint(changed(settings, **values), folder)

    assert (
        with_train(save_steps=5, eval_steps=2, early_stopping_patience=1, packing=False, report_to=["wandb"]) == first
    )
    assert with_train(gradient_checkpointing=True) == first
    for values in (
        {"learning_rate": 5e-5},
        {"optim": "sgd"},
        {"batch_size": 4},
        {"seed": 1},
        {"max_steps": 9},
        {"max_steps": None, "num_train_epochs": 2.0},
    ):
        assert with_train(**values) != first
    endless = with_train(lr_scheduler_type="constant")
    assert endless != first and with_train(lr_scheduler_type="constant", max_steps=9) == endless
    folder.split_file("val").write_text("")
    assert checkpoints.fingerprint(settings, folder) == first
    folder.split_file("train").write_text(folder.split_file("train").read_text().replace("water", "tea"))
    second = checkpoints.fingerprint(settings, folder)
    assert second != first
    moved = RunFolder(folder.path.with_name("moved"), "moved")
    shutil.move(folder.path, moved.path)
    assert checkpoints.fingerprint(settings, moved) == second


def noted_by_another_version(checkpoint: Path, change: Callable[[dict[str, Any]], object], run: str = "0" * 64) -> None:
    """Rewrite a marked checkpoint as another version of the toolkit would have left it, under another fingerprint."""
    path = checkpoint / checkpoints.MARKER
    mark = json.loads(path.read_text()) | {"fingerprint": run}
    change(mark["settings"])
    path.write_text(json.dumps(mark))
    checkpoint.parent.rename(checkpoint.parent.with_name(run[:12]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda then: then.pop("train.base_compute"), True),
        (lambda then: [then.pop(key) for key in ("train.turns", "train.target_modules", "prompt.thinking")], True),
        (lambda then: then.update({"train.optimizer": then.pop("train.optim")}), True),
        (lambda then: then.update({"train.logging_steps": 9, "train.packing": False}), True),
        (lambda then: then.pop("train.learning_rate"), False),  # is not at its default now
        (lambda then: then.update({"train.base_compute": "fp8"}), False),
        (lambda then: then.update({"train.unknown": 1}), False),
        (lambda then: then.pop("train.max_steps"), False),
    ],
)
def test_a_run_that_an_earlier_version_left_unfinished_is_found_again(
    small: tuple[Config, RunFolder], change: Callable[[dict[str, Any]], object], found: bool
) -> None:
    """With fewer settings, and the rest as they are now; a new setting that is not at its default makes another run."""
    settings, folder = small
    settings = changed(settings, learning_rate=5e-5)
    own = checkpoints.fingerprint(settings, folder)
    checkpoint = save(checkpoints.place(folder, own), 3)
    checkpoints.mark(checkpoint, own, checkpoints.origin_of(settings, folder))
    noted_by_another_version(checkpoint, change)
    run = checkpoints.fingerprint(settings, folder)
    assert run == ("0" * 64 if found else own)
    assert (checkpoints.newest(checkpoints.place(folder, run), run) is not None) is found
    assert checkpoints.fingerprint(changed(settings, base_compute="bf16"), folder) != run
    folder.split_file("train").write_text("{}\n")
    assert checkpoints.fingerprint(settings, folder) != run


def test_a_run_of_the_present_settings_comes_before_one_of_an_earlier_version(small: tuple[Config, RunFolder]) -> None:
    settings, folder = small
    own, origin = checkpoints.fingerprint(settings, folder), checkpoints.origin_of(settings, folder)
    for run, step in (("0" * 64, 6), (own, 3)):
        checkpoints.mark(save(checkpoints.place(folder, run), step), run, origin)
    assert checkpoints.fingerprint(settings, folder) == own


@pytest.mark.parametrize("text", ['{"fingerprint": "../../../x"}', '{"fingerprint": "%s"}' % ("0" * 64), "[]", "{"])
def test_a_mark_that_says_too_little_is_nobodys(small: tuple[Config, RunFolder], text: str) -> None:
    settings, folder = small
    own = checkpoints.fingerprint(settings, folder)
    (save(folder.checkpoints / ("0" * 12), 3) / checkpoints.MARKER).write_text(text)
    assert checkpoints.fingerprint(settings, folder) == own


HISTORY = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.0, "grad_norm": 1.0},
    {"step": 2, "loss": 1.0, "grad_norm": 1.0},
    {"step": 2, "eval_loss": 2.5},
    {"step": 2, "train_runtime": 7.0, "train_loss": 1.5},
]


@pytest.mark.parametrize(
    ("norms", "skipped"), [([2.0, float("inf")], 1), ([float("nan"), float("inf")], 2), ([1.0], 0)]
)
def test_a_step_that_the_scaler_skips_is_said_and_logged(norms: list[float], skipped: int, tmp_path: Path) -> None:
    """In f16 an overflowing gradient changes nothing, and its norm is no number that JSON has."""
    from toolkit.train import callbacks

    steps = len(norms)
    running = SimpleNamespace(
        live_log=tmp_path / "log.jsonl", step_tokens=np.full(steps, 100), tokens_here=0, seconds=0.0
    )
    report = callbacks.Report(running, ExitStack())  # type: ignore[arg-type]
    said: list[str] = []
    report.progress = SimpleNamespace(advance=lambda count, note: said.append(note))
    report.clock, report.logged = 0.0, 0
    report.trainer = SimpleNamespace(
        ended=None,
        micro_losses={step: [torch.tensor(1.0)] for step in range(1, steps + 1)},
        norms={step: torch.tensor(norm) for step, norm in enumerate(norms, 1)},
        accelerator=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 32768.0)),
        args=SimpleNamespace(world_size=1, process_index=0),
    )
    entry: dict[str, Any] = {"step": steps, "loss": 1.0, "grad_norm": norms[-1], "learning_rate": 1e-4}
    state = SimpleNamespace(log_history=[entry], global_step=steps, is_world_process_zero=True)
    report.on_log(SimpleNamespace(device=torch.device("cpu")), state, None)
    written = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert written.get("skipped_steps", 0) == skipped
    assert ("step skipped" in said[0]) == bool(skipped)
    assert written["grad_norm"] == (norms[-1] if np.isfinite(norms[-1]) else None)


def test_the_log_has_a_line_for_each_step_and_each_held_out_loss() -> None:
    from toolkit.train import callbacks

    lines = callbacks.log_text(HISTORY).splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == HISTORY[:4] and all(line.endswith("\n") for line in lines)
    assert lines[1].startswith('{"step": 1, "loss": 2.0')
    assert callbacks.log_text([]) == ""


def test_ctrl_c_is_noted_once_and_ends_training_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `timeout` and a closed terminal send twice at once is one request; a hang-up is never a second one."""
    from toolkit.train import callbacks

    job, before = SimpleNamespace(stopped=False), signal.getsignal(signal.SIGINT)
    with ExitStack() as stack:
        callbacks.StopOnSignal(job, stack).on_train_begin()  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) != before
        os.kill(os.getpid(), signal.SIGINT)
        assert job.stopped
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "SAME", 0.0)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [True, False])
def test_the_plot_is_a_png_of_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: bool) -> None:
    from matplotlib.figure import Figure

    drawn: list[tuple[Any, Any, Any]] = []
    real = Figure.savefig

    def savefig(figure: Any, *arguments: Any, **named: Any) -> None:
        drawn.extend((line.get_label(), line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines)
        real(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    plot.loss_curve([entry for entry in HISTORY if held_out or "eval_loss" not in entry], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = {label: (list(steps), list(values)) for label, steps, values in drawn}
    assert found.pop("training loss") == ([1, 2], [2.0, 1.0])
    steps, smoothed = found.pop("training loss, smoothed")
    assert steps == [1, 2] and smoothed == pytest.approx([2.0, (0.8 * 2.0 + 1.0) / 1.8])
    assert found == ({"held-out loss": ([0, 2], [3.0, 2.5])} if held_out else {})


def test_without_a_gpu_peft_trains_and_unsloth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "sees_gpu", lambda: False)
    for wanted in ("auto", "peft"):
        chosen = backend_choice.choose_backend(wanted)
        assert (chosen.name, chosen.device) == ("peft", "cpu")
    assert "no CUDA GPU" in backend_choice.choose_backend("auto").reason


def refused(monkeypatch: pytest.MonkeyPatch, gpu: str, packages: set[str], *, bf16: bool = True, **train: Any) -> str:
    """What is refused on a machine with this GPU and these packages; the doctor's finding is the same."""
    monkeypatch.setattr(hardware, "installed", lambda name: name in packages)
    config = config_file.build({"train": train})
    found = None if not gpu else hardware.Gpu(gpu, "", 0, 0, bf16, (8, 0), True)
    said = []
    for check in (
        lambda: precision.check_backend(config, gpu, bf16=bf16),
        lambda: checks.backend(config, found),
    ):
        try:
            check()
        except ToolkitError as exc:
            assert exc.exit_code == MISSING and exc.hint
            said.append(exc.message)
    assert len(said) in (0, 2) and len({*said}) < 2
    return said[0] if said else ""


def test_doctor_and_training_refuse_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(gpu: str, packages: set[str], **values: Any) -> str:
        return refused(monkeypatch, gpu, packages, **values)

    assert "no CUDA GPU" in found("", {"unsloth"}, backend="unsloth")
    assert "the package unsloth" in found("G", {"bitsandbytes"}, backend="unsloth")
    assert "f16, which needs" in found("", set(), precision="f16")
    assert "f32, but a GPU" in found("G", {"unsloth"}, precision="f32")
    assert "G does not compute in bf16" in found("G", {"unsloth"}, bf16=False, precision="bf16")
    assert "bitsandbytes" in found("G", {"unsloth"}, backend="peft")
    for gpu, packages, values in (
        ("", set(), {}), ("", set(), {"precision": "f32"}), ("G", {"unsloth"}, {"precision": "f16"}),
        ("G", {"bitsandbytes"}, {"precision": "bf16"}), ("G", {"unsloth"}, {"backend": "unsloth"}),
    ):  # fmt: skip
        assert found(gpu, packages, **values) == ""


def test_with_a_gpu_unsloth_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "sees_gpu", lambda: True)
    monkeypatch.setattr(hardware, "installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    assert (backend_choice.choose_backend("auto").name, backend_choice.choose_backend("auto").device) == (
        "unsloth",
        "cuda",
    )
    assert (backend_choice.choose_backend("peft").name, backend_choice.choose_backend("peft").device) == (
        "peft",
        "cuda",
    )
    assert backend_choice.choose_backend("unsloth", avoid="it broke").name == "unsloth"
    fallen = backend_choice.choose_backend("auto", avoid="it broke")
    assert fallen.name == "peft" and "it broke" in fallen.reason
    monkeypatch.setattr(hardware, "installed", lambda name: False)
    assert backend_choice.choose_backend("auto").name == "peft"


def test_a_gpu_that_only_emulates_bf16_computes_in_f16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Turing and Volta do: torch counts the emulation unless told not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert peft_backend.make_peft_backend("cuda", "").precision("auto") == "f16"
    assert peft_backend.make_peft_backend("cuda", "").precision("bf16") == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert peft_backend.make_peft_backend("cuda", "").precision("auto") == "bf16"


@pytest.mark.parametrize(("has", "taken"), [(True, "bf16"), (False, "f32")])
def test_a_cpu_computes_in_bf16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, has: bool, taken: str) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: has)
    assert peft_backend.make_peft_backend("cpu", "").precision("auto") == taken


def test_an_unsloth_that_breaks_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", None)  # importing it raises ImportError
    with pytest.raises(UnslothFailed, match="ModuleNotFoundError") as caught:
        unsloth_backend.make_unsloth_backend()
    assert 'train.backend = "peft"' in caught.value.hint and caught.value.exit_code == MISSING


@pytest.mark.parametrize(
    ("kind", "pads"), [("llama", False), ("phi3", False), ("gemma2", True), ("granitemoehybrid", True)]
)
def test_what_unsloth_lays_into_one_row(tmp_path: Path, kind: str, pads: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert unsloth_backend.pads(tmp_path) == pads


@pytest.mark.parametrize(("positions", "said"), [(0, 0), (20, 0), (19, 1), (5, 2)])
def test_records_longer_than_the_positions_of_the_base(
    positions: int, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job.warn_over_positions(np.array([5, 20, 12]), positions)
    found = " ".join(capsys.readouterr().err.split())
    assert (f"{said} of 3 records have more tokens" in found) is bool(said)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:24244", True),
        ("[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:24244: Connection reset by peer. This is", True),
        ("[/x/gloo/transport/tcp/pair.cc:380] writev [127.0.0.1]:24244: Broken pipe", True),
        ("[Errno 104] Connection reset by peer", False),  # of the hub
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_an_end_of_another_process_is_known_by_what_gloo_says(
    monkeypatch: pytest.MonkeyPatch, said: str, known: bool
) -> None:
    """Closed while it was waited for, reset or broken while data was under way."""
    monkeypatch.setattr(hardware, "launched", lambda: True)
    found = parallel.another_ended(RuntimeError(said))
    assert (found is not None) is known
    assert found is None or found.message == parallel.ANOTHER_ENDED
    monkeypatch.setattr(hardware, "launched", lambda: False)
    assert parallel.another_ended(RuntimeError(said)) is None
