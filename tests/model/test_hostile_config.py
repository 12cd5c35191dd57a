"""A config.json in which anything stands: the base is used, or refused in one line, and little is laid out for it."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bases import CONFIGS, save_base
from toolkit import pipeline
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import folder_of
from toolkit.doctor import checks, disk, resources
from toolkit.export import foresight, plan
from toolkit.model import families
from toolkit.model.families.family import Family, Layout
from toolkit.model.model_config import ModelConfig

VALUES = [
    0, -1, 1, 2, 3, 999, 2**31, 2**32, 10**9, 10**400, 0.5, 1e-300, 1e300, float("inf"), float("nan"), "", "x", [], [1],
    [[]], {}, {"type": "longrope"}, None, True, False, ["sliding_attention"] * 3000,
]  # fmt: skip
ADDED = {"quantization_config": None, "num_local_experts": None, "rope_parameters": None}


def keys(values: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *inner) for inner in keys(value))


PLACES = [(family, place) for family, values in CONFIGS.items() for place in keys({**values, **ADDED})]
anything = st.one_of(st.sampled_from(VALUES), st.integers(), st.floats(), st.lists(st.integers(), max_size=3))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in CONFIGS}


@pytest.fixture(scope="module")
def laid_out() -> Iterator[list[int]]:
    """How many tensors each call laid out."""
    counts: list[int] = []

    def counted(family: Family, model: ModelConfig) -> list[Layout]:
        layouts = family.layouts(model)
        counts.append(len(layouts))
        return layouts

    with pytest.MonkeyPatch.context() as patch:
        for name, family in families.FAMILIES.items():
            fields = {**vars(family), "layouts": partial(counted, family)}
            patch.setitem(families.FAMILIES, name, Family(**fields))
        yield counts


def write(bases: dict[str, Path], family: str, place: tuple[str, ...], value: Any) -> Path:
    """Write one changed value into a family's config.json; return the base's folder."""
    values = json.loads(json.dumps({**CONFIGS[family], **ADDED}))
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (bases[family] / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return bases[family]


def outcome(call: Any) -> str:
    """What a call says: nothing, or its error, which is the toolkit's own and one line that names a file."""
    try:
        call()
    except ToolkitError as exc:
        assert "\n" not in exc.message and len(exc.message) < 500
        assert "config.json" in exc.message or exc.message.startswith("the base model in `")
        assert exc.hint
        return exc.message
    return ""


@given(change=st.sampled_from(PLACES), value=anything)
def test_a_base_is_used_or_refused(
    bases: dict[str, Path], laid_out: list[int], change: tuple[str, tuple[str, ...]], value: Any
) -> None:
    base = write(bases, *change, value)
    laid_out.clear()
    said = outcome(lambda: plan(base, None, ["Q4_K_M", "IQ2_M"]))
    asked = outcome(lambda: foresight.open_base(base))
    assert said == asked  # the doctor tells before training what the export would
    outcome(lambda: checks.base_model(str(base), "", offline=True))
    assert sum(laid_out) <= 2 * 25  # the checkpoint has 19 to 23 tensors


@given(change=st.sampled_from(PLACES), value=anything)
def test_the_doctor_computes_for_any_config(
    bases: dict[str, Path], laid_out: list[int], change: tuple[str, tuple[str, ...]], value: Any
) -> None:
    """Its sums need no weights: a thousand layers are the most that it lays out."""
    base = write(bases, *change, value)
    laid_out.clear()
    config = build({"model": {"base": str(base)}, "data": {"source": str(base / "config.json")}}, ())
    model = resources.shape_or_none(str(base), "")
    if model is None:
        resources.least_memory(str(base), "")
        return
    job = resources.Job(config, folder_of(config), dict.fromkeys(pipeline.STAGES, 0), model, None)
    found = [resources.adapter(config, model), *resources.memory(job), *disk.disk(job)]
    assert all(check.found for check in found)
    assert all(count <= 20_000 for count in laid_out)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layers", [3, 999, 10**6, 10**9, 2**63])
def test_layers_that_the_weights_have_not_are_never_laid_out(
    bases: dict[str, Path], laid_out: list[int], family: str, layers: int
) -> None:
    write(bases, family, ("num_hidden_layers",), layers)
    laid_out.clear()
    with pytest.raises(ToolkitError, match=r"config\.json.*`num_hidden_layers`"):
        plan(bases[family], None, ["Q4_K_M"])
    assert laid_out == []


def test_an_original_context_of_one_token_is_named(bases: dict[str, Path]) -> None:
    write(bases, "phi3", ("original_max_position_embeddings",), 1)
    with pytest.raises(ToolkitError, match=r"config\.json.*`original_max_position_embeddings`: 1"):
        plan(bases["phi3"], None, ["F16"])
