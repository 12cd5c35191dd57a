"""What forbids the network is named as the user set it."""

import pytest

from toolkit.core.network import forbid, forbidden_by, is_offline

NAMES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOOLKIT_OFFLINE")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
def test_a_variable_of_the_hub_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert is_offline() and forbidden_by() == name


@pytest.mark.parametrize("value", ["", "0", "false", "off"])
def test_other_values_forbid_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not is_offline()


def test_the_option_is_named_whatever_else_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    forbid()
    assert is_offline() and forbidden_by() == "--offline"
