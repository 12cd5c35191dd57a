"""The Triton kernels without a GPU: ggml's bytes in the interpreter, and no sum contracted in what is compiled."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

KINDS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
INTERPRET = """
import json, sys
from gguf import GGMLQuantizationType as Type
from toolkit.kernels import gpu
found = {}
for case in sys.argv[1:]:
    kind, weighted, bf16 = case.split(",")
    found[case] = gpu._tested(Type[kind], weighted == "1", bf16 == "1", "cpu")
print(json.dumps(found))
"""


def run(*arguments: str, **environment: str) -> dict[str, object]:
    """Run Python in a process of its own and return the JSON that it ends with."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def interpreted(cases: list[str]) -> None:
    assert run("-W", "ignore", "-c", INTERPRET, *cases, TRITON_INTERPRET="1") == dict.fromkeys(cases)


# Of each type: alike and unlike in both. `make exhaustive` tries all four.
OFTEN = ("0,0", "1,1")
OTHERS = ("0,1", "1,0")


@pytest.mark.slow
@pytest.mark.parametrize("ways", [OFTEN, pytest.param(OTHERS, marks=pytest.mark.exhaustive)], ids=["often", "others"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_interpreter_gives_the_bytes_of_ggml_for_every_type(kind: str, ways: tuple[str, ...]) -> None:
    """Weighted or not, of rows in bf16 or float32."""
    interpreted([f"{kind},{way}" for way in ways])


# Q4_K and Q5_K are the same kernels with other constants, and take longest: each compiles one of its ways.
COMPILED = {"Q4_K": ("0,0,80",), "Q5_K": ("1,1,90",), "Q6_K": ("0,0,80", "1,1,90"), "Q8_0": ("0,0,80", "1,1,90")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        *COMPILED.items(),
        pytest.param("Q4_K", ("1,1,90",), marks=pytest.mark.exhaustive),
        pytest.param("Q5_K", ("0,0,80",), marks=pytest.mark.exhaustive),
    ],
)
def test_nothing_is_contracted_flushed_or_approximated(kind: str, ways: tuple[str, ...], tmp_path: Path) -> None:
    cases = [f"{kind},{way}" for way in ways]
    for case, kernels in run("-m", "tests.support.ptx", *cases, TRITON_CACHE_DIR=str(tmp_path)).items():
        assert isinstance(kernels, dict) and len(kernels) >= (1 if kind == "Q8_0" else 3), case
        for name, counts in kernels.items():
            assert (counts["fused"], counts["flushed"], counts["approximate"]) == (0, 0, 0), f"{case} {name}"
            assert counts["rounded"] > 0 and counts["multiplied"] > 0, f"{case} {name}: the PTX was not understood"


@pytest.mark.slow
def test_the_count_sees_what_is_contracted(tmp_path: Path) -> None:
    found = run("-m", "tests.support.ptx", "--fused", "Q6_K,0,0,90", TRITON_CACHE_DIR=str(tmp_path))
    (kernels,) = found.values()
    assert isinstance(kernels, dict) and kernels["search_signed"]["fused"] > 0
