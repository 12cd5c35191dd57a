import csv
from pathlib import Path

import pytest

from tests.prepare.conftest import SAMPLE
from toolkit.prepare.spoiled import find_damage, find_html, find_lost, find_mojibake, remove_html, undo_mojibake

# What looks like markup, and is none.
TEXT = [
    "p < 0.05 and CRP > 3",
    "a<b and c>d, x<y>z, pH<7, CD4<200;CD8>3",
    "E. coli <b> and HLA-B<q>",
    "Dear <title> <name>, your <label>",
    "<s>said</s> <think>no</think> <|im_end|> [INST] <unk>",
    "AT&T, R&D; Q&A; A&E &c; ?a=1&para=2&copy=3",
    "?a=1&lt=3&amp=2&deg=1&#39=4, this&not that, &ampere &#1",
    "if a <b and c> d, x <a and b> y, <div c> <p x>, x<b>c",
    "Smith <smith@example.org>, <http://example.org>",
    "List<String> <ClinicalDocument>",
]
# Letters that wrong encodings write, and are right.
LETTERS = [
    "AMANHÃ DE MANHÃ ELE, A IRMÃ MAIS VELHA, MAÇÃ É BOA, VOCÊ JÁ É MÃE?",
    "Ménière’s disease – vertigo… “Ça va” «L’âge» ÎLE",
    "30 °C ± 2, 5 µg/kg ≥ 20–30 mg², ×10⁹/L, ½–1½ cups, CO₂, £5, ©™®",
    "Ärzte übermäßig ÖÄÜ – „Anführung“, Ångström",
    "ĐÃ CÓ THUỐC, tối đa ½ viên",
    "Привет мир, 日本語テキスト, ไทย, عربى",
]


@pytest.mark.parametrize("text", TEXT)
def test_what_is_no_html_stays(text: str) -> None:
    assert find_html(text) == "" and remove_html(text) == text


@pytest.mark.parametrize("text", LETTERS)
def test_what_is_no_mojibake_stays(text: str) -> None:
    assert find_mojibake(text) == "" and undo_mojibake(text) == text


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("What&#39;s good &amp; what helps?", "What's good & what helps?"),
        (
            '<p>Rest.</p><br/>&nbsp;&bull; Rest &lt;2 days&gt;<a href="http://x">more</a>',
            "Rest.\n\n • Rest <2 days>more",
        ),
        ("<ul><li>one<li>two</ul>", "- one\n- two"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("<H1>Head</H1>text<BR />more", "Head\ntext\nmore"),
        ("<i>E. coli</i> at p < 0.05", "E. coli at p < 0.05"),
        ("<!-- note --><script>alert('<p>')</script>İ<STYLE type='a'>p{}</STYLE>Rest", "İRest"),
        ("&lt;p&gt;escaped twice&amp;nbsp;&lt;/p&gt;", "escaped twice"),
        ("&#x41;&#8226;&hellip;", "A•…"),
        ("<p></p>", ""),
        ("<p>Rest, <strong>drink water", "Rest, drink water"),
        ("<b>Rest</i> and <i>sleep", "Rest and sleep"),
        ("<div class=x>one<div>two", "one\ntwo"),
        ("<td nowrap>a</td><td nowrap align='left'>b", "a b"),
        ("<input type=checkbox checked disabled> fever", "fever"),
        ("Rest and <a href='http://example.org/a b", "Rest and"),
        ("fever&nbsp &lt 39 &amp rest, p&lt0.05, don&#39t, Caf&eacute", "fever  < 39 & rest, p<0.05, don't, Café"),
        ("x<span class='a'>y", "xy"),
    ],
)
def test_html_goes(text: str, bare: str) -> None:
    assert find_html(text) and remove_html(text) == bare and find_html(bare) == ""


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("4x10<sup>9</sup>/L and 2 &times; 10<sup class='e'><b>-5</b></sup>", "4x10⁹/L and 2 × 10⁻⁵"),
        ("10<sup>&minus;12</sup> 2<SUP> n+1 </SUP> Na<sup>+</sup> Ca<sup>2+</sup>", "10⁻¹² 2ⁿ⁺¹ Na⁺ Ca²⁺"),
        ("10<sup>x</sup>, 10<sup>-5.5</sup>, e<sup>-k*t</sup>, so<sup>[1]</sup>", "10^x, 10^-5.5, e^(-k*t), so^[1]"),
        ("2<sup>3<sup>2</sup></sup>", "2^3²"),
        ("10&lt;sup&gt;9&lt;/sup&gt;", "10⁹"),
        ("the 1<sup>st</sup>, 2<sup>ème</sup>, 1<sup>o</sup>, A<sup>&reg;</sup>", "the 1st, 2ème, 1º, A®"),
        ("CO<sub>2</sub>, C<sub>6</sub>H<sub>12</sub>O<sub>6</sub>", "CO2, C6H12O6"),
        ("log<sub>10</sub>5, 1<sup>1</sup>/<sub>2</sub>", "log₁₀5, 1¹/₂"),
        ("<p>a</sup>b<sup></sup>c</p>", "abc"),
    ],
)
def test_raised_and_lowered_digits_make_no_other_number(text: str, bare: str) -> None:
    assert remove_html(text) == bare and find_html(bare) == ""


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (
            "<p> Do: </p>\n  <pre>def f(x):\n    if x &gt; 1:\n\treturn 1\n   \n</pre>\n  <p>  Done. </p>",
            "Do:\n\ndef f(x):\n    if x > 1:\n\treturn 1\n\nDone.",
        ),
        (
            "So:<pre class='py'><code>for x in y:\n    <span class='k'>print</span>  (x)</code>\n  z</pre>\n  end",
            "So:\nfor x in y:\n    print  (x)\n  z\n\nend",
        ),
        ("<pre>    a\n      b &lt;br&gt;</pre>", "a\n  b"),
        ("a <code> b</code> c\n   d", "a  b c\nd"),
    ],
)
def test_code_keeps_its_indentation(text: str, bare: str) -> None:
    assert remove_html(text) == bare


@pytest.mark.slow
def test_an_endless_comment_is_text_and_takes_no_time() -> None:
    text = "<!--" * 50_000 + "<script>" * 50_000
    assert remove_html(text) == text


@pytest.mark.parametrize(
    ("right", "encoding"),
    [
        ("Não há médico: você é", "latin-1"),
        ("donʼt “quote” – naïve", "latin-1"),
        ("O médico não está", "cp1252"),
        ("5 µg, 30 °C", "cp1252"),
        ("привет, доктор", "latin-1"),
        ("привет", "cp1251"),
    ],
)
def test_mojibake_is_undone(right: str, encoding: str) -> None:
    spoiled = right.encode("utf-8").decode(encoding)
    assert find_mojibake(spoiled) and undo_mojibake(spoiled) == right


def test_a_lost_character_is_found_and_not_invented() -> None:
    for text in ("caf\ufffd", "cafï¿½ au lait"):
        assert find_lost(text) and undo_mojibake(text) == text
    assert not find_lost("café?")


def test_damage_is_counted_with_its_first_row() -> None:
    rows = [(1, ("fine", "fine")), (3, ("a", "<p>b</p>")), (4, ("<br>", "c")), (9, ("n\ufffdo", "nÃ£o"))]
    found = {damage.kind: damage for damage in find_damage(rows)}
    assert {kind: (damage.count, damage.row) for kind, damage in found.items()} == {
        "html": (2, 3),
        "mojibake": (1, 9),
        "lost": (1, 9),
    }
    assert found["html"].excerpt == "<p>b</p>"


@pytest.mark.parametrize("real", ["sample", "medquad"])
def test_real_data_is_not_damaged(real: str, request: pytest.FixtureRequest) -> None:
    path: Path = SAMPLE if real == "sample" else request.getfixturevalue("medquad")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [row["Answer"] for row in csv.DictReader(file)]
    assert len(cells) >= 60 and list(find_damage((number, (cell,)) for number, cell in enumerate(cells))) == []
    assert all(undo_mojibake(remove_html(cell)) == cell for cell in cells)
