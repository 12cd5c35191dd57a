"""One prompt format written out as text: a question with its parts, and a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.prompt.format import (
    MESSAGE_SEPARATOR,
    IfFirst,
    IfInstruction,
    Part,
    Piece,
    Prompt,
    PromptFormat,
    Slot,
)

Turn = tuple[str, str]
"""A question of a chat, and its answer."""


def render(
    prompt_format: PromptFormat,
    question: str,
    instruction: str | None = None,
    history: Sequence[Turn] = (),
    eos: str = "",
) -> Prompt:
    """Render a question up to where the answer starts; this is what training masks and serving sends.

    `history` are the turns before it, the first one first; `eos` is the EOS token's text, which ends their answers.
    Raises ValueError where there are such turns, and no `eos`.
    """
    if history and not eos:
        raise ValueError("earlier answers end in EOS, and its text is not given")
    parts = _fill(prompt_format.start, prompt_format, question, instruction)
    for number, (asked, answer) in enumerate(history):
        parts += _fill(prompt_format.turn, prompt_format, asked, instruction, first=number == 0)
        parts += [Part(answer, ours=False, answer=True), Part(eos, ours=True), Part(prompt_format.after, ours=True)]
    return Prompt((*parts, *_fill(prompt_format.turn, prompt_format, question, instruction, first=not history)))


def render_record(prompt_format: PromptFormat, values: Mapping[str, Any], eos: str) -> Prompt:
    """Render a prepared record (a line of train, val or test.jsonl) up to where its last answer starts."""
    return render(prompt_format, values["input"], values["instruction"], earlier_turns(values), eos)


def earlier_turns(values: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a prepared record before its last question; of a plain question none."""
    return [(question, answer) for question, answer in values.get("history", ())]


def asked_in_full(values: Mapping[str, Any]) -> str:
    """Return what a prepared record asks, as a reader sees it: the last question, behind the turns before it."""
    earlier = earlier_turns(values)
    if not earlier:
        return str(values["input"])
    said = [f"User: {question}\n\nAssistant: {answer}\n\n" for question, answer in earlier]
    return f"{''.join(said)}User: {values['input']}"


def prompt_text(prompt_format: PromptFormat, question: str, instruction: str | None = None) -> str:
    """Return the text of `render`."""
    return render(prompt_format, question, instruction).text


Message = Mapping[str, Any]
"""A chat message as the API has it: `role`, and `content`, which may be text, null or a list of text parts."""


def conversation(prompt_format: PromptFormat, messages: Sequence[Message], eos: str, *, generate: bool = True) -> str:
    """Render chat messages as the templates below do; `eos` is the EOS token's text, a BOS is left to the runtime.

    With `generate` the text ends where the model continues: after the prompt of the last question, or after what the
    last answer has so far. Without it, it ends with the last question, or with the last answer and its EOS.
    """
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, content = str(message["role"]), message_text(message.get("content"))
        if turns and turns[-1][0] == role:
            content = turns.pop()[1] + MESSAGE_SEPARATOR + content
        turns.append((role, content))
    instruction = _instruction(prompt_format, turns)
    closing, opening = prompt_format.tail
    text = "".join(part.text for part in _fill(prompt_format.start, prompt_format, "", instruction))
    spoken = [turn for turn in turns if turn[0] in ("user", "assistant")]
    first = next((number for number, (role, _) in enumerate(spoken, 1) if role == "user"), 0)
    for number, (role, content) in enumerate(spoken, 1):
        last = number == len(spoken)
        if role == "user":
            pieces = (*prompt_format.head, Slot.INPUT, *closing, *(opening if generate or not last else ()))
            filled = _fill(pieces, prompt_format, content, instruction, first=number == first)
            text += "".join(part.text for part in filled)
        else:
            text += content + (eos + prompt_format.after if not last else "" if generate else eos)
    return text


def message_text(content: Any) -> str:
    """Return the text of a message's content: null is empty, text parts are joined as messages in a row are."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part if isinstance(part, str) else part.get("text") for part in content)
    return MESSAGE_SEPARATOR.join(text for text in texts if isinstance(text, str))


def _instruction(prompt_format: PromptFormat, turns: list[tuple[str, str]]) -> str:
    """Join the system and developer messages; any other text replaces the format's own instruction.

    A server puts that one in front of messages that do not begin with a system message.
    """
    said = [(role, text) for role, text in turns if role in ("system", "developer")]
    if len(said) > 1 and turns[0][0] == "system" and turns[0][1] in ("", prompt_format.instruction):
        said = said[1:]
    return MESSAGE_SEPARATOR.join(text for _, text in said)


def _fill(
    pieces: tuple[Piece, ...],
    prompt_format: PromptFormat,
    question: str,
    instruction: str | None,
    *,
    first: bool = True,
) -> list[Part]:
    values = {Slot.INSTRUCTION: instruction or prompt_format.instruction, Slot.INPUT: question}
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, IfInstruction):
            parts += _fill(piece.pieces, prompt_format, question, instruction) if values[Slot.INSTRUCTION] else []
        elif isinstance(piece, IfFirst):
            parts += _fill(piece.pieces, prompt_format, question, instruction) if first else []
        else:
            parts.append(Part(piece, ours=True) if isinstance(piece, str) else Part(values[piece], ours=False))
    return parts
