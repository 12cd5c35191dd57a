"""Thoughts in front of an answer, as a thinking model writes them: `<think>…</think>`."""

from toolkit.prompt.format import THINK


def begins_with_thoughts(answer: str) -> bool:
    """Tell whether an answer begins with a thinking block, as a thinking model writes it."""
    return answer.lstrip().startswith(THINK[0])


def without_thoughts(answer: str) -> str:
    """Return what stands behind an answer's thoughts; nothing where they do not end."""
    return answer.partition(THINK[1])[2].strip() if begins_with_thoughts(answer) else answer
