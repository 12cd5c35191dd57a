"""What `prepare` kept of chats and what it left out, in words for the screen, the page and the model card."""

from collections.abc import Mapping
from typing import Any


def of_chats(figures: Mapping[str, Any]) -> list[str]:
    """Say what is kept of chats and what is left out; nothing where each row has one question."""
    said = []
    if figures.get("chats"):
        turns, most = figures["turns"], figures["most_turns"]
        said.append(f"{_counted(figures['chats'], 'chat')} of {turns:,} turns, at most {most:,} in one")
    if figures.get("unanswered"):
        said.append(f"{_counted(figures['unanswered'], 'last question')} without an answer left out")
    if figures.get("shortened_chats"):
        chats = _counted(figures["shortened_chats"], "chat")
        verb = "is" if figures["shortened_chats"] == 1 else "are"
        turns = _counted(figures["turns_left_out"], "last turn")
        said.append(f"{turns} left out of {chats} that {verb} longer than train.max_length")
    return said


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
