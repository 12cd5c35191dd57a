"""The clinicians' sheet: what it holds, what it hides, and that the same answers give the same sheet."""

import base64
import csv
import hashlib
import io
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.evaluations import DEFAULT, HOSTILE, SYSTEMS, answer_of, make_evaluation, make_folder
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.evaluate import sheet
from toolkit.evaluate.blind import SheetKey, draw_key


class Texts(HTMLParser):
    """What a page shows: the texts of its boxes, and the tags that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.boxes: list[str] = []
        self.tags: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = "text" in (dict(attrs).get("class") or "").split()
        if self._inside:
            self.boxes.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.boxes[-1] += data


def key_of(evaluation: dict[str, Any], seed: str = "seed") -> SheetKey:
    return draw_key("demo", evaluation, DEFAULT, seed)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def test_a_sheet_is_a_page_a_table_and_a_key(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    found = sheet.write_sheet(folder, make_evaluation(8), DEFAULT)
    assert sorted(path.name for path in folder.path.iterdir()) == ["review-key.json", "review.csv", "review.html"]
    assert found["items"] == 8 and [pair["shown"] for pair in found["pairs"]] == [4, 4]
    assert {Path(name) for name in found["written"]} == set(folder.path.iterdir())


def test_what_tells_the_systems_apart_is_in_the_key_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, make_evaluation(30), DEFAULT)
    key = json.loads(folder.review_key.read_text())
    secret = [*SYSTEMS, DEFAULT[:2], key["seed"], key["answers"], "quant", "adapter", "tuned", "gguf", "demo"]
    for path in (folder.review, folder.review_table):
        text = path.read_text(encoding="utf-8-sig").casefold()
        assert [word for word in secret if word.casefold() in text] == []
        assert key["sheet"] in text


def test_the_page_and_the_table_show_the_key_s_answers_in_its_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, make_evaluation(9), DEFAULT)
    key = SheetKey.model_validate_json(folder.review_key.read_text())
    boxes = Texts(folder.review.read_text()).boxes
    wanted = []
    for item in key.items:
        second = item.a if item.first == item.b else item.b
        wanted += [f"What helps against complaint {item.row}?", answer_of(item.row, item.first)]
        wanted.append(answer_of(item.row, second))
    assert boxes == wanted
    rows = rows_of(folder.review_table)
    assert [row[name] for row in rows for name in ("question", "answer 1", "answer 2")] == wanted
    assert [(row["sheet"], row["item"]) for row in rows] == [(key.sheet, str(n)) for n in range(1, 10)]
    assert {row["vote"] + row["comment"] + row["name"] for row in rows} == {""}


def test_no_text_comes_twice() -> None:
    """The trained model is in both pairs: its answer would be known by coming again."""
    for rows in (1, 2, 7, 50):
        key = key_of(make_evaluation(rows))
        assert sorted(item.row for item in key.items) == list(range(1, rows + 1))
        counts = Counter((item.a, item.b) for item in key.items)
        assert counts[("base", "trained")] - counts[("trained", DEFAULT)] in (0, 1)


def test_the_order_has_no_pattern() -> None:
    """Over many seeds each system comes first as often, at each place and for each row, and so does each pair."""
    evaluation = make_evaluation(10)
    by_place, by_row, pairs = Counter[int](), Counter[int](), Counter[tuple[int, str]]()
    for seed in range(400):
        key = key_of(evaluation, str(seed))
        for item in key.items:
            by_place[item.item] += item.first == item.b
            by_row[item.row] += item.first == item.b
            pairs[item.item, item.a] += 1
        halves = Counter((item.b, item.first == item.b) for item in key.items)
        assert max(halves.values()) - min(halves.values()) <= 1
    assert all(150 < count < 250 for count in (*by_place.values(), *by_row.values(), *pairs.values()))
    assert len({tuple(item.row for item in key_of(evaluation, str(seed)).items) for seed in range(50)}) == 50


def test_identical_answers_are_left_out_and_counted() -> None:
    def text(row: int, system: str) -> str:
        if system == DEFAULT and row <= 6:
            return f"\n {answer_of(row, 'trained')} "  # blanks around a text are no difference
        return answer_of(row, system)

    key = key_of(make_evaluation(10, text))
    assert [(pair.a, pair.questions, pair.identical) for pair in key.pairs] == [("base", 10, 0), ("trained", 10, 6)]
    quantized = {item.row for item in key.items if item.b == DEFAULT}
    assert quantized <= {7, 8, 9, 10} and len(key.items) == 10
    assert len(quantized) == 4  # both pairs get as many questions as the answers allow


def test_a_quantization_that_changes_nothing_leaves_all_questions_to_the_other_pair() -> None:
    key = key_of(make_evaluation(10, lambda row, system: answer_of(row, "base" if system == "base" else "trained")))
    assert {(item.a, item.b) for item in key.items} == {("base", "trained")} and len(key.items) == 10


@pytest.mark.parametrize(
    ("systems", "pairs"),
    [
        (("base", "trained"), [("base", "trained")]),
        (("trained", DEFAULT, "Q8_0"), [("trained", DEFAULT)]),
        (("base", "trained", "Q8_0"), [("base", "trained")]),
    ],
)
def test_a_system_that_was_not_asked_is_not_compared(systems: tuple[str, ...], pairs: list[tuple[str, str]]) -> None:
    key = key_of(make_evaluation(6, systems=systems))
    assert sorted({(item.a, item.b) for item in key.items}) == pairs and len(key.items) == 6


@pytest.mark.parametrize(
    ("thought", "said"), [("<think>\nHm, {}.\n</think>\n\n", "Rest, says {}."), ("\n<think>Hm, {}. ", "")]
)
def test_thoughts_do_not_tell_which_system_answers(thought: str, said: str) -> None:
    def text(row: int, system: str) -> str:
        return thought.format(row) + f"Rest, says {row}." if system == "base" else answer_of(row, system)

    evaluation = make_evaluation(4, text, ("base", "trained"))
    key = key_of(evaluation)
    items = sheet.shown_items(key, evaluation)
    for page in (sheet.sheet_html(key.sheet, items), sheet.sheet_csv(key.sheet, items)):
        assert "think>" not in page and "Hm, " not in page
    places = {item.item: item for item in key.items}
    for item in items:
        place = places[item.number]
        assert item.answers[place.first != "base"].text == said.format(place.row)  # "": cut off within its thoughts


def test_answers_that_differ_in_thoughts_alone_are_identical() -> None:
    evaluation = make_evaluation(
        3, lambda row, system: f"<think>{system}</think> " + answer_of(row, "base" if system == "base" else "trained")
    )
    pair = next(pair for pair in key_of(evaluation).pairs if pair.a == "trained")
    assert (pair.questions, pair.identical) == (3, 3)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    cases = [
        (make_evaluation(3, systems=("base", DEFAULT)), "no two of base, trained and Q4_K_M have answers"),
        (make_evaluation(3, lambda row, system: "the same"), "every question with the same text"),
        (make_evaluation(0), "there are no answers"),
        ({"version": 1}, "there are no answers"),
    ]
    for evaluation, words in cases:
        with pytest.raises(ToolkitError, match=words) as caught:
            sheet.write_sheet(folder, evaluation, DEFAULT)
        assert caught.value.hint
    assert list(folder.path.iterdir()) == []


def test_another_default_gives_another_sheet(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    evaluation = make_evaluation(6, systems=(*SYSTEMS, "Q8_0"))
    former = sheet.write_sheet(folder, evaluation, DEFAULT)
    fresh = sheet.write_sheet(folder, evaluation, "Q8_0")
    assert former["sheet"] != fresh["sheet"] and fresh["pairs"][1]["b"] == "Q8_0"


def test_no_spreadsheet_takes_a_sheet_s_name_for_a_number() -> None:
    evaluation = make_evaluation(2)
    names = [key_of(evaluation, str(seed)).sheet for seed in range(300)]
    assert len(set(names)) == 300 and all(name[0] == "s" and name.isalnum() for name in names)


def test_the_same_answers_give_the_same_sheet(tmp_path: Path) -> None:
    """Whoever has voted on a copy need not vote again."""
    folder = make_folder(tmp_path / "demo")
    evaluation = make_evaluation(12)
    sheet.write_sheet(folder, evaluation, DEFAULT)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    for path in (folder.review, folder.review_table):
        path.unlink()
    sheet.write_sheet(folder, {**evaluation, "seconds": 5.0}, DEFAULT)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_other_answers_give_another_sheet_and_keep_the_former_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "demo")
    former = sheet.write_sheet(folder, make_evaluation(5), DEFAULT)["sheet"]
    kept = folder.review_key.read_bytes()
    fresh = sheet.write_sheet(folder, make_evaluation(6), DEFAULT)["sheet"]
    assert fresh != former
    assert (folder.path / f"review-key-{former}.json").read_bytes() == kept
    assert f"the earlier sheet {former} was of other answers or systems" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 2}', "not json", '{"version": 1, "items": 3}'])
def test_a_damaged_key_is_kept_and_named(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path / "demo")
    folder.review_key.write_text(content)
    with pytest.raises(ToolkitError, match=r"review-key\.json` is damaged") as caught:
        sheet.write_sheet(folder, make_evaluation(5), DEFAULT)
    assert "move it away" in caught.value.hint
    assert folder.review_key.read_text() == content and not folder.review.exists()


def test_two_sheets_of_the_same_answers_have_other_orders(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name / "demo") for name in ("a", "b")]
    names = {sheet.write_sheet(folder, make_evaluation(40), DEFAULT)["sheet"] for folder in folders}
    orders = {tuple(item["row"] for item in json.loads(folder.review_key.read_text())["items"]) for folder in folders}
    assert len(names) == len(orders) == 2


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    plain = Texts(sheet.sheet_html("0", [])).tags
    evaluation = make_evaluation(
        len(HOSTILE),
        lambda row, system: HOSTILE[row - 1] + system[0],
        question=lambda row: HOSTILE[-row],
        instruction=lambda row: HOSTILE[row - 1],
    )
    sheet.write_sheet(folder, evaluation, DEFAULT)
    page = Texts(folder.review.read_text())
    assert set(page.tags) <= {*plain, "section", "h2", "h3", "div", "fieldset", "legend", "textarea", "span", "label"}
    assert page.tags.count("script") == 1
    wanted = []
    for item in SheetKey.model_validate_json(folder.review_key.read_text()).items:
        own = HOSTILE[item.row - 1]
        second = item.a if item.first == item.b else item.b
        wanted += [own, HOSTILE[-item.row], own + item.first[0], own + second[0]]
    assert page.boxes == [sheet.showable(text.strip()) for text in wanted]


@settings(max_examples=tries(60))
@given(text=st.text(st.characters(), min_size=1))
def test_any_text_comes_back_from_page_and_table(text: str) -> None:
    shown = sheet.ShownAnswer(sheet.showable(text), False)
    items = [sheet.ShownItem(1, "", "?", (shown, shown))]
    assert Texts(sheet.sheet_html("0", items)).boxes == ["?", shown.text, shown.text]
    row = next(csv.DictReader(io.StringIO(sheet.sheet_csv("0", items), newline="")))
    assert row["answer 1"] in (shown.text, f"'{shown.text}")
    assert row["answer 1"].lstrip()[:1] not in ("=", "+", "-", "@")


@pytest.mark.parametrize("mark", ["\u202d", "\u202e"])
def test_no_text_is_read_backwards(mark: str) -> None:
    right_to_left = "\u05e9\u05dc\u05d5\u05dd\u200f"  # a mark of direction that such languages need stays
    evaluation = make_evaluation(
        2,
        lambda row, system: f"Take {mark}50 mg, {right_to_left} says {row} {system[:1]}",
        question=lambda row: f"How much {mark}of number {row}?",
    )
    key = key_of(evaluation)
    items = sheet.shown_items(key, evaluation)
    for page in (sheet.sheet_html(key.sheet, items), sheet.sheet_csv(key.sheet, items)):
        assert mark not in page and right_to_left in page
        assert "Take \ufffd50 mg" in page and "How much \ufffdof number 1?" in page


def test_a_formula_is_text_in_a_spreadsheet(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    starts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "- a list\n- of two"]
    evaluation = make_evaluation(6, lambda row, system: starts[row - 1] + system)
    sheet.write_sheet(folder, evaluation, DEFAULT)
    cells = [row[name] for row in rows_of(folder.review_table) for name in ("answer 1", "answer 2")]
    assert len(cells) == 12 and all(cell.startswith("'") for cell in cells)


def test_a_very_long_answer_is_whole_on_the_page_and_cut_in_the_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    evaluation = make_evaluation(2, lambda row, system: "ä" * 100_000 + f"{row}{system[0]}")
    sheet.write_sheet(folder, evaluation, DEFAULT)
    page = folder.review.read_text()
    assert sorted({box[100_000:] for box in Texts(page).boxes if len(box) > 1000}) == sorted(
        {
            f"{item['row']}{item[side][0]}"
            for item in json.loads(folder.review_key.read_text())["items"]
            for side in "ab"
        }
    )
    cells = [row[name] for row in rows_of(folder.review_table) for name in ("answer 1", "answer 2")]
    assert all(len(cell) < 32_767 and cell.endswith("[cut here: review.html has the rest]") for cell in cells)


def test_an_answer_that_was_stopped_or_is_empty_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    evaluation = make_evaluation(1, systems=("base", "trained"))
    answers = evaluation["held_out"]["answers"][0]["answers"]
    answers["base"]["ended"], answers["trained"]["text"] = False, "  "
    sheet.write_sheet(folder, evaluation, DEFAULT)
    page = folder.review.read_text()
    assert page.count("was stopped here by a limit") == page.count("There is no text") == 1
    assert "[stopped by a limit on the length]" in folder.review_table.read_text(encoding="utf-8-sig")


def test_an_instruction_is_shown_where_questions_differ_in_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, make_evaluation(4), DEFAULT)
    assert "Explain as" not in folder.review.read_text()
    evaluation = make_evaluation(4, instruction="Explain as doctor {}".format)
    sheet.write_sheet(folder, evaluation, DEFAULT)
    assert folder.review.read_text().count("Explain as doctor") == 4
    assert all("Explain as doctor" in row["question"] for row in rows_of(folder.review_table))
    sheet.write_sheet(folder, make_evaluation(4, question=lambda row: "", instruction="Why {}?".format), DEFAULT)
    assert Texts(folder.review.read_text()).boxes[0].startswith("Why ")


def test_the_policy_allows_the_page_s_own_script_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, make_evaluation(2), DEFAULT)
    page = folder.review.read_text()
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; style-src 'sha256-" in page and f"script-src 'sha256-{digest}'" in page
    assert "http:" not in page and "https:" not in page
