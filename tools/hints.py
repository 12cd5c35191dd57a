"""Collect every error of the toolkit with its hint from the source code: the tables in docs/guide/troubleshooting.md.

An error is a call such as `ToolkitError(message, hint=…)`. What is put in at run time is shown as `…`; a name stands
for the texts that the function, the module or an imported module gives it. Errors without a hint, and hints that are
made up of nothing but values, are left out. What an Ollama server refuses comes from its own table.

    python -m tools.hints
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "toolkit"
PAGE = REPOSITORY / "docs/guide/troubleshooting.md"
EXIT_CODES = {"FAILED": 1, "USAGE": 2, "MISSING": 3, "GATE": 4, "INTERRUPTED": 130}
VALUE = "…"
Place = tuple[ast.AST, ast.Call]  # a function, and a call in it
# The headings of the page, and the folders and files of the package whose errors stand there.
GROUPS = {
    "Settings and files": ("core", "init.py", "pipeline", "cli", "report"),
    "Data": ("prepare",),
    "Base model": ("model", "formats", "prompt"),
    "Training": ("train",),
    "Export": ("export", "llamacpp", "kernels"),
    "Validation": ("validate",),
    "Evaluation and review": ("evaluate",),
    "Ollama": ("register", "ollama", "ask.py"),
}


@dataclass(frozen=True, order=True)
class Hint:
    """One error: what it says, what to do, and the exit code."""

    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True)
class Source:
    """A module, with the texts of its own names and where imported ones come from."""

    path: Path
    tree: ast.Module

    def value_of(self, name: str) -> ast.expr | None:
        """Return what a name of the module is set to, here or where it is imported from."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return getattr(node, "value", None)
        for imported in ast.walk(self.tree):
            if isinstance(imported, ast.ImportFrom) and imported.module and imported.module.startswith("toolkit"):
                for alias in imported.names:
                    if (alias.asname or alias.name) == name:
                        other = source_of(imported.module)
                        return other.value_of(alias.name) if other else None
        return None


def source_of(module: str) -> Source | None:
    """Read a module of the package by its dotted name; None for a package's own name that is no file."""
    path = REPOSITORY / Path(*module.split("."))
    for place in (path.with_suffix(".py"), path / "__init__.py"):
        if place.is_file():
            return read(place)
    return None


def read(path: Path) -> Source:
    """Parse a file."""
    return Source(path, ast.parse(path.read_text(encoding="utf-8")))


def texts(node: ast.expr | None, source: Source, at: Place | None, depth: int = 0) -> list[str]:
    """Return the texts that an expression can be, with `…` for what is known at run time only."""
    if node is None or depth > 4:
        return [VALUE]
    if isinstance(node, ast.Constant):
        return [str(node.value)] if isinstance(node.value, str) else [VALUE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part) for part in itertools.product(*(_pieces(value, source) for value in node.values))]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, source, at, depth + 1), *texts(node.orelse, source, at, depth + 1)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = (texts(side, source, at, depth + 1) for side in (node.left, node.right))
        return [one + other for one, other in itertools.product(left, right)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts(value, source, at, depth + 1)]
    if isinstance(node, ast.Name):
        own = _assigned(*at, node.id) if at is not None else []
        if own:
            return [text for value in own for text in texts(value, source, at, depth + 1)]
        return texts(source.value_of(node.id), source, None, depth + 1)
    return [VALUE]


def _pieces(value: ast.expr, source: Source) -> list[str]:
    if isinstance(value, ast.Constant):
        return [str(value.value)]
    inner = value.value if isinstance(value, ast.FormattedValue) else value
    known = source.value_of(inner.id) if isinstance(inner, ast.Name) and inner.id.isupper() else None
    if isinstance(known, ast.Constant) and isinstance(known.value, str | int):
        return [str(known.value)]
    return [VALUE]


def _assigned(function: ast.AST, call: ast.Call, name: str) -> list[ast.expr]:
    """Return what a name may be set to where a call stands: the assignments that come last before it."""
    found: list[ast.expr] = []
    for block in _blocks(function, call):
        for statement in reversed(block):
            found += _of_targets(statement, name)
            if found and isinstance(statement, ast.Assign):
                return found
    return found


def _blocks(node: ast.AST, call: ast.Call) -> Iterator[list[ast.stmt]]:
    """Yield the statements before a call, of the innermost block first."""
    for field in ("body", "orelse", "finalbody", "handlers"):
        block = getattr(node, field, [])
        for index, statement in enumerate(block if isinstance(block, list) else []):
            if any(inside is call for inside in ast.walk(statement)):
                yield from _blocks(statement, call)
                yield block[:index]


def _of_targets(statement: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield what a name is set to in a statement, also as one of several at once."""
    for node in _going_on(statement):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            value = node.value  # type: ignore[attr-defined]
            if isinstance(target, ast.Name) and target.id == name:
                yield value
            elif isinstance(target, ast.Tuple):
                for place in (n for n, one in enumerate(target.elts) if isinstance(one, ast.Name) and one.id == name):
                    sides = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                    yield from (side.elts[place] for side in sides if isinstance(side, ast.Tuple))


def _going_on(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a statement and what is in it, but for the branches that end in raise or return."""
    yield node
    for _, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        if children and isinstance(children[-1], ast.Raise | ast.Return):
            continue
        for child in children:
            yield from _going_on(child)


def hints_of(path: Path) -> list[Hint]:
    """Return the errors of one file that have a hint."""
    source = read(path)
    found = set()
    for function, call in _errors(source.tree, None):
        given = {word.arg: word.value for word in call.keywords}
        if "hint" not in given or not call.args:
            continue
        at = None if function is None else (function, call)
        code = given.get("exit_code")
        exit_code = EXIT_CODES.get(code.id, 1) if isinstance(code, ast.Name) else 1
        messages = [_short(text) for text in texts(call.args[0], source, at)]
        hints = [text for text in map(_short, texts(given["hint"], source, at)) if _says(text)]
        found |= {Hint(message, hint, exit_code) for message in messages for hint in hints}
    return sorted(found)


def _errors(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.AST | None, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inside = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call) and any(word.arg == "hint" for word in child.keywords):
            yield function, child
        yield from _errors(child, inside)


def _short(text: str) -> str:
    return re.sub(rf"(?:{VALUE}[ ,]*)+{VALUE}", VALUE, " ".join(text.split())).strip()


def _says(text: str) -> bool:
    """Tell whether a text says something without its values."""
    return len(re.findall(r"[^\W\d_]{2,}", text)) >= 2


def groups() -> dict[str, list[Hint]]:
    """Return all errors by the headings of the page; raises KeyError for a part of the package without one."""
    heading = {name: title for title, names in GROUPS.items() for name in names}
    found: dict[str, set[Hint]] = {title: set() for title in GROUPS}
    for path in sorted(PACKAGE.rglob("*.py")):
        errors = hints_of(path)
        if errors:
            found[heading[path.relative_to(PACKAGE).parts[0]]] |= set(errors)
    found["Ollama"] |= set(_refusals())
    return {title: sorted(hints) for title, hints in found.items()}


def _refusals() -> Iterator[Hint]:
    """Yield what an Ollama server refuses: its words, as far as they decide, or the status of HTTP."""
    from toolkit.ollama.failures import HINTS, STATUS_HINTS

    said = {re.sub(r"[()?]|\.\*", "", pattern.split("|")[0]): hint for pattern, hint in HINTS}
    said |= {f"HTTP {status}": hint for status, hint in STATUS_HINTS.items()}
    for words, hint in said.items():
        yield Hint(f"the Ollama server refused while {VALUE}: {VALUE} {words} {VALUE}", hint, 1)


def page_part() -> str:
    """Write the tables of the page."""
    parts = []
    for title, hints in groups().items():
        rows = [f"| {_cell(one.message)} | {_cell(one.hint)} | {one.exit_code} |" for one in hints]
        parts.append("\n".join([f"### {title}", "", "| error | hint | exit code |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    code = text.split("`")
    code[::2] = [re.sub(r"([\[*<])", r"\\\1", part) for part in code[::2]]  # outside of code these are marks
    return "`".join(code).replace("|", "\\|")


def written(text: str) -> str:
    """Return the page's text with the tables as they are now."""
    begin, _, rest = text.partition("<!-- begin: hints -->\n")
    end = rest.partition("<!-- end: hints -->")[2]
    return f"{begin}<!-- begin: hints -->\n\n{page_part()}\n\n<!-- end: hints -->{end}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
