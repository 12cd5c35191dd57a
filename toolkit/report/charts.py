"""The charts of a report, each an SVG text that says in words what it shows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.core import console
from toolkit.report import svg
from toolkit.report.report_file import Quantization
from toolkit.report.sources import Measure
from toolkit.report.svg import WIDTH, Scale
from toolkit.report.words import clipped, decimal, nats

MOST_POINTS = 300  # of a curve
LEFT, RIGHT = 40, 10  # margins
LEAST = 1e-30  # nats; a KL below it has no place on a chart
SHARE = "share"  # the unit of what lies between 0 and 1


def loss_chart(log: Sequence[Mapping[str, Any]]) -> str:
    """Draw training's loss, smoothed too, and the held-out loss, all in nats per token; empty without a loss."""
    losses = _finite(log, "loss")
    held_out = _finite(log, "eval_loss")
    if not losses and not held_out:
        return ""
    smooth, average = [], losses[0][1] if losses else 0.0
    for step, loss in losses:
        average += 0.2 * (loss - average)
        smooth.append((step, average))
    thin, smooth = _thinned(losses), _thinned(smooth)
    every = [loss for _, loss in (*thin, *held_out)]
    low, high = min(every), max(every)
    room = 0.08 * (high - low) or 0.1
    x = Scale(0, max(step for step, _ in (*losses, *held_out)), LEFT, WIDTH - RIGHT)
    y = Scale(max(0.0, low - room), high + room, 190, 24)
    said = [f"Training loss from {losses[0][1]:.3f} to {losses[-1][1]:.3f}."] if losses else []
    said += ["Held-out loss: " + ", ".join(f"{loss:.3f} at step {step}" for step, loss in held_out[-12:]) + "."]
    chart = svg.new("loss", 222, "Loss curve", " ".join(said if held_out else said[:1]))
    _axes(chart, x, y, 190, "step", "nats per token")
    svg.path(chart, [(x.at(step), y.at(loss)) for step, loss in thin], "curve faint")
    svg.path(chart, [(x.at(step), y.at(loss)) for step, loss in smooth], "curve one")
    svg.path(chart, [(x.at(step), y.at(loss)) for step, loss in held_out], "curve two")
    for step, loss in held_out:
        svg.dot(chart, x.at(step), y.at(loss), "two")
    return svg.finished(chart)


def _finite(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    found = [(entry["step"], entry.get(key)) for entry in log]
    return [(step, loss) for step, loss in found if isinstance(loss, int | float) and math.isfinite(loss)]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most MOST_POINTS points: the means of neighbours."""
    each = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + each] for start in range(0, len(points), each)] if each > 1 else []
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups] or points


def _axes(chart: Any, x: Scale, y: Scale, bottom: float, below: str, above: str) -> None:
    """Draw both axes with their ticks, and what they count."""
    for value in svg.decades(y.low, y.high) if y.log else svg.round_ticks(y.low, y.high):
        svg.line(chart, x.start, y.at(value), x.end, y.at(value), "grid")
        word = svg.power_of_ten(value) if y.log else f"{value:g}"
        svg.text(chart, x.start - 5, y.at(value) + 4, word, "tick", "end")
    for value in svg.round_ticks(x.low, x.high):
        svg.text(chart, x.at(value), bottom + 14, f"{value:g}", "tick", "middle")
    svg.line(chart, x.start, bottom, x.end, bottom, "axis")
    svg.text(chart, x.end, bottom + 28, below, "tick", "end")
    svg.text(chart, 4, 12, above, "tick")


def size_chart(files: Mapping[str, Quantization]) -> str:
    """Draw each file's size against its mean KL with interval and bound; empty where nothing was measured."""
    there = {name: one for name, one in files.items() if one.mean_kl is not None}
    if not there:
        return ""
    values = [
        value
        for one in there.values()
        for value in (one.mean_kl, one.mean_kl_low, one.mean_kl_high, one.bound)
        if value is not None and value > LEAST
    ] or [1e-6]
    unit, word = (1e9, "GB") if max(one.bytes for one in there.values()) >= 1e9 else (1e6, "MB")
    x = Scale(0, max(one.bytes for one in there.values()) / unit * 1.22, LEFT + 10, WIDTH - RIGHT)
    low, high = (10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values))))
    y = Scale(low, high if high > low else 10 * low, 220, 24, log=True)
    said = [
        f"{name}: {console.size(one.bytes)}, mean KL {nats(one.mean_kl)}, bound {one.bound:g}, "
        f"{'passed' if one.passed else 'failed'}."
        for name, one in there.items()
    ]
    chart = svg.new("sizes", 252, "Size of each file against its distance from the trained model", " ".join(said))
    _axes(chart, x, y, 220, f"size, {word}", "mean KL, nats per token; each dash is a file's bound")
    for one in there.values():
        at = x.at(one.bytes / unit)
        svg.line(chart, at - 9, y.at(one.bound), at + 9, y.at(one.bound), "bound")
        if one.mean_kl_low is not None and one.mean_kl_high is not None:
            svg.line(chart, at, y.at(one.mean_kl_low), at, y.at(one.mean_kl_high), "whisker")
        svg.dot(chart, at, y.at(one.mean_kl or 0.0), "one" if one.passed else "bad", cross=not one.passed)
    points = [(x.at(one.bytes / unit), y.at(one.mean_kl or 0.0), name) for name, one in there.items()]
    _name_points(chart, points, [(x.at(one.bytes / unit), y.at(one.bound)) for one in there.values()])
    return svg.finished(chart)


def _name_points(chart: Any, points: list[tuple[float, float, str]], bounds: list[tuple[float, float]]) -> None:
    """Write each point's name to its right, or to its left where a bound's dash is; names that overlap move apart."""
    heights = svg.without_overlap([y for _, y, _ in points], 12, 30, 214)
    for (at, _, name), height in zip(points, heights, strict=True):
        width = len(name) * svg.LETTER

        def is_free(start: float, width: float = width, height: float = height) -> bool:
            crossed = any(start - 9 < x < start + width + 9 and abs(y - height) < 9 for x, y in bounds)
            return start > LEFT and start + width < WIDTH and not crossed

        fits = at + 9 + width < WIDTH and (is_free(at + 8) or not is_free(at - 8 - width))
        svg.text(chart, at + 8 if fits else at - 8, height + 4, name, "name", "start" if fits else "end")


def kl_chart(edges: Sequence[float], files: Mapping[str, Quantization]) -> str:
    """Draw for each file how its tokens are spread over KL; empty where no file has such counts."""
    there = {name: one for name, one in files.items() if one.kl_counts and len(one.kl_counts) == len(edges) + 1}
    if not there or len(edges) < 2 or not 0 < edges[0] < edges[-1]:
        return ""
    each, said = 46, []
    chart_height = 22 + each * len(there) + 30
    x = Scale(edges[0], edges[-1], LEFT + 2, WIDTH - RIGHT - 12, log=True)
    ends = [x.start - 12, *(x.at(edge) for edge in edges), x.end + 12]
    for name, one in there.items():
        counts = one.kl_counts or []
        above = sum(counts[index + 1] for index, edge in enumerate(edges) if edge >= 0.0999)
        said.append(f"{name}: {above:,} of {sum(counts):,} tokens at a KL of 0.1 or more.")
    chart = svg.new("spread", chart_height, "Tokens by their distance from the trained model", " ".join(said))
    svg.text(chart, 4, 12, "share of tokens at each KL", "tick")
    bottom = chart_height - 30
    for value in svg.decades(edges[0], edges[-1]):
        svg.line(chart, x.at(value), 22, x.at(value), bottom, "grid")
        svg.text(chart, x.at(value), bottom + 14, svg.power_of_ten(value), "tick", "middle")
    svg.text(chart, x.end + 12, bottom + 28, "KL, nats (both ends open)", "tick", "end")
    for number, (name, one) in enumerate(there.items()):
        counts, base = one.kl_counts or [], 22 + each * (number + 1)
        tallest = max(max(counts), 1)
        for index, count in enumerate(counts):
            height = (each - 8) * count / tallest
            kind = "one" if one.passed else "bad"
            svg.box(chart, ends[index], base - height, ends[index + 1] - ends[index] - 0.6, height, kind)
        svg.line(chart, ends[0], base, ends[-1], base, "axis")
        left = sum(counts[: len(counts) // 3]) < sum(counts[-len(counts) // 3 :])
        svg.text(chart, ends[0] + 2 if left else ends[-1], base - each + 18, name, "name", "start" if left else "end")
    return svg.finished(chart)


def parts_chart(ident: str, title: str, parts: Sequence[tuple[str, int]]) -> str:
    """Draw a whole as one bar of its parts, with their names below; empty where there is nothing."""
    parts = [(name, count) for name, count in parts if count > 0]
    total = sum(count for _, count in parts)
    if not total:
        return ""
    said = ", ".join(f"{name} {count:,}" for name, count in parts)
    chart = svg.new(ident, 42 + 16 * math.ceil(len(parts) / 2), title, f"{said}; {total:,} in all.")
    at = 0.0
    for number, (name, count) in enumerate(parts):
        width = WIDTH * count / total
        svg.box(chart, at, 2, width - 1, 24, f"part{number % 6}")
        at += width
        column, row = number % 2, number // 2
        svg.box(chart, column * 170, 36 + 16 * row, 9, 9, f"part{number % 6}")
        svg.text(chart, column * 170 + 14, 45 + 16 * row, f"{clipped(name, 14)} {count:,}", "tick")
    return svg.finished(chart)


def length_chart(lengths: Sequence[int]) -> str:
    """Draw how many answers have how many words; the last bar holds those beyond the 98th percentile."""
    if not lengths:
        return ""
    order = sorted(lengths)
    step = max(1, math.ceil((order[int(0.98 * (len(order) - 1))] + 1) / 24))
    bars = [0] * 25
    for length in lengths:
        bars[min(length // step, 24)] += 1
    middle = order[len(order) // 2]
    said = f"Half of {len(order):,} answers have {middle:,} words or fewer, the longest {order[-1]:,}."
    chart = svg.new("lengths", 172, "Words of an answer", said)
    x, y = Scale(0, 25 * step, LEFT, WIDTH - RIGHT), Scale(0, max(bars), 140, 24)
    _axes(chart, x, y, 140, "words of an answer (the last bar: this many or more)", "answers")
    for index, count in enumerate(bars):
        at = x.at(index * step)
        svg.box(chart, at, y.at(count), x.at((index + 1) * step) - at - 1, 140 - y.at(count), "one")
    return svg.finished(chart)


def interval_chart(ident: str, title: str, rows: Mapping[str, Measure], unit: str) -> str:
    """Draw one measure of several systems with its 95 % intervals; empty where none has it."""
    there = {name: one for name, one in rows.items() if one.mean is not None}
    if not there:
        return ""
    ends = [value for one in there.values() for value in (one.mean, one.low, one.high) if value is not None]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 0.05
    wide = min(110.0, 10 + svg.LETTER * max(len(clipped(name, 16)) for name in there))
    low, high = (low - room, high + room) if unit != SHARE else (max(low - room, 0.0), min(high + room, 1.0))
    x = Scale(low, high if high > low else low + 0.05, wide, WIDTH - 14)
    height = 14 + 20 * len(there)
    said = [
        f"{name}: {decimal(one.mean or 0.0)}"
        + (f" ({decimal(one.low)} to {decimal(one.high)})" if one.low is not None and one.high is not None else "")
        for name, one in there.items()
    ]
    chart = svg.new(ident, height + 36, title, "; ".join(said) + ".")
    for value in svg.round_ticks(x.low, x.high):
        svg.line(chart, x.at(value), 8, x.at(value), height, "grid")
        svg.text(chart, x.at(value), height + 14, f"{value:g}", "tick", "middle")
    svg.text(chart, x.end + 12, height + 29, unit, "tick", "end")
    for number, (name, one) in enumerate(there.items()):
        y, kind = 20 + 20 * number, "two" if name == "base" else "one"
        svg.text(chart, 2, y + 4, clipped(name, 16), "name")
        if one.low is not None and one.high is not None:
            svg.line(chart, x.at(one.low), y, x.at(one.high), y, f"whisker {kind}")
        svg.dot(chart, x.at(one.mean or 0.0), y, kind)
    return svg.finished(chart)
