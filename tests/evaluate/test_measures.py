"""chrF and ROUGE-L are those of the libraries that everybody quotes, and the language is py3langid's."""

import pytest

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.evaluate import measures

PAIRS = [
    ("Rest and drink water.", "A fever is a body temperature above 38 degrees. Rest and water help."),
    ("See a doctor.", "See a doctor if the fever stays for three days."),
    ("", "Two litres."),
]


def test_both_are_the_libraries_own_on_english() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF

    plain = RougeScorer(["rougeL"])
    for answer, reference in PAIRS:
        assert measures.chrf(answer, reference) == CHRF().corpus_score([answer], [[reference]]).score
        assert measures.rouge_l(answer, reference) == plain.score(reference, answer)["rougeL"].fmeasure


def test_words_of_other_scripts_count() -> None:
    text = "体温が高い。Température élevée"
    assert measures.rouge_l(text, text) == 1
    assert measures.rouge_l("Повышенная температура", "температура тела") == pytest.approx(0.5)


def test_a_missing_library_says_how_to_install_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.core.hardware.installed", lambda name: name != "sacrebleu")
    with pytest.raises(ToolkitError) as caught:
        measures.check_installed()
    assert caught.value.exit_code == MISSING and "needs sacrebleu" in caught.value.message
    assert "medassist-toolkit[evaluate]" in caught.value.hint
