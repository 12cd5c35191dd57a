"""Charts: scales and ticks, labels that do not overlap, and what is drawn of figures at their limits."""

import itertools
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.report import charts, svg
from toolkit.report.report_file import Quantization
from toolkit.report.sources import Measure
from toolkit.validate.metrics import KL_EDGES

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def file(**changes: Any) -> Quantization:
    values = {"file": "x", "bytes": 10**8, "sha256": "", "bits_per_weight": 4.0, "mean_kl": 0.01, "kl_99": 0.1,
              "top1": 0.9, "perplexity": 9.0, "bound": 0.1, "passed": True, "problems": []}  # fmt: skip
    return Quantization.model_validate({**values, **changes})


def numbers(drawn: str) -> list[float]:
    found = ElementTree.fromstring(drawn)
    text = " ".join(value for one in found.iter() for key, value in one.attrib.items() if key not in ("id", "class"))
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@settings(max_examples=tries(200))
@given(FINITE, st.floats(1e-6, 1e9))
def test_ticks_are_round_ascending_within_the_range_and_neither_one_nor_many(low: float, width: float) -> None:
    high = low + width
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return
    ticks = svg.round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    room = 1e-6 * (high - low) + 1e-9 * abs(low)
    assert all(low - room <= tick <= high + room for tick in ticks)
    assert all(first < second for first, second in itertools.pairwise(ticks))


@settings(max_examples=tries(200))
@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_labels_do_not_overlap_and_keep_their_order(wanted: list[float]) -> None:
    placed = svg.without_overlap(wanted, 12, 0, 200)
    ordered = sorted(placed)
    assert all(second - first > 11.99 for first, second in itertools.pairwise(ordered))
    assert all(0 <= each <= 200 for each in placed)
    assert all(
        placed[one] <= placed[other]
        for one, other in itertools.permutations(range(len(wanted)), 2)
        if wanted[one] < wanted[other]
    )


def test_a_logarithmic_scale_puts_a_decade_between_two_powers() -> None:
    scale = svg.Scale(1e-4, 1, 0, 400, log=True)
    assert [round(scale.at(value)) for value in (1e-4, 1e-3, 0.01, 0.1, 1)] == [0, 100, 200, 300, 400]
    assert scale.at(0) == 0 and scale.at(1e9) == 400  # what lies outside is put at the end
    assert svg.power_of_ten(1e-5) == "10⁻⁵" and svg.power_of_ten(0.01) == "0.01"


@settings(max_examples=tries(100), deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["F16", "Q8_0", "Q4_K_M", "Q2_K"]),
        st.tuples(st.integers(1, 10**12), st.floats(0, 1e4), st.floats(1e-6, 10), st.booleans()),
        min_size=1,
    )
)
def test_every_file_is_drawn_inside_the_chart(values: dict[str, tuple[int, float, float, bool]]) -> None:
    files = {
        name: file(bytes=size, mean_kl=kl, mean_kl_low=kl / 2, mean_kl_high=kl * 2, bound=bound, passed=passed)
        for name, (size, kl, bound, passed) in values.items()
    }
    drawn = charts.size_chart(files)
    assert all(math.isfinite(number) and -10 <= number <= 360 for number in numbers(drawn))
    assert all(f">{name}</text>" in drawn for name in files)
    assert drawn.count("cross") == sum(not one.passed for one in files.values())


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (
            {
                "F16": (271, 3.5e-6, 1e-4),
                "Q8_0": (145, 0.0032, 0.02),
                "Q4_K_M": (106, 0.039, 0.25),
                "Q2_K": (88, 0.36, 5.0),
            },
            {"Q4_K_M", "Q2_K"},
        ),
        ({"Q5_K_M": (105, 0.02, 0.09), "Q4_K_M": (100, 0.08, 0.25)}, {"Q4_K_M"}),
        ({"Q8_0": (145, 0.0032, 0.02), "F16": (271, 3.5e-6, 1e-4)}, set()),
    ],
)
def test_no_name_is_written_over_the_bound_of_another_file(
    files: dict[str, tuple[int, float, float]], left: set[str]
) -> None:
    values = {
        name: file(bytes=size * 10**6, mean_kl=kl, mean_kl_low=kl, mean_kl_high=kl, bound=bound)
        for name, (size, kl, bound) in files.items()
    }
    drawn = list(ElementTree.fromstring(charts.size_chart(values)).iter())
    names = [one for one in drawn if one.get("class") == "name"]
    dashes = [one for one in drawn if one.get("class") == "bound"]
    assert {one.text for one in names if one.get("text-anchor") == "end"} == left
    assert len(names) == len(dashes) == len(files)
    for one in names:
        at, width = float(one.get("x", "")), len(one.text or "") * svg.LETTER
        start = at - width if one.text in left else at
        for dash in dashes:
            apart = float(dash.get("x2", "")) < start or float(dash.get("x1", "")) > start + width
            assert apart or abs(float(dash.get("y1", "")) - float(one.get("y", "")) + 4) > 8


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"step": 1, "loss": None}],
        [{"step": 1, "loss": float("nan")}],
        [{"step": 1, "loss": "3"}],
    ],
)
def test_a_log_without_a_loss_gives_no_chart(log: list[dict[str, Any]]) -> None:
    assert charts.loss_chart(log) == ""


def test_a_long_log_is_thinned_and_keeps_its_ends() -> None:
    log = [{"step": step, "loss": 3 - step / 50_000} for step in range(1, 50_001)]
    drawn = charts.loss_chart([*log, {"step": 50_000, "eval_loss": 2.1}])
    assert len(drawn) < 20_000 and "from 3.000 to 2.000" in drawn and "2.100 at step 50000" in drawn


def test_one_step_and_equal_losses_are_drawn() -> None:
    for log in ([{"step": 1, "loss": 2.0}], [{"step": step, "loss": 2.0, "eval_loss": 2.0} for step in (1, 2, 3)]):
        assert all(math.isfinite(number) for number in numbers(charts.loss_chart(log)))


def test_bars_of_the_spread_are_as_high_as_their_counts() -> None:
    counts = [0] * (len(KL_EDGES) + 1)
    counts[0], counts[10], counts[-1] = 10, 40, 20
    drawn = ElementTree.fromstring(charts.kl_chart(KL_EDGES, {"Q8_0": file(kl_counts=counts)}))
    heights = [float(one.attrib["height"]) for one in drawn.iter("rect")]
    assert len(heights) == len(counts)
    assert heights[10] == 2 * heights[-1] == 4 * heights[0] > 0 and sum(height > 0 for height in heights) == 3


@pytest.mark.parametrize("edges", [[], [0.1], [0.0, 1.0], [1.0, 0.5]])
def test_edges_that_are_no_scale_give_no_chart(edges: list[float]) -> None:
    assert charts.kl_chart(edges, {"Q8_0": file(kl_counts=[1] * (len(edges) + 1))}) == ""


def test_intervals_are_drawn_only_where_they_are_known() -> None:
    rows = {"base": Measure(mean=1.0, n=1), "trained": Measure(mean=2.0, low=1.5, high=2.5, n=9), "Q2_K": Measure()}
    drawn = charts.interval_chart("x", "title", rows, "share")
    assert drawn.count("whisker") == 1 and drawn.count("<circle") == 2 and "Q2_K" not in drawn
    assert "trained: 2.000 (1.500 to 2.500)" in drawn
    assert charts.interval_chart("x", "title", {"a": Measure()}, "") == ""


def test_parts_of_a_whole_share_its_width() -> None:
    drawn = ElementTree.fromstring(charts.parts_chart("x", "title", [("kept", 75), ("rejected", 25), ("none", 0)]))
    widths = [float(one.attrib["width"]) for one in drawn.iter("rect") if one.attrib["height"] == "24.0"]
    assert widths == [254.0, 84.0]


@pytest.mark.parametrize("lengths", [[1], [0, 0, 0], [5] * 1000, list(range(2000)), [3, 1_000_000]])
def test_every_answer_is_in_one_bar(lengths: list[int]) -> None:
    drawn = charts.length_chart(lengths)
    assert (
        all(math.isfinite(number) and number <= 360 for number in numbers(drawn))
        and f"{len(lengths):,} answers" in drawn
    )
