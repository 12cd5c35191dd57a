"""Thoughts in answers, and what the prompt says of them."""

from collections.abc import Sequence
from dataclasses import replace

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.core.spool import Spool
from toolkit.core.train_settings import TrainSettings
from toolkit.prepare.clean import Record
from toolkit.prompt.format import THINK
from toolkit.prompt.thoughts import begins_with_thoughts, without_thoughts
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.prompt.vocabulary import thinks


def lacks_an_answer(answer: str) -> bool:
    """Tell whether an answer begins with thoughts that never end, or behind which nothing stands."""
    return begins_with_thoughts(answer) and not without_thoughts(answer)


def refuse_thoughts(records: Sequence[Record], settings: PromptSettings) -> None:
    """Raise ToolkitError (exit 2) if an answer begins with thoughts, but the prompt closes the block before it."""
    if settings.thinking != "off":
        return
    found = [record for record in records if any(map(begins_with_thoughts, _answers(record)))]
    if found:
        raise ToolkitError(
            f"{len(found):,} of {len(records):,} answers begin with `{THINK[0]}`, first {found[0].where}, but "
            '`prompt.thinking = "off"` closes the thinking block in the prompt: the model would learn to open another',
            hint="`--set prompt.thinking=keep` trains the thoughts; to leave them out, remove them from the data",
            exit_code=USAGE,
        )


def without_earlier_thoughts(records: Sequence[Record], settings: TrainSettings) -> Sequence[Record]:
    """Take the thoughts out of the earlier answers of chats: a model that thinks is sent them so.

    Raises ToolkitError (exit 2) where these answers would be learned too, which would teach to leave thoughts out.
    """

    def thinks_before(record: Record) -> bool:
        return any(map(begins_with_thoughts, _answers(record)[:-1]))

    first = next(filter(thinks_before, records), None)
    if first is None:
        return records
    if settings.turns == "all":
        raise ToolkitError(
            f"{sum(map(thinks_before, records)):,} of {len(records):,} chats have thoughts in earlier answers, first "
            f"{first.where}: Ollama sends these without thoughts, and so learned they would teach to leave thoughts "
            "out",
            hint=f"`--set train.turns=last{settings.answers_alone}` learns the last answer of each chat alone, and "
            "reads the others without thoughts",
            exit_code=USAGE,
        )

    def changed(record: Record) -> Record:
        history = tuple((question, without_thoughts(answer)) for question, answer in record.history)
        if not all(answer for _, answer in history):
            raise ToolkitError(
                f"{record.where} is a chat with an earlier answer of thoughts alone",
                hint="complete that answer, or remove the row",
                exit_code=USAGE,
            )
        return replace(record, history=history)

    return Spool(map(changed, records))


def _answers(record: Record) -> list[str]:
    return [*(answer for _, answer in record.history), record.answer]


def thoughts_unsaid(records: Sequence[Record], settings: PromptSettings, tokenizer: Tokenizer) -> str:
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


def _without_answer(records: Sequence[Record]) -> str:
    found = [record for record in records if lacks_an_answer(record.answer)]
    if not found:
        return ""
    return (
        f"{len(found):,} of {len(records):,} answers, first {found[0].where}, are thoughts alone, with nothing "
        f"behind `{THINK[1]}`: with `prompt.thinking` Ollama would return thoughts and an empty answer; complete or "
        "remove these rows"
    )
