"""The page of a run: every figure is its file's, what is missing is said, and no text from data breaks it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import reported
from tests.support.markup import Figure, Markup, is_rounded, read_markup, resolve
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.manifest import Manifest, read_manifest, write_manifest
from toolkit.report import write_pages
from toolkit.report.page import MOST_BYTES, environment
from toolkit.report.words import shown

FRESH = dict.fromkeys(reported.STAGES, "")
HOSTILE = (
    "</style></p><script>alert(1)</script><img src=x onerror=alert(2)> {{ 1234*5678 }} {% x %} &lt; "
    "\x00\x1b[31m\u202egnp.exe\u2066 \ufffe ]]> <!-- שלום עולם مرحبا"
)


def page_of(run: reported.Reported, reasons: dict[str, str] | None = None) -> Markup:
    write_pages(run.config, run.folder, reasons or FRESH)
    return read_markup(run.folder.page)


def test_every_figure_is_what_its_file_holds_and_is_written_as_that(run: reported.Reported) -> None:
    figures = page_of(run).figures
    assert len(figures) > 250
    for figure in figures:
        assert figure.value == resolve(figure.place, run.folder.path), figure
        assert is_rounded(figure), figure


@pytest.mark.slow
def test_no_figure_of_the_files_is_left_out(run: reported.Reported) -> None:
    places = {figure.place for figure in page_of(run).figures}
    for name in reported.FILES:
        for key in ("bytes", "bits_per_weight", "mean_kl", "mean_kl_low", "mean_kl_high", "bound", "kl_99", "top1"):
            assert f"report.json#/quantizations/{name}/{key}" in places
    held_out = run.evaluation["held_out"]
    for name in reported.SYSTEMS:
        for measure in ("nll", "chrf", "rouge_l", "tokens", "ended", "language"):
            for part in ("mean", "low", "high"):
                assert f"evaluation.json#/held_out/systems/{name}/{measure}/{part}" in places
        assert f"evaluation.json#/choice/0/systems/{name}/mean" in places
    for index in range(len(held_out["comparisons"])):
        assert f"evaluation.json#/held_out/comparisons/{index}/p_corrected" in places
    assert {f"evaluation.json#/votes/pairs/1/{key}" for key in ("better", "worse", "same", "win_rate")} <= places
    judged = {
        f"evaluation.json#/judge/{key}" for key in ("pairs/0/disagreed", "unusable", "agreement_with_votes/kappa")
    }
    assert judged <= places


def test_a_figure_that_is_written_wrong_is_seen() -> None:
    """The test above would see it: rounding is checked to the last digit that is shown."""
    assert is_rounded(Figure(0.96374, "", "96.37%")) and not is_rounded(Figure(0.9648, "", "96.37%"))
    assert is_rounded(Figure(2.7e-5, "", "2.70e-05")) and not is_rounded(Figure(2.8e-5, "", "2.70e-05"))
    assert is_rounded(Figure(-4.5e-8, "", "-4.5e-08")) and not is_rounded(Figure(-4.7e-8, "", "-4.5e-08"))
    assert is_rounded(Figure(144_800_001, "", "144.8 MB")) and not is_rounded(Figure(144_900_000, "", "144.8 MB"))
    assert is_rounded(Figure(0.0004, "", "< 0.001")) and not is_rounded(Figure(0.002, "", "< 0.001"))


def test_the_page_is_one_file_without_scripts_and_its_headings_are_in_order(run: reported.Reported) -> None:
    page = page_of(run)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    urls = [
        str(value) for _, values in page.tags for key, value in values.items() if key in ("src", "href", "xlink:href")
    ]
    assert urls and all(url.startswith("#") for url in urls)
    assert not [key for _, values in page.tags for key in values if key.startswith("on")]
    assert "url(" not in run.folder.page.read_text() and run.folder.page.stat().st_size < MOST_BYTES
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.levels, page.levels[1:], strict=False))
    targets = {str(values["id"]) for _, values in page.tags if "id" in values}
    assert {url[1:] for url in urls} <= targets


def test_every_chart_says_in_words_what_it_shows_and_no_two_share_a_name(run: reported.Reported) -> None:
    page = page_of(run)
    charts = [values for tag, values in page.tags if tag == "svg"]
    assert len(charts) >= 12 and all(values["role"] == "img" for values in charts)
    named = [name for values in charts for name in str(values["aria-labelledby"]).split()]
    ids = [str(values["id"]) for _, values in page.tags if "id" in values]
    assert len(ids) == len({*ids}) and {*named} <= {*ids}
    kl = run.report["quantizations"]["Q8_0"]["mean_kl"]
    assert f"Q8_0: 144.8 MB, mean KL {kl:.4f}, bound 0.02, passed." in page.plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: run.folder.report.unlink(), "were not compared with the trained model yet: toolkit validate"),
        (lambda run: run.folder.evaluation.unlink(), "answers were not evaluated: toolkit evaluate"),
        (lambda run: run.folder.train_log.unlink(), "No loss was logged"),
        (lambda run: run.folder.report.write_text('{"quantizations": 3}'), "report.json is damaged"),
        (
            lambda run: run.folder.evaluation.write_text('{"held_out": {"systems": {"a": 3}}}'),
            "evaluation.json is damaged",
        ),
        (lambda run: run.folder.evaluation.write_text('{"choice": [NaN'), "evaluation.json cannot be read as JSON"),
        (lambda run: run.folder.split_file("train").write_text("no\n"), "in English"),
        (lambda run: (run.folder.adapter / "adapter_config.json").write_text("{"), "36,551 tokens"),
        (lambda run: run.folder.train_log.write_text('{"step": 1, "loss": NaN}\n{"step": 2'), "No loss was logged"),
    ],
    ids=["no report", "no evaluation", "no log", "report", "evaluation", "broken", "split", "adapter", "log"],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_stays(
    run: reported.Reported, spoil: Callable[[reported.Reported], object], said: str
) -> None:
    spoil(run)
    page = page_of(run)
    assert said in page.plain and "Provenance" in page.plain
    for figure in page.figures:
        assert figure.value == resolve(figure.place, run.folder.path)


def test_a_figure_that_is_null_is_not_drawn_as_zero(run: reported.Reported) -> None:
    entry = run.report["quantizations"]["Q2_K"]
    entry.update(dict.fromkeys(("mean_kl", "mean_kl_low", "mean_kl_high", "kl_99", "top1", "perplexity", "kl_counts")))
    entry.update(passed=False, problems=["its logits are not finite at 9 of 411 answer tokens"])
    run.evaluation["held_out"]["systems"]["Q2_K"]["chrf"] = None
    run.evaluation["systems"][5].update(skipped="llama.cpp does not load it")
    run.evaluation["votes"] = None
    del run.evaluation["judge"]
    run.write()
    page = page_of(run)
    assert page.plain.count("not measured") >= 6
    assert "not measured: llama.cpp does not load it" in page.plain and "No clinician has judged" in page.plain
    assert "do not use Q2_K" in page.plain and "not finite at 9 of 411" in page.plain
    drawn = re.search(r"Size of each file.*?</desc>", run.folder.page.read_text(), re.DOTALL)
    assert drawn and "Q8_0" in drawn[0] and "Q2_K" not in drawn[0]
    assert not [figure for figure in page.figures if "/Q2_K/mean_kl" in figure.place]


@pytest.mark.parametrize("stages", [(), ("prepare",), ("prepare", "train"), ("prepare", "train", "export")])
def test_a_run_that_has_only_begun_has_a_page(run: reported.Reported, stages: tuple[str, ...]) -> None:
    for path in (run.folder.report, run.folder.evaluation):
        path.unlink()
    manifest = read_manifest(run.folder)
    write_manifest(run.folder, Manifest(run_id="x", stages={name: manifest.stages[name] for name in stages}))
    page = page_of(run, {name: "" if name in stages else "not run" for name in reported.STAGES})
    assert page.plain.count("not run") >= len(reported.STAGES) - len(stages)
    assert ("Not known: the data were not prepared" in page.plain) == (not stages)
    assert not run.folder.model_card.exists()


def test_a_manifest_without_figures_gives_a_page_and_a_card(run: reported.Reported) -> None:
    """As another version may have left it."""
    manifest = read_manifest(run.folder)
    for record in manifest.stages.values():
        record.figures.clear()
        record.settings.clear()
        record.inputs.clear()
    write_manifest(run.folder, manifest)
    assert "Provenance" in page_of(run).plain and "None" not in run.folder.model_card.read_text(encoding="utf-8")


def test_stale_stages_and_an_evaluation_of_other_files_are_said_first(run: reported.Reported) -> None:
    run.evaluation["systems"][3]["sha256"] = "ab" * 32
    run.write()
    page = page_of(run, {**FRESH, "validate": "settings changed: validate.rows"})
    first = page.plain[: page.plain.index("What it is not for")]
    assert "Out of date: validate (settings changed: validate.rows)" in first
    assert "The evaluation is of other files" in first
    assert "Better, by the loss on held-out answers alone" in page.plain  # the verdict does not use it


@pytest.mark.parametrize(
    ("changes", "question", "said"),
    [
        ({}, "Is it better", "Better in likelihood of the reference and letters in common with the reference"),
        ({"verdict": "no difference can be shown"}, "Is it better", "No difference can be shown."),
        (
            {"verdict": "worse"},
            "Is it better",
            "Worse in likelihood of the reference, letters in common with the reference and Own",
        ),
        ({}, "Did making", "F16 and Q8_0: no difference can be shown."),
        ({"verdict": "worse"}, "Did making", "F16, Q8_0, Q4_K_M and Q2_K: worse in likelihood of the reference"),
    ],
)
def test_verdicts_are_those_of_the_comparisons(
    run: reported.Reported, changes: dict[str, Any], question: str, said: str
) -> None:
    for one in [*run.evaluation["held_out"]["comparisons"], *run.evaluation["choice"][0]["comparisons"]]:
        one.update(changes)
    run.write()
    text = page_of(run).plain
    assert said in text[text.index(question) : text.index("The run at a glance")]


def test_that_nothing_can_be_shown_is_no_good_verdict_and_states_its_questions(run: reported.Reported) -> None:
    for one in [*run.evaluation["held_out"]["comparisons"], *run.evaluation["choice"][0]["comparisons"]]:
        one.update(verdict="no difference can be shown")
    run.write()
    text = page_of(run).plain
    assert "○ No difference can be shown. Asked: 50 held-out questions." in text
    assert "○ F16, Q8_0, Q4_K_M and Q2_K: no difference can be shown. Asked: 50 held-out questions." in text


def spread(value: Any, text: str) -> Any:
    """Put a text in place of every text that a user, a model or a data file could have written."""
    ours = {"version", "verdict", "measure", "kind", "a", "b", "sha256", "method", "dtype"}
    if isinstance(value, dict):
        return {key: each if key in ours else spread(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [spread(each, text) for each in value]
    return text if isinstance(value, str) else value


def test_hostile_text_stays_text(run: reported.Reported) -> None:
    run.report.update(spread({key: run.report[key] for key in ("base", "answers", "warnings", "versions")}, HOSTILE))
    run.evaluation.update(spread(run.evaluation, HOSTILE))
    run.write()
    manifest = read_manifest(run.folder)
    manifest.stages["prepare"].figures.update(reasons={HOSTILE: 3}, columns={"question": HOSTILE}, language=HOSTILE)
    manifest.stages["prepare"].settings["data.source"] = HOSTILE
    manifest.stages["register"].figures["name"] = HOSTILE
    write_manifest(run.folder, manifest)
    page, text = page_of(run), run.folder.page.read_text(encoding="utf-8")
    assert {tag for tag, _ in page.tags} <= SAFE_TAGS
    assert "{{ 1234*5678 }}" in page.text and "7006652" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2066\ufffe]", text)
    assert text.count("</style>") == 1 and "<script" not in text and "שלום" in text
    card = run.folder.model_card.read_text(encoding="utf-8")
    assert "\x1b" not in card and "\u202e" not in card


SAFE_TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "h1", "h2", "h3",
    "h4", "p", "ul", "ol", "li", "a", "b", "i", "div", "span", "dl", "dt", "dd", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "data", "figure", "figcaption", "svg", "desc", "text", "line", "path", "rect", "circle",
    "details", "summary", "mark", "del", "code", "pre",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["<", "a", "ש", "🤒", "\x00", "a "])
def test_long_texts_leave_the_page_small(run: reported.Reported, letter: str) -> None:
    long = letter * 1_000_000
    run.evaluation["held_out"]["answers"] = [
        {**one, "question": long[:50_000], "answers": {name: {"text": long[:60_000]} for name in reported.SYSTEMS}}
        for one in run.evaluation["held_out"]["answers"][:12]
    ]
    run.evaluation["votes"]["unsafe"] = [{"question": long[:9000], "answer": long[:9000], "comment": long[:9000]}] * 150
    run.report["base"]["label"] = long
    run.write()
    page_of(run)
    assert run.folder.page.stat().st_size < 2_000_000
    assert "more characters)" in run.folder.page.read_text(encoding="utf-8")


@settings(max_examples=tries(200), deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_text_comes_out_of_a_template_as_text(text: str) -> None:
    written = environment().from_string("<p>{{ text }}</p>").render(text=text)
    reader = read_text(written)
    assert reader == shown(text)


def read_text(written: str) -> str:
    from html import unescape

    assert written.startswith("<p>") and written.endswith("</p>") and written.count("<") == 2
    return unescape(written[3:-4])


@pytest.mark.slow
def test_a_page_that_somebody_changed_stays_unless_forced(run: reported.Reported) -> None:
    page_of(run)
    page_of(run)  # its own it replaces
    for path in (run.folder.page, run.folder.model_card):
        path.write_text("mine")
        with pytest.raises(ToolkitError, match=re.escape(f"`{path}` changed since")):
            write_pages(run.config, run.folder, FRESH)
        assert path.read_text() == "mine"
        write_pages(run.config, run.folder, FRESH, force=True)
        assert path.read_text() != "mine"
        page_of(run)


def test_the_card_that_a_former_version_recorded_is_replaced_and_validation_stays_fresh(run: reported.Reported) -> None:
    """There README.md was an output of validate: another text of it would make that stale."""
    from toolkit.core.file_changes import why_stale
    from toolkit.core.manifest import record_file

    run.folder.model_card.write_text("of a former version")
    manifest = read_manifest(run.folder)
    record = manifest.stages["validate"]
    record.outputs.append(record_file(run.folder.model_card, run.folder))
    record.inputs.clear()
    write_manifest(run.folder, manifest)
    page_of(run)
    assert run.folder.model_card.read_text().startswith("---\n")
    record = read_manifest(run.folder).stages["validate"]
    assert why_stale(record, run.folder, record.settings, [], [run.folder.report]) == ""


@pytest.mark.slow
def test_a_process_that_died_between_manifest_and_page_leaves_no_stranger(
    run: reported.Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_of(run)

    def die(_: object) -> None:
        raise KeyboardInterrupt

    run.report["warnings"] = ["another"]
    run.write()
    with monkeypatch.context() as patched:
        patched.setattr("toolkit.report.write_together", die)
        with pytest.raises(KeyboardInterrupt):
            write_pages(run.config, run.folder, FRESH)
    assert "another" in page_of(run).plain


@pytest.mark.parametrize(
    ("personal", "said"),
    [
        (
            {"mode": "mask", "looked": True, "names": False, "rows": 3, "kinds": {"DATE": 2}},
            "in 3 rows: DATE 2; masked. Names",
        ),
        (
            {"mode": "warn", "looked": True, "names": True, "rows": 1, "kinds": {"MRN": 4}},
            "in 1 row: MRN 4; left in the rows.",
        ),
        ({"mode": "reject", "looked": True, "names": True, "rows": 0, "kinds": {}}, "Personal data: none was found."),
        ({"mode": "off", "looked": False}, "were not searched for it"),
        (None, "were not searched for it"),
    ],
)
def test_what_was_found_of_personal_data_is_said(run: reported.Reported, personal: object, said: str) -> None:
    manifest = read_manifest(run.folder)
    manifest.stages["prepare"].figures["personal"] = personal
    write_manifest(run.folder, manifest)
    assert said in page_of(run).plain


@pytest.mark.slow
def test_a_training_row_with_personal_data_that_comes_back_is_a_warning(run: reported.Reported) -> None:
    assert (
        "Of 50 training answers it continued 2 word for word (20 words or more) from the first 8" in page_of(run).plain
    )
    run.evaluation["memorised"]["systems"]["trained"]["personal"] = 1
    run.write()
    text = page_of(run).plain
    assert "✗ Careful: Of 50 training answers" in text and "1 of these holds personal data" in text


def test_an_adapter_from_elsewhere_is_named_with_its_hashes(run: reported.Reported) -> None:
    manifest = read_manifest(run.folder)
    del manifest.stages["train"]
    write_manifest(run.folder, manifest)
    text = page_of(run, {**FRESH, "train": "not run"}).plain
    sha256 = sha256_of(run.folder.adapter / "adapter_model.safetensors")
    assert "Adapter, not trained in this run adapter/adapter_config.json" in text and sha256 in text
    assert "The adapter was not trained in this run. Its data folder holds 47 questions" in text


def test_several_files_of_data_are_all_named(run: reported.Reported) -> None:
    manifest = read_manifest(run.folder)
    record = manifest.stages["prepare"]
    record.inputs[:] = [
        record.inputs[0].model_copy(update={"path": f"/x/part-{number}.csv", "sha256": f"{number:064}"})
        for number in range(60)
    ]
    record.figures.update(files={"part-1.csv": {"rows": 9, "rejected": 2}})
    write_manifest(run.folder, manifest)
    text = page_of(run).plain
    assert (
        "from 60 files" in text
        and "part-39.csv" in text
        and "and 20 more" in text
        and "part-1.csv: 9 rows, 2 rejected" in text
    )
    card = run.folder.model_card.read_text(encoding="utf-8")
    assert "`part-19.csv`" in card and "and 40 more files" in card and "/x/" not in card


def test_places_of_this_machine_are_not_on_the_page(run: reported.Reported, tmp_path: Path) -> None:
    page_of(run)
    for path in (run.folder.page, run.folder.model_card):
        text = path.read_text(encoding="utf-8")
        assert "/home/someone" not in text and str(tmp_path) not in text and "sample.csv" in text


def test_the_words_of_answers_are_counted_from_the_records(run: reported.Reported) -> None:
    words = sorted(
        len(json.loads(line)["output"].split())
        for split in ("train", "val", "test")
        for line in run.folder.split_file(split).read_text(encoding="utf-8").splitlines()
    )
    middle, last = words[len(words) // 2], words[-1]
    assert f"Half of {len(words)} answers have {middle} words or fewer, the longest {last}." in page_of(run).plain


@pytest.mark.parametrize(
    ("figures", "there", "absent"),
    [
        ({"base_compute": "fp8"}, "peft, cpu, bf16, frozen weights in FP8", "changed nothing"),
        ({"base_compute": "bf16", "skipped_steps": 0}, "peft, cpu, bf16", "FP8"),
        ({"precision": "f16", "skipped_steps": 3}, "3 of 40 steps changed nothing: a gradient overflowed", "FP8"),
    ],
)
def test_page_and_card_say_in_what_a_model_was_trained(
    run: reported.Reported, figures: dict[str, Any], there: str, absent: str
) -> None:
    manifest = read_manifest(run.folder)
    manifest.stages["train"].figures.update(figures)
    write_manifest(run.folder, manifest)
    page, card = page_of(run).plain, run.folder.model_card.read_text(encoding="utf-8")
    training = page[page.index("4,884,480 of") - 300 :]
    for text in (training, card):
        assert there in text and absent not in text


@pytest.mark.slow
def test_of_chats_turns_are_counted_and_what_was_left_out_is_said(run: reported.Reported) -> None:
    told = "24 chats of 60 turns", "2 last questions without an answer left out", "5 last turns left out of 3 chats"
    page, card = page_of(run).plain, run.folder.model_card.read_text(encoding="utf-8")
    assert not any(said in text for said in (*told, "turns learned") for text in (page, card))
    before = int(page.split("Half of ")[1].split(" answers")[0])
    manifest = read_manifest(run.folder)
    chats = {"chats": 24, "turns": 60, "most_turns": 4, "unanswered": 2, "shortened_chats": 3, "turns_left_out": 5}
    manifest.stages["prepare"].figures.update(chats)
    write_manifest(run.folder, manifest)
    lines = run.folder.split_file("val").read_text(encoding="utf-8").splitlines()
    first = {**json.loads(lines[0]), "history": [["What is a fever?", "A high one."], ["Is it bad?", "Seldom."]]}
    text = "\n".join([json.dumps(first), *lines[1:]]) + "\n"
    run.folder.split_file("val").write_text(text, encoding="utf-8")
    page, card = page_of(run).plain, run.folder.model_card.read_text(encoding="utf-8")
    assert all(said in text for said in told for text in (page, card))
    assert "turns learned all" in card and "turns learned" in page
    assert f"Half of {before + 2} answers have" in page
