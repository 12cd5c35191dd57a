"""Large libraries say nothing of their own on a user's terminal: bitsandbytes gives advice when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

pytestmark = pytest.mark.slow

DOORS = {
    "the command line": "from toolkit.cli.main import main; sys.argv[1:] = ['--version']; end(main)",
    "a Python program": "import toolkit; end(lambda: toolkit.Run.load('none.toml'))",
    "a process that trains": "from toolkit.train import worker; end(lambda: worker.main(Path('none'), Path('none')))",
}

CHILD = """
import logging, sys
from pathlib import Path

def end(call):
    try:
        call()
    except (Exception, SystemExit):
        pass

{door}
assert "bitsandbytes" not in sys.modules
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("install some kernels")
logging.getLogger("bitsandbytes.backends.cpu.ops").error("broken")
"""


@pytest.mark.parametrize("door", DOORS)
def test_advice_of_bitsandbytes_is_not_shown_and_its_errors_are(door: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(door=DOORS[door])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert "broken" in done.stderr and "install some kernels" not in done.stderr
