"""The messages of a chat, read into turns: OpenAI's and ShareGPT's lists, and the pairs of Alpaca's `history`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.core.parsing import parse_json
from toolkit.prepare.cells import cell_text, is_blank
from toolkit.prompt.format import MESSAGE_SEPARATOR
from toolkit.prompt.renderings import Turn

LONGEST_NAME = 40  # characters of a role, or of a part's type; what is longer is no name

NO_MESSAGES = "no messages"
NOT_MESSAGES = "not a list of messages"
UNKNOWN_ROLE = "a message of an unknown role"
TOOL_CALL = "a tool call"
IMAGE = "an image"
OTHER_PART = "a part of a message that is no text"
EMPTY_TURN = "an empty turn"
EMPTIED_TURN = "a turn of which data.clean leaves nothing"
USER_TWICE = "two user turns in a row"
ASSISTANT_TWICE = "two assistant turns in a row"
ASSISTANT_FIRST = "an assistant first"
NO_REPLY = "no assistant turn"

_MERGES = "`--set data.merge_messages=true` joins messages of one role in a row, and leaves out empty ones"
_NO_TEXT = "only text can be trained: remove these rows"
# Who speaks, by OpenAI's `role` and ShareGPT's `from`; the text, by OpenAI's `content` and ShareGPT's `value`.
ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
}
# What to do about chats that cannot be trained, by the reason.
CHAT_HINTS = {
    EMPTY_TURN: _MERGES,
    EMPTIED_TURN: "it is an HTML tag or the like alone: remove these rows, or their turn with its question or answer",
    USER_TWICE: _MERGES,
    ASSISTANT_TWICE: _MERGES,
    ASSISTANT_FIRST: "a chat begins with a question: remove the greeting in front of it",
    NO_REPLY: "there is no answer to learn: add one, or remove the row",
    TOOL_CALL: "chats with tools cannot be trained: remove these rows, or write what the tool gave into the text",
    IMAGE: _NO_TEXT,
    OTHER_PART: _NO_TEXT,
    UNKNOWN_ROLE: f"name who speaks by one of {', '.join(f'`{role}`' for role in ROLES)}",
    NO_MESSAGES: "the cell is empty there: remove the row",
    NOT_MESSAGES: 'write a chat as a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": '
    '"…"}], in CSV as JSON',
}
_TOOLS = frozenset(("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython"))
_CALLS = ("tool_calls", "function_call")  # keys of a message
# Keys of a message, as Ollama has `images`, and columns beside a chat: it is about more than its text.
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "attachments", "experimental_attachments")
_PLACEHOLDERS = ("<image>", "<video>", "<audio>")  # where LLaVA's data put a picture into the text
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "function_call")

Kind = Literal["messages", "pairs", ""]


class UnusableChatError(Exception):
    """A chat that cannot be trained: `reason` is what is counted, `detail` is for the reader."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Chat:
    """The turns of a chat, what its system messages say, and a last question without an answer, else empty."""

    turns: tuple[Turn, ...]
    system: str = ""
    open_question: str = ""


@dataclass(frozen=True)
class _Said:
    """One message: `place` names it for the reader."""

    role: str
    text: str
    place: str


def list_in(cell: Any) -> list[Any] | None:
    """Return the list in a cell, or in its text as JSON; None for anything else.

    An object of lists, as `datasets` keeps a list of objects, is that list.
    """
    if isinstance(cell, str) and cell[:80].lstrip()[:1] == "[":
        try:
            cell = parse_json(cell, data=True)
        except ValueError:
            return None
    if isinstance(cell, dict):
        columns = {name: part for name, part in cell.items() if isinstance(part, list)}
        if _key(columns, ROLE_KEYS) and _key(columns, TEXT_KEYS) and len({*map(len, columns.values())}) == 1:
            return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    return cell if isinstance(cell, list) else None


def kind_of(cell: Any) -> Kind:
    """Say whether a cell holds messages, or pairs of question and answer; nothing for any other cell."""
    found = list_in(cell)
    if not found:
        return ""
    if is_message(found[0]):
        return "messages"
    pairs = all(isinstance(item, list) and len(item) == 2 and all(map(_is_text, item)) for item in found)
    return "pairs" if pairs else ""


def is_message(item: Any) -> bool:
    """Tell whether a value is an object that says who speaks, and what."""
    return isinstance(item, dict) and isinstance(item.get(_key(item, ROLE_KEYS)), str) and _key(item, TEXT_KEYS) != ""


def begins_with_answer(cell: Any) -> bool:
    """Tell whether a cell's first message is an assistant's, as of `chosen` beside a `prompt`."""
    first: Any = next(iter(list_in(cell) or ()), None)
    return is_message(first) and ROLES.get(first[_key(first, ROLE_KEYS)].strip().casefold()) == "assistant"


def keys_of(cell: Any) -> set[str]:
    """Return the keys of a cell's messages that hold something and are not read."""
    read = (*ROLE_KEYS, *TEXT_KEYS, *_CALLS)
    items = list_in(cell) or ()
    return {
        name
        for item in items
        if isinstance(item, dict)
        for name, value in item.items()
        if name not in read and not is_blank(value)
    }


def texts_in(cell: Any) -> list[str]:
    """Return the texts of a cell as a reader sees them: of messages and pairs theirs, else the cell itself."""
    found: list[str] = []
    for item in list_in(cell) or ([] if is_blank(cell) else [cell]):
        if isinstance(item, dict):
            item = item.get(_key(item, TEXT_KEYS), item)
        found += [str(part) for part in (item if isinstance(item, list) else [item])]
    return found


def read_chat(cells: Sequence[tuple[Any, str]], *, merge: bool) -> Chat:
    """Read messages that follow each other in cells, each with the role that speaks where a cell is plain text, or "".

    With `merge` messages of one role in a row are one, and empty ones are left out. Raises UnusableChatError.
    """
    said: list[_Said] = []
    for cell, role in cells:
        found = list_in(cell)
        if found is None and role and (text := cell_text(cell)) is not None:
            found = [{"role": role, "content": text}]
        if found is None:
            raise UnusableChatError(NOT_MESSAGES if not is_blank(cell) else NO_MESSAGES)
        said += _messages(found, len(said))
    if not said:
        raise UnusableChatError(NO_MESSAGES)
    return _chat(said, merge)


def read_history(cell: Any, *, merge: bool) -> Chat:
    """Read the turns before a question: pairs of question and answer, or messages. Raises UnusableChatError."""
    if is_blank(cell):
        return Chat(())
    found = list_in(cell)
    if kind_of(found) == "pairs":
        pairs = enumerate(found or (), 1)
        said = [
            _Said(role, cell_text(text) or "", f"{what} {number} of the history")
            for number, pair in pairs
            for role, what, text in zip(("user", "assistant"), ("question", "answer"), pair, strict=True)
        ]
    elif found:
        said = [*_messages(found, 0)]
    else:
        raise UnusableChatError(NOT_MESSAGES)
    return _chat(said, merge)


def _messages(items: list[Any], before: int) -> Iterator[_Said]:
    for number, item in enumerate(items, before + 1):
        place = f"message {number}"
        if not isinstance(item, dict):
            raise UnusableChatError(NOT_MESSAGES, f"{place} is no object")
        name = item.get(_key(item, ROLE_KEYS))
        if not isinstance(name, str):
            raise UnusableChatError(NOT_MESSAGES, f"{place} has no `role` or `from`")
        key = name.strip().casefold()
        if key in _TOOLS or not all(is_blank(item.get(call)) for call in _CALLS):
            raise UnusableChatError(TOOL_CALL, place)
        if key not in ROLES:
            raise UnusableChatError(UNKNOWN_ROLE, f"{place} is of {_named(name)}")
        text = _text(item.get(_key(item, TEXT_KEYS)), place)
        if media := [name for name in MEDIA if not is_blank(item.get(name))] or _placeholders(text):
            raise UnusableChatError(IMAGE, f"{place}: `{media[0]}`")
        yield _Said(ROLES[key], text, place)


def _named(name: str) -> str:
    """Return a name as a reader sees it, whole or not at all: a part of it may be half of a patient's number."""
    return f"`{name}`" if len(name) <= LONGEST_NAME else f"a text of {len(name):,} characters"


def _placeholders(text: str) -> list[str]:
    """Return what stands for a picture at the beginning or end of a line; a tag that is closed is text."""
    marks = [mark for mark in _PLACEHOLDERS if mark in text and mark.replace("<", "</") not in text]
    lines = [line.strip() for line in text.splitlines()] if marks else []
    return [mark for mark in marks if any(line.startswith(mark) or line.endswith(mark) for line in lines)]


def _text(content: Any, place: str) -> str:
    """Return the text of a message; parts of text are joined as a server joins them."""
    if (text := cell_text(content)) is not None and not isinstance(content, list):
        return text
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type", "text" if "text" in part else "object") if isinstance(part, dict) else "text"
        if kind in _TOOL_PARTS:
            raise UnusableChatError(TOOL_CALL, f"{place} has a part `{kind}`")
        text = cell_text(part.get("text") if isinstance(part, dict) else part)
        if kind not in _TEXT_PARTS or text is None:
            raise UnusableChatError(IMAGE if "image" in str(kind) else OTHER_PART, f"{place}: {_named(str(kind))}")
        texts.append(text)
    return MESSAGE_SEPARATOR.join(filter(None, texts))


def _chat(said: list[_Said], merge: bool) -> Chat:
    """Divide messages into turns; raises UnusableChatError where they do not alternate."""
    system = MESSAGE_SEPARATOR.join(one.text for one in said if one.role == "system" and one.text)
    spoken: list[_Said] = []
    for one in said:
        if one.role == "system":
            continue
        if not one.text:
            if not merge:
                raise UnusableChatError(EMPTY_TURN, f"{one.place} ({one.role})")
            continue
        if spoken and spoken[-1].role == one.role:
            if not merge:
                twice = USER_TWICE if one.role == "user" else ASSISTANT_TWICE
                raise UnusableChatError(twice, f"{spoken[-1].place} and the next")
            last = spoken.pop()
            one = _Said(one.role, last.text + MESSAGE_SEPARATOR + one.text, last.place)
        spoken.append(one)
    if spoken and spoken[0].role == "assistant":
        raise UnusableChatError(ASSISTANT_FIRST, spoken[0].place)
    open_question = spoken.pop().text if len(spoken) % 2 else ""
    texts = [one.text for one in spoken]
    return Chat(tuple(zip(texts[::2], texts[1::2], strict=True)), system, open_question)


def _key(item: dict[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in item), "")


def _is_text(item: Any) -> bool:
    return item is None or isinstance(item, str | int | float)
