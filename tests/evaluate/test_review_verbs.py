"""`toolkit evaluate --sheet` and `--votes`, as a user calls them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Called
from tests.support.evaluations import make_evaluation
from toolkit.core.file_changes import why_stale
from toolkit.core.manifest import StageRecord, read_manifest, record_file, write_manifest
from toolkit.core.run_folder import RunFolder

Toolkit = Callable[..., Called]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose evaluation is there and recorded, with its settings."""
    found = RunFolder(tmp_path / "exports" / "demo", "demo")
    found.path.mkdir(parents=True)
    (tmp_path / "toolkit.toml").write_text('[run]\nname = "demo"\n')
    kept = {"systems": [], "choice": [], "comparisons_made": 0}
    judge = {"model": "judge", "digest": "0", "pairs": [], "unusable": 0, "agreement_with_votes": None}
    items = [{"row": row, "a": "base", "b": "trained", "verdict": "better"} for row in range(1, 11)]
    evaluation = {**make_evaluation(10), **kept, "judge": {**judge, "items": items}}
    found.evaluation.write_text(json.dumps(evaluation))
    manifest = read_manifest(found)
    manifest.stages["evaluate"] = StageRecord(
        settings={}, inputs=[], outputs=[record_file(found.evaluation, found)], versions={}, seconds=1.0,
        finished="2026-11-27T12:00:00+00:00", figures={},
    )  # fmt: skip
    write_manifest(found, manifest)
    return found


def filled_in(folder: RunFolder, name: str, words: list[str]) -> Path:
    """The sheet's table, filled in by hand."""
    rows = list(csv.DictReader(io.StringIO(folder.review_table.read_bytes().decode("utf-8-sig"), newline="")))
    path = folder.path.parents[1] / f"votes-{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows({**row, "vote": word} for row, word in zip(rows, words, strict=True))
    return path


def contents(folder: RunFolder) -> dict[str, bytes]:
    """All files of a run but the log of what was printed."""
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file() and path != folder.log}


def test_from_a_sheet_to_counted_votes(toolkit: Toolkit, folder: RunFolder) -> None:
    done = toolkit("evaluate", "--sheet")
    assert done.code == 0, done.err
    assert "10 comparisons; each question is shown once" in done.out and "trained against base: 5" in done.out
    assert "exports/demo/review.html" in done.out and "keep `review-key.json`" in done.err
    files = [filled_in(folder, name, ["1", "2", "same", "unsafe", "1"] * 2) for name in ("Ada", "Ben")]
    before = json.loads(folder.evaluation.read_text())
    shown = toolkit("evaluate", "--votes", *map(str, files), "--dry-run")
    assert shown.code == 0 and json.loads(folder.evaluation.read_text()) == before
    done = toolkit("evaluate", "--votes", *map(str, files))
    assert done.code == 0 and done.out == shown.out, done.err
    assert "20 votes of 2 raters" in done.out and "Cohen's kappa 1.00, almost perfect" in done.out
    assert done.out.count("(Ada: (no comment))") == 2
    after = json.loads(folder.evaluation.read_text())
    assert [file["name"] for file in after["votes"]["files"]] == ["votes-Ada.csv", "votes-Ben.csv"]
    assert {**after, "votes": None, "judge": None} == {**before, "votes": None, "judge": None}
    assert after["judge"]["agreement_with_votes"]["n"] <= 5
    record = read_manifest(folder).stages["evaluate"]
    assert why_stale(record, folder, {}, [], [folder.evaluation]) == ""  # the evaluation stays fresh
    judge = {key: value for key, value in after["judge"].items() if key != "items"}
    assert record.figures == {"judge": judge}  # which the screen shows of a fresh evaluation


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"PK\x03\x04 saved as a workbook", b"nothing of ours"])
def test_a_table_that_somebody_filled_in_where_it_lies_is_not_written_again(
    toolkit: Toolkit, folder: RunFolder, content: bytes | None
) -> None:
    toolkit("evaluate", "--sheet")
    assert toolkit("evaluate", "--sheet").code == 0  # as it was written
    path = filled_in(folder, "Ada", ["1"] + [""] * 9)
    folder.review_table.write_bytes(path.read_bytes() if content is None else content)
    before = contents(folder)
    done = toolkit("evaluate", "--sheet")
    assert done.code == 1 and "rename it to votes-NAME.csv" in done.err and contents(folder) == before
    folder.review_table.rename(folder.path / "votes-Ada.csv")
    assert toolkit("evaluate", "--sheet").code == 0
    if content is None:
        assert "1 votes of 1 rater" in toolkit("evaluate", "--votes", str(folder.path / "votes-Ada.csv")).out


@pytest.mark.slow
def test_a_count_that_leaves_a_former_rater_out_says_so(toolkit: Toolkit, folder: RunFolder) -> None:
    toolkit("evaluate", "--sheet")
    ada, ben = (str(filled_in(folder, name, ["same"] * 10)) for name in ("Ada", "Ben"))
    assert "replaces" not in toolkit("evaluate", "--votes", ada).err
    assert "replaces" not in toolkit("evaluate", "--votes", ada, ben).err
    said = " ".join(toolkit("evaluate", "--votes", ada).err.split())
    assert "the earlier count had votes of Ben (votes-Ben.csv) too, and this one replaces it" in said


@pytest.mark.slow
def test_votes_as_json(toolkit: Toolkit, folder: RunFolder) -> None:
    toolkit("evaluate", "--sheet")
    path = filled_in(folder, "Ada", ["same"] * 10)
    found = toolkit("evaluate", "--json", "--votes", str(path)).json
    assert found["ok"] and [pair["same"] for pair in found["votes"]["pairs"]] == [5, 5]
    sheet = toolkit("evaluate", "--sheet", "--json").json
    assert sheet["items"] == 10 and len(sheet["written"]) == 3


@pytest.mark.slow
def test_what_cannot_be_counted_leaves_former_votes(toolkit: Toolkit, folder: RunFolder) -> None:
    toolkit("evaluate", "--sheet")
    good = filled_in(folder, "Ada", ["same"] * 10)
    toolkit("evaluate", "--votes", str(good))
    before = {
        path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file() and path.name != "log.txt"
    }
    bad = filled_in(folder, "Ben", ["perhaps"] * 10)
    for files in ([good, bad], [good, good], [good.with_name("absent.json")], []):
        done = toolkit("evaluate", "--votes", *map(str, files))
        assert done.code == 2 and done.out == ""
        lines = [line for line in done.err.splitlines() if line]
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.err
    assert contents(folder) == before


@pytest.mark.slow
def test_votes_are_not_counted_on_an_evaluation_changed_by_hand(toolkit: Toolkit, folder: RunFolder) -> None:
    """They would make the change the stage's own."""
    toolkit("evaluate", "--sheet")
    path, whole = filled_in(folder, "Ada", ["same"] * 10), folder.evaluation.read_text()
    found = json.loads(whole)
    found["judge"]["items"][0]["verdict"] = "worse"  # no answer: the sheet is still of these
    folder.evaluation.write_text(json.dumps(found))
    before = contents(folder)
    for more in ([], ["--dry-run"]):
        done = toolkit("evaluate", "--votes", str(path), *more)
        assert done.code == 1 and "has changed since `toolkit evaluate` wrote it" in done.err
        assert contents(folder) == before
    folder.evaluation.write_text(whole)
    assert toolkit("evaluate", "--votes", str(path)).code == 0
    assert toolkit("evaluate", "--votes", str(path)).code == 0  # on its own count


@pytest.mark.slow
def test_without_an_evaluation_there_is_no_sheet(toolkit: Toolkit, folder: RunFolder) -> None:
    folder.evaluation.unlink()
    done = toolkit("evaluate", "--sheet")
    assert done.code == 3 and "no evaluation" in done.err and "`toolkit evaluate`" in done.err
    assert not folder.review.exists() and not folder.review_key.exists()
