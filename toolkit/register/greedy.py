"""Greedy answers of llama.cpp and of the server from the same GGUF file, side by side.

They are recorded and shown; a difference fails nothing. Both programs add up the same numbers in a different order, so
two tokens that are almost equally likely may change places. Prompts, token ids and the file's digest prove what is
served.
"""

from typing import Any

import httpx

from toolkit import llamacpp
from toolkit.core import console
from toolkit.ollama import server
from toolkit.register.served_prompt import ServedPrompt
from toolkit.register.verify import text_of

QUESTIONS = 3
TOKENS = 64


def greedy_parameters(tokens: int) -> dict[str, Any]:
    """Return the options of a greedy answer, each one explicit: no penalty, no stop text, the most likely token."""
    return {
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 42,
        "num_predict": tokens,
        "stop": [],
    }


def in_llama_cpp(llm: Any, tokenized: list[list[int]]) -> list[str]:
    """Return llama.cpp's greedy answers to tokenized prompts."""
    found = []
    with console.progress("greedy answers of llama.cpp", len(tokenized), "answers") as bar:
        for ids in tokenized:
            found.append("".join(llamacpp.generate(llm, ids, TOKENS, (), llamacpp.Sampling())))
            bar.advance()
    return found


def beside(http: httpx.Client, model: str, prompts: list[ServedPrompt], answers: list[str]) -> list[dict[str, str]]:
    """Ask the server the same prompts; return each question with both answers."""
    found = []
    with console.progress("greedy answers of Ollama", len(prompts), "answers") as bar:
        for prompt, answer in zip(prompts, answers, strict=True):
            found.append({"question": prompt.question, "llama.cpp": answer, "ollama": _asked(http, model, prompt)})
            bar.advance()
    return found


def _asked(http: httpx.Client, model: str, prompt: ServedPrompt) -> str:
    path, asked = next(iter(prompt.requests.items()))
    body = {
        "model": model,
        **asked,
        "stream": False,
        "think": False,  # thoughts stay in the answer, as llama.cpp's has them
        "options": greedy_parameters(TOKENS),
    }
    return text_of(server.call(http, path, body))
