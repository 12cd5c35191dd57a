"""The column of each role: by the settings, else by its usual names; refused where one is missing or two fit."""

import difflib
import itertools
import re
from dataclasses import replace

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.cells import ANSWERS, INSTRUCTION, QUESTIONS, is_blank, name_key
from toolkit.prepare.columns import IDS, ROLES, Columns, column_setting, listed, unused
from toolkit.prepare.hints import header_hint, hint_for_nested_file
from toolkit.prepare.meaning import bare, meaning, told_about
from toolkit.prepare.messages import Kind, begins_with_answer, kind_of, list_in
from toolkit.prepare.personal.passages import passages
from toolkit.prepare.table import Table

_EARLIER = re.compile("history|previous|prior|earlier|past")
_WRITE_CHATS = (
    'the messages of a chat belong into one list of objects with `role` and `content`, such as {"messages": [{"role": '
    '"user", "content": "…"}, {"role": "assistant", "content": "…"}]}; in CSV and Excel as JSON'
)
_CHATS = re.compile("history|messages|conversations?|dialog(?:ue)?|chat(?:history)?|turns|role|content|from|value")
_OBJECTS = (".json", ".jsonl", ".ndjson", ".parquet", ".pq")
LOOKED_AT = 1000  # filled cells of a column, among which a chat is looked for
LONG_NAME = 60  # characters, or
WORDS = 8  # words, from which on a column's name looks like data


def find_columns(table: Table, settings: DataSettings) -> Columns:
    """Choose the column of each role; raises ToolkitError where one is missing or two fit one role."""
    named = {role: _named(role, table, settings) for role in ROLES}
    _each_once(named, table)
    group = _named("group", table, settings)
    taken = {name for name in named.values() if name}
    if chat := _chat(table, named):
        row_id = _row_id(table, {*taken, group})
        columns = Columns(chat[0], chat[-1], named["instruction"], row_id, named["context"], group, chat=chat)
        _left_once(columns, table)
        return _with_system(columns, table)
    answer = named["answer"] or _only(ANSWERS, "answer", table, taken)
    question = named["question"] or _only(QUESTIONS, "question", table, taken)
    instruction = named["instruction"]
    alpaca = _only((INSTRUCTION,), "instruction", table, taken)
    if alpaca and not instruction and question:
        instruction, alpaca = alpaca, None
    row_id = _row_id(table, {*taken, group})
    if answer is None:
        raise _no_column("answer", ANSWERS, table, settings)
    question = question or alpaca
    if question is None and instruction is not None:
        question, instruction = instruction, None
    if question is None and not any(str(row.values.get(answer)).lstrip().startswith("Question:") for row in table.rows):
        raise _no_column("question", QUESTIONS, table, settings)
    columns = Columns(question, answer, instruction, row_id, named["context"], group)
    _left_once(columns, table)
    return _with_history(columns, table, named["instruction"])


def _row_id(table: Table, taken: set[str | None]) -> str | None:
    found = next((name for key in IDS for name in table.columns if name_key(name) == key), None)
    return None if found in taken else found


def _chat(table: Table, named: dict[str, str | None]) -> tuple[str, ...]:
    """Return the columns of messages, one behind the other; none where the rows have question and answer as texts.

    A `prompt` and its `completion` are two, of which one may be text. A column that is named and begins with an answer
    follows the `prompt`, as the `chosen` answers of preferences do. Raises ToolkitError if two others fit.
    """
    if name := named["messages"]:
        before = [one for one in _filled(QUESTIONS, table) if one != name and _form(one, table) == "messages"]
        return (before[0], name) if len(before) == 1 and _is_answer(name, table) else (name,)
    if named["question"] or named["answer"]:
        return ()
    found = [name for name in dict.fromkeys(table.columns) if _form(name, table) == "messages"]
    if not found:
        return ()
    usual = [_filled(keys, table) for keys in ((*QUESTIONS, INSTRUCTION), ANSWERS)]
    begin, end = ([name for name in names if name in found] or names for names in usual)
    if begin and end and {*begin, *end}.isdisjoint(found):
        return ()
    if len(begin) == len(end) == 1:
        return begin[0], end[0]
    if len(found) > 1:
        raise _two_columns("messages", [name for name in found if _is_answer(name, table)] or found, table)
    return (found[0],)


def _with_system(columns: Columns, table: Table) -> Columns:
    """Take the one column that is named as a system message, where there is no other instruction."""
    found = [name for name in unused(table, columns) if meaning(name) == "system"]
    return replace(columns, instruction=found[0]) if len(found) == 1 and columns.instruction is None else columns


def _with_history(columns: Columns, table: Table, named: str | None) -> Columns:
    """Take the column with the turns before the question, if there is one: pairs, or messages of that name.

    Alpaca's instruction and input are then the question together, as its users train them.
    """
    named_so = [name for name in dict.fromkeys(table.columns) if meaning(name) == "chat"]
    forms = {name: _form(name, table) for name in named_so if name not in columns.taken().values()}
    found = [name for name, form in forms.items() if form == "pairs" or (form and _EARLIER.search(bare(name)))]
    if len(found) != 1:
        return columns
    columns = replace(columns, history=found[0])
    if columns.instruction is not None and not named and columns.context is None:
        columns = replace(columns, instruction=None, context=columns.instruction)
    return _with_system(columns, table)


def _is_answer(name: str, table: Table) -> bool:
    return any(begins_with_answer(row.values.get(name)) for row in itertools.islice(table.rows, LOOKED_AT))


def _form(name: str, table: Table) -> Kind:
    """Return the form of the first cell of a column that holds messages or pairs; its first cells are looked at."""
    cells = (row.values.get(name) for row in table.rows)
    filled = (cell for cell in cells if cell is not None and cell not in ("", []))
    kinds = map(kind_of, itertools.islice(filled, LOOKED_AT))
    return next((kind for kind in kinds if kind), "")


def _filled(keys: tuple[str, ...], table: Table) -> list[str]:
    """Return the columns with usual names that hold something."""
    return _holding([name for key in keys for name in table.columns if name_key(name) == key], table)


def _holding(names: list[str], table: Table) -> list[str]:
    return [name for name in names if any(not is_blank(row.values.get(name)) for row in table.rows)]


def _left_once(columns: Columns, table: Table) -> None:
    """Refuse two columns of one name that a warning would tell the user to name: a setting would not fit one."""
    taken = columns.taken().values()
    alike: dict[str, list[str]] = {}
    for name in table.columns:
        if name not in taken:
            alike.setdefault(name_key(name), []).append(name)
    for role, kinds in (("context", ("context", "options")), ("instruction", ("system",))):
        for names in alike.values():
            if len(names) > 1 and getattr(columns, role) is None and meaning(names[0]) in kinds:
                filled = unused(table, columns)
                # Of an exact name, the rows hold the last cell only: the first column may be the one that is filled.
                same = names if len(set(names)) < len(names) else [name for name in names if name in filled]
                if len(same) > 1:
                    raise _two_columns(role, same, table)


def _named(role: str, table: Table, settings: DataSettings) -> str | None:
    """Find the column that the setting of a role names: as it is written, or else case and spaces apart."""
    name = getattr(settings, f"{role}_column")
    if not name:
        return None
    same = [column for column in table.columns if column == name]
    same = same or [column for column in table.columns if name_key(column) == name_key(name)]
    if not same:
        raise _no_column(role, (name,), table, settings)
    if len(same) > 1:
        raise _two_columns(role, same, table)
    return same[0]


def _each_once(named: dict[str, str | None], table: Table) -> None:
    for role, name in named.items():
        others = [other for other, column in named.items() if column == name and other != role]
        if name and others:
            raise ToolkitError(
                f"`{table.path}`: data.{role}_column and data.{others[0]}_column both name `{name}`",
                hint=f"set one of them to another column: {listed(table.columns)}",
            )


def _only(keys: tuple[str, ...], role: str, table: Table, taken: set[str]) -> str | None:
    """Find the one column of a role; raises ToolkitError if two hold something: a wrong guess would not be seen."""
    found = [name for key in keys for name in table.columns if name_key(name) == key and name not in taken]
    if len(found) > 1 and len(set(found)) == len(found):
        found = _holding(found, table) or found[:1]
    if len(found) > 1:
        raise _two_columns(role, found, table)
    return found[0] if found else None


def _two_columns(role: str, names: list[str], table: Table) -> ToolkitError:
    shown = " and ".join(f"`{name}`" for name in names)
    if len(set(names)) < len(names):
        hint = "remove one of them, or give it another name"
    elif not any(sum(not is_blank(row.values.get(name)) for name in names) > 1 for row in table.rows):
        hint = "no row uses more than one of them: give them the same name"
    else:
        hint = f"choose one: {' or '.join(f'`--set {column_setting(role, name)}`' for name in names)}"
    return ToolkitError(f"`{table.path}` has more than one column with the {role}: {shown}", hint=hint)


def _no_column(role: str, wanted: tuple[str, ...], table: Table, settings: DataSettings) -> ToolkitError:
    found = listed(table.columns)
    if settings.personal != "off" and _headerless(table):  # it may be a patient's
        found = f"{len(table.columns)} cells in the first row, which looks like data and is not shown (data.personal)"
    return ToolkitError(
        f"`{table.path}` has no column with the {role}: wanted {' or '.join(f'`{name}`' for name in wanted)}, "
        f"found {found}",
        hint=_hint_for_names(role, wanted, table),
    )


def _headerless(table: Table) -> bool:
    """Say whether the names of columns look like the first row of a file without a header."""
    return table.path.suffix.lower() not in _OBJECTS and any(map(_looks_like_data, table.columns))


def _hint_for_names(role: str, wanted: tuple[str, ...], table: Table) -> str:
    """Return what to do where no column has a known name, or the one that a setting names."""
    if not table.columns:
        return 'write each row as an object that names its cells, such as {"question": "…", "answer": "…"}'
    if table.path.suffix.lower() in _OBJECTS:
        if inside := hint_for_nested_file(table.path):
            return inside
    elif above := header_hint(table.path, {role: wanted}):
        return above
    keys = {name_key(name): name for name in table.columns}
    near = [keys[key] for name in wanted for key in difflib.get_close_matches(name_key(name), keys, n=1, cutoff=0.6)]
    if len(wanted) == 1 and near:  # a setting names it
        return f"did you mean `{near[0]}`? `--set {column_setting(role, near[0])}`"
    if role not in ("question", "answer", "messages"):
        return f"name one of these columns with `--set data.{role}_column=NAME`, or leave that setting out"
    if objects := _unknown_objects(table):
        return f"{objects}: {_WRITE_CHATS}"
    chats = [name for name in table.columns if _CHATS.fullmatch(bare(name))]
    if chats and len(table.columns) <= len(chats) + 2:
        return f"these look like parts of chats: {_WRITE_CHATS}"
    if _headerless(table):
        return (
            "no header? The first row looks like data: add a first line that names the columns, "
            "such as `question,answer`"
        )
    if likely := _likely(role, table):
        return f"if that is `{likely}`: `--set {column_setting(role, likely)}`"
    return f"name it with `--set data.{role}_column=NAME`"


def _unknown_objects(table: Table) -> str:
    """Say which column holds lists of objects that are no messages, and what these have; "" where none does."""
    for name in table.columns:
        for row in table.rows:
            first = next(iter(list_in(row.values.get(name)) or ()), None)
            if isinstance(first, dict):
                return f"`{name}` holds lists of objects with {listed([str(key) for key in first])}"
    return ""


def _likely(role: str, table: Table) -> str:
    """Return the one column whose name holds a usual name of the role, such as `questiontext`; else nothing."""
    keys = {"question": QUESTIONS[:1], "answer": ANSWERS}.get(role, ())
    found = [
        name
        for name in table.columns
        if any(key in bare(name) for key in keys) and not told_about(name) and meaning(name) is None
    ]
    return found[0] if len(found) == 1 else ""


def _looks_like_data(name: str) -> bool:
    if passages(name):  # a date, a telephone, an address
        return True
    return name.endswith(("?", "？", ".")) or name.isdecimal() or len(name) > LONG_NAME or len(name.split()) > WORDS
