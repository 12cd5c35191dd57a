"""Ask the model a question: through Ollama as `ollama run` does (/api/generate), or through llama.cpp."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.ollama import server
from toolkit.ollama.failures import translate_errors
from toolkit.prompt.escape import escape_control_tokens
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render


def control_tokens(folder: RunFolder, *texts: str) -> list[str]:
    """Return the control tokens of a run's vocabulary that occur in texts; none if nothing is trained."""
    path = folder.adapter / "tokenizer.json"
    if not path.is_file() or not any(re.search(r"[^\w\s.,;:?!()'\"-]", text) for text in texts):
        return []  # no need to read it: no control token has only letters and common marks
    from toolkit.prompt.tokenizer import load_tokenizer

    return [token for token in load_tokenizer(folder.adapter).controls if any(token in text for text in texts)]


def registered(config: Config, tag: str = "latest") -> bool:
    """Say whether a server answers and holds the model under this tag; raises ToolkitError if it is not Ollama."""
    if server.version(config.ollama) is None:
        return False
    with server.http(config.ollama) as http, translate_errors(config.ollama, "looking for the model"):
        held = server.held(http)
    return server.listed_name(_name(config), tag) in held


def ask_server(
    config: Config,
    question: str,
    instruction: str | None,
    tag: str = "latest",
    controls: Collection[str] = (),
    file: Path | None = None,
) -> Iterator[str]:
    """Yield the pieces of the answer as they come; `instruction` None keeps the one the model was registered with.

    Control tokens in the question or instruction are escaped, with a warning; `controls` are the model's own.
    The vocabulary in `file`, one of the run's GGUF files, counts the prompt before the model runs; the server's own
    count is compared after the answer.
    Raises ToolkitError if the server fails, if it would cut the question or did, or if the answer stops without an end.
    """
    safe_question, safe_instruction = (
        escape_control_tokens(question, controls),
        escape_control_tokens(instruction or "", controls),
    )
    if (safe_question, safe_instruction) != (question, instruction or ""):
        console.warn(
            "the text contains what looks like control tokens: an invisible character, which the model reads "
            "too, is put into each, so that Ollama reads them as text"
        )
    # By default a server cuts a prompt that does not fit in half, and drops its start while it answers.
    body: dict[str, Any] = {
        "model": f"{_name(config)}:{tag}",
        "prompt": safe_question,
        "truncate": False,
        "shift": False,
        "think": False,  # thoughts stay in the answer, as llama.cpp's has them
    }
    if safe_instruction:
        body["system"] = safe_instruction
    with server.http(config.ollama) as http, translate_errors(config.ollama, "answering"):
        counted = None if file is None else _count(http, body, file)
        ended: str | None = None
        read: Any = None
        for piece in server.stream(http, "/api/generate", {**body, "stream": True}):
            if piece.get("response"):
                yield str(piece["response"])
            ended, read = piece.get("done_reason") or ended, piece.get("prompt_eval_count", read)
        if ended is None:
            raise ToolkitError(
                "the answer broke off before its end",
                hint="the server's log says why; a model that repeats itself is cut off: try `ollama.repeat_penalty`",
            )
        if counted is not None and isinstance(read, int) and read < counted:
            raise ToolkitError(
                f"the server read {read:,} of the prompt's {counted:,} tokens: do not rely on this answer",
                hint="ask a shorter question, or raise `ollama.num_ctx` and run `toolkit register`",
            )


def _count(http: httpx.Client, body: dict[str, Any], file: Path) -> int | None:
    """Count the tokens of the prompt that the server would run; raises ToolkitError if they leave no room to answer.

    Returns None if nothing can be counted: without the file, or with a server that does not show the prompt.
    """
    from toolkit.llamacpp.vocabulary import open_vocabulary, trained_positions

    if not file.is_file():
        return None
    shown = server.call(http, "/api/generate", {**body, "stream": False, "_debug_render_only": True})
    text = (shown.get("_debug_info") or {}).get("rendered_template")
    if not isinstance(text, str):
        return None
    with open_vocabulary(file) as vocabulary:
        count = len(vocabulary.served_ids(text))
    parameters = str(server.call(http, "/api/show", {"model": body["model"]}).get("parameters", ""))
    found = re.search(r"^num_ctx\s+(\d+)\s*$", parameters, re.MULTILINE)
    _check_room(count, int(found[1]) if found else None, trained_positions(file), " and run `toolkit register`")
    return count


def _check_room(count: int, room: int | None, positions: int | None, then: str = "") -> None:
    """Raise ToolkitError if a prompt of so many tokens leaves no room for an answer."""
    if positions is not None and count >= positions and (room is None or positions <= room):
        raise ToolkitError(
            f"the question has {count:,} tokens with its prompt, but the model has {positions:,} positions",
            hint="ask a shorter question",
        )
    if room is not None and count >= room:
        raise ToolkitError(
            f"the question has {count:,} tokens with its prompt, but there is room for {room:,}",
            hint=f"ask a shorter question, or raise `ollama.num_ctx`{then}",
        )


def _name(config: Config) -> str:
    return config.ollama.name or config.run.name


def answer(config: Config, folder: RunFolder, question: str, instruction: str | None) -> tuple[str, Iterator[str]]:
    """Ask Ollama if it holds the model, else llama.cpp with the run's default GGUF; return which, and the pieces.

    Raises ToolkitError for an empty question or if there is neither (here), or while answering (from the iterator).
    """
    if not question.strip():
        raise ToolkitError(
            "the question is empty", hint='toolkit ask "How to prevent Noonan syndrome?"', exit_code=USAGE
        )
    path = folder.gguf(config.export.default)
    if registered(config):
        controls = control_tokens(folder, question, instruction or "")
        return "ollama", ask_server(config, question, instruction, controls=controls, file=path)
    if not path.is_file():
        raise ToolkitError(
            f"`{_name(config)}` is not registered in Ollama, and there is no `{path}` either",
            hint="run `toolkit run` first",
        )
    console.info(f"`{_name(config)}` is not registered in a running Ollama: llama.cpp answers from {path}")
    return "llama.cpp", _ask_file(config, path, question, instruction)


def _ask_file(config: Config, path: Path, question: str, instruction: str | None) -> Iterator[str]:
    from toolkit import llamacpp
    from toolkit.llamacpp.vocabulary import trained_positions

    form, settings = prompt_format(config.prompt), config.ollama
    context = settings.num_ctx or config.train.max_length + settings.num_predict
    positions = trained_positions(path)
    sampling = llamacpp.Sampling(
        settings.temperature, settings.top_p, settings.top_k, settings.repeat_penalty, settings.seed
    )
    room = context if positions is None else min(context, positions)
    with llamacpp.opened(path, room) as llm:
        ids = llamacpp.tokenize(llm, render(form, question, instruction))
        _check_room(len(ids), context, positions)
        if positions == room and len(ids) + settings.num_predict > room:
            console.info(f"the answer has {room - len(ids):,} tokens at most: the model has {positions:,} positions")
        yield from llamacpp.generate(llm, ids, settings.num_predict, form.stops, sampling)
