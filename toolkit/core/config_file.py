"""Read and write `toolkit.toml`: all problems reported at once, and a starter file in which every key is explained."""

import codecs
import difflib
import json
import numbers
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from toolkit.core import aliases, console
from toolkit.core.config import SECTIONS, Config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.input_settings import NAME_RULE, usable_name
from toolkit.core.parsing import LARGEST_TOML, parse_toml, read_bounded
from toolkit.core.run_folder import OF_RUN
from toolkit.core.streams import printable

Changes = Mapping[str, Any]  # by section: settings by their key, as plain values


def load_config(path: Path, overrides: Iterable[str] = (), changes: Changes = MappingProxyType({})) -> Config:
    """Read a `toolkit.toml` and apply `section.key=value` overrides; every problem is reported in one error.

    A run's folder stands for the settings in it, wherever it was copied to: its parent is `run.folder`, its name
    `run.name`. `changes` are further overrides, by section. Raises ToolkitError (exit 2) for a missing file, broken
    TOML, and unknown or ill-typed settings.
    """
    if not path.is_dir():
        return build(_read(path), overrides, changes, where=str(path))
    values = _read(path / OF_RUN)
    folder = path if path.name not in ("", "..") else path.resolve()
    if not usable_name(folder.name):
        raise ToolkitError(
            f"the folder's name `{folder.name}` cannot be the name of a run: {NAME_RULE}",
            hint="rename the folder, then name it again",
            exit_code=USAGE,
        )
    run = values.get("run")
    values["run"] = {**(run if isinstance(run, dict) else {}), "folder": str(folder.parent), "name": folder.name}
    return build(values, overrides, changes, where=str(path / OF_RUN))


def _toml_hint(said: str) -> str:
    """Return what to do about text that is not TOML, by what Python's reader says of it."""
    if any(word in said for word in ("overwrite", "twice", "Duplicate")):
        return "it is there twice: remove one of the two"
    if "\\" in said or "hex value" in said:  # "C:\\Users" begins a character by its number
        return "a backslash has a meaning between double quotes: use single ones, source = 'C:\\data\\faq.csv'"
    return 'text values need straight quotes: name = "medassist"'


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_bounded(path, LARGEST_TOML).removeprefix(codecs.BOM_UTF8)
        values = parse_toml(content.decode("utf-8").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise _no_settings(path) from None
    except UnicodeDecodeError as exc:
        raise ToolkitError(
            f"`{path}` is not UTF-8 text: {exc.reason} at byte {exc.start}",
            hint="save it as UTF-8 in your editor",
            exit_code=USAGE,
        ) from None
    except tomllib.TOMLDecodeError as exc:
        raise ToolkitError(f"`{path}` is not valid TOML: {exc}", hint=_toml_hint(str(exc)), exit_code=USAGE) from None
    except ValueError as exc:
        raise ToolkitError(
            f"`{path}` cannot be read: {exc}", hint="write a new one with `toolkit init`", exit_code=USAGE
        ) from None
    return values


def _no_settings(path: Path) -> ToolkitError:
    if path.parent.is_dir() and path.name == OF_RUN:
        hint = "name a settings file, or the folder of a run, in which its settings are"
        return ToolkitError(f"the folder `{path.parent}` has no `{OF_RUN}`", hint=hint, exit_code=USAGE)
    hint = "write one with `toolkit init`, or name yours with `-c FILE`"
    return ToolkitError(f"no settings file `{path}`", hint=hint, exit_code=USAGE)


def build(
    values: dict[str, Any],
    overrides: Iterable[str] = (),
    changes: Changes = MappingProxyType({}),
    *,
    where: str = "the settings",
) -> Config:
    """Check settings that are already parsed, after applying overrides; raises ToolkitError as `load_config` does."""
    problems: list[str] = []
    wanted = {section: _plain(table) for section, table in changes.items()}
    for override in overrides:
        _apply(wanted, override, problems)
    renamed = aliases.rename(values, problems) + aliases.rename(wanted, problems)
    _merge(values, wanted)
    try:
        config = Config.model_validate(values)
    except ValidationError as exc:
        problems += [_describe(problem) for problem in exc.errors()]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise ToolkitError(
            f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in the settings\n{listed}",
            hint="`toolkit init` writes a file in which every key is explained",
            exit_code=USAGE,
        )
    if renamed:
        console.warn(f"{', '.join(dict.fromkeys(renamed))}; the next release refuses the old name")
    return config


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Apply overrides to a file's settings; one of max_steps or num_train_epochs drops the other from the file."""
    for section, table in changes.items():
        there = values.setdefault(section, {})
        if not isinstance(table, dict):  # refused by its type
            values[section] = table
        elif isinstance(there, dict):
            for one, other in (("max_steps", "num_train_epochs"), ("num_train_epochs", "max_steps")):
                if section == "train" and one in table and other not in table:
                    there.pop(other, None)
            there.update(table)


def _plain(value: Any) -> Any:
    """Return a value of Python as TOML would give it: paths are text, any sequence is a list, numbers are Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # numpy's too
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value


def _apply(values: dict[str, Any], override: str, problems: list[str]) -> None:
    if not isinstance(override, str):  # from Python
        problems.append(f'{override!r}: write it as text, for example "train.max_steps=100"')
        return
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        problems.append(f"--set {override}: write it as section.key=value, for example --set train.max_steps=100")
        return
    annotation = None
    present = aliases.FORMER.get(section, {}).get(name, name)
    if section in SECTIONS and present in SECTIONS[section].model_fields:
        annotation = SECTIONS[section].model_fields[present].annotation
    where = f"{section}.{name}"
    if any("\ud800" <= letter <= "\udfff" for letter in override):
        problems.append(f"{where}: {printable(text)} holds bytes that are not UTF-8; rename that file or folder")
        return
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        return
    try:
        table[name] = _parse_value(text.strip(), annotation)
    except ValueError as exc:
        problems.append(f"{where}: {str(exc).removeprefix('`value` ')}")


def _parse_value(text: str, annotation: Any) -> Any:
    """Read an override's value: TOML where it is TOML, else text; `a,b` where a list is wanted."""
    quoted = text[:1] in ('"', "'")
    if annotation is str and not quoted:
        return text
    if list[str] in get_args(annotation) and not quoted and not text.startswith("["):  # one text, or a list of them
        return text
    if get_origin(annotation) is list and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_did_you_mean(location)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    if not location and problem["type"] == "value_error":  # of several sections: the message names the key
        return message
    if problem["type"] == "value_error" or isinstance(given, dict | BaseModel):
        return f"{key}: {message}"
    if problem["type"] in ("model_type", "dict_type"):
        message = "write its settings by their keys"
    if problem["type"] == "bool_type":
        message = "write true or false"
    return f"{key}: {message[:1].lower()}{message[1:]}, got {json.dumps(given, default=str)[:200]}"


def _did_you_mean(location: list[str]) -> str:
    section, name = location[0], location[-1]
    known, _, key = aliases.FOREIGN.get(name, "").partition(".")
    if known:
        return f'; did you mean "{key}"?' if known == section else f'; did you mean "{key}" under [{known}]?'
    if len(location) == 1:
        close = difflib.get_close_matches(name, SECTIONS, n=1)
        return f"; did you mean [{close[0]}]?" if close else f"; sections are {', '.join(SECTIONS)}"
    elsewhere = [other for other, fields in SECTIONS.items() if name in fields.model_fields]
    if elsewhere:
        return f"; it belongs under [{elsewhere[0]}]"
    here = list(SECTIONS[section].model_fields) if section in SECTIONS else []
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def starter(values: dict[str, dict[str, Any]] | None = None) -> str:
    """Write a commented `toolkit.toml` with every key, its explanation and its default, or the given values."""
    values = values or {}
    lines = [
        "# Settings of one run: `toolkit run` does all stages, `toolkit doctor` checks this machine first.",
        "# Paths are relative to the folder in which you call toolkit.",
    ]
    for name, section in SECTIONS.items():
        lines += ["", f"# {(section.__doc__ or '').strip()}", f"[{name}]"]
        for key, info in section.model_fields.items():
            value = values.get(name, {}).get(key, info.get_default())
            unset = value is None or (key == "num_train_epochs" and bool(values.get(name, {}).get("max_steps")))
            shown = f"{key} = {toml_value(60 if value is None else value)}"
            lines += [f"# {info.description}", f"#{shown}" if unset else shown]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Write a plain value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # the only character that TOML escapes and JSON does not


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
