"""The chats that every export is checked with, and their rendering by a chat template."""

from collections.abc import Iterator, Sequence

from toolkit.core.errors import ToolkitError
from toolkit.export.jinja_render import HINT, Chat, renderer

SYSTEM, QUESTION = "Explain as a general doctor.", "I've had 39.5 °C since 24 May;  what now?\n- see a doctor?"
SIMPLE = "does water help"
ANSWER = "Drink water. If it lasts more than 3 days, see a doctor."
PLAIN: tuple[Chat, ...] = (
    (("user", QUESTION),),
    (("system", SYSTEM), ("user", QUESTION)),
    (("user", QUESTION), ("assistant", ANSWER), ("user", "Thank you!")),
)
SPACED: tuple[Chat, ...] = (
    (("user", f"{QUESTION} \n"), ("assistant", f"\n{ANSWER} "), ("user", "  Thank you!\n")),
    (("system", f"{SYSTEM}\n"), ("user", f"\n {QUESTION} "), ("assistant", f" {ANSWER}\n"), ("user", "\n Thank you! ")),
)
CHATS = (*PLAIN, *SPACED)


def rendered_chats(
    template: str, texts: dict[str, str], chats: Sequence[Chat], *, may_hide: bool = False
) -> Iterator[tuple[Chat, str]]:
    """Yield each chat with its rendering; one that the template refuses (a system message) is left out.

    Raises ToolkitError if it is not valid Jinja, renders no chat, or leaves out the question of one that it renders,
    unless it `may_hide` one.
    """
    rendered, problem = 0, "it renders nothing"
    write = renderer(template, texts)
    for messages in chats:
        try:
            text = write(messages)
            shown = write([*messages[:-1], ("user", SIMPLE)])
        except Exception as exc:  # a template may raise in any way, on purpose too
            problem = f"{exc}"
            continue
        if not may_hide and SIMPLE not in shown.casefold():
            chat = "a chat that has " + {1: "one message", 2: "a system message"}.get(len(messages), "earlier messages")
            raise ToolkitError(
                f"the chat template does not show the question of {chat}",
                hint="the model would answer without it: correct the chat template, or choose another with "
                "--set prompt.preset=NAME",
            )
        rendered += 1
        yield messages, text
    if not rendered:
        raise ToolkitError(f"the chat template does not render a question: {problem}", hint=HINT)
