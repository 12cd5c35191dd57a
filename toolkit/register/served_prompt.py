"""A held-out prompt as it is asked of a server: a question with its instruction, and the turns of a chat before it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.renderings import Turn, earlier_turns, render


class ServedPrompt(NamedTuple):
    """One prompt; without an `instruction` the model's own is used."""

    question: str
    instruction: str | None
    history: tuple[Turn, ...] = ()

    def rendered(self, prompt_format: PromptFormat, eos: str) -> Prompt:
        """Render it as training does."""
        return render(prompt_format, self.question, self.instruction, self.history, eos)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages that ask it of /api/chat."""
        said = [] if self.instruction is None else [{"role": "system", "content": self.instruction}]
        for question, answer in self.history:
            said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*said, {"role": "user", "content": self.question}]

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """The requests that ask it, by their path; /api/generate has no earlier turns."""
        by_chat: dict[str, dict[str, Any]] = {"/api/chat": {"messages": self.messages}}
        if self.history:
            return by_chat
        system = {} if self.instruction is None else {"system": self.instruction}
        return {"/api/generate": {"prompt": self.question, **system}, **by_chat}


def prompts_of(row: Mapping[str, Any], prompt_format: PromptFormat) -> list[ServedPrompt]:
    """Return the prompts of a prepared record: that of its last answer, and of a chat that of the first one too."""
    instruction, history = str(row.get("instruction") or prompt_format.instruction), tuple(earlier_turns(row))
    last = ServedPrompt(str(row["input"]), instruction, history)
    return [ServedPrompt(history[0][0], instruction), last] if history else [last]
