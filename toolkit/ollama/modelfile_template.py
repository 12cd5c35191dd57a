"""The user's Modelfile.template: reading it, filling it, and checking the result against what was meant."""

from pathlib import Path
from typing import Any

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.ollama.modelfile import LISTS, Modelfile


def template_text(path: str) -> tuple[str, str]:
    """Return the user's Modelfile.template, or the toolkit's own if `path` is empty, and its name for messages.

    Raises ToolkitError (exit 2) if the user's cannot be read.
    """
    source = Path(path) if path else Path(__file__).parent.parent / "templates" / "Modelfile.template"
    try:
        return source.read_text(encoding="utf-8-sig"), path or "Modelfile.template"
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ToolkitError(
            f"`{source}` cannot be read: {reason}",
            hint="`ollama.template` names your own Modelfile.template; leave it empty for the toolkit's",
            exit_code=USAGE,
        ) from None


def fill_template(values: dict[str, Any], template_text: str, where: str = "Modelfile.template") -> str:
    """Fill a Modelfile.template: Jinja2 with `[[ ]]`, `[% %]` and `[# #]`.

    Raises ToolkitError that lists every undefined name with its line, or says what else is wrong.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    try:
        tree = environment.parse(template_text)
        missing = find_undeclared_variables(tree) - set(values)
        used = [(node.lineno, node.name) for node in tree.find_all(nodes.Name) if node.name in missing]
        if used:
            listed = ", ".join(f"`{name}` (line {line})" for line, name in dict.fromkeys(used))
            raise ToolkitError(
                f"{where} uses undefined names: {listed}",
                hint=f"defined are {', '.join(sorted(values))}",
                exit_code=USAGE,
            )
        return environment.from_string(template_text).render(values)
    except TemplateSyntaxError as exc:
        raise ToolkitError(
            f"{where}, line {exc.lineno}: {exc.message}",
            hint="values go in [[ ]], loops and conditions in [% %], notes in [# #]",
            exit_code=USAGE,
        ) from exc
    except ToolkitError:
        raise
    except Exception as exc:  # an expression in the user's template may fail in any way
        raise ToolkitError(
            f"{where}, line {_line_in_template(exc)}: {exc}",
            hint=f"defined are {', '.join(sorted(values))}",
            exit_code=USAGE,
        ) from exc


def _line_in_template(exc: BaseException) -> int | str:
    """Find the template's line in a traceback: Jinja names its frames `<template>`."""
    line: int | str = "?"
    traceback = exc.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def check_unchanged(found: Modelfile, meant: Modelfile, where: str = "Modelfile.template") -> None:
    """Raise ToolkitError that lists what a rendered Modelfile changed.

    It may add parameters, stop texts and licences to ours.
    """
    changed = [
        name
        for name, mine, yours in (
            ("FROM", meant.from_, found.from_),
            ("TEMPLATE", meant.template, found.template),
            ("SYSTEM", meant.system, found.system),
        )
        if mine != yours
    ]
    for name, value in meant.parameters.items():
        yours = found.parameters.get(name)
        same = set(value) <= set(yours or []) if name in LISTS else yours == value
        if not same:
            changed.append(f"PARAMETER {name} ({yours!r} instead of {value!r})")
    if not set(meant.licenses) <= set(found.licenses):
        changed.append("LICENSE")
    if changed:
        raise ToolkitError(
            f"your template {where} changed {', '.join(changed)}",
            hint="change parameters under [ollama] in the settings; template, system and licence must stay as given",
            exit_code=USAGE,
        )
