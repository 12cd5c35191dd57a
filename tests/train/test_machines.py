"""Several machines: groups of CPU processes under different host names, and the guide's commands."""

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.conftest import call_toolkit
from tests.support import pages
from tests.support.places import REPOSITORY
from tests.train.conftest import losses
from toolkit.cli import commands as verbs  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base

pytestmark = pytest.mark.slow

BLOCKS = [block.code for block in pages.blocks_of(REPOSITORY / "docs/guide/several-gpus.md")]
LAUNCHES = [line for code in BLOCKS for line in code.splitlines() if re.match(r"(accelerate|torchrun) ", line)]
SETTINGS = """
[run]
name = "{name}"
[data]
source = "{data}"
[model]
base = "{base}"
[train]
max_steps = 3
max_length = 320
lora_dropout = 0.0
precision = "f32"
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        return int(free.getsockname()[1])


def named(host: str) -> list[str]:
    """What gives a command a host name of its own; nothing where the system does not allow it."""
    prefix = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]
    try:
        said = subprocess.run([*prefix, "hostname"], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return prefix if said.stdout.strip() == host else []


def accelerate(rank: int, port: int) -> list[str]:
    how = ["--multi_gpu", "--num_machines=2", "--num_processes=2", f"--machine_rank={rank}"]
    how += ["--main_process_ip=127.0.0.2", f"--main_process_port={port}", "--mixed_precision=no", "--dynamo_backend=no"]
    return ["accelerate.commands.launch", *how]


def torchrun(rank: int, port: int) -> list[str]:
    how = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
    return ["torch.distributed.run", *how, "--master-addr=127.0.0.2", f"--master-port={port}"]


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("accelerate", accelerate), pytest.param("torchrun", torchrun, marks=pytest.mark.exhaustive)],
)
def test_two_machines_train_as_one_process_does(
    tmp_path: Path, base: Base, name: str, launcher: Callable[[int, int], list[str]]
) -> None:
    """One process on each; the folder is shared."""
    for run in ("one", name):
        text = SETTINGS.format(name=run, data=REPOSITORY / "data" / "sample.csv", base=base.folder)
        (tmp_path / f"{run}.toml").write_text(text)
        assert call_toolkit("prepare", "-c", f"{run}.toml", cwd=tmp_path).code == 0
    assert call_toolkit("train", "-c", "one.toml", cwd=tmp_path).code == 0
    one = losses(RunFolder(tmp_path / "exports" / "one", "one"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OLLAMA_HOST": "127.0.0.1:9"}
    port = free_port()
    verb = ["-m", "toolkit", "train", "-c", f"{name}.toml", "--json"]
    machines = [
        subprocess.Popen(
            [*named(f"machine-{rank}"), sys.executable, "-m", *launcher(rank, port), *verb],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [machine.communicate(timeout=600) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    assert json.loads(said[0][0].splitlines()[-1])["devices"] == 2 and not said[1][0]
    two = losses(RunFolder(tmp_path / "exports" / name, name))
    assert two == pytest.approx(one, rel=1e-5) and len(one) == 3


def check_launch(words: list[str]) -> dict[str, int | str]:
    """Parse a launcher's arguments as it does itself, and the toolkit's after them; return where they lead."""
    where: dict[str, int | str]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(words[1:])
        where = {
            "machines": int(found.nnodes), "processes": int(found.nnodes) * int(found.nproc_per_node),
            "rank": int(found.node_rank), "main": f"{found.master_addr}:{found.master_port}",
        }  # fmt: skip
    else:
        from accelerate.commands.launch import launch_command_parser

        found = launch_command_parser().parse_args(words[2:])
        where = {
            "machines": found.num_machines, "processes": found.num_processes,
            "rank": found.machine_rank, "main": f"{found.main_process_ip}:{found.main_process_port}",
        }  # fmt: skip
    assert found.module and found.training_script == "toolkit"
    name, *arguments = found.training_script_args
    verb = group.get_command(click.Context(group), name)
    assert verb is not None
    verb.make_context(name, arguments)
    return where


def test_the_guides_launches_parse() -> None:
    found = [check_launch(shlex.split(line)) for line in LAUNCHES if "node-a" in line]
    expected = {"machines": 2, "processes": 8, "rank": 0, "main": "node-a:29500"}
    assert found == [expected, expected]
    for line in LAUNCHES:
        check_launch(shlex.split(line))


def test_the_guides_slurm_script_starts_each_machine_with_its_number(tmp_path: Path) -> None:
    """With stand-ins: `srun` runs its command once for each machine, as SLURM would with these variables."""
    (script,) = [code for code in BLOCKS if "#SBATCH" in code]
    stand_ins = {
        "scontrol": "printf 'node-a\\nnode-b\\n'",
        "srun": 'for i in 0 1; do SLURM_NODEID=$i SLURM_NNODES=2 "$@"; done',
        "torchrun": 'printf "%s\\n" "torchrun $*"',
    }
    for name, code in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-[a-b]"}
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, env=environment, check=True)
    found = [check_launch(shlex.split(line)) for line in done.stdout.splitlines()]
    assert found == [{"machines": 2, "processes": 8, "rank": rank, "main": "node-a:29500"} for rank in (0, 1)]
