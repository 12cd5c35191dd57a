"""Stand for a process that trains, and start it warm: `python -m tests.support.warm -m toolkit.train.worker …`.

`toolkit.train.launch` starts that process by itself, and so does accelerate's launcher. This one imports nothing large:
a fork of the warm parent trains with its streams and environment. Signals are passed on, and both end alike.
"""

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.support import cache, processes
from tests.support.places import REPOSITORY

if TYPE_CHECKING:
    import pytest

WORKER = ["-m", "tests.support.warm", "-m", "toolkit.train.worker"]  # in the place of `launch.WORKER`
TRAINS = (*processes.LARGE, *processes.LARGE_TOO, "toolkit.train.trainer", "toolkit.train.outcome")


def is_known(env: dict[str, str]) -> bool:
    """Tell whether a fork of the warm parent would be what a process with this environment is."""
    if not {cache.PLACE, processes.PARENTS} <= set(env):
        return False
    # A process that trains alone is shown one GPU; libraries look there when they use one, not as they are imported.
    # What accelerate's launcher says is for torch.distributed alone.
    left_out = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TORCHELASTIC_", "TORCH_NCCL_")
    known = (processes.fixed(env), json.loads(env[processes.PARENTS]))
    mine, theirs = ({name: some[name] for name in some if not name.startswith(left_out)} for some in known)
    return mine == theirs and set(env.get("PYTHONPATH", "").split(os.pathsep)) == {str(REPOSITORY)}


def train_warm(patch: "pytest.MonkeyPatch") -> None:
    """Have what this process starts to train begin warm, until the patch is undone."""
    from toolkit.train import launch

    processes.run("-c", "", imports=TRAINS)  # the parent is there from now on
    patch.setattr(launch, "WORKER", WORKER)
    patch.setenv(processes.PARENTS, json.dumps(processes.of_parent()))


def main(arguments: list[str]) -> None:
    """Run Python with these arguments, warm where that is the same; end as it ends."""
    env = dict(os.environ)
    if sys.platform != "linux" or not is_known(env):
        os.execv(sys.executable, [sys.executable, *arguments])
    process = processes.start(*arguments, env=env, imports=TRAINS, afresh=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
