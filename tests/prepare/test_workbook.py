"""Workbooks: each cell as Excel shows it, the sheet that is meant, formulas by their last value."""

import datetime
import io
import re
import shlex
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processor import processor_seconds
from tests.support.properties import tries
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.columnar import UNREADABLE
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.division import read_rows
from toolkit.prepare.number_format import shown
from toolkit.prepare.read import read_table
from toolkit.prepare.refusals import hints_for_some
from toolkit.prepare.source import find_sources
from toolkit.prepare.table import Table

WANTED = wanted_names(DataSettings())
Rows = list[list[Any]]
ROWS: Rows = [["question", "answer"], ["q", "a"], ["r", "b"]]


def saved(path: Path, sheets: dict[str, Rows], formats: dict[str, str] | None = None, hidden: str = "") -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        for cell, form in (formats or {}).items():
            sheet[cell].number_format = form
        sheet.sheet_state = "hidden" if name == hidden else "visible"
    book.save(path)
    return path


def changed(
    path: Path, change: Callable[[str], str], part: str = "xl/worksheets/sheet1.xml", encoding: str = "utf-8"
) -> Path:
    """Change the XML of a part, as another program would have written it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part].decode()).encode(encoding)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def renamed(path: Path, part: str, name: str) -> None:
    """Give a part of a workbook another name."""
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in parts.items():
            archive.writestr(
                one.replace(f"/{part}", f"/{name}"), content.replace(f"/{part}".encode(), f"/{name}".encode())
            )


def values(table: Table) -> list[dict[str, Any]]:
    return [row.values for row in table.rows]


def refused(path: Path, wanted: list[str] = WANTED, part: str = "") -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        read_table(path, wanted, part=part)
    assert str(path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    return caught.value


MOMENT = datetime.datetime(2026, 3, 4, 15, 5, 7)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (7, "000", "007"),
        (0.5, "0%", "50%"),
        (0.051, "0.0%", "5.1%"),
        (1234.5, "#,##0.00", "1,234.50"),
        (-1234.5, "#,##0.00;(#,##0.00)", "(1,234.50)"),
        (123456789, "000-00-0000", "123-45-6789"),
        (11987654321, "(00) 00000-0000", "(11) 98765-4321"),
        (0.1 + 0.2, "General", "0.3"),
        (1 / 3, "General", "0.333333333"),
        (2, "General", "2"),
        (2.50, "General", "2.5"),
        (123456789012345, "General", "123456789012345"),
        (1e20, "General", "1E+20"),
        (1234567, '0.0,,"M"', "1.2M"),
        (12345, "0.00E+00", "1.23E+04"),
        (9.999, "0.00E+00", "1.00E+01"),
        (1.5, "# ?/?", "1 1/2"),
        (0.25, "?/?", "1/4"),
        (0.5, "# ?/8", "4/8"),
        (5, '0 "mg"', "5 mg"),
        (5, "0\\ \\m\\g", "5 mg"),
        (-0.001, "0.00", "0.00"),
        (2.5, "0", "3"),
        (0, "0;-0;;@", ""),
        (-5, "[Red]0", "-5"),
        (-5, "0;[Red]0", "5"),
        (1e6, "[$R$-416] #,##0.00", "R$ 1,000,000.00"),
        (3, '[>2]"high";[<=2]"low"', "high"),
        (1, '[>2]"high";[<=2]"low"', "low"),
        (5, "_(0_)", " 5 "),
        ("x", 'General;General;General;"<"@">"', "<x>"),
        ("007", "0", "007"),
        (True, "General", "TRUE"),
        (False, "0", "FALSE"),
        (MOMENT, "yyyy-mm-dd", "2026-03-04"),
        (MOMENT, "dd/mm/yyyy hh:mm", "04/03/2026 15:05"),
        (MOMENT, "d mmm yy h:mm:ss AM/PM", "4 Mar 26 3:05:07 PM"),
        (MOMENT, "mm:ss.0", "05:07.0"),
        (MOMENT, "[$-409]dddd\\, mmmm d\\, yyyy;@", "Wednesday, March 4, 2026"),
        (MOMENT, 'd "de" mmmm', "4 de March"),
        (MOMENT, "[$-416]d mmmm", "2026-03-04 15:05:07"),  # the month's name is Portuguese there
        (MOMENT.date(), "mm-dd-yy", "2026-03-04"),  # Excel's short date: its order is the reader's country's
        (MOMENT, "m/d/yy h:mm", "2026-03-04 15:05:07"),
        (datetime.time(7, 5), "h:mm", "7:05"),
        (datetime.timedelta(hours=26, minutes=3), "[h]:mm:ss", "26:03:00"),
    ],
)
def test_a_cell_is_what_excel_shows(value: Any, form: str, text: str, tmp_path: Path) -> None:
    assert shown(value, form) == text
    book = saved(tmp_path / "x.xlsx", {"S": [["question", "answer"], ["q", value]]}, {"B2": form})
    assert values(read_table(book, WANTED)) == [{"question": "q", "answer": text}]


@settings(max_examples=tries(300), deadline=None)
@given(
    value=st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    form=st.one_of(st.text(), st.text('0#?.,%eE+-/;@"\\_*[]dmyhsAP/ <>=', max_size=20)),
)
def test_no_format_fails(value: Any, form: str) -> None:
    assert isinstance(shown(value, form), str)
    assert isinstance(shown(MOMENT, form), str)


@given(value=st.integers(-(10**14), 10**14), digits=st.integers(0, 6))
def test_plain_formats_are_pythons(value: int, digits: int) -> None:
    form = "#,##0" + ("." + "0" * digits if digits else "")
    assert shown(value, form) == f"{value:,.{digits}f}"
    assert shown(value, "0") == str(value) == shown(value, "General")


def test_types_and_texts(tmp_path: Path) -> None:
    rows: Rows = [[" question ", "answer", None, "note"], ["007", "a\nb", None, 1], [1.5, "<ä>"], [None], ["x", None]]
    table = read_table(saved(tmp_path / "x.xlsx", {"Sheet A": rows}), WANTED)
    assert (table.columns, table.name) == (["question", "answer", "column 3", "note"], f"{table.path}#Sheet A")
    assert [tuple(row.values.values()) for row in table.rows] == [
        ("007", "a\nb", "", "1"),
        ("1.5", "<ä>", "", ""),
        ("x", "", "", ""),
    ]
    assert [(row.number, row.line) for row in table.rows] == [(1, 2), (2, 3), (3, 5)]


def test_escaped_characters_and_a_wrong_dimension(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": ROWS})
    changed(path, lambda xml: re.sub(r'<dimension ref="[^"]*"', '<dimension ref="A1"', xml))
    changed(path, lambda xml: xml.replace(">a<", ">a_x000D_b_x005F_<"))
    assert values(read_table(path, WANTED))[0] == {"question": "q", "answer": "a\rb_"}


def test_rows_that_are_wider_than_the_header_are_kept(tmp_path: Path) -> None:
    table = read_table(saved(tmp_path / "x.xlsx", {"S": [*ROWS, ["s", "c", "a remark"]]}), WANTED)
    assert table.columns == ["question", "answer", "column 3"] and len(table.rows) == 3
    assert not any(row.problem for row in table.rows)


@pytest.mark.slow
@pytest.mark.parametrize("stray", [" ", "a remark"])
def test_a_cell_far_from_the_others_costs_no_memory(stray: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": [*ROWS, ["s", "c"]]}, {"XFD2000": "@"})
    book = openpyxl.load_workbook(path)
    book["S"]["XFD2000"] = stray
    book.save(path)
    tracemalloc.start()
    try:
        table = read_table(path, WANTED)
        assert tracemalloc.get_traced_memory()[1] < 50e6  # 2,000 rows of 16,384 cells are 260 MB
    finally:
        tracemalloc.stop()
    assert [row.line for row in table.rows] == [2, 3, 4] + [2000] * (not stray.isspace())
    assert values(table)[:3] == [{"question": q, "answer": a} for q, a in ("qa", "rb", "sc")]


def test_a_formula_is_its_last_value(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": [*ROWS, ["s", "=A2&B2"], ["=A3", "c"], ["u", '=""']]})
    written = {"A2&amp;B2": "qa", "A3": "r", '""': ""}

    def calculate(xml: str) -> str:
        for formula, value in written.items():
            for quoted in (formula, formula.replace('"', "&quot;")):
                xml = re.sub(
                    rf'<c r="(\w+)"><f>{re.escape(quoted)}</f><v ?/?>(</v>)?',
                    rf'<c r="\1" t="str"><f>{quoted}</f><v>{value}</v>',
                    xml,
                )
        return xml

    table = read_table(changed(path, calculate), WANTED)
    assert [tuple(row.values.values()) for row in table.rows[2:]] == [("s", "qa"), ("r", "c"), ("u", "")]


@pytest.mark.parametrize("cell", ["B3", "A2", "B1"])
def test_a_formula_without_its_value_is_refused_with_its_cell(tmp_path: Path, cell: str) -> None:
    book = openpyxl.load_workbook(saved(tmp_path / "x.xlsx", {"S": ROWS}))
    book["S"][cell] = '=CONCATENATE("a", "b")'
    book.save(tmp_path / "x.xlsx")
    error = refused(tmp_path / "x.xlsx")
    assert f"#S`: the cell {cell} holds a formula without its value" in error.message and "save it" in error.hint


def test_a_value_that_nobody_calculated_is_none(tmp_path: Path) -> None:
    """Some programs write 0 for each formula, and that Excel shall calculate all on opening the file."""
    path = saved(tmp_path / "x.xlsx", {"S": [*ROWS, ["s", "=LEN(A1)"]]})
    changed(path, lambda xml: re.sub(r"(</f>)<v ?/?>(</v>)?", r"\1<v>0</v>", xml))
    assert "B4 holds a formula" in refused(path).message
    shutil.copyfile(path, tmp_path / "browser.xlsx")
    renamed(tmp_path / "browser.xlsx", "workbook.xml", "workbook2.xml")
    assert "B4 holds a formula" in refused(tmp_path / "browser.xlsx").message
    changed(path, lambda xml: xml.replace(' fullCalcOnLoad="1"', ""), "xl/workbook.xml")
    assert values(read_table(path, WANTED))[2] == {"question": "s", "answer": "0"}


def test_a_formula_in_a_column_that_nobody_wants_is_no_matter(tmp_path: Path) -> None:
    rows: Rows = [["question", "answer", "sum"], ["q", "a", "=1+1"], ["r", "b", 2]]
    table = read_table(saved(tmp_path / "x.xlsx", {"S": rows}), WANTED)
    assert [row.values["sum"] for row in table.rows] == [UNREADABLE, "2"]


def test_the_sheet_with_question_and_answer_is_read_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets: dict[str, Rows] = {"Notes": [["about", "this"]], "FAQ": ROWS, "Empty": []}
    table = read_table(saved(tmp_path / "x.xlsx", sheets), WANTED)
    assert table.part == "FAQ" and len(table.rows) == 2
    assert "the sheet `FAQ` is read, not `Notes`, `Empty`" in capsys.readouterr().err
    sheets = {"Old": ROWS, "New": [*ROWS, ["s", "c"]]}
    table = read_table(saved(tmp_path / "x.xlsx", sheets, hidden="Old"), WANTED)
    assert table.part == "New" and len(table.rows) == 3


def test_several_sheets_are_refused_and_each_hint_works(tmp_path: Path) -> None:
    path = saved(tmp_path / "it's.xlsx", {"Heart & lung": ROWS, "Skin": [*ROWS, ["s", "c"]], "Notes": [["x"]]})
    error = refused(path)
    assert "2 sheets whose first row names questions or chats: `Heart & lung`, `Skin`" in error.message
    one, both = (shlex.split(words)[1] for words in re.findall(r"`(--set [^`]+)`", error.hint))
    for setting, count in ((one, 2), (both, 5)):
        config = build({}, [setting])
        rows = read_rows(find_sources(config.data), config)
        assert rows.count == count
    assert rows.records[-1].file == f"{path}#Skin"
    assert "its sheets are `Heart & lung`, `Skin`, `Notes`" in refused(path, part="Liver").hint
    assert "2 sheets that hold data" in refused(saved(path, {"A": [["x"]], "B": [["y"]]})).message


def test_a_sheet_of_chats_counts_like_one_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats: Rows = [["Messages", "ward"], ['[{"role": "user", "content": "q"}]', "3"]]
    path = saved(tmp_path / "x.xlsx", {"Notes": [["about", "this"]], "Talks": chats})
    assert read_table(path, WANTED).columns == ["Messages", "ward"]
    assert "the sheet `Talks` is read, not `Notes`" in capsys.readouterr().err
    error = refused(saved(path, {"Talks": chats, "FAQ": ROWS}))
    assert "2 sheets whose first row names questions or chats: `Talks`, `FAQ`" in error.message


def test_a_sheet_of_a_file_with_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a#b.xlsx", {"S": ROWS})
    for name in ("a#b.xlsx", "a#b.xlsx#S"):
        config = build({"data": {"source": name}})
        assert read_rows(find_sources(config.data), config).count == 2


def test_a_sheet_of_a_file_without_sheets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question,answer\nq,a\n")
    assert "has no sheets, so `#S` names nothing" in refused(tmp_path / "x.csv", part="S").message


def test_a_sheet_of_a_packed_workbook(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"A": ROWS, "B": [*ROWS, ["s", "c"]]})
    packed = tmp_path / "x.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "in/x.xlsx")
    assert "`A`, `B`" in refused(packed).message
    config = build({"data": {"source": f"{packed}#B"}})
    assert read_rows(find_sources(config.data), config).count == 3


def test_entities_that_grow_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    path = saved(tmp_path / "x.xlsx", {"S": ROWS})
    changed(path, lambda xml: f"{bomb}]>" + xml[xml.index("<worksheet") :].replace(">a<", ">&i;<"))
    assert "cannot be read" in refused(path).message


@pytest.mark.parametrize("row", ["2", "1", "0"])
def test_a_row_behind_a_later_one_is_refused_and_not_lost(row: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": [*ROWS, ["s", "c"]]})
    changed(path, lambda xml: re.sub(r'<row r="4"', f'<row spans="1:2" r="{row}"', xml))
    with pytest.raises(ToolkitError, match=f"its row {row} comes after row 3"):
        read_table(path, WANTED)


def test_rows_without_numbers_are_in_order(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": [[cell * 600_000 for cell in "xy"], *ROWS]})  # longer than a piece
    changed(path, lambda xml: re.sub(r'<row r="\d"', "<row", xml))
    assert len(read_table(path, WANTED).rows) == 3


@pytest.mark.slow
def test_a_row_number_beyond_excels_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": ROWS})
    changed(path, lambda xml: xml.replace('"A3"', '"A99999999"').replace('<row r="3"', '<row r="99999999"'))
    assert "1,048,576 rows" in refused(path).message


@pytest.mark.slow
@settings(max_examples=tries(100), deadline=None)
@given(place=st.floats(0, 1), junk=st.binary(min_size=0, max_size=3), cut=st.booleans(), part=st.integers(0, 20))
def test_damage_gives_one_line_or_both_rows(
    place: float, junk: bytes, cut: bool, part: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of a part's XML, not of the zip around it: that one has checksums."""
    path = saved(tmp_path_factory.mktemp("damage") / "x.xlsx", {"S": ROWS})
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = list(parts)[part % len(parts)]
    at = int(place * len(parts[name]))
    parts[name] = parts[name][:at] + junk + (b"" if cut else parts[name][at + len(junk) :])
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in parts.items():
            archive.writestr(inner, content)
    try:
        table = read_table(path, WANTED)
    except ToolkitError as exc:
        assert "\n" not in exc.message and exc.hint
    else:
        assert table.rows


def merged(path: Path, rows: Rows, *ranges: str) -> Path:
    saved(path, {"Sheet": rows})
    book = openpyxl.load_workbook(path)
    for one in ranges:
        book.active.merge_cells(one)
    book.save(path)
    return path


@pytest.mark.parametrize(
    ("header", "ranges", "problems"),
    [
        (["question", "answer", "note"], ["A2:A4"], {3: "A3 is a part of A2:A4, whose text is in A2", 4: "A4 is"}),
        (["question", "answer", "note"], ["B3:B4"], {4: "B4 is a part of B3:B4, whose text is in B3"}),
        (["question", "answer", "note"], ["A3:B3", "C2:C4"], {3: "B3 is a part of A3:B3, whose text is in A3"}),
        (["question", "answer", "note"], ["C2:C4"], {}),
        (["question", "answer", "id"], ["C2:C4"], {}),
        (["note", "question", "answer"], ["A1:C1", "B2:B3"], None),
        (["instruction", "input", "output"], ["A2:A4"], {3: "A3 is a part of A2:A4", 4: "A4 is a part of A2:A4"}),
        (["question", "answer", "note"], [], {}),
    ],
)
def test_merged_cells_have_their_text_in_the_first_one(
    header: list[str], ranges: list[str], problems: dict[int, str] | None, tmp_path: Path
) -> None:
    rows = [header, *([f"{name} {n}" for name in "abc"] for n in range(3))]
    path = merged(tmp_path / "a.xlsx", rows, *ranges)
    if problems is None:  # the names themselves are merged: only the first is there
        with pytest.raises(ToolkitError, match="no column with the answer"):
            read_rows(find_sources(build({}, [f"data.source={path}"]).data), build({}, []))
        return
    found = read_table(path, WANTED).rows
    assert {row.line for row in found if row.problem} == problems.keys()
    for row in found:
        assert row.problem.startswith("merged cells: " + problems[row.line or 0] if row.problem else "")
        if not row.problem:
            assert row.values[header[0]] == f"a {(row.line or 0) - 2}"


def test_a_group_or_a_context_that_is_merged_is_said_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["patient", "passage", "question", "answer"], *([f"p{n}", f"t{n}", f"q{n}", f"a{n}"] for n in range(6))]
    path = merged(tmp_path / "a.xlsx", rows, "A2:A3", "B5:B6")
    for setting, refused in (("group_column=patient", 2), ("context_column=passage", 5), ("seed=1", 0)):
        config = build({}, [f"data.source={path}", f"data.{setting}"])
        found = read_rows(find_sources(config.data), config)
        assert [one.number for one in found.rejected] == [refused] * bool(refused)
        assert [one.reason for one in found.rejected] == ["merged cells"] * bool(refused)
        hints = hints_for_some(found.tables, found.rejected)
        assert bool(hints) is bool(refused) and all("unmerge the cells" in hint for hint in hints)


def test_a_sheet_of_merged_titles_above_and_below_is_read(tmp_path: Path) -> None:
    rows = [["question", "answer"], ["q", "a"], ["", ""], ["Reviewed by the ward", ""]]
    found = read_table(merged(tmp_path / "a.xlsx", rows, "A3:B3", "A4:B4"), WANTED).rows
    assert [(row.line, bool(row.problem)) for row in found] == [(2, False), (4, True)]


def with_prefix(xml: str, prefix: str) -> str:
    return re.sub(r"<(/?)(?=\w)", rf"<\1{prefix}:", xml).replace("xmlns=", f"xmlns:{prefix}=")


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: xml.replace("<f>", "<f\n>"),
        lambda xml: xml.replace("<f>", "<f\tt='array' ref='B3'>"),
        lambda xml: xml.replace("<f>1+1</f>", "<f/>"),
        lambda xml: xml.replace("<f>1+1</f>", '<f t="shared" si="0"/>'),
        lambda xml: xml.replace("<f>1+1</f>", '<f t="dataTable" ref="B3" r1="A1"/>'),
        *(lambda xml, prefix=prefix: with_prefix(xml, prefix) for prefix in ("x", "x-1", "_a", "é")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", ["sheet1.xml", "sheet1.XML", "one"])
def test_a_formula_is_seen_however_its_program_writes_it(
    change: Callable[[str], str], encoding: str, name: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.xlsx", {"S": [*ROWS[:2], ["r", "=1+1"]]})
    changed(path, change, encoding=encoding)
    renamed(path, "sheet1.xml", name)
    assert "B3 holds a formula" in refused(path).message


@pytest.mark.parametrize("form", ["[" * 50_000, "0" * 50_000 + "/"])
def test_a_number_format_that_no_program_writes_is_read_at_once(form: str) -> None:
    with processor_seconds(5):
        assert shown(1.5, form)


def test_behind_a_number_format_longer_than_excels_is_the_value_itself() -> None:
    words = '"' + "x" * 300 + '"'
    assert [shown(value, f"{words}0.00;{words}") for value in (1.5, -2, "text", True)] == ["1.5", "-2", "text", "TRUE"]
    assert shown(MOMENT, f"dd/mm/yyyy {words}") == "2026-03-04 15:05:07"
    assert shown(1.5, '"' + "x" * 252 + '"0') == "x" * 252 + "2"  # one that Excel takes too


def test_without_formulas_a_workbook_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, load = [], openpyxl.load_workbook

    def counted(*given: Any, **named: Any) -> Any:
        opened.append(named["data_only"])
        return load(*given, **named)

    monkeypatch.setattr(openpyxl, "load_workbook", counted)
    for cell, times in (("rest", [True]), ("=1+1", [True, False])):
        book = openpyxl.Workbook()
        for row in (("question", "answer", "other"), ("what helps?", "rest", cell)):
            book.active.append(row)
        book.save(tmp_path / "x.xlsx")
        opened.clear()
        assert len(read_table(tmp_path / "x.xlsx", []).rows) == 1 and opened == times
