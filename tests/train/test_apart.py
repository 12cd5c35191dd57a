"""Training in other processes: the outcome, errors and Ctrl-C come through, and two processes equal one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, call_toolkit
from tests.train.conftest import SAME, write_records
from tests.train.test_train import losses, wait_for_step, with_
from toolkit import console
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.run import RunFolder
from toolkit.train import apart, train, workers

pytestmark = pytest.mark.slow


def test_another_process_gives_the_same_outcome(
    small: tuple[Config, RunFolder], base: Base, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, folder = small
    here = train(settings, folder, base)
    expected = losses(folder)
    there = apart.train_apart(settings, folder, base, restart=True)
    assert losses(folder) == pytest.approx(expected, rel=SAME)
    assert [path.resolve() for path in there.outputs] == [path.resolve() for path in here.outputs]
    assert set(there.figures) == set(here.figures)
    for name in set(here.figures) - {"plan", "seconds", "tokens_per_second"}:
        one, other = here.figures[name], there.figures[name]
        assert other == (pytest.approx(one, rel=SAME) if isinstance(one, float) else one), name
    assert capfd.readouterr().out == ""  # stdout belongs to the verb's result


def test_an_error_comes_through_with_hint_code_and_details(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    wild = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(ToolkitError, match=r"step .*: the loss is .* rows") as caught:
        apart.train_apart(wild, folder, base)
    assert "learning_rate" in caught.value.hint and caught.value.exit_code == 1
    assert caught.value.details["step"] >= 2 and caught.value.details["rows"]


def test_a_killed_process_is_said_and_the_next_one_goes_on(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = small
    real = subprocess.Popen.wait

    def shot(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        log = folder.checkpoints / "train_log.jsonl"
        while process.poll() is None and not (log.is_file() and '"step": 5, "loss"' in log.read_text()):
            time.sleep(0.01)
        process.kill()
        return real(process, timeout)

    with monkeypatch.context() as patch, pytest.raises(ToolkitError, match="killed by signal 9") as caught:
        patch.setattr(subprocess.Popen, "wait", shot)
        apart.train_apart(settings, folder, base)
    assert "memory" in caught.value.hint
    assert apart.train_apart(settings, folder, base).figures["resumed_at_step"] in (3, 6)


def test_unsloth_that_fails_gives_way_to_peft(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = small
    orders = []

    def run(order: dict, gpus: int) -> dict:
        orders.append(order["avoid"])
        if not order["avoid"]:
            return {"error": {"message": "m", "hint": "h", "exit_code": 3, "details": {}}, "avoid": "no triton"}
        return {"outputs": [], "figures": {}}

    monkeypatch.setattr(apart, "_run", run)
    apart.train_apart(settings, folder, base)
    assert orders == ["", "Unsloth does not work here (no triton)"]
    assert "PEFT trains instead" in capsys.readouterr().err
    demanded = settings.model_copy(update={"train": settings.train.model_copy(update={"backend": "unsloth"})})
    with pytest.raises(ToolkitError, match="m"):
        apart.train_apart(demanded, folder, base)


def test_two_processes_have_the_losses_of_one(small: tuple[Config, RunFolder], base: Base) -> None:
    """gloo on a CPU; without dropout, because each process draws its own."""
    settings, folder = small
    values = {"precision": "f32", "lora_dropout": 0.0, "batch_size": 3, "accumulation": 1, "eval_steps": 4}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=values)})
    one = train(settings, folder, base)
    alone = folder.train_log.read_text().splitlines()
    settings, folder = with_(settings, Path(settings.run.folder) / "two")
    two = apart.train_apart(settings, folder, base, gpus=2)
    assert two.figures["devices"] == 2
    together = folder.train_log.read_text().splitlines()
    assert len(alone) == len(together) == 8 + 3
    for first, second in zip(map(json.loads, alone), map(json.loads, together), strict=True):
        for key in ("step", "loss", "grad_norm", "learning_rate", "tokens", "held_out_loss"):
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=1e-5)
    assert {path.name for path in two.outputs} == {path.name for path in one.outputs}
    assert two.figures["tokens_seen"] == one.figures["tokens_seen"]


def test_accelerate_launches_the_verb_itself(tmp_path: Path, base: Base) -> None:
    """Two processes of `accelerate launch -m toolkit train`: one result, and the others end with it."""
    settings = f"""
[run]
name = "r"
[data]
source = "{REPOSITORY / "data" / "sample.csv"}"
[model]
base = "{base.folder}"
[train]
steps = 3
max_length = 320
"""
    (tmp_path / "toolkit.toml").write_text(settings)
    assert call_toolkit("prepare", cwd=tmp_path).code == 0
    launch = ["--multi_gpu", "--num_machines=1", "--num_processes=2", "--main_process_port=0", "--mixed_precision=no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--dynamo_backend=no", "-m", "toolkit"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OLLAMA_HOST": "127.0.0.1:9"}
    for fresh in (False, True):
        done = subprocess.run(
            [*command, "train", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(results) == 1
        assert results[0]["fresh"] is fresh and results[0]["devices"] == 2


def test_ctrl_c_reaches_the_process_that_trains(tmp_path: Path, base: Base) -> None:
    """As from a terminal: exit code 130, a checkpoint of the step in hand, and the same command goes on."""
    settings = f"""
[run]
name = "small"
[model]
base = "{base.folder}"
[train]
steps = 400
max_length = 256
save_steps = 1000
"""
    (tmp_path / "toolkit.toml").write_text(settings)
    folder = RunFolder(tmp_path / "exports" / "small", "small")
    write_records(folder)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OLLAMA_HOST": "127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "train", "--json"], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_step(folder, 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "stopping after this step" in err and json.loads(out)["exit_code"] == 130
    assert len(list(folder.checkpoints.glob("checkpoint-*"))) == 1


def test_a_process_alone_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = workers.join()
    assert alone == workers.Workers() and alone.first and workers.rank() == 0
    assert alone.say({"a": 1}) == {"a": 1} and alone.sums([1.0, 2.0]) == [1.0, 2.0]
    assert not console.is_quiet()


CHATTY = """
import sys
from pathlib import Path
from toolkit.errors import ToolkitError
from toolkit.train import child
def train(*_, **__):
    print("a banner")
    raise ToolkitError("no card")
child.train = train
sys.exit(child.main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.parametrize(("rank", "shown"), [("0", "a banner\n"), ("1", "")])
def test_the_first_of_several_processes_shows_what_libraries_print(
    small: tuple[Config, RunFolder], base: Base, tmp_path: Path, rank: str, shown: str
) -> None:
    """The others' errors are shown all the same: their launcher ends the first before it can tell of them."""
    asked, answer = tmp_path / "order.json", tmp_path / "answer.json"
    asked.write_text(json.dumps(apart.order(*small, base)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": rank, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", CHATTY, str(asked), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stdout == shown
    assert answer.is_file() == (rank == "0") and ("no card" in done.stderr) == (rank == "1")
