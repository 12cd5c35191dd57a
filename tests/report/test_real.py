"""The page of a run that was really validated and evaluated: both files are read as they are written."""

from pathlib import Path

import pytest

from tests.support import scored_models
from tests.support.markup import is_rounded, read_markup, resolve
from toolkit.core.manifest import write_manifest
from toolkit.evaluate import evaluate
from toolkit.report import write_pages
from toolkit.validate import validate

pytestmark = pytest.mark.slow
STAGES = ("prepare", "train", "export", "validate", "register", "evaluate")


def test_figures_are_those_of_the_stages(tmp_path: Path) -> None:
    made = scored_models.world(tmp_path / "world")
    run = scored_models.copy(made, tmp_path / "run")
    answer = "At night the fever of a child may rise, and water helps when rest does not: " + "see a doctor, " * 8
    scored_models.write_rows(run.folder.split_file("train"), [("When?", answer), ("How?", "Rest.")])
    settings = run.config.evaluate.model_copy(update={"questions": 3, "answer_tokens": 6})
    config = run.config.model_copy(update={"evaluate": settings})
    manifest = run.manifest()
    write_manifest(run.folder, manifest)
    validate(config, run.folder, run.base, manifest)
    evaluate(config, run.folder, run.base, manifest)
    _, problems = write_pages(config, run.folder, dict.fromkeys(STAGES, "not run"))
    assert problems == []
    page = read_markup(run.folder.page)
    for figure in page.figures:
        assert figure.value == resolve(figure.place, run.folder.path) and is_rounded(figure), figure
    places = {figure.place for figure in page.figures}
    for name in ("base", "trained", *scored_models.QUANTIZATIONS):
        for measure in ("chrf", "rouge_l", "nll", "tokens", "ended"):
            assert f"evaluation.json#/held_out/systems/{name}/{measure}/mean" in places
    for name in scored_models.QUANTIZATIONS:
        assert f"report.json#/quantizations/{name}/mean_kl" in places
        assert f"evaluation.json#/memorised/systems/{name}/share/mean" in places
    assert "word for word the trained model's" in page.plain  # F32's answers
    assert "Tokens by their distance from the trained model" in page.plain
    assert "## Evaluation" in run.folder.model_card.read_text(encoding="utf-8")
