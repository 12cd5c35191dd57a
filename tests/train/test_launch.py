"""Training in other processes: the outcome, errors and Ctrl-C come through, and two processes equal one."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_toolkit
from tests.support import processes
from tests.support.places import REPOSITORY
from tests.support.waiting import wait_while_running
from tests.support.warm import TRAINS, WORKER
from tests.train.conftest import KILL_ONE, SAME, changed, losses, plain, small_run, wait_for_step, with_, write_records
from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.train import checkpoints, launch, parallel, train

pytestmark = pytest.mark.slow


def test_another_process_gives_the_same_outcome(
    small: tuple[Config, RunFolder], base: Base, capfd: pytest.CaptureFixture[str], warm: None
) -> None:
    settings, folder = small
    here = train(settings, folder, base)
    expected = losses(folder)
    there = launch.run_training(settings, folder, base, restart=True)
    assert losses(folder) == pytest.approx(expected, rel=SAME)
    assert [path.resolve() for path in there.outputs] == [path.resolve() for path in here.outputs]
    assert set(there.figures) == {*here.figures, "times_out_of_memory"}
    for name in set(here.figures) - {"plan", "seconds", "tokens_per_second"}:
        one, other = here.figures[name], there.figures[name]
        assert other == (pytest.approx(one, rel=SAME) if isinstance(one, float) else one), name
    assert capfd.readouterr().out == ""  # stdout belongs to the verb's result


def test_an_error_comes_through_with_hint_code_and_details(
    small: tuple[Config, RunFolder], base: Base, warm: None
) -> None:
    settings, folder = small
    wild = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(ToolkitError, match=r"step .*: the loss is .* rows") as caught:
        launch.run_training(wild, folder, base)
    assert "learning_rate" in caught.value.hint and caught.value.exit_code == 1
    assert caught.value.details["step"] >= 2 and caught.value.details["rows"]


def test_a_killed_process_is_said_and_the_next_one_goes_on(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    settings, folder = small
    real = subprocess.Popen.wait

    def shot(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        log = folder.checkpoints / "train_log.jsonl"
        wait_while_running(process, lambda: log.is_file() and '"step": 5, "loss"' in log.read_text())
        process.kill()
        return real(process, timeout)

    with monkeypatch.context() as patch, pytest.raises(ToolkitError, match="killed by signal 9") as caught:
        patch.setattr(subprocess.Popen, "wait", shot)
        launch.run_training(settings, folder, base)
    assert "memory" in caught.value.hint
    assert launch.run_training(settings, folder, base).figures["resumed_at_step"] in (3, 6)


def test_unsloth_that_fails_gives_way_to_peft(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = small
    requests = []

    def run(request: dict[str, Any], gpus: int) -> dict[str, Any]:
        requests.append(request["avoid"])
        if not request["avoid"]:
            error = {"message": "m", "hint": "h", "exit_code": 3, "details": {}}
            return {"error": error, "unsloth_error": "no triton"}
        return {"outputs": [], "figures": {}, "warning": ""}

    monkeypatch.setattr(launch, "run_worker", run)
    launch.run_training(settings, folder, base)
    assert requests == ["", "Unsloth does not work here (no triton)"]
    assert "PEFT trains instead" in capsys.readouterr().err
    demanded = settings.model_copy(update={"train": settings.train.model_copy(update={"backend": "unsloth"})})
    with pytest.raises(ToolkitError, match="m"):
        launch.run_training(demanded, folder, base)


@pytest.fixture(scope="module")
def alone(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder, Outcome]:
    """A run of one process that two can do too."""
    settings, folder = small_run(tmp_path_factory.mktemp("alone"))
    settings = plain(settings, batch_size=3, gradient_accumulation_steps=2, eval_steps=4)
    return settings, folder, train(settings, folder, base)


def test_two_processes_have_the_losses_of_one(
    alone: tuple[Config, RunFolder, Outcome], base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    """gloo on a CPU. One process has all four held-out records, the other copies that do not count.

    Processes that cannot share a step evenly are refused, and the hint's own words make it work.
    """
    first, one = alone[1].train_log.read_text().splitlines(), alone[2]
    settings, folder = with_(alone[0], tmp_path / "two", gradient_accumulation_steps=1)
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    with pytest.raises(ToolkitError, match="2 processes cannot share the 3 records") as caught:
        launch.run_training(settings, folder, base, gpus=2)
    named = dict(re.findall(r"--set train\.(\w+)=(\d+)", caught.value.hint))
    settings = changed(settings, **{key: int(value) for key, value in named.items()})
    assert settings.train == alone[0].train
    two = launch.run_training(settings, folder, base, gpus=2)
    assert two.figures["devices"] == 2 and not list(temporary.iterdir())
    together = folder.train_log.read_text().splitlines()
    assert len(first) == len(together) == 8 + 3
    for mine, other in zip(map(json.loads, first), map(json.loads, together), strict=True):
        for key in ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "eval_loss"):
            if key in mine:
                assert other[key] == pytest.approx(mine[key], rel=1e-5)
        parts = [[number for part in one.get("eval_parts", []) for number in part] for one in (mine, other)]
        assert parts[1] == pytest.approx(parts[0], rel=1e-5) and len(parts[0]) == 8 * ("eval_loss" in mine)
    assert {path.name for path in two.outputs} == {path.name for path in one.outputs}
    assert two.figures["tokens_seen"] == one.figures["tokens_seen"]


def test_what_a_killed_call_left_among_the_temporary_files_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys, tempfile; from toolkit.train import launch\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "launch.WORKER = ['-c', 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)']\n"
        "launch.run_worker({'base': 'x'}, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert "x" in (left / "request.json").read_text()
    os.utime(left, (0, 0))  # as after a minute: a folder that is younger may not be locked yet
    monkeypatch.setattr(launch, "WORKER", ["-c", "import sys; open(sys.argv[2], 'w').write('{}')"])
    assert launch.run_worker({}, 1) == {} and not list(tmp_path.iterdir())


def test_a_run_of_two_processes_goes_on_in_one(
    alone: tuple[Config, RunFolder, Outcome], base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    """One of two is killed in step 5; the run goes on from step 4 with the records of one that was not."""
    settings, folder = with_(alone[0], tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(ToolkitError, match=r"training process.* (ended|was killed)"):
        patch.setattr(launch, "WORKER", [*WORKER[:2], "-c", KILL_ONE])
        launch.run_training(settings, folder, base, gpus=2)
    assert not folder.adapter.exists()
    assert launch.run_training(settings, folder, base).figures["resumed_at_step"] == 4
    assert losses(folder) == pytest.approx(losses(alone[1]), rel=1e-5)


def test_accelerate_launches_the_verb_itself(tmp_path: Path, base: Base, warm: None) -> None:
    """Two processes of `accelerate launch -m toolkit train`: one result, and the others end with it."""
    settings = f"""
[run]
name = "r"
[data]
source = "{REPOSITORY / "data" / "sample.csv"}"
[model]
base = "{base.folder}"
[train]
max_steps = 3
max_length = 320
"""
    (tmp_path / "toolkit.toml").write_text(settings)
    assert call_toolkit("prepare", cwd=tmp_path).code == 0
    how = ["--multi_gpu", "--num_machines=1", "--num_processes=2", "--main_process_port=0", "--mixed_precision=no"]
    how += ["--dynamo_backend=no", *WORKER[:2], "-m", "toolkit"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OLLAMA_HOST": "127.0.0.1:9"}
    for fresh in (False, True):
        done = subprocess.run(
            [*command, "train", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(results) == 1
        assert results[0]["fresh"] is fresh and results[0]["devices"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_process_that_trains(tmp_path: Path, base: Base, number: signal.Signals) -> None:
    """As from a terminal: exit code 130, a checkpoint, and the same command goes on."""
    settings = f"""
[run]
name = "small"
[model]
base = "{base.folder}"
[train]
max_steps = 400
max_length = 256
save_steps = 1000
"""
    (tmp_path / "toolkit.toml").write_text(settings)
    folder = RunFolder(tmp_path / "exports" / "small", "small")
    write_records(folder)
    process = processes.start(
        "-m", "toolkit", "train", "--json", cwd=tmp_path, env={"OLLAMA_HOST": "127.0.0.1:9"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, imports=TRAINS,
    )  # fmt: skip
    wait_for_step(folder, 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Loading weights" not in err and "Failed to load" not in err  # what transformers and bitsandbytes say
    assert "stopping as soon as a checkpoint can be saved" in err and json.loads(out)["exit_code"] == 130
    assert len(list(folder.checkpoints.glob(f"*/checkpoint-*/{checkpoints.MARKER}"))) == 1


def test_a_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.rank() == 0 and not parallel.sharded()
    parallel.dismiss()
    assert not console.is_quiet()


CHATTY = """
import sys
from pathlib import Path
from toolkit.core.errors import ToolkitError
from toolkit.train import worker
def train(*_, **__):
    print("a banner")
    raise ToolkitError("no GPU")
worker.train = train
sys.exit(worker.main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.parametrize(("rank", "shown"), [("0", "a banner\n"), ("1", "")])
def test_the_first_of_several_processes_shows_what_libraries_print(
    small: tuple[Config, RunFolder], base: Base, tmp_path: Path, rank: str, shown: str
) -> None:
    """The others' errors are shown all the same: their launcher ends the first before it can tell of them."""
    asked, answer = tmp_path / "request.json", tmp_path / "answer.json"
    asked.write_text(json.dumps(launch.request_of(*small, base)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": rank, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", CHATTY, str(asked), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stdout == shown
    assert answer.is_file() == (rank == "0") and ("no GPU" in done.stderr) == (rank == "1")


@pytest.mark.parametrize(("given", "seen"), [(None, "0"), ("2,3", "2"), ("GPU-5f,GPU-6a", "GPU-5f"), ("", "")])
def test_a_process_alone_sees_one_gpu(
    given: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several in sight, transformers' trainer wraps the model into `nn.DataParallel`, which TRL refuses."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys\n"
        "with open(sys.argv[2], 'w') as file:\n"
        "    json.dump({'seen': os.environ['CUDA_VISIBLE_DEVICES']}, file)\n"
    )
    monkeypatch.setattr(launch, "WORKER", [str(child)])
    assert launch.run_worker({}, 1) == {"seen": seen}
