"""The Jinja environment of the model card: its filters keep text from data and settings from becoming Markdown."""

import functools
import json
import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from toolkit.core import console
from toolkit.report.words import nats, percent, shown


@functools.cache
def markdown_environment() -> Environment:
    """Return the environment that reads `toolkit/templates/`; an undefined name is an error.

    Nothing is escaped automatically: the template names a filter for each value that is not the toolkit's own.
    """
    made = Environment(
        loader=PackageLoader("toolkit"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    made.filters |= {
        "cell": lambda text: text.replace("|", "\\|"),
        "code": _code,
        "escaped": _escaped,
        "fenced": _fenced,
        "nats": nats,
        "percent": percent,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
        "size": console.size,
        "thousands": "{:,}".format,
        "three": lambda value: "-" if value is None else f"{value:.3f}",
    }
    return made


def _fenced(text: str, language: str) -> str:
    """Fence text as code; the fence is longer than any run of backticks in it, and control characters are replaced."""
    text = shown(text)
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Write text as inline code; its marks are longer than any run of backticks in it."""
    text = shown(" ".join(text.split()))
    mark, space = "`" * (_longest_run(text) + 1), " " if "`" in text else ""
    return f"{mark}{space}{text}{space}{mark}"


def _escaped(text: str) -> str:
    """Write text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", shown(" ".join(text.split())))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
