"""Small models are made once for each set of arguments; what a test does to its copy reaches no other."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import cache, families, models


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(own: Path) -> int:
    return len([path for path in own.iterdir() if path.is_dir()])


@pytest.mark.slow
def test_equal_arguments_are_made_once_and_others_apart(own: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    first = models.save_model(tmp_path / "a", **small)
    whole = files(first)
    (first / "model.safetensors").write_bytes(b"damaged")
    again = models.save_model(tmp_path / "b", **dict(reversed(small.items())))
    assert files(again) == whole and made(own) == 1
    changes: list[dict[str, Any]] = [{"hidden_size": 128}, {"shard": "50KB"}, {"pre": "gpt-2"}, {"controls": ["<x>"]}]
    for number, others in enumerate(changes):
        assert files(models.save_model(tmp_path / f"other{number}", **{**small, **others})) != whole
    assert made(own) == 5


@pytest.mark.slow
def test_an_adapter_knows_its_base_by_what_is_in_it(own: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    bases = [models.save_model(tmp_path / name, **small) for name in ("one", "two")]
    adapters = [models.save_adapter(base / "adapter", base, r=2) for base in bases]
    stated = [json.loads((adapter / "adapter_config.json").read_text()) for adapter in adapters]
    assert [config["base_model_name_or_path"] for config in stated] == [str(base) for base in bases]
    assert made(own) == 2
    assert (adapters[0] / "adapter_model.safetensors").read_bytes() == (
        adapters[1] / "adapter_model.safetensors"
    ).read_bytes()
    other = models.save_model(tmp_path / "three", **{**small, "tie_word_embeddings": True})
    models.save_adapter(tmp_path / "third", other, r=2)
    assert made(own) == 4


def test_a_family_with_a_vocabulary_of_its_own_is_made_anew(own: Path, tmp_path: Path) -> None:
    one, two = (families.save(tmp_path / name, "nemo", **families.WIDTHS) for name in ("one", "two"))
    assert files(one) == files(two) and made(own) == 1
    families.save(tmp_path / "three", "nemo", vocabulary=models.save_tokenizer, **families.WIDTHS)
    assert made(own) == 1


def build(folder: Path) -> None:
    """Fail where another builds at the same time, or has."""
    folder.mkdir()
    with (folder.parent / "builds.txt").open("a") as log:
        log.write("built\n")
    (folder / "file").write_text("made")


def copy(target: Path) -> None:
    cache.copied(target, build, "arguments")


@pytest.mark.slow
def test_workers_that_need_the_same_at_once_make_it_once(own: Path, tmp_path: Path) -> None:
    targets = [tmp_path / str(number) for number in range(4)]
    workers = [multiprocessing.get_context("fork").Process(target=copy, args=(target,)) for target in targets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [(target / "file").read_text() for target in targets] == ["made"] * 4
    assert (own / "builds.txt").read_text() == "built\n"


def test_what_was_half_made_is_made_again(own: Path, tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        folder.mkdir()
        if not (own / "builds.txt").exists():
            (own / "builds.txt").touch()
            (folder / "half").touch()
            raise OSError("no space left")
        (folder / "file").touch()

    with pytest.raises(OSError, match="no space"):
        cache.copied(tmp_path / "a", fails)
    assert not (tmp_path / "a").exists()
    assert [path.name for path in cache.copied(tmp_path / "b", fails).iterdir()] == ["file"]
    shutil.rmtree(tmp_path / "b")
