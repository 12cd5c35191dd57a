"""Several files as one data set: each row is accounted for with its file, and a question stays in one split."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.core.config_file import build
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.file_changes import seen_again, why_stale
from toolkit.core.manifest import StageRecord, record_file
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import prepare
from toolkit.prepare.division import read_rows
from toolkit.prepare.source import Source, find_sources
from toolkit.prepare.stage import STAGE
from toolkit.prompt.tokenizer import Tokenizer

Preparing = Callable[..., dict[str, Any]]


def csv_text(rows: list[tuple[str, str]], header: tuple[str, str] = ("question", "answer")) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def all_records(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for name in SPLITS for row in lines(folder.split_file(name))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return RunFolder(tmp_path / "exports/x", "x")


@pytest.fixture
def preparing(folder: RunFolder, tokenizer: Tokenizer) -> Preparing:
    def run(source: str | list[str], *overrides: str) -> dict[str, Any]:
        config = build({"data": {"source": source}}, overrides)
        return prepare(config, folder, find_sources(config.data), tokenizer).figures

    return run


def sources(value: Any) -> list[str]:
    return [str(source.path) for source in find_sources(build({"data": {"source": value}}).data)]


def refusal(value: Any) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        sources(value)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_glob_a_list_and_both(folder: RunFolder, tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "in/c.csv", ".hidden.csv", "x.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("question,answer\n")
    assert sources("*.csv") == ["a.csv", "b.csv"]
    assert sources("**/*.csv") == ["a.csv", "b.csv", "in/c.csv"]
    assert sources(["x.json", "?.csv"]) == ["x.json", "a.csv", "b.csv"]
    assert sources(["b.csv", "*.csv", "./b.csv"]) == ["b.csv", "a.csv"]  # each file once
    assert sources(str(tmp_path / "[a-b].csv")) == [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    Path("[a-b].csv").write_text("question,answer\n")
    assert sources("[a-b].csv") == ["[a-b].csv"]  # a file of that name is not a glob


def test_a_glob_that_matches_nothing_says_what_is_there(folder: RunFolder) -> None:
    Path("in").mkdir()
    Path("in/a.txt").write_text("x")
    error = refusal("in/*.csv")
    assert "`in` holds `a.txt`" in error.message and error.exit_code == MISSING and "pattern" in error.hint
    assert "there is no folder `out`" in refusal("out/*.csv").message
    assert "matches only folders: `in`" in refusal("i*").message
    assert "no data file `c.csv`" in refusal(["in/*.txt", "c.csv"]).message


@pytest.mark.parametrize("value", [[], [""], [1], {"a": "b"}, "", 3, [["a.csv"]], True])
def test_what_names_no_file_is_refused_as_a_setting(value: Any) -> None:
    with pytest.raises(ToolkitError, match="write a path or a list of paths") as caught:
        build({"data": {"source": value}})
    assert caught.value.exit_code == USAGE and "1 problem" in caught.value.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.csv", "a.csv"),
        ("2024", "2024"),
        ("true", "true"),
        ("data/*.csv", "data/*.csv"),
        ("[ab].csv", "[ab].csv"),
        ('["a.csv", "b.csv"]', ["a.csv", "b.csv"]),
        ('"a.csv"', "a.csv"),
    ],
)
def test_an_override_names_one_or_several(text: str, wanted: Any) -> None:
    assert build({}, [f"data.source={text}"]).data.source == wanted


def test_every_row_of_every_file_is_accounted_for(
    preparing: Preparing, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"What is {n}?", f"It is {n}.") for n in range(30)]
    Path("a.csv").write_text(csv_text([*rows[:20], ("Why?", "")]))
    Path("b.csv").write_text(csv_text([rows[0], *rows[20:], ("", "So.")]))
    Path("c.jsonl").write_text("".join(json.dumps({"prompt": q, "reply": a, "note": "n"}) + "\n" for q, a in rows))
    Path("c.jsonl").write_text(Path("c.jsonl").read_text().replace("reply", "response") + "[1, 2]\n")
    figures = preparing(["a.csv", "b.csv", "c.jsonl"])
    assert (figures["rows"], figures["kept"], figures["duplicates"], figures["rejected"]) == (64, 30, 31, 3)
    assert lines(folder.rejected) == [
        {"file": "a.csv", "row": 21, "line": 22, "reason": "empty answer", "text": "Why?"},
        {"file": "b.csv", "row": 12, "line": 13, "reason": "empty question", "text": "So."},
        {"file": "c.jsonl", "row": 31, "line": 31, "reason": "not a JSON object", "text": "[1, 2]"},
    ]
    assert {row["file"] for row in all_records(folder)} == {"a.csv", "b.csv"}
    assert len({row["id"] for row in all_records(folder)}) == 30
    assert figures["files"]["c.jsonl"] == {
        "rows": 31,
        "rejected": 1,
        "columns": {"question": "prompt", "answer": "response"},
        "unused_columns": ["note"],
    }
    said = capsys.readouterr().err
    assert "`a.csv`, `b.csv`: question ← question, answer ← answer" in said
    assert "`c.jsonl`: question ← prompt, answer ← response; not used: note" in said


def test_files_of_the_same_columns_are_said_in_one_line(
    preparing: Preparing, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        Path(f"{number}.csv").write_text(csv_text([(f"What is {number} {n}?", "It is.") for n in range(9)]))
    assert preparing("*.csv")["kept"] == 36
    assert capsys.readouterr().err.count("question ← question") == 1


def test_a_file_without_question_or_answer_is_named(preparing: Preparing) -> None:
    Path("a.csv").write_text(csv_text([("q", "a")] * 9))
    Path("b.csv").write_text("colour,size\nred,3\n")
    with pytest.raises(ToolkitError, match=r"`b\.csv` has no column with the answer"):
        preparing(["a.csv", "b.csv"])


def test_a_setting_names_the_column_of_the_files_that_have_it(preparing: Preparing, folder: RunFolder) -> None:
    Path("a.csv").write_text(csv_text([(f"Was ist {n}?", "Gut.") for n in range(9)], ("Frage", "answer")))
    Path("b.csv").write_text(csv_text([(f"What is {n}?", "Good.") for n in range(9)]))
    assert preparing(["a.csv", "b.csv"], "data.question_column=frage")["kept"] == 18
    with pytest.raises(ToolkitError, match="wanted `vraag`"):
        preparing(["a.csv", "b.csv"], "data.question_column=vraag")


def test_a_file_without_a_usable_row_is_warned_of(preparing: Preparing, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text(csv_text([(f"What is {n}?", "It is.") for n in range(9)]))
    Path("b.csv").write_text(csv_text([("What?", ""), ("Why?", "")]))
    assert preparing(["a.csv", "b.csv"])["rejected"] == 2
    assert "`b.csv`: none of its 2 rows can be used (empty answer)" in capsys.readouterr().err
    Path("a.csv").write_text(csv_text([("What?", "")]))
    with pytest.raises(ToolkitError, match=r"2 files have no usable row: 3 of 3 rejected.*row 1 \(line 2\) of `a.csv`"):
        preparing(["a.csv", "b.csv"])


@pytest.mark.slow
@settings(max_examples=tries(60), deadline=None)
@given(
    files=st.lists(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "x", "y", "z"])), max_size=8),
        min_size=1,
        max_size=4,
    ),
)
def test_no_row_is_lost_and_no_question_leaks(
    files: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> None:
    base = tmp_path_factory.mktemp("several")
    enough = [(f"{letter} {letter}", "so") for letter in "ghijkl"]
    for number, rows in enumerate(files):
        (base / f"{number}.csv").write_text(csv_text([*enough, *rows]))
    config = build({"data": {"source": str(base / "*.csv")}})
    run = RunFolder(base / "exports/x", "x")
    found = find_sources(config.data)
    figures = prepare(config, run, found, tokenizer).figures
    assert figures["rows"] == sum(map(len, files)) + 6 * len(files)
    assert figures["kept"] + figures["duplicates"] + figures["rejected"] == figures["rows"]
    assert figures["rejected"] == sum(not answer for rows in files for _, answer in rows) == len(lines(run.rejected))
    splits = [{row["input"] for row in lines(run.split_file(name))} for name in SPLITS]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_a_new_file_that_matches_makes_prepare_stale(folder: RunFolder, tokenizer: Tokenizer) -> None:
    config = build({"data": {"source": "*.csv"}})
    for name in ("a.csv", "b.csv"):
        Path(name).write_text(csv_text([(f"What is {name} {n}?", "It is.") for n in range(9)]))
    files = STAGE.files(config, folder)
    outcome = prepare(config, folder, find_sources(config.data), tokenizer)
    record = StageRecord(
        settings={},
        inputs=[record_file(path, folder) for path in files.inputs],
        outputs=[record_file(path, folder) for path in outcome.outputs],
        versions={},
        seconds=0,
        finished="",
        figures={},
    )

    def why() -> str:
        return why_stale(record, folder, {}, STAGE.files(config, folder).inputs, files.outputs)

    assert why() == ""
    Path("c.csv").write_text("question,answer\n")
    assert why() == "inputs changed: c.csv"
    Path("c.csv").unlink()
    Path("b.csv").rename("b.txt")
    assert why() == "inputs changed: b.csv"


@pytest.mark.parametrize(
    ("source", "there", "fresh"),
    [
        (["rows/*.csv"], [], True),
        (["rows/**/*.csv"], [], True),
        (["~/rows/*.csv"], [], True),
        (["~/rows/a.csv", "rows/b.csv"], [], True),
        (["rows"], [], True),
        (["hf:rows"], [], True),
        (["rows/*.csv"], ["a.csv"], False),  # one of them was removed
        (["rows"], ["c.xml"], False),
        (["hf:rows"], ["a.csv"], False),
    ],
)
def test_a_run_that_was_moved_without_its_files_is_fresh(
    source: list[str], there: list[str], fresh: bool, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    rows = Path("rows")
    rows.mkdir()
    for name in ("a.csv", "b.csv"):
        (rows / name).write_text(csv_text([("What?", name)]))
    for name in ("c.xml", "d.xml"):
        (rows / name).write_text("<Document/>")
    if source == ["hf:rows"]:
        for path in rows.glob("*.xml"):
            path.unlink()
    config = build({"data": {"source": source}})
    record = StageRecord(
        settings={}, inputs=[record_file(path, folder) for path in STAGE.files(config, folder).inputs], outputs=[],
        versions={}, seconds=0, finished="", figures={},
    )  # fmt: skip
    assert record.inputs
    if not there:
        rows.rename("elsewhere")
        monkeypatch.setenv("HOME", str(tmp_path / "another home"))
    for path in rows.glob("*"):
        if path.name not in there:
            path.unlink()
    now = STAGE.files(config, folder).inputs
    assert (why_stale(record, folder, {}, now, []) == "") is fresh
    if fresh:
        seen = seen_again(record, folder, now)
        assert why_stale(seen, folder, {}, now, []) == "" and len(seen.inputs) == len(record.inputs)


@pytest.mark.parametrize("kind", ["csv", "xml"])
def test_a_files_name_may_be_any_bytes(kind: str, preparing: Preparing, folder: RunFolder) -> None:
    for name in ("bad-\udcff", "bad-\udcfe"):
        rows = [(f"What is {name!a} {n}?", f"It is {n}.") for n in range(6)] + [("Why?", "")]
        text = csv_text(rows)
        if kind == "xml":
            pairs = "".join(f"<QAPair><Question>{q}</Question><Answer>{a}</Answer></QAPair>" for q, a in rows)
            text = f"<Document>{pairs}</Document>"
        Path(f"{name}.{kind}").write_text(text)
    figures = preparing(f"*.{kind}")
    names = [rf"bad-\xfe.{kind}", rf"bad-\xff.{kind}"]
    assert {name: one["rejected"] for name, one in figures["files"].items()} == dict.fromkeys(names, 1)
    assert [row["file"] for row in lines(folder.rejected)] == names


def test_a_link_that_leads_nowhere_is_not_left_out(folder: RunFolder) -> None:
    Path("a.csv").write_text("question,answer\nq,a\n")
    Path("b.csv").symlink_to("gone.csv")
    Path("c.csv").symlink_to("a.csv")
    with pytest.raises(ToolkitError, match=r"there is no data file `b\.csv`") as caught:
        sources("*.csv")
    assert caught.value.exit_code == MISSING
    Path("b.csv").unlink()
    assert sources("*.csv") == ["a.csv"]  # a link to the same file is the same file


def test_one_file_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_text([("q", "a"), ("r", "")]))
    rows = read_rows([Source(path)], build({}))
    assert rows.records[0].file == rows.rejected[0].file == "" and rows.records[0].id == "1"
