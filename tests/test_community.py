"""What contributors and a repository's host read: forms, workflow, citation, and the files that they name."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ollama_server import GENERATIONS
from tests.support.places import REPOSITORY
from toolkit import __version__

GITHUB = REPOSITORY / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
RENDERED = {"shell", "text", "json", "python"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_the_host_takes(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in form["body"]:
        assert part["type"] in KINDS and part["attributes"].get("render", "text") in RENDERED
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")


def test_a_bug_comes_with_the_doctors_findings_and_without_patients() -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE/bug.yml")
    [asked] = [part for part in form["body"] if "toolkit doctor --json" in part["attributes"].get("label", "")]
    assert asked["validations"]["required"] and "patients" in form["body"][0]["attributes"]["value"]
    [log] = re.findall(r"`(\.installed\S+)`", asked["attributes"]["description"])  # one who has no doctor yet
    target = log.removesuffix(".log")
    assert f"{target}:" in (REPOSITORY / "Makefile").read_text("utf-8")


def test_the_workflow_does_what_ci_does_and_may_only_read() -> None:
    workflow = read(GITHUB / "workflows/ci.yml")
    [job] = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == "bash .ci/run" and workflow["permissions"] == {"contents": "read"}
    assert job["env"]["OLLAMA"] == GENERATIONS[-1].removeprefix("v")
    for step in job["steps"]:
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
        checked = subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    named = {name for step in job["steps"] for name in re.findall(r"TOOLKIT_TEST_\w+", step.get("run", ""))}
    known = (REPOSITORY / "docs/reference/environment.md").read_text("utf-8")
    assert all(f"`{name}`" in known for name in named)


def test_the_workflow_keeps_a_compiled_llama_cpp_for_one_kind_of_cpu(tmp_path: Path) -> None:
    """Compiled for one CPU it dies on another: the CPU is a part of the cache's key, as its step writes it."""
    [job] = read(GITHUB / "workflows/ci.yml")["jobs"].values()
    [cpu] = [step for step in job["steps"] if step.get("id") == "cpu"]
    [cache] = [step for step in job["steps"] if step.get("uses", "").startswith("actions/cache@")]
    written = tmp_path / "output"
    subprocess.run(["bash", "-euc", cpu["run"]], env={**os.environ, "GITHUB_OUTPUT": str(written)}, check=True)
    assert re.fullmatch(r"flags=[0-9a-f]{16}\n", written.read_text())
    assert "steps.cpu.outputs.flags" in cache["with"]["key"]
    for name in re.findall(r"'([^']+)'", cache["with"]["key"]):
        assert (REPOSITORY / name).is_file(), name


def test_the_citation_names_this_version_and_licence() -> None:
    citation = read(REPOSITORY / "CITATION.cff")
    assert citation["version"] == __version__ and citation["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text("utf-8")


def test_contributing_names_every_target_of_make() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    [targets] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    assert [name for name in targets.split() if f"make {name}" not in text] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_what_is_linked_and_named_is_there(name: str) -> None:
    text = (REPOSITORY / name).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link
    for path in re.findall(r"`((?:toolkit|tests|docs|tools|\.ci)/[\w./]+)`", text):
        assert (REPOSITORY / path).exists() or "NAME" in path, path
