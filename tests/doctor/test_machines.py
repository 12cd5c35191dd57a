"""The guide's table of machines is what the plans compute."""

import re

import pytest

from tests.support.places import REPOSITORY
from toolkit.core.config_file import build, load_config
from toolkit.doctor import estimate, machines
from toolkit.model.known_models import known_model
from toolkit.model.memory import total

LLAMA_8B = known_model("llama-3.1-8b")
assert LLAMA_8B is not None
GUIDE = (REPOSITORY / "docs/guide/gpu.md").read_text(encoding="utf-8")
RECIPE = load_config(REPOSITORY / "examples" / "medassist.toml")


def test_the_guides_table_of_machines_is_computed() -> None:
    assert LLAMA_8B is not None
    table = machines.machines_table(RECIPE, LLAMA_8B)
    assert table in GUIDE, table
    assert len(re.findall(r"^\| [0-9.]+ GB \|", table, re.MULTILINE)) == 4


def test_the_guides_memory_is_enough() -> None:
    """What the guide says that the recipe needs of main memory is at least twice what each stage computes."""
    assert LLAMA_8B is not None
    [stated] = re.findall(r"a CUDA GPU, (\d+) GB of memory", GUIDE)
    validation = estimate.validation(LLAMA_8B, RECIPE.export.quantizations, 2048)
    needs = [total(validation), total(estimate.export_memory(LLAMA_8B, 2, whole=False))]
    assert max(needs) < 0.5 * int(stated) * 1e9 < 20e9


@pytest.mark.parametrize(
    ("ram", "gpu", "changes", "said"),
    [
        (3.0, 15, (), "validate needs"),
        (8.0, 4, (), "train needs .* of the GPU"),
        (8.0, 15, ("export.merge_base=as-trained",), "all, 8 of 8"),
        (3.0, 15, ("export.merge_base=as-trained",), "export needs .*; validate needs"),
        (8.0, 15, ("train.max_length=16384",), "validate needs"),
        (2.5, 8, ("train.max_length=256",), "train needs 2.1 GB"),
    ],
)
def test_what_does_not_fit_is_named(ram: float, gpu: int, changes: tuple[str, ...], said: str) -> None:
    assert LLAMA_8B is not None
    assert re.search(said, machines.what_fits(build({}, changes), LLAMA_8B, ram, gpu))
