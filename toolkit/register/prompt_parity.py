"""The chain from a record to the server's tokens: text, chat template and vocabulary.

`prove_prompts` says what is proven for which prompts.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import httpx

from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.core.records import spread
from toolkit.core.spool import Spool
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.register import greedy, verify
from toolkit.register.served_prompt import ServedPrompt, prompts_of

COUNT_SECONDS = 20.0  # the time for running prompts to have them counted, after the first ones
COUNTED = 10


def prove_prompts(
    http: httpx.Client,
    model: str,
    path: Path,
    prompt_format: PromptFormat,
    tokenizer: Tokenizer,
    held_out: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Prove that a model on the server reads prompts as the trained one does; record a few greedy answers (`greedy`).

    For every held-out prompt, of chats the ones before their first and their last answer: the server's rendering by
    /api/chat, and without earlier turns by /api/generate, is the training text, byte for byte, and llama.cpp makes the
    trained tokenizer's ids of it with the file's own vocabulary, with one BOS if the model has one. For as many as can
    be run in twenty seconds, spread over all and ten at least: the server counts the same number of tokens, and
    /api/generate returns the same ids.

    Returns the figures. Raises ToolkitError at the first difference.
    """
    if not held_out:
        raise ToolkitError("there is no held-out row to compare prompts on", hint="run `toolkit prepare` again")
    rows = Spool(prompt for row in held_out for prompt in prompts_of(row, prompt_format))
    seen, plain, answers = _in_llamacpp(path, prompt_format, tokenizer, rows)
    verify.every_prompt(http, model, prompt_format, tokenizer.eos_text, rows)
    counted = _count(http, model, rows, seen, tokenizer.bos)
    asked = [rows[index] for index in spread(plain, greedy.QUESTIONS)]
    return {
        "prompts_verified": len(rows),
        "prompts_tokenized": len(rows),
        "prompts_counted": counted,
        **({"prompts_of_several_turns": turns} if (turns := sum(bool(row.history) for row in rows)) else {}),
        "control_like_prompts": len(rows) - len(plain),
        "greedy": greedy.beside(http, model, asked, answers),
    }


def _in_llamacpp(
    path: Path, prompt_format: PromptFormat, tokenizer: Tokenizer, rows: Sequence[ServedPrompt]
) -> tuple[Sequence[list[int]], Sequence[int], list[str]]:
    """Tokenize every prompt as a server does, and answer a few; the file is closed before the server loads its own.

    Returns the ids that a server makes of each prompt, the numbers of the prompts whose ids are the trained ones, and
    the answers to those that `spread` chooses.

    A prompt whose data looks like a control token has other ids on a server than in training; it is counted, and the
    trained ids are compared with those of llama.cpp when it reads data as text.
    """

    def trained(row: ServedPrompt) -> list[int]:
        return tokenizer.prompt_ids(row.rendered(prompt_format, tokenizer.eos_text))

    context = max(len(trained(row)) for row in rows) + greedy.TOKENS + 1
    with llamacpp.opened(path, context) as llm:
        same_in_jinja = _jinja(llm, tokenizer)
        served, plain = Spool[list[int]](), array("Q")
        for number, row in enumerate(rows):
            prompt = row.rendered(prompt_format, tokenizer.eos_text)
            same_in_jinja(row, prompt)
            ids = tokenizer.prompt_ids(prompt)
            twice = ids[1:].count(tokenizer.bos) if tokenizer.bos not in (None, tokenizer.eos) else 0
            if llamacpp.tokenize(llm, prompt) != ids or twice:
                raise ToolkitError(
                    f"`{path.name}` reads a prompt differently from the trained model, asked {row.question[:60]!r}",
                    hint="write it again with `toolkit export --force`; `toolkit validate` shows both lists of ids",
                )
            there = llamacpp.served(llm, prompt.text)
            served.append(there)
            if there == ids:
                plain.append(number)
            elif not any(token in part.text for part in prompt.parts if not part.ours for token in tokenizer.controls):
                raise ToolkitError(
                    f"a server would read a prompt differently from the trained model, asked {row.question[:60]!r}",
                    hint="report it with the base model's name: its vocabulary has unmarked control tokens",
                )
        answers = greedy.in_llama_cpp(llm, [trained(rows[index]) for index in spread(plain, greedy.QUESTIONS)])
    return served, plain, answers


def _jinja(llm: Any, tokenizer: Tokenizer) -> Callable[[ServedPrompt, Prompt], None]:
    """Return what renders a prompt by the chat template in the file, in the Jinja that transformers runs, and compares.

    After a chat template nothing adds a BOS, so it must begin with it.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(llamacpp.facts(llm).chat_template or "")

    def same(row: ServedPrompt, prompt: Prompt) -> None:
        found = template.render(
            messages=row.messages if row.instruction else row._replace(instruction=None).messages,
            bos_token=tokenizer.bos_text,
            eos_token=tokenizer.eos_text,
            add_generation_prompt=True,
        )
        wanted = tokenizer.bos_text + prompt.text
        if found != wanted:
            raise ToolkitError(
                f"the GGUF's chat template renders a different prompt: {verify.difference(wanted, found)}",
                hint="write the file again with `toolkit export --force`",
            )

    return same


def _count(
    http: httpx.Client, model: str, rows: Sequence[ServedPrompt], seen: Sequence[list[int]], bos: int | None
) -> int:
    """Run prompts for one token each; the server must count their ids, and return them as its context (/api/generate).

    The last id may merge with the answer's first token and is left out of the second comparison. Returns how many.
    """
    started = time.monotonic()
    first = spread(range(len(rows)), COUNTED)
    others = (index for index in range(len(rows)) if index not in first)
    for done, index in enumerate(chain(first, others)):
        if done >= COUNTED and time.monotonic() - started > COUNT_SECONDS:
            return done
        row, ids = rows[index], seen[index]
        path, body = next(iter(row.requests.items()))
        options = greedy.greedy_parameters(tokens=1)
        found = verify.asked(http, path, {"model": model, **body, "stream": False, "options": options})
        text_ids = ids if bos is None else ids[1:]
        given = [int(index) for index in found.get("context") or []]
        other = not row.history and given[: len(text_ids) - 1] != text_ids[:-1]
        if found.get("prompt_eval_count") != len(ids) or other:
            raise ToolkitError(
                f"the server reads a prompt differently from llama.cpp: {found.get('prompt_eval_count')} tokens "
                f"instead of {len(ids)}, asked {row.question[:60]!r}",
                hint="check that prompts fit in `ollama.num_ctx`, or update the server: it reads the file differently",
            )
    return len(rows)
