"""An exam and a task of lm-eval in an evaluation: every system, intervals, comparisons, and going on after Ctrl-C."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hub_data, scored_models, task_rows
from tests.support.places import REPOSITORY
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.evaluate import choice, evaluate
from toolkit.evaluate.evaluation import read_evaluation

pytestmark = pytest.mark.slow

NAMES = ["base", "trained", "F32", "Q8_0"]


@pytest.fixture
def run(made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> scored_models.World:
    hub_data.use_data("http://127.0.0.1:9", tmp_path / "home", monkeypatch)
    found = scored_models.copy(made, tmp_path / "run")
    scored_models.write_rows(found.folder.split_file("train"), scored_models.ROWS)
    return found


def settings(run: scored_models.World, **changes: Any) -> Config:
    values = {"questions": 1, "answer_tokens": 2, "systems": NAMES, **changes}
    return run.config.model_copy(update={"evaluate": run.config.evaluate.model_copy(update=values)})


def exam(folder: Path) -> str:
    path = folder / "ward.jsonl"
    path.write_text("".join((REPOSITORY / "data" / "exam.jsonl").read_text().splitlines(keepends=True)[:8]))
    return str(path)


def test_every_system_sits_the_exam_and_a_task(run: scored_models.World, tmp_path: Path) -> None:
    data = task_rows.save_all(tmp_path / "tasks")
    config = settings(run, exam=exam(tmp_path), tasks=["medqa_4options"], task_items=3, task_folder=str(data))
    evaluate(config, run.folder, run.base, run.manifest())
    found = read_evaluation(run.folder)["choice"]
    assert [(one["task"], one["title"], one["items"], one["metric"]) for one in found] == [
        ("medqa_4options", "MedQA, questions of the US medical licence", 3, "acc"),
        ("exam:ward", "Own exam, ward.jsonl", 8, "acc"),
    ]
    for one in found:
        assert [*one["systems"]] == NAMES
        assert one["systems"]["F32"] == one["systems"]["trained"]
        assert all(0 <= of["low"] <= of["mean"] <= of["high"] <= 1 for of in one["systems"].values())
        pairs = [("base", "trained"), ("trained", "F32"), ("trained", "Q8_0"), ("base", "Q8_0")]
        assert [(c["a"], c["b"], c["measure"]) for c in one["comparisons"]] == [(*pair, one["task"]) for pair in pairs]


def test_an_interrupted_exam_goes_on_with_the_next_item(
    run: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(run, exam=exam(tmp_path))
    usual, asked = choice.ask_items, list[choice.ItemValue]()

    def counted(*arguments: Any) -> Iterator[choice.ItemValue]:
        for one in usual(*arguments):
            asked.append(one)
            yield one
            if len(asked) == 11:
                raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.evaluate.choice.ask_items", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, run.folder, run.base, run.manifest())
    evaluate(config, run.folder, run.base, run.manifest())
    assert len(asked) == 8 * len(NAMES)
    again = read_evaluation(run.folder)["choice"]
    evaluate(config, run.folder, run.base, run.manifest(), force=True)
    assert read_evaluation(run.folder)["choice"] == again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["medqa_4option"]}, 'did you mean "medqa_4options"'),
        ({"tasks": ["medqa_4options"]}, "are not on this machine"),
        ({"exam": "nowhere.jsonl"}, "no exam `nowhere.jsonl`"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    changes: dict[str, Any], said: str, run: scored_models.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.evaluate.bench import Bench

    monkeypatch.setattr(Bench, "opened", None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ToolkitError, match=said):
        evaluate(settings(run, **changes), run.folder, run.base, run.manifest())
    assert not run.folder.evaluation.exists()
