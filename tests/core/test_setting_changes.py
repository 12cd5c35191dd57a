"""A record of an earlier version lacks the settings that came since: those that have their defaults did not change."""

from typing import Any

import pytest

from toolkit.core.config import SECTIONS
from toolkit.core.config_file import build
from toolkit.core.output_settings import MAX_KL
from toolkit.core.setting_changes import changed_settings, default_of

ALL = [f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields]
MORE = {**MAX_KL, "Q4_K_M": 0.1}


def flat(**given: dict[str, Any]) -> dict[str, Any]:
    config = build(given)
    return {f"{name}.{key}": value for name in SECTIONS for key, value in config.section(name).items()}


def without(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


@pytest.mark.slow
def test_any_setting_may_be_new() -> None:
    now = flat()
    assert [key for key in ALL if changed_settings(without(now, key), now)] == []
    assert {key: default_of(key) for key in ALL} == {**now, "train.max_steps": None}


def test_a_record_without_any_setting_is_one_of_the_defaults() -> None:
    assert changed_settings({}, flat()) == []
    assert changed_settings({}, flat(train={"turns": "last"}, data={"clean": ["html"]})) == [
        "data.clean",
        "train.turns",
    ]


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"data": {"near_duplicates": "drop"}}, "data.near_duplicates"),
        ({"train": {"base_compute": "fp8"}}, "train.base_compute"),
        ({"train": {"target_modules": ["q_proj"]}}, "train.target_modules"),
        ({"train": {"max_steps": 4}}, "train.max_steps"),
        ({"export": {"overrides": {"output.weight": "Q8_0"}}}, "export.overrides"),
        ({"validate": {"max_kl": {"Q4": 0.1}}}, "validate.max_kl"),
        ({"validate": {"max_kl": {"K": 9.0}}}, "validate.max_kl"),
    ],
)
def test_a_new_setting_that_is_not_at_its_default_is_a_change(given: dict[str, Any], changed: str) -> None:
    now = flat(**given)
    assert changed_settings(without(now, changed), now) == [changed]
    assert changed_settings(now, now) == []


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        (without(MAX_KL, "Q2"), MAX_KL, True),  # an entry that came since
        (without(MAX_KL, "Q2"), {**MAX_KL, "Q2": 2.0}, False),
        ({**MAX_KL, "Q4": 0.3}, MAX_KL, False),
        (MAX_KL, without(MAX_KL, "Q2"), False),
        (MAX_KL, MORE, False),
        (MORE, MAX_KL, False),
        # "K" stood for all that is not named: an entry that came since was bound by it.
        ({"K": 9.0, "Q8_0": 0.02}, {"K": 9.0, "Q8_0": 0.02, "Q4": 0.25}, False),
        ({"K": 9.0, "Q8_0": 0.02}, {"K": 9.0, "Q8_0": 0.02}, True),
    ],
)
def test_a_table_may_have_new_entries(then: dict[str, float], now: dict[str, float], same: bool) -> None:
    assert (changed_settings({"validate.max_kl": then}, {"validate.max_kl": now}) == []) is same


def test_a_former_name_is_the_present_one() -> None:
    now = flat(train={"optim": "sgd", "max_steps": 4})
    then = without(now, "train.optim", "train.max_steps", "train.turns")
    assert changed_settings({**then, "train.optimizer": "sgd", "train.steps": 4}, now) == []
    assert changed_settings({**then, "train.optimizer": "adafactor", "train.steps": 4}, now) == ["train.optim"]


@pytest.mark.parametrize("key", ["train.gone", "gone.key", "gone", ""])
def test_a_setting_that_is_gone_is_a_change(key: str) -> None:
    assert changed_settings({**flat(), key: 1}, flat()) == [key]


@pytest.mark.parametrize("then", [{"max_steps": 5}, {"num_train_epochs": 2.0}, {"num_train_epochs": 1.0}])
@pytest.mark.parametrize("now", [{"max_steps": 6}, {"num_train_epochs": 3.0}, {}])
def test_another_length_is_a_change_by_either_name(then: dict[str, Any], now: dict[str, Any]) -> None:
    same = then == {"num_train_epochs": 1.0} and not now
    assert (changed_settings(flat(train=then), flat(train=now)) == []) is same
