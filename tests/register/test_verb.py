"""What the verb `register` hands on: which models may be replaced, and that --force says nothing of them."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from toolkit import register as register_stage
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core import config_file
from toolkit.core.manifest import Manifest, Outcome
from toolkit.core.run_folder import folder_of
from toolkit.core.stage import Context
from toolkit.pipeline import performing
from toolkit.pipeline.results import Done
from toolkit.register import rollback


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toolkit.toml").write_text('[run]\nname = "mine"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_models_that_may_be_replaced_reach_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def perform(name: str, *_: Any, **options: Any) -> Done:
        seen.append({"name": name, **options})
        raise KeyboardInterrupt

    monkeypatch.setattr(performing, "perform", perform)
    for arguments in (["--force"], ["--replace", "mine:q8_0", "--replace", "mine:latest"]):
        CliRunner().invoke(group, ["register", *arguments])
    assert [(each["name"], each["force"], each["replace"]) for each in seen] == [
        ("register", True, ()),
        ("register", False, ("mine:q8_0", "mine:latest")),
    ]


@pytest.mark.parametrize(("force", "replace"), [(True, ()), (False, ("mine:q8_0",))])
def test_the_stage_hands_on_what_is_named_and_not_force(
    project: Path, monkeypatch: pytest.MonkeyPatch, force: bool, replace: tuple[str, ...]
) -> None:
    from tests.support import tiny_gguf
    from toolkit.register.stage import STAGE

    config = config_file.build({"run": {"name": "mine"}, "export": {"quantizations": ["F16"], "default": "F16"}})
    folder = folder_of(config)
    tiny_gguf.save_tokenizer(folder.adapter)
    tiny_gguf.write(folder.gguf("F16"), f16=True)
    folder.split_file("test").parent.mkdir(parents=True)
    folder.split_file("test").write_text("")
    seen: list[dict[str, Any]] = []

    def register(*_: Any, **options: Any) -> Outcome:
        seen.append(options)
        return Outcome([], {})

    monkeypatch.setattr(register_stage, "register", register)
    STAGE.run(Context(config, folder, Manifest(run_id="x"), force=force, replace=replace))
    assert seen == [{"replace": replace}]


def test_a_rollback_is_told_them_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def roll_back(_: Any, **options: Any) -> dict[str, Any]:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(rollback, "roll_back", roll_back)
    CliRunner().invoke(group, ["register", "--rollback", "--force", "--replace", "mine:latest"])
    assert seen == [{"dry_run": False, "replace": ("mine:latest",)}]
