"""The verb `report`, and the page that every performed stage writes."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.conftest import Called
from tests.support import reported
from tests.support.markup import read_markup
from toolkit import Run, ToolkitError
from toolkit.cli import main
from toolkit.core import console
from toolkit.core.errors import USAGE
from toolkit.core.manifest import Outcome, read_manifest
from toolkit.core.stage import Stage, StageFiles

Toolkit = Callable[..., Called]


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Toolkit:
    """Call `toolkit …` in this process, in a folder whose exports/ has two runs."""
    for name, seed in (("quickstart", 0), ("other", 1)):
        reported.made(tmp_path / "exports", name, seed=seed)

    def called(*arguments: str) -> Called:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Called(ended.value.code, said.out, said.err)

    monkeypatch.chdir(tmp_path)
    return called


@pytest.mark.slow
def test_it_writes_page_and_card_of_the_run_in_a_folder(toolkit: Toolkit) -> None:
    called = toolkit("report", "-c", "exports/quickstart", "--json")
    assert called.code == 0
    assert called.json["page"] == "exports/quickstart/report.html" and Path(called.json["page"]).is_file()
    assert Path(called.json["model_card"]).read_text().startswith("---\n")
    Path("exports/quickstart/report.json").unlink()
    Path("exports/quickstart/README.md").unlink()
    called = toolkit("report", "-c", "exports/quickstart", "--json")
    assert called.code == 0 and called.json["model_card"] is None and not Path("exports/quickstart/README.md").exists()


@pytest.mark.slow
def test_it_says_what_is_damaged_and_what_was_changed_by_hand(toolkit: Toolkit) -> None:
    Path("exports/quickstart/evaluation.json").write_text('{"choice": 3}')
    called = toolkit("report", "-c", "exports/quickstart")
    assert called.code == 0 and "evaluation.json` is damaged: choice" in " ".join(called.err.split())
    Path("exports/quickstart/README.md").write_text("mine")
    called = toolkit("report", "-c", "exports/quickstart")
    said = " ".join(called.err.split())
    assert called.code == 1 and "README.md` changed since the toolkit wrote it" in said
    assert "`toolkit report -c exports/quickstart --force`" in said
    assert toolkit("report", "-c", "exports/quickstart", "--force").code == 0
    assert Path("exports/quickstart/README.md").read_text() != "mine"


def test_without_a_run_it_says_what_to_do(toolkit: Toolkit) -> None:
    Path("exports/quickstart/manifest.json").unlink()
    called = toolkit("report", "-c", "exports/quickstart")
    assert called.code == 3 and "there is no run in `exports/quickstart`" in called.err
    assert "`toolkit run -c exports/quickstart` first" in " ".join(called.err.split())
    Path("exports/quickstart/manifest.json").write_text("{")
    called = toolkit("report", "-c", "exports/quickstart")
    assert called.code == 1 and "manifest.json` is damaged" in called.err and "Traceback" not in called.err


@pytest.mark.slow
@pytest.mark.parametrize("names", [("quickstart", "other"), ("exports/quickstart", "exports/other/")])
def test_it_compares_two_runs_by_name_or_folder(toolkit: Toolkit, names: tuple[str, str]) -> None:
    called = toolkit("report", "--compare", *names)
    assert called.code == 0 and "held-out loss after training" in called.out and "Q4_K_M" in called.out
    page = Path("exports/other/compare-quickstart.html")
    assert called.out.rstrip().endswith(str(page)) and "quickstart and other" in read_markup(page).plain
    found = toolkit("report", "--compare", *names, "--json").json
    assert found["runs"] == ["quickstart", "other"] and found["page"] == str(page)
    assert found["losses"]["perplexity of the base"] == ["15.8223", "15.8223"] and len(found["answers"]) == 50


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        (("quickstart", "nobody"), 2, "there is no run `nobody` in `exports`"),
        (("quickstart", "exports/quickstart"), 2, "is named twice"),
        (("quickstart", "empty"), 2, "has no `config.toml`"),
        (("quickstart", "begun"), 3, "there is no run in `exports/begun`"),
        (("quickstart", "\x1b[31m"), 2, "there is no run"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(toolkit: Toolkit, names: tuple[str, str], code: int, said: str) -> None:
    Path("exports/empty").mkdir()
    Path("exports/begun").mkdir()
    Path("exports/begun/config.toml").write_bytes(Path("exports/other/config.toml").read_bytes())
    called = toolkit("report", "--compare", *names)
    assert called.code == code and said in " ".join(called.err.split()) and "Traceback" not in called.err


def test_open_calls_a_browser_and_its_absence_is_a_warning(toolkit: Toolkit) -> None:
    with mock.patch("webbrowser.open", return_value=False) as opened:
        called = toolkit("report", "-c", "exports/quickstart", "--open")
    assert called.code == 0 and "no browser was found" in called.err
    opened.assert_called_once_with(Path("exports/quickstart/report.html").resolve().as_uri())


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """In place of `prepare`, a stage that counts its calls."""

    def files(_: object, folder: object) -> StageFiles:
        return StageFiles([], [folder.path / "count.txt"])  # type: ignore[attr-defined]

    def run(context: object) -> Outcome:
        path = context.folder.path / "count.txt"  # type: ignore[attr-defined]
        path.write_text("1")
        return Outcome([path], {"rows": 1})

    stage = Stage(name="prepare", settings=("run.name",), files=files, run=run, summary=lambda *_: "")
    monkeypatch.setattr("toolkit.prepare.stage.STAGE", stage)
    return stage


def test_a_stage_that_was_performed_writes_the_page(counting: Stage, tmp_path: Path) -> None:
    run = Run.load(None, run={"name": "new", "folder": tmp_path})
    assert not run.prepare().fresh
    assert "prepare fresh" in read_markup(run.folder.page).plain
    before = run.folder.page.stat().st_mtime_ns
    assert run.prepare().fresh and run.folder.page.stat().st_mtime_ns == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), ToolkitError("no")])
def test_a_page_that_cannot_be_written_is_a_warning(
    counting: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("toolkit.report.write_pages", fail)
    run = Run.load(None, run={"name": "new", "folder": tmp_path})
    done = run.prepare()
    assert not done.fresh and "the report's page was not written" in done.warnings[0]
    assert "prepare" in read_manifest(run.folder).stages


def test_a_failed_gate_is_on_the_page(counting: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(context: object) -> Outcome:
        raise ToolkitError("no", exit_code=4)

    refusing = replace(counting, run=refuse, files=lambda *_: StageFiles([], []))
    monkeypatch.setattr("toolkit.prepare.stage.STAGE", refusing)
    run = Run.load(None, run={"name": "new", "folder": tmp_path})
    with pytest.raises(ToolkitError):
        run.prepare()
    assert "prepare failed: no" in read_markup(run.folder.page).plain


@pytest.mark.slow
def test_python_gets_the_paths_and_the_comparison(toolkit: Toolkit) -> None:
    one, other = (Run.load(f"exports/{name}") for name in ("quickstart", "other"))
    written = one.report()
    assert written.page.is_file() and written.model_card == one.folder.model_card
    compared = one.compare(other)
    assert (
        compared.page == other.folder.path / "compare-quickstart.html" and compared.figures["runs"][0] == "quickstart"
    )
    with pytest.raises(ToolkitError) as caught:
        one.compare(one)
    assert caught.value.exit_code == USAGE
    console.configure()


def test_the_figures_of_a_comparison_are_plain_values(toolkit: Toolkit) -> None:
    one, other = (Run.load(f"exports/{name}") for name in ("quickstart", "other"))
    json.dumps(one.compare(other).figures, allow_nan=False)
