"""What `prepare` kept of chats and left out, in words: for the screen, the page and the model card."""

from collections.abc import Mapping
from typing import Any


def of_chats(figures: Mapping[str, Any]) -> list[str]:
    """Say what is kept of chats and what is left out; nothing where each row has one question."""
    said = []
    if figures.get("chats"):
        chats, turns, most = (figures[name] for name in ("chats", "turns", "most_turns"))
        said.append(f"{chats:,} chats of {turns:,} turns, at most {most:,} in one")
    if figures.get("unanswered"):
        said.append(f"{figures['unanswered']:,} last questions without an answer left out")
    if figures.get("shortened_chats"):
        turns, chats = figures["turns_left_out"], figures["shortened_chats"]
        said.append(f"{turns:,} last turns left out of {chats:,} chats that are longer than train.max_length")
    return said
