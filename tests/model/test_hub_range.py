"""Bytes of a hub's file: what is said where it does not answer."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from toolkit.core.errors import ToolkitError
from toolkit.model import hub_range
from toolkit.model.hub_range import HubShards, Shard


@pytest.mark.parametrize(
    ("variable", "named"),
    [("", "check the network, "), ("HTTPS_PROXY", "check the network with the proxy of HTTPS_PROXY, ")],
)
def test_a_proxy_before_a_hub_that_does_not_answer_is_named_without_its_password(
    variable: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise httpx.ConnectError("refused")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "http://me:secret@p:1")
    monkeypatch.setattr(hub_range, "_stream", fails)
    shard = Shard("model", 9, "")
    with pytest.raises(ToolkitError, match="stopped answering at byte 0 of `model`: refused") as caught:
        hub_range.fetch(HubShards("owner/model", "", tmp_path, {}), shard, 0, 9, print, attempts=1)
    assert caught.value.hint.startswith(named) and "secret" not in f"{caught.value.message}{caught.value.hint}"
