"""A warm process is to a test what one started afresh is: its streams, folder, environment, end and signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.places import REPOSITORY

PIPE = subprocess.PIPE


def both(*arguments: str, cwd: Path, **env: str) -> list[tuple[int, str, str]]:
    """Run `python ARGUMENTS` afresh and warm; return how each ended."""
    afresh = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    warm = processes.run(*arguments, cwd=cwd, env=env, imports=())
    return [(done.returncode, done.stdout, done.stderr) for done in (afresh, warm)]


SAYS = """
import os, sys, __main__
print(sys.argv, os.getcwd(), os.environ["ONE"], os.environ.get("TWO"), __name__, __main__.SAID, sys.stdin.read())
print(sys.path[0], file=sys.stderr)
"""


@pytest.mark.slow
def test_arguments_folder_environment_and_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWO", "2")
    afresh, warm = both("-c", "SAID = 'é'\n" + SAYS, "a b", "--c", cwd=tmp_path, ONE="ü")
    assert afresh == warm and afresh[0] == 0 and str(tmp_path) in afresh[1]
    monkeypatch.delenv("TWO")
    assert " None " in both("-c", "SAID = 0\n" + SAYS, cwd=tmp_path, ONE="1")[1][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('said')", 1),
        ("import sys; sys.exit(None)", 0),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()", 0),
    ],
)
def test_how_a_process_ends(code: str, status: int, tmp_path: Path) -> None:
    afresh, warm = both("-c", code, cwd=tmp_path)
    assert afresh == warm and warm[0] == status


@pytest.mark.slow
def test_a_module_is_run_and_an_exception_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; print(sys.argv, __name__); 1 / 0\n")
    afresh, warm = both("-m", "mine", "x", cwd=tmp_path)
    assert afresh[:2] == warm[:2] and warm[0] == 1 and "__main__" in warm[1]
    assert afresh[2].splitlines()[-1] == warm[2].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert both("-m", "toolkit", "status", "--json", cwd=tmp_path)[1][0] == 2


@pytest.mark.slow
def test_signals_reach_the_process_itself(tmp_path: Path) -> None:
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = processes.start("-c", waits, stdout=PIPE, stderr=PIPE, imports=())
        assert isinstance(process, processes.Forked) and process.stdout
        assert int(process.stdout.readline()) == process.pid and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
        assert process.returncode == -sent and ("KeyboardInterrupt" in said) == (sent == signal.SIGINT)
        process.kill()  # of a process that has ended: nothing


def test_several_at_once_know_nothing_of_each_other() -> None:
    echo = "import sys; sys.seen = [*getattr(sys, 'seen', []), 1]; print(sys.stdin.read(), len(sys.seen))"
    started = [processes.start("-c", echo, stdin=PIPE, stdout=PIPE, imports=()) for _ in range(4)]
    for number, process in reversed([*enumerate(started)]):
        assert process.communicate(str(number), timeout=30)[0] == f"{number} 1\n" and process.returncode == 0


@pytest.mark.slow
def test_what_a_library_reads_as_it_is_imported_needs_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(**env: str) -> type:
        process = processes.start("-c", "", env=env, imports=())
        assert process.wait(30) == 0
        return type(process)

    assert kind() is kind(OLLAMA_HOST="x") is processes.Forked
    assert kind(HF_HOME="/x") is kind(XDG_CACHE_HOME="/x") is kind(PYTHONPATH="/x") is subprocess.Popen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert kind() is subprocess.Popen


@pytest.mark.slow
def test_torch_is_there_and_computes_in_threads() -> None:
    code = (
        "import sys; before = 'torch' in sys.modules\n"
        "import os, torch\n"
        "x = torch.ones(1000, 1000)\n"
        "print(before, torch.get_num_threads(), float((x @ x).sum()), float(torch.rand(1)))"
    )
    said = [processes.run("-c", code, env={"OMP_NUM_THREADS": "2"}).stdout.split() for _ in range(2)]
    assert [words[:3] for words in said] == [["True", "2", "1000000000.0"]] * 2
    assert said[0][3] != said[1][3]  # random numbers are each process's own


@pytest.mark.slow
def test_what_a_verb_starts_to_train_is_warm_where_that_is_the_same(tmp_path: Path) -> None:
    """It stands for a fork: its environment, its streams, its end, and the signals that come to it."""
    started = (
        "import os, subprocess, sys\n"
        "from toolkit.train import launch\n"
        "env = {**os.environ, **eval(sys.argv[1])}\n"
        "command = [sys.executable, *launch.WORKER[:2], '-c', sys.argv[2], 'x']\n"
        "process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)\n"
        "print(process.stdout.readline().strip(), flush=True)\n"
        "process.send_signal(int(sys.argv[3]))\n"
        "print(process.wait())\n"
    )
    says = "import os, sys, time; print('torch' in sys.modules, os.environ['RANK'], sys.argv, flush=True); "

    def said(then: str, number: int, **env: str) -> list[str]:
        done = processes.run("-c", started, repr({"RANK": "1", **env}), says + then, str(number), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert said("os._exit(7)", 0) == ["True 1 ['-c', 'x']", "7"]
    waits = "time.sleep(60)"
    for number in (signal.SIGTERM, signal.SIGKILL):
        assert said(waits, number) == ["True 1 ['-c', 'x']", str(-number)]
    assert said("sys.exit(3)", 0, HF_HOME="/x") == ["False 1 ['-c', 'x']", "3"]
