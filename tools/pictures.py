"""Make the pictures of README and docs/ from a finished run: `make pictures` calls it.

    python -m tools.pictures RUN [--into docs/img] [--only NAME ...]

RUN is the folder of a run, in which `toolkit run` was the last to do all stages, and `toolkit evaluate --sheet` wrote
the sheet. `run.svg` is a cast of what the run printed, from its log.txt: each line at its time, in 20 seconds.
`loss.svg` and `sizes.svg` are the charts of the report; `report.png` and `review.png` show the pages in Chromium.
Nothing is invented: a run that lacks something has no such picture, and that is said.
"""

import argparse
import datetime
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).parents[1]
LARGEST = 300_000  # bytes of a picture
COLUMNS, ROWS = 112, 26  # of the terminal
LETTER, LINE, MARGIN, BAR = 8.0, 18, 14, 30  # pixels
SECONDS, HOLD = 20.0, 5.0  # of the cast, and of its last picture
LONGEST = 3.0  # seconds of the run that a pause counts at most, before all is scaled to the cast
STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)")
PROGRESS = re.compile(r"^([\w.,() -]+): [\d.,]+(?: [kMG]?B)?(?: of |/)[\d.,]+")
STYLE = "font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


@dataclass(frozen=True)
class Shown:
    """A line of the terminal: from when on, until when (infinity: to the end), in which row from the first."""

    text: str
    start: float
    end: float
    row: int


def read_log(path: Path) -> list[tuple[float, str]]:
    """Return the lines of the last whole run in a log, with seconds from its first; raises ValueError without one."""
    lines: list[tuple[float, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = STAMP.match(line)
        if found:
            lines.append((datetime.datetime.fromisoformat(found[1]).timestamp(), found[2]))
        elif lines:  # further lines of the same message
            lines.append((lines[-1][0], line))
    begins = [number for number, (_, text) in enumerate(lines) if text.startswith("prepare (")]
    if not begins:
        raise ValueError(f"{path} holds no run that began with prepare")
    begin = begins[-1]
    ends = [
        number
        for number, (_, text) in enumerate(lines)
        if number > begin and text.startswith(("next: toolkit ask", "next: ollama"))
    ]
    if not ends:
        raise ValueError(f"{path} holds no run that came to its end")
    return [(at - lines[begin][0], text) for at, text in lines[begin : ends[0] + 1]]


def arranged(log: Sequence[tuple[float, str]], command: str) -> list[Shown]:
    """Give each line its row and its time in the cast; a line of progress takes the place of the one before it."""
    steps = [0.0]
    for (before, _), (at, _) in itertools.pairwise(log):
        steps.append(steps[-1] + min(at - before, LONGEST))
    scale = (SECONDS - HOLD - 1) / max(steps[-1], 1e-9)
    lines = [Shown(f"$ {command}", 0.0, float("inf"), 0)]
    label, row = "", 1
    for step, (_, text) in zip(steps, log, strict=True):
        at, found = 1 + scale * step, PROGRESS.match(text)
        if found and found[1] == label:
            last = lines.pop()
            if last.start < at:
                lines.append(Shown(last.text, last.start, at, last.row))
            lines.append(Shown(text[:COLUMNS], at, float("inf"), last.row))
            continue
        label = found[1] if found else ""
        for part in [text[:COLUMNS]] if found else _wrapped(text):
            lines.append(Shown(part, at, float("inf"), row))
            row += 1
    return lines


def _wrapped(text: str) -> list[str]:
    return [text[at : at + COLUMNS] for at in range(0, len(text), COLUMNS)] or [""]


def cast(log: Sequence[tuple[float, str]], command: str, note: str = "") -> str:
    """Return the animated SVG; where nothing may move, it is the end of the run."""
    lines = arranged(log, command)
    rows = lines[-1].row + 1
    width, height = 2 * MARGIN + COLUMNS * LETTER, BAR + 2 * MARGIN + ROWS * LINE
    moves, styles, texts = [], [], []
    for row in range(ROWS, rows):
        at = next(line.start for line in lines if line.row == row)
        moves.append(f"{100 * at / SECONDS:.2f}%{{transform:translateY({-LINE * (row - ROWS + 1)}px)}}")
    for number, line in enumerate(lines):
        last = line.end == float("inf")
        name = ""
        if line.row < ROWS or not last or any(one.row == line.row and one is not line for one in lines):
            name = f"l{number}"
            begin, end = (f"{100 * at / SECONDS:.2f}%" for at in (line.start, min(line.end, SECONDS)))
            shown = f"0%{{opacity:0}}{begin}{{opacity:1}}" + f"{end}{{opacity:0}}" * (not last)
            moving = f"animation:{name} {SECONDS:g}s step-end infinite;opacity:{int(last)}"
            styles.append(f"@keyframes {name}{{{shown}}}.{name}{{{moving}}}")
        if line.text.strip():
            kind = " ".join(filter(None, [name, _kind(line.text)]))
            y = BAR + MARGIN + LINE * line.row + 13
            given = f' class="{kind}"' if kind else ""
            texts.append(f'<text x="{MARGIN}" y="{y}"{given}>{escape(line.text)}</text>')
    up = -LINE * max(rows - ROWS, 0)
    minutes = log[-1][0] / 60
    title = f"{command}: {minutes:.0f} minutes{note and f' {note}'}, shown in {SECONDS - HOLD:.0f} seconds"
    rules = [
        f"text{{{STYLE};fill:#d7dce1;white-space:pre}}.b{{fill:#fff;font-weight:700}}.g{{fill:#7ad39a}}.y{{fill:#e6bd62}}",
        f".s{{fill:#8f99a3}}#all{{transform:translateY({up}px);animation:all {SECONDS:g}s step-end infinite}}",
        f"@keyframes all{{0%{{transform:translateY(0)}}{''.join(moves)}}}",
        *styles,
        "@media (prefers-reduced-motion:reduce){*{animation:none!important}}",
    ]
    size, screen = f'width="{width:g}" height="{height:g}"', height - BAR - MARGIN / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{''.join(rules)}</style>",
            f'<rect {size} rx="8" fill="#14181c"/>',
            f'<text x="{MARGIN}" y="20" class="s">{escape(title)}</text>',
            f'<clipPath id="screen"><rect y="{BAR}" width="{width:g}" height="{screen:g}"/></clipPath>',
            '<g clip-path="url(#screen)"><g id="all">',
            *texts,
            "</g></g></svg>\n",
        ]
    )


def _kind(text: str) -> str:
    if re.match(r"\$ |next: |\w+ \((?:first time|stale|settings|inputs?)", text):
        return "b"
    if text.startswith("✓") or text.rstrip().endswith("passed"):
        return "g"
    if text.startswith("warning:"):
        return "y"
    return "s" if PROGRESS.match(text) else ""


def standalone(chart: str) -> str:
    """Return a chart of the report as a file of its own: on white, with the colours of the page's light theme."""
    css = (REPOSITORY / "toolkit/templates/page.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([\w-]+): (#\w+)", css.partition("@media")[0]))
    rules = " ".join(line for line in css.splitlines() if line.startswith(".chart"))
    rules = re.sub(r"var\(--([\w-]+)\)", lambda name: light[name[1]], rules)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart)
    assert found is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * float(found[1]):g}" height="{2 * float(found[2]):g}" '
    return chart.replace("<svg ", head, 1).replace(
        "><title", f'><style>{rules}</style><rect width="100%" height="100%" fill="#ffffff"/><title', 1
    )


def loss_picture(run: Path) -> str:
    """Return the loss curve of a run."""
    from toolkit.report.charts import loss_chart

    lines = (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return standalone(loss_chart([json.loads(line) for line in lines if line.strip()]))


def sizes_picture(run: Path) -> str:
    """Return the sizes of a run's files against their KL divergence."""
    from toolkit.report.charts import size_chart
    from toolkit.report.report_file import Report

    report = Report.model_validate_json((run / "report.json").read_bytes())
    return standalone(size_chart(report.quantizations))


def page_picture(page: Path, *, beyond: str = "") -> bytes:
    """Return what a page looks like in Chromium, on a tablet's width; `beyond` is the selector that is scrolled to."""
    from tests.support.browser import chromium, opened

    with chromium() as browser, opened(browser, page, "tablet") as found:
        if beyond:
            found.page.locator(beyond).first.scroll_into_view_if_needed()
        return found.page.screenshot()


def cast_picture(run: Path, note: str = "") -> str:
    """Return the cast of a run; `note` says what the machine was like."""
    return cast(read_log(run / "log.txt"), f"toolkit run -c examples/{run.name}.toml", note)


PICTURES: dict[str, Callable[[Path], str | bytes]] = {
    "run.svg": cast_picture,
    "loss.svg": loss_picture,
    "sizes.svg": sizes_picture,
    "report.png": lambda run: page_picture(run / "report.html"),
    "review.png": lambda run: page_picture(run / "review.html"),
}


def main() -> int:
    """Make the pictures; exit code 1 where one cannot be made, or is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", type=Path, default=REPOSITORY / "docs/img")
    parser.add_argument("--note", default="", help='of the machine, in the title of the cast: "on two busy cores"')
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    given, failed = parser.parse_args(), False
    given.into.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        try:
            content = cast_picture(given.run, given.note) if name == "run.svg" else PICTURES[name](given.run)
        except (OSError, ValueError) as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            failed = True
            continue
        data = content.encode() if isinstance(content, str) else content
        if len(data) >= LARGEST:
            print(f"{name}: {len(data):,} bytes are too many", file=sys.stderr)
            failed = True
            continue
        (given.into / name).write_bytes(data)
        print(f"{given.into / name} {len(data):,} bytes")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
