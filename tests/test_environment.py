"""Nothing in the environment stops a verb that does not need it, and what is asked of this machine passes no proxy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import REPOSITORY
from tests.support.properties import first_fast
from toolkit.core import console, hardware
from toolkit.core.config_file import build
from toolkit.core.errors import MISSING, USAGE, ToolkitError, explain, missing_certificates
from toolkit.core.streams import printable
from toolkit.ollama import address, server

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a SOCKS proxy": {"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": "localhost,127.0.0.1"},
    "warnings as errors, and ASCII alone": {
        **{"PYTHONWARNINGS": "error", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        **{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    },
    "no place, no width, no numbers": {
        **{"HF_HOME": "/proc/x", "XDG_CACHE_HOME": "/proc/y", "TMPDIR": "/no", "HOME": "/dev/null"},
        **{"COLUMNS": "0", "LINES": "0", "TERM": "dumb", "WORLD_SIZE": "abc", "RANK": "x"},
        **{"SSL_CERT_FILE": "/no/x", "SSL_CERT_DIR": "/no", "REQUESTS_CA_BUNDLE": "/no"},
    },
    "proxies that are no addresses": {"HTTP_PROXY": "foo://x", "HTTPS_PROXY": "::::", "all_proxy": "http://[bad"},
    "exceptions that are no hosts": {"NO_PROXY": "[::1,*,,http://x y", "http_proxy": "http://127.0.0.1:9"},
    "an address that is none": {"OLLAMA_HOST": "::1:99999999"},
    "odd numbers": {"COLUMNS": "-3", "CUDA_VISIBLE_DEVICES": "abc,,9", "OMP_NUM_THREADS": "x"},
}

# What the verbs import before they do anything, and a word on both streams; then the end that main gives.
VERB = """
import sys
sys.argv = ["toolkit", "status", "--json"]
from toolkit.cli.main import main
main()
"""


@pytest.mark.parametrize("name", first_fast(ENVIRONMENTS))
def test_status_looks_and_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "toolkit.toml").write_text('[data]\nsource = "a.csv"\n')
    usual = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env = {**usual, "PYTHONPATH": str(REPOSITORY), "OLLAMA_HOST": "127.0.0.1:9", **ENVIRONMENTS[name]}
    done = subprocess.run([sys.executable, "-c", VERB], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"ok": true' in done.stdout and "next: toolkit run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_verb_that_fails_says_so_whatever_the_width(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "toolkit", "status"], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == USAGE
    assert b"error: no settings file `toolkit.toml`" in done.stderr and b"hint: " in done.stderr


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "127.1", "[::1]", "[::ffff:127.0.0.1]", "a.localhost"]
)
def test_this_machine_is_asked_directly(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert address.is_loopback(f"http://{host}:11434")
    with server.http(build({}, [f"ollama.host=http://{host}:11434"]).ollama) as http:
        assert not http.trust_env and not [mount for mount in http._mounts.values() if mount is not None]


@pytest.mark.parametrize("host", ["10.0.0.1", "example.invalid", "128.0.0.1", "localhost.example.invalid"])
def test_other_machines_are_not_this_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert not address.is_loopback(f"http://{host}:11434")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "SOCKS"),
        ("HTTPS_PROXY", "foo://x", "foo"),
        ("SSL_CERT_FILE", "/no/such/file", "SSL_CERT_FILE names `/no/such/file`"),
    ],
)
def test_a_server_elsewhere_names_what_stands_in_the_way(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    settings = build({}, ["ollama.host=https://example.invalid:1"]).ollama
    with pytest.raises(ToolkitError) as problem:
        server.http(settings)
    assert said in problem.value.message and problem.value.exit_code == MISSING
    assert "NO_PROXY=example.invalid" in problem.value.hint


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (lambda: "\udce9".encode(), USAGE),
        (lambda: "é".encode("ascii"), MISSING),
        (lambda: Path("~nobody-of-this-name/x").expanduser(), MISSING),
        (lambda: raising(ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")), MISSING),
        (lambda: raising(RecursionError("maximum recursion depth exceeded")), 1),
        (lambda: raising(type("PanicException", (BaseException,), {})("no entry found for key")), 1),
    ],
)
def test_faults_of_the_environment_are_no_defects(problem: Callable[[], Any], code: int) -> None:
    with pytest.raises(BaseException) as caught:
        problem()
    found = explain(caught.value)
    assert found is not None and found.hint and found.exit_code == code and "bug in the toolkit" not in found.hint


def raising(problem: BaseException) -> None:
    raise problem


def test_missing_certificates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    assert "REQUESTS_CA_BUNDLE names `/no/such/bundle`" in missing_certificates()
    found = explain(FileNotFoundError(2, "No such file or directory"))
    assert found is not None and "REQUESTS_CA_BUNDLE" in found.message and found.exit_code == MISSING


@pytest.mark.parametrize(("text", "number"), [("2", 2), ("", 1), ("x", 1), ("-4", 1), ("9" * 5000, 1), ("٣", 1)])
def test_numbers_of_the_environment(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    assert hardware.number_in("WORLD_SIZE", 1) == number


def test_names_that_are_not_utf8_can_be_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "dados_m\udce9dicos.csv"
    assert printable(name) == "dados_m\\xe9dicos.csv" and printable("\ud800é") == "\\ud800é"
    console.log_to(tmp_path / "log.txt")
    console.warn(name)
    console.error(ToolkitError(f"no file `{name}`", hint=name))
    console.result({}, name)
    console.configure(as_json=True)
    console.result({"name": name})
    out, err = capsys.readouterr()
    assert "m\\xe9dicos" in err and "m\\xe9dicos" in out and '"dados_m\\udce9dicos.csv"' in out
    assert "m\\xe9dicos" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("environment", "path", "variable"),
    [
        ({"HOME": "HERE/h"}, "HERE/h/.cache", "XDG_CACHE_HOME"),
        ({"XDG_CACHE_HOME": "HERE/c"}, "HERE/c/toolkit/bases/x", "XDG_CACHE_HOME"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "/dev/null/toolkit", "XDG_CACHE_HOME"),
        ({"HF_HOME": "HERE/hub"}, "HERE/hub/hub/models--a--b", "HF_HOME"),
        ({"TMPDIR": "HERE/t"}, "HERE/t/toolkit-x", "TMPDIR"),
        ({}, "/var/tmp", "TMPDIR"),
        ({"XDG_CACHE_HOME": "HERE/c"}, "HERE/runs/r", "run.folder"),
    ],
)
@pytest.mark.parametrize("number", [13, 28, 30])
def test_a_place_that_cannot_be_used_is_named_with_what_moves_it(
    environment: dict[str, str], path: str, variable: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("HERE", str(tmp_path)))
    place = path.replace("HERE", str(tmp_path))
    found = explain(OSError(number, os.strerror(number), place))
    assert found is not None and place in found.message
    if variable != "run.folder":
        assert variable in found.hint
    else:
        assert ("run.folder" in found.hint) == (number != 28) and "CACHE" not in found.hint
