"""What forbids the network, or stands before the hub, is named as the user set it."""

import pytest

from toolkit.core.network import forbid, forbidden_by, hub_proxy, is_offline

NAMES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOOLKIT_OFFLINE")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *PROXIES, "HF_ENDPOINT"):
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


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, ""),
        ({"HTTP_PROXY": "http://p:1"}, ""),  # the hub speaks HTTPS
        ({"HTTPS_PROXY": "http://me:secret@p:1"}, "HTTPS_PROXY"),
        ({"all_proxy": "socks5://p:1"}, "all_proxy"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "huggingface.co"}, ""),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.org"}, "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": ".local", "HF_ENDPOINT": "https://hub.local"}, ""),
        ({"HTTPS_PROXY": " "}, ""),
        ({"HTTP_PROXY": "http://p:1", "HF_ENDPOINT": "http://hub.example"}, "HTTP_PROXY"),
        ({"HTTPS_PROXY": "http://p:1", "HF_ENDPOINT": "http://hub.example"}, ""),
    ],
)
def test_the_proxy_before_the_hub_is_named(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_proxy() == named
