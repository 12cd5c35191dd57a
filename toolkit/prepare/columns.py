"""The columns that are used and not used, and those of the latter that probably matter."""

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from toolkit.core.input_settings import DataSettings
from toolkit.formats.names import first_names
from toolkit.prepare.cells import ANSWERS, CHATS, INSTRUCTION, QUESTIONS, is_blank, name_key
from toolkit.prepare.meaning import bare, meaning
from toolkit.prepare.messages import keys_of
from toolkit.prepare.table import Table

ROLES = ("question", "answer", "instruction", "context", "messages")  # that a setting may name a column for
IDS = ("id", "answerid", "qid", "uid")

SHOWN = 12  # names in one line
SHOWN_FILES = 3
SHOWN_NAME = 40  # characters of each


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `question` is None for MedQuAD's cells, which hold question and answer.

    `history` has the turns before the question. `chat` are columns of messages, one behind the other; they are then
    `question` and `answer` too.
    """

    question: str | None
    answer: str
    instruction: str | None
    id: str | None
    context: str | None = None
    group: str | None = None
    history: str | None = None
    chat: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        """The columns with turns of a chat; none where each row has one question."""
        return self.chat or ((self.history,) if self.history else ())

    @property
    def earlier(self) -> str:
        """The column that has the earlier turns of a chat."""
        return next(iter(self.turns), "")

    def taken(self) -> dict[str, str]:
        """Return role → column, for the roles that have one."""
        if self.chat:
            said: dict[str, str | None] = {**dict(zip(("chat", "end of the chat"), self.chat, strict=False))}
        else:
            said = {
                "earlier turns": self.history,
                "question": self.question,
                "question and answer" if self.question is None else "answer": self.answer,
            }
        around = {"instruction": self.instruction, "context": self.context}
        roles = {**around, **said, "id": self.id, "group": self.group}
        return {role: name for role, name in roles.items() if name}


@dataclass(frozen=True)
class ReadTable:
    """One source as it was read: which of its columns hold what, and those that hold something and are left.

    `files` are those that its rows name: of a folder or a zip of documents, one for each.
    """

    table: Table
    columns: Columns
    left: list[str]
    files: Collection[str] = ()


def wanted_names(settings: DataSettings) -> list[str]:
    """Return the key of every column name that a source may have."""
    named = (getattr(settings, f"{role}_column") for role in (*ROLES, "group"))
    return [*QUESTIONS, *ANSWERS, INSTRUCTION, *CHATS, *IDS, *(name_key(name) for name in named if name)]


def column_setting(role: str, name: str) -> str:
    """Return what `--set` takes to give a column a role."""
    return shlex.quote(f"data.{role}_column={name}")


def listed(names: list[str]) -> str:
    """Return names as a message shows them, the first dozen."""
    return first_names([name[:SHOWN_NAME] for name in names], SHOWN) or "none"


def unused(table: Table, columns: Columns) -> list[str]:
    """Return the columns that hold something and are not taken."""
    left = dict.fromkeys(name for name in table.columns if name not in columns.taken().values())
    keys: dict[str, None] = {}
    for name in columns.turns:
        found = {key for row in table.rows for key in keys_of(row.values.get(name))}
        keys.update(dict.fromkeys(f"{name}.{key}" for key in sorted(found)))
    empty = set(left)
    for row in table.rows:  # once over all cells: objects may have thousands of names, each in a few of them
        empty -= {name for name in empty & row.values.keys() if not is_blank(row.values[name])}
        if not empty:
            break
    return [*(name for name in left if name not in empty), *keys]


def described(columns: Columns, left: list[str]) -> str:
    """Say in one line what is taken and what is not: `question ← Question, answer ← Answer; not used: context`."""
    taken = ", ".join(f"{role} ← {name}" for role, name in columns.taken().items())
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    names = ", ".join(name[:SHOWN_NAME] for name in left[:SHOWN])
    return f"{taken}; not used: {names}{more}" if left else taken


def columns_taken(tables: Sequence[ReadTable]) -> Iterator[str]:
    """Say what is taken of each source and what is not; one line for all those that are alike."""
    alike: dict[str, list[str]] = {}
    for one in tables:
        alike.setdefault(described(one.columns, one.left), []).append(one.table.name)
    for said, names in alike.items():
        yield said if len(alike) == 1 else f"{first_names(names, SHOWN_FILES)}: {said}"


def lost_meaning(columns: Columns, left: list[str]) -> Iterator[str]:
    """Yield a warning for each column left that is known to carry meaning, with what to do."""
    options = []
    for name in left:
        if name.startswith(tuple(f"{column}." for column in columns.turns)):
            if name.endswith((".weight", ".train")):
                yield f"`{name}` is not used: an answer that it leaves out is learned like the others"
            continue
        kind = meaning(name)
        if kind == "context":
            done = f"`--set {column_setting('context', name)}` puts it in front of the question"
            if columns.context:
                done = f"`{columns.context}` is the context; write both into one column to have both"
            yield f"column `{name}` is not used: the model will not see it; {done}"
        elif bare(name) == INSTRUCTION and columns.question and not columns.chat:
            context = "" if columns.context else f" --set {column_setting('context', columns.question)}"
            words = f"--set {column_setting('question', name)}{context}"
            yield f"column `{name}` is not used: `{words}` makes it the question, with `{columns.question}` in front"
        elif kind == "system" or (columns.chat and bare(name) == INSTRUCTION):
            yield f"column `{name}` is not used: {_take_system(columns, name)}"
        elif kind == "chat":
            yield (
                f"column `{name}` is not used: earlier turns are read from lists of messages, or of pairs of question "
                f"and answer; where it has whole chats, `--set {column_setting('messages', name)}` takes them instead"
            )
        elif kind == "options":
            options.append(name)
    if len(options) == 1 and not columns.context:
        yield (
            f"column `{options[0]}` is not used: the model will not see the choices; "
            f"`--set {column_setting('context', options[0])}` puts them in front of the question"
        )
    elif options:
        yield (
            f"columns {listed(options)} are not used: the model will not see the choices; "
            "write them into the question, or into one column for data.context_column"
        )


def _take_system(columns: Columns, name: str) -> str:
    settings = [column_setting("instruction", name)]
    if columns.instruction is not None and name_key(columns.instruction) == INSTRUCTION:
        # Alpaca's question is in `instruction`, and its input goes with it.
        settings.append(column_setting("question", columns.instruction))
        if columns.question is not None and columns.context is None:
            settings.append(column_setting("context", columns.question))
    words = " ".join(f"--set {setting}" for setting in settings)
    return f"`{words}` makes it the instruction, which is the system message of a chat"
