"""Models inside Python packages: one GGUF file, or its pieces in several packages."""

import hashlib
import sys
from pathlib import Path

import pytest

from toolkit.core.errors import ToolkitError
from toolkit.model.packages import inside_package

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which packages can be installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def install(site: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {one}" for one in requires]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines, ""]))
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    assert "tests" in sys.modules  # nothing of a package is imported: there is no __init__ in any


def sums(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  m.gguf\n".encode()


def in_pieces(site: Path, *, content: bytes = CONTENT, first: int = 0, stated: bytes = b"") -> None:
    """Install `some-model`, with its pieces in three packages whose names do not sort by number."""
    cuts = [content[:3000], content[3000:9000], content[9000:]]
    names = ["some-model-b", "some-model-a", "Some.Model_c"]
    for number, (name, cut) in enumerate(zip(names, cuts, strict=True), first):
        install(site, name, {f"{name}/data/m.gguf.part{number:02}": cut})
    needs = ("some-model-b==1.0", "some-model-a (>=1.0)", "Some.Model_c ; python_version > '3'", "unrelated>=2")
    install(site, "some-model", {"some_model/SHA256SUMS": stated or sums(CONTENT)}, needs)


def test_one_file_is_taken_where_it_is(site: Path) -> None:
    install(site, "one-model", {"one/m.gguf": CONTENT, "one/README.md": b""})
    assert inside_package("one-model") == site / "one" / "m.gguf"


@pytest.mark.parametrize("first", [0, 1])
def test_pieces_are_put_together_once(site: Path, first: int, capsys: pytest.CaptureFixture[str]) -> None:
    in_pieces(site, first=first)
    found = inside_package("some-model")
    assert found.read_bytes() == CONTENT and found.name == "m.gguf"
    assert "from 3 pieces" in capsys.readouterr().err
    former = found.stat().st_mtime_ns
    assert inside_package("some_model") == found and found.stat().st_mtime_ns == former
    assert capsys.readouterr().err == ""
    found.write_bytes(CONTENT[:100])  # as after a disk that was full
    assert inside_package("some-model").read_bytes() == CONTENT


def test_pieces_of_another_file_are_refused(site: Path, tmp_path: Path) -> None:
    in_pieces(site, content=CONTENT[:-1] + b"x")
    with pytest.raises(ToolkitError, match="SHA-256"):
        inside_package("some-model")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_missing_piece_is_named(site: Path) -> None:
    in_pieces(site)
    next(site.glob("*some_model_a-1.0.dist-info/RECORD")).write_text("")
    with pytest.raises(ToolkitError, match=r"not all pieces.*m.gguf.part00"):
        inside_package("some-model")


def test_a_missing_package_of_pieces_is_named(site: Path) -> None:
    in_pieces(site)
    for path in site.glob("some_model_a-1.0.dist-info/*"):
        path.unlink()
    (site / "some_model_a-1.0.dist-info").rmdir()
    with pytest.raises(ToolkitError, match="needs `some-model-a`, which is not installed"):
        inside_package("some-model")


def test_two_models_are_refused(site: Path) -> None:
    install(site, "two-models", {"two/a.gguf": CONTENT, "two/b.gguf": CONTENT})
    with pytest.raises(ToolkitError, match="holds 2 GGUF files"):
        inside_package("two-models")
