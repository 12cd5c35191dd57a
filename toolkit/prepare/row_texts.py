"""The texts of a row while it is cleaned: its turns, repairs, and words that stand for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.prepare.cells import is_blank, is_null_word, name_key
from toolkit.prepare.columns import Columns
from toolkit.prepare.messages import IMAGE, MEDIA, NO_REPLY, USER_TWICE, UnusableChatError, read_chat, read_history
from toolkit.prepare.spoiled import REPAIRS
from toolkit.prepare.table import Row
from toolkit.prompt.format import MESSAGE_SEPARATOR

NULL_WORD = "null word"


@dataclass
class RowTexts:
    """The texts of a row while it is cleaned; `history` are those of earlier turns, one behind the other."""

    question: str
    answer: str
    instruction: str
    context: str
    history: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        """Return all texts."""
        return self.question, self.answer, self.instruction, self.context, *self.history

    def take(self, texts: Sequence[str]) -> None:
        """Take new texts, in the order of `all`."""
        self.question, self.answer, self.instruction, self.context, *history = texts
        self.history = tuple(history)


def take_turns(texts: RowTexts, row: Row, columns: Columns, *, merge: bool) -> bool:
    """Put the turns of a chat into its texts, in place; say whether its last question has no answer, and is left out.

    Raises UnusableChatError.
    """
    if columns.chat:
        roles = ("user", "assistant") if len(columns.chat) == 2 else ("",)
        cells = [row.values.get(name) for name in columns.chat]
        chat = read_chat([*zip(cells, roles, strict=True)], merge=merge)
        if not chat.turns:
            raise UnusableChatError(NO_REPLY)
        *earlier, (texts.question, texts.answer) = chat.turns
    elif columns.history is not None:
        chat = read_history(row.values.get(columns.history), merge=merge)
        if chat.open_question and not merge:
            raise UnusableChatError(USER_TWICE, "the last of the history and the question")
        texts.question = MESSAGE_SEPARATOR.join(filter(None, (chat.open_question, texts.question)))
        earlier = [*chat.turns]
    else:
        return False
    if any(name_key(name) in MEDIA and not is_blank(cell) for name, cell in row.values.items()):
        raise UnusableChatError(IMAGE, "in a column of its own")
    texts.history = tuple(text for turn in earlier for text in turn)
    texts.instruction = chat.system or texts.instruction
    return bool(chat.open_question) and bool(columns.chat)


def put_context(texts: RowTexts, columns: Columns) -> None:
    """Put the context in front of the question, in place; of a chat in front of its first one."""
    if columns.chat and texts.history:
        texts.history = (texts.context + MESSAGE_SEPARATOR + texts.history[0], *texts.history[1:])
    else:
        texts.question = texts.context + MESSAGE_SEPARATOR + texts.question


def repair_texts(texts: RowTexts, repairs: Sequence[str]) -> tuple[str, ...]:
    """Repair the texts in place, and return which repairs changed something."""
    done = []
    for kind in sorted(repairs, reverse=True):  # mojibake first: it may be inside the names of entities
        before = texts.all()
        texts.take([REPAIRS[kind](text) for text in before])
        if texts.all() != before:
            done.append(kind)
    return tuple(done)


def empty_nulls(texts: RowTexts, columns: Columns) -> dict[str, str]:
    """Empty the texts that are only a null word, in place, and return which word was where.

    In the turns of a chat such a word is said: its instruction and context alone are cells of their own.
    """
    nulls = {}
    around = ("instruction", "context")
    for name in around if columns.chat else ("question", "answer", *around):
        text = getattr(texts, name)
        if text and is_null_word(text):
            nulls[name] = f"{NULL_WORD} `{text}`"
            setattr(texts, name, "")
    return nulls
