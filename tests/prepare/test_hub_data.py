"""Data sets of the hub, from a folder and from a hub on loopback: read once, without code of their own."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_data import serving_data, use_data
from toolkit.core.config_file import build
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.prepare import checks
from toolkit.prepare.division import Rows, read_rows
from toolkit.prepare.hub_data import hub_refusal
from toolkit.prepare.refusals import hints_for_some, useless
from toolkit.prepare.source import find_sources, locate
from toolkit.prepare.stage import STAGE

GATED = "owner/gated"
CSV = b"question,answer\nq,a\nr,b\n"
TWELVE = b"question,answer\n" + b"".join(b"question %d,answer %d\n" % (n, n) for n in range(12))
JSONL = b'{"prompt": "s", "completion": "c", "n": 1}\n{"prompt": "t", "completion": "d", "n": 2}\n'
CONFIGS = b"---\nconfigs:\n- config_name: x\n  data_files: x.csv\n- config_name: it's y\n  data_files: y.csv\n---\n"
SETS: Mapping[str, Mapping[str, bytes]] = {
    "owner/plain": {"train.csv": TWELVE, "README.md": b"# plain"},
    "owner/splits": {"train.jsonl": JSONL, "test.jsonl": JSONL[: len(JSONL) // 2]},
    "owner/no-train": {"validation.csv": CSV, "test.csv": CSV},
    "owner/code": {"code.py": b"open('ran', 'w')", "README.md": b"x"},
    "owner/several": {"README.md": CONFIGS, "x.csv": CSV, "y.csv": CSV},
    "owner/empty": {"README.md": b"x"},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    for name in SETS:
        folder_of(name, tmp_path / "hub")
    with serving_data(tmp_path / "hub") as found:
        use_data(found.url, tmp_path / "home", monkeypatch)
        yield found.asked


def folder_of(name: str, place: Path = Path("sets")) -> str:
    """Write a data set as a folder."""
    folder = place / name
    for file, content in SETS[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return str(folder)


def reading(source: Any, *, offline: bool = False) -> Rows:
    config = build({"data": {"source": source}})
    return read_rows(locate(config.data, offline=offline), config)


def refused(source: str) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        reading(source)
    assert "\n" not in caught.value.message and caught.value.hint and not Path("ran").exists()
    assert not Path("data").exists() or not list(Path("data/raw").iterdir())
    return caught.value


def test_it_is_downloaded_once_and_is_then_a_file(hub: list[str], tmp_path: Path) -> None:
    rows = reading("hf:owner/plain")
    assert [(one.question, one.answer) for one in rows.records] == [(f"question {n}", f"answer {n}") for n in range(12)]
    assert [path.name for path in Path("data/raw").iterdir()] == ["owner--plain.parquet"]
    hub.clear()
    assert reading("hf:owner/plain", offline=True).count == 12 and not hub
    config = build({"data": {"source": ["hf:owner/plain", "hf:owner/splits:test"]}})
    inputs = STAGE.files(config, RunFolder(tmp_path / "x", "x")).inputs
    assert [path.name for path in inputs] == ["owner--plain.parquet", "owner--splits--test.parquet"]


@pytest.mark.slow
def test_the_train_split_or_the_one_that_is_named(hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert [one.question for one in reading("hf:owner/splits").records] == ["s", "t"]
    assert "the split `train` is read, not `test`" in capsys.readouterr().err
    rows = reading(["hf:owner/splits:test", "hf:owner/plain"])
    assert [(one.question, one.file) for one in rows.records[:1]] == [("s", "data/raw/owner--splits--test.parquet")]
    assert rows.count == 13


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_what_cannot_be_read_is_refused(where: str, hub: list[str]) -> None:
    def named(name: str) -> str:
        return f"hf:{name if where == 'hub' else folder_of(name)}"

    assert "it has `train`, `test`" in refused(named("owner/splits") + ":nope").message
    several = refused(named("owner/no-train"))
    assert "has several splits" in several.message and ":validation`" in several.hint
    assert "wants code of its own to be run (code.py)" in refused(named("owner/code")).message
    assert "cannot be read" in refused(named("owner/empty")).message
    configs = refused(named("owner/several"))
    assert "several configurations: `x`, `it's y`" in configs.message


@pytest.mark.slow
def test_the_hint_for_several_configurations_works() -> None:
    error = refused(f"hf:{folder_of('owner/several')}")
    command, setting = re.findall(r"`([^`]+)`", error.hint)[-2:]
    command = re.sub(r"^python\b", shlex.quote(sys.executable), command)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert reading(shlex.split(setting)[1].removeprefix("data.source=")).count == 2


def test_an_absent_and_a_gated_one(hub: list[str]) -> None:
    absent = refused("hf:owner/absent")
    assert "no data set `owner/absent`" in absent.message and absent.exit_code == MISSING
    gated = refused(f"hf:{GATED}")
    assert "is gated" in gated.message and gated.exit_code == MISSING and "hf auth login" in gated.hint


@pytest.mark.parametrize(("name", "named"), [("owner/plain", True), ("folder", False)])
def test_a_proxy_before_the_hub_is_named(name: str, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    Path("folder").mkdir()
    found = hub_refusal(ConnectionError(f"Couldn't reach '{name}' on the Hub (LocalEntryNotFoundError)"), name)
    assert ("the proxy of HTTPS_PROXY" in found.hint) is named and "secret" not in found.message + found.hint


def test_the_doctor_says_the_same_without_a_download(hub: list[str]) -> None:
    def check(name: str, *, offline: bool = False) -> Any:
        return checks.data(build({"data": {"source": name}}), lambda: None, offline=offline)

    assert check("hf:owner/plain").ok is None and not any("resolve" in path for path in hub)
    with pytest.raises(ToolkitError, match="--offline forbids"):  # which the doctor shows as a failed check
        check("hf:owner/plain", offline=True)
    assert (check("hf:owner/absent").ok, check("hf:owner/absent").found) == (False, refused("hf:owner/absent").message)
    assert (check(f"hf:{GATED}").ok, check(f"hf:{GATED}").found) == (False, refused(f"hf:{GATED}").message)
    reading("hf:owner/plain")
    assert "12 of them usable" in check("hf:owner/plain", offline=True).found


@pytest.mark.parametrize("name", ["hf:", "hf:csv", "hf:nowhere", "hf:a/b/c", "hf:../x", "hf:owner/"])
def test_what_names_no_data_set_is_refused(name: str) -> None:
    assert "names no data set" in refused(name).message


@pytest.mark.slow  # the library asks several times
def test_without_the_network(hub: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_data("http://127.0.0.1:9", tmp_path / "home", monkeypatch)
    assert refused("hf:owner/plain").exit_code == MISSING
    with pytest.raises(ToolkitError, match="--offline forbids"):
        reading("hf:owner/plain", offline=True)


def test_a_folder_is_read_as_it_is_now(tmp_path: Path) -> None:
    folder = Path(folder_of("owner/splits"))
    (folder / ".hidden").write_text("x")
    config = build({"data": {"source": f"hf:{folder}:test"}})
    (source,) = find_sources(config.data)
    assert [path.name for path in source.files()] == ["test.jsonl", "train.jsonl"]
    assert reading(f"hf:{folder}:test").count == 1
    (folder / "test.jsonl").write_bytes(JSONL)
    assert reading(f"hf:{folder}:test").count == 2 and not Path("data").exists()


@pytest.mark.parametrize("cells", [[], [""]])
def test_a_data_set_without_rows_is_refused(cells: list[str]) -> None:
    import datasets

    Path("none").mkdir()
    datasets.Dataset.from_dict({"question": cells, "answer": cells}).to_parquet("none/train.parquet")
    assert "no rows" in refused("hf:none").message


def test_a_folder_without_rows_beside_another_file_is_named() -> None:
    Path("none").mkdir()
    Path("none/train.jsonl").write_text('{"question": null, "answer": null}\n')
    Path("some.csv").write_text("question,answer\nq,a\n")
    config = build({"data": {"source": ["hf:none", "some.csv"]}})
    rows = read_rows(find_sources(config.data), config)
    assert useless(rows.tables, rows.rejected) == ["`none` has no rows"]


def test_control_characters_in_a_folder_are_explained() -> None:
    Path("odd").mkdir()
    Path("odd/train.jsonl").write_text('{"question": "a\\u0000", "answer": "b"}\n{"question": "c", "answer": "d"}\n')
    rows = reading("hf:odd")
    assert len(rows.rejected) == 1 and "control characters" in hints_for_some(rows.tables, rows.rejected)[0]


def test_labels_are_their_names_and_mixed_texts_their_texts() -> None:
    import datasets

    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"question": datasets.Value("string"), "answer": names})
    made = datasets.Dataset.from_dict({"question": ["q", "r", "s"], "answer": [1, 0, -1]}, features=features)
    Path("labels").mkdir()
    made.to_parquet("labels/train.parquet")
    rows = reading("hf:labels")
    assert [one.answer for one in rows.records] == ["yes", "no"] and rows.rejected[0].reason == "empty answer"
    Path("mixed").mkdir()
    lines = [{"question": 'say "q"', "answer": "b"}, {"question": "r", "answer": 3}]
    Path("mixed/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.answer for one in reading("hf:mixed").records] == ["b", "3"]


@pytest.mark.parametrize("kind", ["hf:mixed", "mixed.parquet", "mixed.arrow"])
def test_messages_of_several_forms_are_read_as_from_their_file(kind: str) -> None:
    """The library keeps such messages as JSON, each one in a text."""
    import datasets

    said = [{"role": "user", "content": "What helps?"}, {"role": "assistant", "content": "Rest."}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "What else?"}]}
    chats = [said, [said[0], call], [*said, parts, said[1]]]
    Path("mixed").mkdir()
    Path("mixed/train.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    if kind != "hf:mixed":
        made = datasets.load_dataset("mixed", split="train", cache_dir="cache")
        assert "json" in str(made.data.table.schema.field("messages").type)
        made.to_parquet("mixed.parquet")
        made.save_to_disk("saved")
        shutil.copy(next(Path("saved").glob("*.arrow")), "mixed.arrow")
    rows = reading(kind)
    turns = [[*one.history, (one.question, one.answer)] for one in rows.records]
    assert turns == [[("What helps?", "Rest.")], [("What helps?", "Rest."), ("What else?", "Rest.")]]
    assert [(one.number, one.reason) for one in rows.rejected] == [(2, "a tool call")]


def test_mixed_texts_in_a_file_of_the_library_have_no_quotes() -> None:
    import datasets

    answers = ["b", 3, None, ["c"], ["d", "e"], {"f": "g"}]
    lines = [{"question": f"q{number}", "answer": answer} for number, answer in enumerate(answers)]
    Path("mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    datasets.load_dataset("json", data_files="mixed.jsonl", split="train", cache_dir="cache").to_parquet("x.parquet")
    rows, plain = reading("x.parquet"), reading("mixed.jsonl")
    assert [one.answer for one in rows.records] == [one.answer for one in plain.records] == ["b", "3", "c"]
    assert [(one.number, one.reason) for one in rows.rejected] == [(one.number, one.reason) for one in plain.rejected]
