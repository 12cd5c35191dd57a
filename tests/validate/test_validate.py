import json
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.support import remote, scored_models
from toolkit.core.errors import GATE, MISSING, ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.manifest import FileRecord, StageRecord, record_file
from toolkit.export import export
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.report import report_file as file
from toolkit.validate import _gate, validate
from toolkit.validate.report import report_table


@pytest.fixture(scope="module")
def passed(made: scored_models.World, tmp_path_factory: pytest.TempPathFactory) -> scored_models.World:
    """A validated copy of the small run."""
    run = scored_models.copy(made, tmp_path_factory.mktemp("passed"))
    outcome = validate(run.config, run.folder, run.base, run.manifest())
    assert outcome.outputs == [run.folder.report]
    assert outcome.figures["quantizations"]["F32"]["mean_kl"] < 1e-9
    assert set(outcome.figures["quantizations"]) == set(scored_models.QUANTIZATIONS)
    json.dumps(outcome.figures)  # it goes into the manifest
    assert report_table(outcome.figures) == report_table(report_of(run))  # the screen shows it from there
    return run


def report_of(run: scored_models.World) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run.folder.report.read_text(encoding="utf-8"))
    return report


@pytest.mark.slow
def test_the_report_is_the_same_where_another_process_has_the_files_open(
    made: scored_models.World, passed: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where llama.cpp computes on a GPU: byte by byte."""
    remote.pretend(monkeypatch, tmp_path)
    run = scored_models.copy(made, tmp_path)
    validate(run.config, run.folder, run.base, run.manifest())
    assert run.folder.report.read_bytes() == passed.folder.report.read_bytes()


def test_the_report_holds_every_documented_field(passed: scored_models.World) -> None:
    report = report_of(passed)
    assert [*report] == [*file.Report.model_fields]
    one, answer, row = report["quantizations"]["F32"], report["answers"][0], report["rows"][0]
    for model, part in (
        (file.Quantization, one), (file.Base, report["base"]), (file.Scored, report["held_out"]),
        (file.Reference, report["reference"]), (file.Learned, report["learned"]), (file.Asked, answer),
        (file.ScoredRow, row),
    ):  # fmt: skip
        assert part.keys() == model.model_fields.keys(), model
    assert report["passed"] is True
    assert report["base"] == {"label": "someone/tiny", "commit": "c0ffee", "licence": ""}
    assert report["held_out"]["rows"] == 6 and report["held_out"]["rows_scored"] == 4
    assert report["held_out"]["tokens_scored"] == sum(row["tokens"] for row in report["rows"])
    default = report["quantizations"]["Q8_0"]
    mean = sum(row["tokens"] * row["kl"] for row in report["rows"]) / report["held_out"]["tokens_scored"]
    assert mean == pytest.approx(default["mean_kl"], rel=1e-12)
    assert [row["row"] for row in report["rows"]] == [10, 11, 13, 14]  # spread over the six
    assert report["reference"]["perplexity"] == pytest.approx(report["quantizations"]["F32"]["perplexity"], rel=1e-4)
    for name, entry in report["quantizations"].items():
        assert sum(entry["kl_counts"]) == report["held_out"]["tokens_scored"]
        assert len(entry["kl_counts"]) == len(report["kl_edges"]) + 1
        assert entry["sha256"] == sha256_of(passed.folder.gguf(name))
        assert entry["bytes"] == passed.folder.gguf(name).stat().st_size
    assert report["sources"]["data/test.jsonl"] == sha256_of(passed.folder.split_file("test"))
    assert [answer["question"] for answer in report["answers"]] == ["What is a fever?", "Does rest help?"]
    assert all(answer["before"] and answer["before"] != answer["after"] for answer in report["answers"])


@pytest.mark.slow
def test_the_bases_answers_are_those_that_training_kept(
    made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scored_models.copy(made, tmp_path, rows=1)
    asked = {"instruction": run.config.validation.instruction, "tokens": 8, "after": "x"}
    kept = [{**asked, "question": question, "before": f"to {question}"} for question in ("What is a fever?", "other?")]
    manifest = run.manifest()
    manifest.stages["train"] = stage(run, [], {}, {"answers": kept})
    for questions, expected in (
        (["What is a fever?"], ["to What is a fever?"]),
        (["What is a fever?", "Does rest help?"], [None, None]),  # one of them is new, and the base is too large
    ):
        monkeypatch.setattr("toolkit.validate.layers.SMALL", 1)
        config = scored_models.settings(tmp_path, rows=1, questions=questions)
        validate(config, run.folder, run.base, manifest)
        assert [one["before"] for one in report_of(run)["answers"]] == expected
        card = scored_models.card_of(run)
        assert card.count("Before:") == len([one for one in expected if one]) and card.count("After:") == len(questions)


def test_nothing_else_is_left_in_the_run_folder(passed: scored_models.World) -> None:
    names = sorted(path.name for path in passed.folder.path.iterdir())
    assert names == ["adapter", "data", "gguf", "report.json"]


def test_the_table_names_every_quantization_and_its_verdict(passed: scored_models.World) -> None:
    lines = report_table(report_of(passed)).splitlines()
    assert "quantization" in lines[0] and "99 % KL" in lines[0]
    for name in scored_models.QUANTIZATIONS:
        assert any(name in line and "passed" in line for line in lines)


@pytest.mark.slow
def test_a_failed_gate_still_writes_report_and_card(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path, rows=2, questions=[], max_kl={"Q8_0": 1e-6})
    template = chat_template(prompt_format(run.config.prompt), bos=True)
    export(run.base.folder, run.folder.adapter, {"F16": run.folder.gguf("F16")}, template + " ", "tiny")
    with pytest.raises(ToolkitError) as caught:
        validate(run.config, run.folder, run.base, run.manifest())
    error = caught.value
    assert error.exit_code == GATE
    assert error.message.startswith("2 of 3 quantizations")
    measured = report_of(run)["quantizations"]["Q8_0"]["mean_kl"]
    assert f"Q8_0: mean KL {measured:.3g} (up to " in error.message and "is over its bound 1e-06" in error.message
    assert "F16: its chat template" in error.message and "F32" not in error.message
    assert str(run.folder.report) in error.hint
    assert "toolkit export --force" in error.hint
    assert set(error.details["problems"]) == {"F16", "Q8_0"}
    report = report_of(run)
    assert report["passed"] is False
    assert {name: entry["passed"] for name, entry in report["quantizations"].items()} == {
        "F32": True,
        "F16": False,
        "Q8_0": False,
    }
    card = scored_models.card_of(run)
    assert "do not use one marked FAILED" in card and "- F16: its chat template" in card
    assert "Answers before and after" not in card


def test_a_coarse_quantization_gets_other_advice_than_wrong_weights(passed: scored_models.World) -> None:
    for name, advice in (("Q8_0", "finer quantization"), ("F16", "toolkit export --force")):
        report = report_of(passed)
        report["quantizations"][name].update(passed=False, problems=["mean KL 1 is over its bound 0.5"])
        with pytest.raises(ToolkitError) as caught:
            _gate(report, passed.folder)
        assert advice in caught.value.hint


@pytest.mark.parametrize(("after", "spoiled"), [(None, True), (17.2, True), (3.2, False)])
def test_a_model_that_training_ruined_is_no_fault_of_its_files(
    passed: scored_models.World, after: float | None, spoiled: bool
) -> None:
    """Its activations are beyond float16: another export would be no better."""
    report = report_of(passed)
    report["quantizations"]["F16"].update(passed=False, problems=["its logits are not finite at 9 of 9 answer tokens"])
    report["learned"]["test"] = {"before": 3.1, "after": after, "error": None, "verdict": "worse"}
    report["warnings"] = ["Train again with a lower train.learning_rate"]
    with pytest.raises(ToolkitError) as caught:
        _gate(report, passed.folder)
    assert ("Train again with a lower" in caught.value.hint) == spoiled
    assert ("toolkit export --force" in caught.value.hint) != spoiled


def test_a_missing_gguf_is_said_before_anything_is_loaded(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path)
    run.folder.gguf("F16").unlink()
    with pytest.raises(ToolkitError, match=r"no GGUF file .*tiny-F16\.gguf") as caught:
        validate(run.config, run.folder, run.base, run.manifest())
    assert caught.value.exit_code == MISSING
    assert not run.folder.report.exists()


@pytest.mark.slow
def test_a_damaged_gguf_leaves_the_former_report_and_no_spill(passed: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(passed, tmp_path, rows=1, questions=[])
    former = run.folder.report.read_bytes()
    run.folder.gguf("F16").write_bytes(run.folder.gguf("F16").read_bytes()[:5000])
    with pytest.raises(ToolkitError, match=r"tiny-F16\.gguf` cannot be read as GGUF"):
        validate(run.config, run.folder, run.base, run.manifest())
    assert run.folder.report.read_bytes() == former
    assert sorted(path.name for path in run.folder.path.iterdir()) == [
        "adapter",
        "data",
        "gguf",
        "report.json",
    ]


def stage(
    run: scored_models.World, inputs: list[FileRecord], settings: dict[str, Any], figures: dict[str, Any]
) -> StageRecord:
    return StageRecord(
        settings=settings,
        inputs=inputs,
        outputs=[record_file(run.folder.gguf("F16"), run.folder)],
        versions={},
        seconds=1.0,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        figures=figures,
    )


def test_the_card_of_an_imported_adapter_leaves_out_what_is_not_known(passed: scored_models.World) -> None:
    card = scored_models.card_of(passed)
    for expected in (
        "# tiny",
        "`someone/tiny` at commit `c0ffee`",
        "not a medical device",
        "no medical advice",
        "A qualified clinician must check",
        'ollama run tiny "What is a fever?"',
        'model="tiny"',
        "Q8_0 (default)",
        "Trained outside this run",
        "LoRA, r 4, alpha 8 (scale alpha / r)",
        "### Instruction:\n{instruction}\n\n### Input:\n{question}\n\n### Response:\n",
        sha256_of(passed.folder.gguf("F32")),
    ):
        assert expected in card, expected
    assert "None" not in card and "Held-out loss" not in card
    assert str(passed.folder.path) not in card
    read = ModelCard(card)
    assert read.text.startswith("\n# tiny\n")
    assert {key: value for key, value in vars(read.data).items() if value is not None} == {
        "base_model": "someone/tiny",
        "library_name": "llama-cpp-python",
        "model_name": "tiny",
        "tags": ["gguf", "llama-cpp", "lora", "ollama"],
    }


def test_the_card_tells_data_and_recipe_from_the_manifest(passed: scored_models.World) -> None:
    source = FileRecord(path="/somewhere/records.csv", size=1, mtime_ns=1, sha256="ab" * 32)
    manifest = passed.manifest()
    manifest.stages["prepare"] = stage(
        passed,
        [source],
        {"data.split": "grouped", "data.seed": 7},
        {
            "rows": 2479,
            "kept": 1900,
            "duplicates": 550,
            "rejected": 29,
            "reasons": {"no `Answer:`": 29},
            "train": 1520,
            "val": 190,
            "test": 190,
            "leaked_questions": 0,
            "near_duplicates": 12,
        },
    )
    manifest.stages["train"] = stage(
        passed,
        [],
        {"train.max_steps": 60, "train.learning_rate": 2e-4},
        {
            "backend": "peft",
            "device": "cpu",
            "precision": "f32",
            "held_out_loss_before": 2.5,
            "held_out_loss_after": 1.75,
        },
    )
    card = scored_models.card_of(passed, manifest=manifest)
    for expected in (
        f"`records.csv`, SHA-256 `{'ab' * 32}`",
        "rows 2,479, kept 1,900, duplicates 550, rejected 29",
        "Rejected for no `Answer:`: 29",
        "Split (grouped, seed 7): train 1,520, val 190, test 190",
        "leaked questions 0, near duplicates 12",
        "steps 60, learning rate 0.0002",
        "Trained with peft, cpu, f32",
        "2.5000 before, 1.7500 after",
    ):
        assert expected in card, expected
    assert "/somewhere" not in card


def test_the_card_warns_of_a_model_that_learned_nothing(passed: scored_models.World) -> None:
    """As report.json does; the base and the adapter of these tests are random."""
    report = report_of(passed)
    assert report["learned"]["train"] is None and report["learned"]["test"]["verdict"] in ("worse", "unmoved")
    [warning] = report["warnings"]
    card = scored_models.card_of(passed, report)
    assert card.count("**Do not use this model: the trained model is") == 1 and "test records" in warning
    assert "Do not use this model" not in scored_models.card_of(passed, report | {"warnings": []})


def test_hostile_text_does_not_break_the_card(passed: scored_models.World) -> None:
    report = report_of(passed)
    report["answers"] = [
        {"question": "# *a* | b\n<b>", "instruction": "`x`", "before": "```\n# not a title\n````", "after": "\x1b[31m"}
    ]
    report["base"] = {"label": "a`b\n# c", "commit": "", "licence": "<b>\n---\n{{ name }}"}
    config = scored_models.settings(passed.folder.path.parent, questions=['say "$HOME" `now`'])
    manifest = passed.manifest()
    manifest.stages["prepare"] = stage(passed, [FileRecord(path="x/`a`.csv", size=1, mtime_ns=1, sha256="ab")], {}, {})
    card = scored_models.card_of(passed, report, config, manifest)
    assert "fine-tuned with LoRA from `` a`b # c ``." in card
    assert "The licence of the base: \\<b\\> --- {{ name }}.\n" in card
    assert "- Source: `` `a`.csv ``, SHA-256 `ab`" in card
    assert vars(ModelCard(card).data)["model_name"] == "tiny" and vars(ModelCard(card).data).get("base_model") is None
    assert "`````text\n```\n# not a title\n````\n`````" in card
    assert "\x1b" not in card
    assert "**\\# \\*a\\* \\| b \\<b\\>**" in card
    assert "ollama run tiny 'say \"$HOME\" `now`'" in card
    assert 'content": "say \\"$HOME\\" `now`"' in card


@pytest.mark.slow
def test_a_repeat_penalty_is_reported_warned_of_and_judged_by_nothing(
    made: scored_models.World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scored_models.copy(made, tmp_path, rows=2, questions=[])
    ollama = run.config.ollama.model_copy(update={"repeat_penalty": 1.5})
    config = run.config.model_copy(update={"ollama": ollama})
    outcome = validate(config, run.folder, run.base, run.manifest())
    report = report_of(run)
    entry, plain = report["penalty"], report["quantizations"]["Q8_0"]
    assert report["passed"] is True and outcome.figures["penalty"] == entry
    assert (entry["repeat_penalty"], entry["quantization"]) == (1.5, "Q8_0")
    assert (entry["plain_kl"], entry["plain_perplexity"]) == (plain["mean_kl"], plain["perplexity"])
    assert entry["mean_kl"] > 10 * entry["plain_kl"] and entry["perplexity"] != entry["plain_perplexity"]
    documented = file.Report.model_fields["penalty"].description or ""
    assert all(f"`{name}`" in documented for name in entry)
    said = "ollama.repeat_penalty 1.5 changes what Q8_0 serves"
    assert said in report_table(outcome.figures)
    assert said in " ".join(capsys.readouterr().err.split())
    assert "repeat\\_penalty 1.5" in scored_models.card_of(run, config=config)


def test_without_a_penalty_nothing_is_said_of_one(passed: scored_models.World) -> None:
    assert report_of(passed)["penalty"] is None and "penalty" not in scored_models.card_of(passed)
