"""Write the generated parts of the pages under docs/: `make docs` calls it, and a test compares.

    python -m tools.reference [--check]

A page has its generated parts between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; what is outside is written by
hand. With --check nothing is written, and the exit code is 1 where a page differs.
"""

import argparse
import ast
import html
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tools import hints

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PART = re.compile(r"(?P<begin><!-- begin: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end: (?P=name) -->)", re.DOTALL)
SHARED = ("path", "overrides", "offline", "as_json", "quiet", "dry_run", "force")
ORDER = (
    "init",
    "doctor",
    "run",
    "prepare",
    "train",
    "export",
    "validate",
    "evaluate",
    "register",
    "ask",
    "status",
    "report",
)
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a cell's text; a bar would end the cell, and in code a backslash before it would be shown on the site."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", " ".join(text.split()))
    return text.replace("|", "&#124;")


def verbs() -> str:
    """List the verbs with the first sentence of their help."""
    return table(
        ("verb", "what it does"),
        [(f"[`{name}`](#{name})", _first(command.help or "")) for name, command in _commands()],
    )


def _commands() -> list[tuple[str, click.Command]]:
    from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
    from toolkit.cli.options import group

    context = click.Context(group)
    order = [*ORDER, *sorted({*group.list_commands(context)} - {*ORDER})]
    found = [(name, group.get_command(context, name)) for name in order]
    return [(name, command) for name, command in found if command is not None]


def _first(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def shared_options() -> str:
    """List the options that verbs share."""
    every = len(_commands())
    rows = []
    for key in SHARED:
        of_verbs = {name: one for name, each in _commands() for one in _options(each) if one.name == key}
        [(usual, _)] = Counter(one.help for one in of_verbs.values()).most_common(
            1
        )  # `report` has a --force of its own
        options = {key: next(one for one in of_verbs.values() if one.help == usual)}
        verbs_of = {key: [name for name, one in of_verbs.items() if one.help == usual]}
        missing = [name for name, _ in _commands() if name not in verbs_of[key]]
        where = "all" if len(verbs_of[key]) == every else "all but " + ", ".join(missing)
        if len(missing) > every // 2:
            where = ", ".join(verbs_of[key])
        rows.append((_spelling(options[key]), _meaning(options[key]), where))
    return table(("option", "meaning", "verbs"), rows)


def _options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option)]


def _spelling(option: click.Option) -> str:
    value = ""
    if not option.is_flag:
        kind = option.type
        value = " " + ("|".join(kind.choices) if isinstance(kind, click.Choice) else option.metavar or "N")
    return ", ".join(f"`{name}{value}`" for name in option.opts)


def _meaning(option: click.Option) -> str:
    default = f" Default: `{option.default}`." if option.show_default else ""
    return (option.help or "") + default


def commands() -> str:
    """Describe each verb: help, own options, example."""
    from toolkit import pipeline
    from toolkit.cli.options import EXAMPLES

    known = {**EXAMPLES, **{name: example for name, (_, example) in {**pipeline.STAGES, **pipeline.BESIDE}.items()}}
    parts = []
    for name, command in _commands():
        arguments = [
            one.make_metavar(click.Context(command)) for one in command.params if isinstance(one, click.Argument)
        ]
        usage = " ".join(["toolkit", name, "[OPTIONS]", *arguments])
        parts += [f"## {name}", f"`{usage}`", *_paragraphs(command.help or "")]
        own = [option for option in _options(command) if option.name not in SHARED or _special(command, option)]
        if own:
            parts.append(table(("option", "meaning"), [(_spelling(one), _meaning(one)) for one in own]))
        parts.append(f"Example: `{known[name]}`")
    return "\n\n".join(parts)


def _special(command: click.Command, option: click.Option) -> bool:
    """Tell whether a verb's option of a shared name has another meaning."""
    usual = next(o for _, each in _commands() for o in _options(each) if o.name == option.name)
    return option.help != usual.help


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def settings() -> str:
    """Describe every setting, by section."""
    from toolkit.core.config import SECTIONS
    from toolkit.core.config_file import toml_value

    parts = []
    for name, section in SECTIONS.items():
        rows = []
        for key, field in section.model_fields.items():
            value = field.get_default(call_default_factory=True)
            default = "not set" if value is None else f"`{toml_value(value)}`"
            rows.append((f"`{key}`", field.description or "", _kind(field), default))
        parts += [
            f"## [{name}]",
            " ".join((section.__doc__ or "").split()),
            table(("key", "meaning", "value", "default"), rows),
        ]
    return "\n\n".join(parts)


def _kind(field: FieldInfo) -> str:
    bounds = [
        words.format(f"{getattr(each, name):,}")
        for each in field.metadata
        for name, words in BOUNDS.items()
        if getattr(each, name, None) is not None
    ]
    return " ".join([_type(field.annotation), *([", ".join(bounds)] if bounds else [])])


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        named = [f"`{_literal(value)}`" for value in inner if value != ""]
        return _or([*named, "empty"] if "" in inner else named)
    if origin in (types.UnionType, Union):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin is list:
        return f"list of {_plural(inner[0])}"
    if origin is dict:
        return f"table of {_plural(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type(inner[0])
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _plural(annotation: Any) -> str:
    kind = _type(annotation)
    return {"text": "texts", "number": "numbers", "whole number": "whole numbers", "Any": "values"}.get(kind, kind)


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def former_settings() -> str:
    """List former names of settings."""
    from toolkit.core.aliases import FORMER

    rows = [(f"[{section}]", f"`{old}`", f"`{new}`") for section, names in FORMER.items() for old, new in names.items()]
    return table(("section", "former name", "name now"), rows)


def foreign_settings() -> str:
    """List what other tools call a setting."""
    from toolkit.core.aliases import FOREIGN

    return table(("elsewhere", "here"), [(f"`{other}`", f"`{ours}`") for other, ours in FOREIGN.items()])


def report_fields() -> str:
    """Describe report.json."""
    from toolkit.report import report_file as file

    models = (file.Report, file.Quantization, file.Base, file.Scored, file.Reference, file.Learned, file.Losses)
    return _models((*models, file.Asked, file.ScoredRow))


def manifest_fields() -> str:
    """Describe manifest.json."""
    from toolkit.core.manifest import FileRecord, Manifest, StageRecord

    return _models((Manifest, StageRecord, FileRecord))


def _models(models: Sequence[type[BaseModel]]) -> str:
    parts = []
    for model in models:
        rows = [
            (f"`{key}`", field.description or "", _json_type(field.annotation))
            for key, field in model.model_fields.items()
        ]
        doc = " ".join((model.__doc__ or "").split())
        parts += [f"## {model.__name__}", doc, table(("key", "meaning", "value"), rows)]
    return "\n\n".join(parts)


def _json_type(annotation: Any) -> str:
    kind = _type(annotation).replace("table of", "object of").replace("list of", "array of")
    return kind + (" or null" if type(None) in get_args(annotation) else "")


def exit_codes() -> str:
    """List the exit codes."""
    from toolkit.core import errors

    rows = [
        (0, "done"),
        (errors.FAILED, "failed: a file whose content cannot be used, a disk, a library or the toolkit itself"),
        (errors.USAGE, "wrong usage or settings, or data that the settings refuse: a change of what you wrote helps"),
        (errors.MISSING, "something needed is missing: a program, a package, a model, a server, access"),
        (errors.GATE, "a quantization is too far from the trained model, or the trained model is no better than its "
         "base and would replace one that answers"),
        (errors.INTERRUPTED, "interrupted by Ctrl-C, SIGTERM or a closed terminal: nothing half-written is left, a "
         "registration is rolled back, and the same command continues"),
    ]  # fmt: skip
    return table(("exit code", "meaning"), [(f"`{code}`", meaning) for code, meaning in rows])


def known_errors() -> str:
    """List what other libraries raise, and what it is translated to."""
    from toolkit.core.errors import known_exceptions

    gathered: dict[tuple[str, str, int], list[str]] = {}
    for name, found in known_exceptions().items():
        gathered.setdefault(found, []).append(name)
    rows = [
        (happened, hint, f"`{code}`", ", ".join(f"`{name}`" for name in names))
        for (happened, hint, code), names in gathered.items()
    ]
    return table(("what happened", "hint", "exit code", "raised as"), rows)


def quantizations() -> str:
    """List the quantizations: size for Llama-3.1-8B, bound, who quantizes."""
    from toolkit import kernels
    from toolkit.core.output_settings import QUANTIZATIONS, ExportSettings, ValidateSettings
    from toolkit.doctor.estimate import gguf_files
    from toolkit.formats.ggml_types import BASE, UNQUANTIZED
    from toolkit.kernels import gpu
    from toolkit.model.known_models import known_model

    shape = known_model("llama-3.1-8b")
    assert shape is not None
    names = list(QUANTIZATIONS)
    sizes = gguf_files(shape, ExportSettings(quantizations=names, default=names[0]))
    own, bounds, rows = {name for name, _, _ in kernels.TYPES.values()}, ValidateSettings(), []
    for name in names:
        kind = BASE[name][0]
        maker = (
            "own kernels, on a CPU and a GPU"
            if kind in gpu.KINDS
            else "own kernels, on a CPU"
            if kind.name in own
            else "libggml"
        )
        bits = 8 * sizes[name] / shape.parameters()
        rows.append(
            (f"`{name}`", f"`{kind.name}`", f"{bits:.2f}", f"{sizes[name] / 1e9:.2f} GB", f"{bounds.bound(name):g}",
             "rounded alone" if kind in UNQUANTIZED else maker)
        )  # fmt: skip
    heads = ("name", "type of most tensors", "bits per weight", "Llama-3.1-8B", "bound of the mean KL", "quantized by")
    return table(heads, rows)


def tensor_kinds() -> str:
    """List the types that a single tensor can have."""
    from toolkit.core.output_settings import TENSOR_TYPES

    return ", ".join(f"`{name}`" for name in TENSOR_TYPES)


def tree() -> str:
    """Write the tree of the package with the first sentence of every module."""
    parts = []
    for box in _boxes():
        name = box.name.removesuffix(".py")
        if box.is_file():
            parts.append(f"**`{box.name}`** {_role(box)}")
            continue
        files = sorted(path for path in box.rglob("*.py") if path.name != "__init__.py")
        rows = [(f"`{path.relative_to(box)}`", _role(path)) for path in files]
        rows += [(f"`{path.relative_to(box)}/`", _role(path / "__init__.py")) for path in sorted(box.rglob("*"))
                 if path.is_dir() and (path / "__init__.py").is_file()]  # fmt: skip
        rows = [row for row in sorted(rows) if row[1]]
        parts += [f"### {name}/", _role(box / "__init__.py"), table(("module", "role"), rows)]
    return "\n\n".join(parts)


def _boxes() -> list[Path]:
    """Return the package's boxes in the order in which architecture.md names the floors."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = REPOSITORY / "toolkit"
    there = {path.name.removesuffix(".py"): path for path in package.iterdir()
             if path.suffix == ".py" or (path / "__init__.py").is_file()}  # fmt: skip
    there.pop("__init__")
    order = [
        name for name in re.findall(r"^\| \d \| (.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w]+)", name)
    ]
    return [there[name] for name in sorted(there, key=order.index)]


def _role(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split())


PARTS: dict[str, Callable[[], str]] = {
    "verbs": verbs,
    "shared-options": shared_options,
    "commands": commands,
    "settings": settings,
    "former-settings": former_settings,
    "foreign-settings": foreign_settings,
    "report": report_fields,
    "manifest": manifest_fields,
    "exit-codes": exit_codes,
    "known-errors": known_errors,
    "hints": hints.page_part,
    "quantizations": quantizations,
    "tensor-types": tensor_kinds,
    "tree": tree,
}


def written(text: str) -> str:
    """Return a page's text with its generated parts as they are now; raises KeyError for a name that is unknown."""
    return PART.sub(lambda part: f"{part['begin']}\n{PARTS[part['name']]()}\n\n{part['end']}", text)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args().check
    differing = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (now := written(text)) != text:
            differing.append(str(path.relative_to(REPOSITORY)))
            if not check:
                path.write_text(now, encoding="utf-8")
    for name in differing:
        print(f"{name} {'differs: `make docs` writes it' if check else 'written'}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
