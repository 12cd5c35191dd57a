"""Thoughts in answers, and what the prompt says of them."""

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.prepare.clean import Record
from toolkit.prompt.format import THINK
from toolkit.prompt.tokenizer import Tokenizer, thinks


def begins_with_thoughts(answer: str) -> bool:
    """Tell whether an answer begins with a thinking block, as a thinking model writes it."""
    return answer.lstrip().startswith(THINK[0])


def lacks_an_answer(answer: str) -> bool:
    """Tell whether an answer begins with thoughts that never end, or behind which nothing stands."""
    return begins_with_thoughts(answer) and not answer.partition(THINK[1])[2].strip()


def refuse_thoughts(records: list[Record], settings: PromptSettings) -> None:
    """Raise ToolkitError (exit 2) if an answer begins with thoughts, but the prompt closes the block before it."""
    if settings.thinking != "off":
        return
    found = [record for record in records if begins_with_thoughts(record.answer)]
    if found:
        raise ToolkitError(
            f"{len(found):,} of {len(records):,} answers begin with `{THINK[0]}`, first {found[0].where}, but "
            '`prompt.thinking = "off"` closes the thinking block in the prompt: the model would learn to open another',
            hint="`--set prompt.thinking=keep` trains the thoughts; to leave them out, remove them from the data",
            exit_code=USAGE,
        )


def thoughts_unsaid(records: list[Record], settings: PromptSettings, tokenizer: Tokenizer) -> str:
    """Say where `prompt.thinking` does not fit the data or the base's vocabulary; "" where it does."""
    if settings.preset != "chatml" or settings.thinking == "off":
        return ""
    held = sum(begins_with_thoughts(record.answer) for record in records)
    off = f"`--set prompt.thinking=off` closes the block `{THINK[0]}…{THINK[1]}` in every prompt"
    if settings.thinking == "keep":
        if held:
            return _without_answer(records)
        instead = off if thinks(tokenizer.encoder) else "leave it empty: this base does not think either"
        return f'`prompt.thinking` is "keep", but no answer begins with `{THINK[0]}`: {instead}'
    if held and THINK[0] in tokenizer.controls:
        return (
            f"{held:,} of {len(records):,} answers begin with `{THINK[0]}`, a control token of this base: it is "
            f"trained as text, never as the token; remove the thoughts from the answers, then {off}"
        )
    if held:
        unfinished = _without_answer(records)
        return (
            f"{held:,} of {len(records):,} answers begin with `{THINK[0]}`, and are trained so; "
            "`--set prompt.thinking=keep` lets Ollama show these thoughts apart from the answer"
        ) + (f"; {unfinished}" if unfinished else "")
    if not thinks(tokenizer.encoder):
        return ""
    return (
        f"the base's vocabulary has `{THINK[0]}`, but no answer begins with it: a thinking base may go on thinking "
        f"before its answers; {off}, so that none begins"
    )


def _without_answer(records: list[Record]) -> str:
    found = [record for record in records if lacks_an_answer(record.answer)]
    if not found:
        return ""
    return (
        f"{len(found):,} of {len(records):,} answers, first {found[0].where}, are thoughts alone, with nothing "
        f"behind `{THINK[1]}`: with `prompt.thinking` Ollama would return thoughts and an empty answer; complete or "
        "remove these rows"
    )
