"""lm-eval's tasks: names, data from a folder or the hub, and what is refused in words."""

import logging
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.support import hub_data, task_rows
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.evaluate.tasks import ChoiceTask, open_tasks


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to this machine's caches, and no hub answers, however often it is asked."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub_data.use_data("http://127.0.0.1:9", tmp_path / "home", monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_rows.save_all(tmp_path_factory.mktemp("tasks"))


def one(name: str, folder: Path | None, items: int = 0) -> ChoiceTask:
    (found,) = open_tasks([name], items, folder)
    return found


def refused(name: str, folder: Path | None) -> ToolkitError:
    with pytest.raises(ToolkitError) as raised:
        open_tasks([name], 0, folder)
    return raised.value


@pytest.mark.parametrize(
    ("name", "metric", "choices"),
    [
        ("medqa_4options", "acc", [" A", " B", " C", " D"]),
        ("medmcqa", "acc", [" A", " B", " C", " D"]),
        ("pubmedqa", "acc", [" yes", " no", " maybe"]),
        ("arc_easy", "acc_norm", [" fever", " water water", " sleep sleep sleep", " salt salt salt salt"]),
        (
            "hellaswag",
            "acc_norm",
            [
                " drinks fever. and rests.",
                " drinks water again. and rests.",
                " drinks sleep again again. and rests.",
                " drinks salt again again again. and rests.",
            ],
        ),
    ],
)
def test_five_tasks_from_a_folder(name: str, metric: str, choices: list[str], folder: Path) -> None:
    """Only the split that is asked is there, in a layout of its own for each."""
    task = one(name, folder)
    assert (task.name, task.metric, task.lower) == (name, metric, False)
    assert task.title != name
    assert len(task.requests) == task_rows.COUNT
    assert [request.args[1] for request in task.requests[0]] == choices
    context = task.requests[3][0].args[0]
    if name != "hellaswag":
        assert context.endswith("Answer:")
    assert "3" in context
    right = {"pubmedqa": 0}.get(name, 3)
    best = [(-1.0 if number == right else -100.0, False) for number in range(len(choices))]
    assert task.value(3, best) == 1.0
    assert task.value(3, best[::-1] if right != 1 else best) == 0.0


def test_items_are_limited_from_the_beginning(folder: Path) -> None:
    whole, some = one("medqa_4options", folder), one("medqa_4options", folder, 2)
    assert [[request.args for request in item] for item in some.requests] == [
        [request.args for request in item] for item in whole.requests[:2]
    ]


def test_length_decides_where_choices_are_texts(folder: Path) -> None:
    """acc_norm divides by the length: the long right choice has the lower sum, and wins."""
    task = one("arc_easy", folder)
    long_one = [(-3.0, False), (-9.0, False), (-9.0, False), (-4.0, False)]
    assert task.value(3, long_one) == 1.0


def test_nothing_is_said_and_no_seed_is_changed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random.seed(5)
    before = random.getstate()
    level = logging.getLogger("lm_eval").level
    one("medqa_4options", folder)
    assert capfd.readouterr() == ("", "")
    assert random.getstate() == before
    assert logging.getLogger("lm_eval").level == level


@pytest.mark.slow
def test_a_tag_stands_for_its_tasks_and_none_is_asked_twice(folder: Path) -> None:
    found = open_tasks(["arc_easy", "ai2_arc", "arc_easy"], 1, folder)
    assert [task.name for task in found] == ["arc_easy", "arc_challenge"]


@pytest.mark.slow
def test_a_group_stands_for_its_tasks_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    """MultiMedQA names three tasks of other folders of lm-eval, and six of MMLU, whose data set has configurations."""
    shutil.copytree(folder, tmp_path / "data")
    parts = ["anatomy", "clinical_knowledge", "college_medicine", "medical_genetics", "professional_medicine"]
    for part in parts:
        task_rows.save_jsonl(tmp_path / "data" / "cais" / "mmlu" / part / "test.jsonl", task_rows.rows_of("mmlu"))
    error = refused("multimedqa", tmp_path / "data")
    assert "have no configuration `college_biology`, which task `mmlu_college_biology` asks" in error.message
    part = "college_biology"
    task_rows.save_jsonl(tmp_path / "data" / "cais" / "mmlu" / part / "test.jsonl", task_rows.rows_of("mmlu"))
    found = open_tasks(["multimedqa"], 1, tmp_path / "data")
    names = [f"mmlu_{part}" for part in (*parts, "college_biology")]
    assert sorted(task.name for task in found) == sorted(["medmcqa", "medqa_4options", "pubmedqa", *names])
    assert {task.metric for task in found} == {"acc"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("medqa", "medqa_4options"),
        ("medqa4options", "medqa_4options"),
        ("PubMedQA", "pubmedqa"),
        ("hellaswagg", "hellaswag"),
    ],
)
def test_a_task_that_does_not_exist(name: str, meant: str, folder: Path) -> None:
    error = refused(name, folder)
    assert error.message == f'lm-evaluation-harness has no task `{name}`; did you mean "{meant}"?'
    assert error.exit_code == USAGE


def test_a_name_like_no_other(folder: Path) -> None:
    assert refused("zzzzqqq", folder).message == "lm-evaluation-harness has no task `zzzzqqq`"


def test_a_folder_without_the_data_says_what_to_fetch(tmp_path: Path) -> None:
    error = refused("medqa_4options", tmp_path)
    assert f"`{tmp_path}` has no data for task `medqa_4options`" in error.message
    name = "GBaker/MedQA-USMLE-4-options-hf"
    assert f"hf download {name} --repo-type dataset --local-dir {tmp_path}/{name}" in error.hint
    assert error.exit_code == MISSING
    error = refused("medqa_4options", tmp_path / "nowhere")
    assert "which is no folder" in error.message


def test_a_folder_without_the_split(tmp_path: Path) -> None:
    task_rows.save_jsonl(tmp_path / "medqa_4options" / "train.jsonl", task_rows.rows_of("medqa_4options"))
    error = refused("medqa_4options", tmp_path)
    assert error.message == "the data of task `medqa_4options` have no split `test`; they have train"
    assert "`test.jsonl`" in error.hint


def test_data_that_are_damaged_or_of_another_task(tmp_path: Path) -> None:
    (tmp_path / "medqa_4options").mkdir()
    (tmp_path / "medqa_4options" / "test.jsonl").write_text('{"sent1": "x"\n')
    error = refused("medqa_4options", tmp_path)
    assert "the data of task `medqa_4options` in " in error.message and "cannot be read" in error.message
    shutil.rmtree(tmp_path / "medqa_4options")
    (tmp_path / "medqa_4options").mkdir()
    assert "cannot be read" in refused("medqa_4options", tmp_path).message
    task_rows.save_jsonl(tmp_path / "medqa_4options" / "test.jsonl", task_rows.rows_of("arc_easy"))
    error = refused("medqa_4options", tmp_path)
    assert "cannot be made ready" in error.message and "ending0" in error.message
    assert "check their columns" in error.hint


def test_data_that_come_as_a_program_are_refused(tmp_path: Path) -> None:
    """A loading script in the folder, as in the hub's repository of PubMedQA, is never run."""
    place = tmp_path / "data" / "pubmedqa"
    place.mkdir(parents=True)
    (place / "pubmedqa.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    error = refused("pubmedqa", tmp_path / "data")
    assert "come as a program" in error.message
    assert f"`{tmp_path}/data/pubmedqa/test.jsonl`" in error.hint
    assert not (tmp_path / "ran").exists()


def test_metrics_that_are_programs_are_refused(tmp_path: Path) -> None:
    """SQuAD's metric is a script on the hub, which the library `evaluate` would fetch and run."""
    error = refused("xquad_en", tmp_path)
    assert "is a program on the hub" in error.message or "no data for" in error.message


def test_a_file_of_that_library_s_name_is_not_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m toolkit` looks in the working folder first, and many people have an evaluate.py there."""
    (tmp_path / "evaluate.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    assert len(one("medqa_4options", folder).requests) == task_rows.COUNT
    assert "evaluate" not in sys.modules


def test_tasks_that_run_what_a_model_wrote_are_refused(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():",
        "entry_point": "f",
        "test": "def check(f): pass",
        "canonical_solution": "1",
    }
    task_rows.save_jsonl(tmp_path / "humaneval" / "test.jsonl", [row])
    error = refused("humaneval", tmp_path)
    assert "program" in error.message
    assert error.exit_code == USAGE


@pytest.mark.slow
def test_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched stays: afterwards it is there without a network, with --offline too."""
    task_rows.save_repository(tmp_path / "hub" / "allenai" / "ai2_arc")
    with hub_data.serving_data(tmp_path / "hub") as hub:
        hub_data.use_data(hub.url, tmp_path / "home", monkeypatch)
        assert len(one("arc_easy", None).requests) == task_rows.COUNT
        assert any("ARC-Easy/test-" in path for path in hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(one("arc_easy", None).requests) == task_rows.COUNT
    error = refused("medqa_4options", None)
    assert "are not on this machine, and HF_HUB_OFFLINE forbids the network" in error.message
    name = "GBaker/MedQA-USMLE-4-options-hf"
    assert f"hf download {name} --repo-type dataset --local-dir FOLDER/{name}" in error.hint
    assert '`evaluate.task_folder = "FOLDER"`' in error.hint


@pytest.mark.slow
def test_a_hub_that_does_not_answer_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("medqa_4options", None)
    assert (
        "the data of task `medqa_4options` (`GBaker/MedQA-USMLE-4-options-hf`) are not on this machine" in error.message
    )
    assert error.exit_code == MISSING
    (tmp_path / "hub" / "bigbio" / "pubmed_qa").mkdir(parents=True)
    (tmp_path / "hub" / "bigbio" / "pubmed_qa" / "pubmed_qa.py").write_text("raise SystemExit")
    with hub_data.serving_data(tmp_path / "hub") as hub:
        hub_data.use_data(hub.url, tmp_path / "home", monkeypatch)
        error = refused("pubmedqa", None)
        assert "come as a program (bigbio/pubmed_qa)" in error.message
        assert '`evaluate.task_folder = "FOLDER"`' in error.hint
        assert "are not on the hub" in refused("medqa_4options", None).message
