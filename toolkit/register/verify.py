"""Proof that the server runs what was trained: its settings, its own rendering of prompts, one answered question."""

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from toolkit.core.errors import ToolkitError
from toolkit.core.output_settings import ValidateSettings
from toolkit.ollama import server
from toolkit.ollama.modelfile import Modelfile
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.renderings import conversation
from toolkit.register.served_prompt import ServedPrompt

ROWS = 10
BATCH = 512  # prompts that are waiting to be asked
QUESTION = "What are the symptoms of dehydration?"
THREADS = 4  # requests at once: a server renders them in parallel


def check_shown(http: httpx.Client, model: str, spec: Modelfile) -> str:
    """Check that the server shows our template, system message and parameters; return the stored GGUF's SHA-256 (hex).

    The server shows the template it will use: a GGUF whose own chat template mentions tools takes its place
    (server/images.go). Raises ToolkitError for any difference.
    """
    found = server.call(http, "/api/show", {"model": model})
    if found.get("template") != spec.template:
        raise ToolkitError(
            f"the Ollama server would not use our prompt template for `{model}`: "
            f"{difference(spec.template, str(found.get('template')))}",
            hint="the GGUF's own chat template wins if it mentions tools: run `toolkit export --force`",
        )
    if (found.get("system") or "") != spec.system:
        raise ToolkitError(
            f"the Ollama server has a different system message for `{model}`: "
            f"{difference(spec.system, str(found.get('system')))}",
            hint="run the same command again; if it still fails, report it with the server's version",
        )
    got = shown_parameters(str(found.get("parameters", "")))
    want = {name: value if isinstance(value, list) else [value] for name, value in spec.parameters.items()}
    wrong = [
        f"{name} is {got.get(name)}, not {want.get(name)}"
        for name in {**want, **got}
        if got.get(name) != want.get(name)
    ]
    if wrong:
        raise ToolkitError(
            f"the Ollama server has different parameters for `{model}`: {'; '.join(wrong)}",
            hint="run the same command again; if it still fails, report it with the server's version",
        )
    return stored_digest(found)


def stored_digest(found: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of the GGUF that /api/show's Modelfile names; empty if it names none."""
    stored = re.search(r"^FROM .*sha256-([0-9a-f]{64})", str(found.get("modelfile", "")), re.MULTILINE)
    return stored[1] if stored else ""


def shown_parameters(text: str) -> dict[str, list[Any]]:
    """Read the `parameters` of /api/show: one `name value` a line, strings quoted as Go quotes them (strconv.Quote)."""
    values: dict[str, list[Any]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        value = value.strip()
        if value.startswith('"'):
            item: Any = _go_unquote(value[1:-1])
        elif value in ("true", "false"):
            item = value == "true"
        else:
            item = float(value)
        values.setdefault(name, []).append(item)
    return values


_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _go_unquote(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)

    return re.sub(r'\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[abfnrtv\\"])', plain, text)


def every_prompt(
    http: httpx.Client, model: str, prompt_format: PromptFormat, eos: str, prompts: Sequence[ServedPrompt]
) -> None:
    """Compare the server's own rendering of prompts with the training text, byte for byte.

    Each by /api/generate and /api/chat, one with earlier turns by /api/chat alone, with the instruction as system
    message; ten of them also without one, so that the model's own is used, and ten in a conversation. Raises
    ToolkitError at the first difference.
    """

    def check(prompt: ServedPrompt) -> None:
        _same(prompt.rendered(prompt_format, eos).text, renderings(http, model, prompt))

    some = [prompts[index] for index in range(0, len(prompts), max(1, len(prompts) // ROWS))[:ROWS]]
    with ThreadPoolExecutor(THREADS) as pool:
        left = itertools.chain(prompts, (prompt._replace(instruction=None) for prompt in some))
        while batch := list(itertools.islice(left, BATCH)):
            list(pool.map(check, batch))
    conversations(http, model, prompt_format, eos, some)


def conversations(
    http: httpx.Client, model: str, prompt_format: PromptFormat, eos: str, prompts: Sequence[ServedPrompt]
) -> None:
    """Compare the server's rendering of conversations with the plain one.

    A second turn keeps the instruction, a developer's message counts as the system's, and an unfinished answer stays
    open.
    """
    for one, following in itertools.pairwise(prompts):
        question = {"role": "user", "content": one.question}
        asked = [
            *one.messages,
            {"role": "assistant", "content": "An answer."},
            {"role": "user", "content": following.question},
            question,
        ]
        begun = [{"role": "developer", "content": one.instruction or ""}, question]
        begun.append({"role": "assistant", "content": "The "})
        chats: list[list[dict[str, Any]]] = [asked, begun]
        for messages in chats:
            body = {"model": model, "messages": messages, "stream": False, "_debug_render_only": True}
            found = server.call(http, "/api/chat", body)
            _same(conversation(prompt_format, messages, eos), {"/api/chat": _rendered(found)})


def _same(want: str, found: dict[str, str]) -> None:
    for path, got in found.items():
        if got != want:
            raise ToolkitError(
                f"{path} renders a different prompt than the one that was trained: {difference(want, got)}",
                hint="do not run the server with OLLAMA_GO_TEMPLATE=0, and check that prompts fit in `ollama.num_ctx`",
            )


def renderings(http: httpx.Client, model: str, prompt: ServedPrompt) -> dict[str, str]:
    """Return the text that each of the requests for a prompt would run, by its path, without running it."""
    unread = {"model": model, "stream": False, "_debug_render_only": True}
    return {path: _rendered(server.call(http, path, {**body, **unread})) for path, body in prompt.requests.items()}


def _rendered(answer: dict[str, Any]) -> str:
    return str((answer.get("_debug_info") or {}).get("rendered_template", ""))


def smoke(http: httpx.Client, model: str, settings: ValidateSettings, *, unload: bool) -> dict[str, Any]:
    """Ask the first validation question, or one of our own; return its answer, why it ended, and the speed in tokens/s.

    `unload` frees the model's memory on the server afterwards. Raises ToolkitError if there is no answer, or it ends
    neither on its own nor at the limit.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": settings.questions[0] if settings.questions else QUESTION,
        "system": settings.instruction,
        "stream": False,
        "options": {"num_predict": settings.answer_tokens},
    }
    answer = asked(http, "/api/generate", {**body, "keep_alive": 0} if unload else body)
    seconds = float(answer.get("eval_duration") or 0) / 1e9
    return {
        "answer": text_of(answer),
        "done_reason": answer["done_reason"],
        "tokens_per_second": round(float(answer["eval_count"]) / seconds, 1) if seconds else 0.0,
    }


def asked(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask a question by a path; raises ToolkitError unless the answer ended on its own or at the limit.

    Thoughts stay in the answer: with `think` a server would return them apart.
    """
    found = server.call(http, path, {**body, "think": False})
    text, reason = text_of(found), found.get("done_reason")
    if reason not in ("stop", "length") or not found.get("eval_count"):
        question = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        raise ToolkitError(
            f"`{body['model']}` did not answer {question[:200]!r}: it ended with {reason!r} after {text[:80]!r}",
            hint="ask the GGUF itself with `toolkit validate`; if it answers there, the server's own log says more",
        )
    return found


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of an answer of /api/generate or /api/chat."""
    message = answer.get("message")
    return str(message.get("content") or "") if isinstance(message, dict) else str(answer.get("response", ""))


def difference(want: str, got: str) -> str:
    """Say where two texts differ, with a little of both."""
    at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
    return f"at character {at + 1}: {got[at : at + 40]!r} instead of {want[at : at + 40]!r}"
