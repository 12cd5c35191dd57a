"""Greedy answers of llama.cpp and of the server from the same GGUF file, compared token by token.

Both add up the same numbers in another order (batches, threads, what stands in a cache), so two tokens that are almost
equally likely may change places. Where the answers part, it has to be over such a pair.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from toolkit import llamacpp
from toolkit.errors import ToolkitError
from toolkit.llamacpp import Step
from toolkit.register import verify

QUESTIONS = 10
TOKENS = 64
# Logits by which two leading tokens may differ where the programs part: what float weights need, and the most that
# quantized ones may, if the two programs differ as much on the tokens that are equal. Both round activations to 8 bits
# before they multiply quantized weights, so a last bit that differs grows: on the 2,479 rows' SmolLM2-135M the leads of
# equal tokens differ by up to 0.05 in F16, 0.43 in Q8_0 and 0.44 in Q4_K_M.
ROUNDING, MOST = 0.1, 0.5


@dataclass(frozen=True)
class Answer:
    """A server's greedy answer: its text, how many tokens it has, whether it ended by itself, and what came near.

    `near` has texts and log-probabilities of the most likely tokens, for each that completes a character: a server
    shows no others.
    """

    text: str
    tokens: int
    ended: bool
    near: tuple[tuple[tuple[str, float], ...], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How far two answers agree: `tokens` that are equal, and the place where they part, if they do.

    `lead` is by how many logits llama.cpp prefers its own token there, `server_lead` the same of the server's;
    `rounding` is the most by which such leads differed on equal tokens, within limits.
    """

    tokens: int
    parted: bool
    lead: float = 0.0
    server_lead: float | None = None
    ours: str = ""
    theirs: str = ""
    rounding: float = ROUNDING

    @property
    def within_rounding(self) -> bool:
        """Whether they agree, or part over two tokens that are equally likely but for rounding."""
        return not self.parted or max(self.lead, self.server_lead or 0.0) <= self.rounding


def parameters(tokens: int) -> dict[str, Any]:
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


def ask(http: httpx.Client, model: str, question: str, instruction: str) -> Answer:
    """Ask the server for a greedy answer through its template, with the candidates of each token."""
    body = {"model": model, "prompt": question, "system": instruction, "stream": False, "options": parameters(TOKENS)}
    found = verify.asked(http, {**body, "logprobs": True, "top_logprobs": llamacpp.NEAREST})
    near = tuple(
        tuple((str(one["token"]), float(one["logprob"])) for one in entry.get("top_logprobs") or [entry])
        for entry in found.get("logprobs") or []
    )
    count = int(found.get("eval_count") or 0)
    return Answer(str(found.get("response", "")), count, found.get("done_reason") == "stop", near)


def compare(steps: list[Step], answer: Answer, measured: Sequence[float] = ()) -> Comparison:
    """Follow both answers to their end, or to the first token that differs.

    `measured` are differences of leads on equal tokens of other answers (`differences`). A server may show control
    tokens by their names: 0.24 does.
    """
    found = _compared(steps, answer, measured)
    if found.parted and any(step.control for step in steps):
        named = [replace(step, best=((step.control or step.text, step.best[0][1]), *step.best[1:])) for step in steps]
        return max(found, _compared(named, answer, measured), key=lambda way: (not way.parted, way.tokens))
    return found


def _compared(steps: list[Step], answer: Answer, measured: Sequence[float]) -> Comparison:
    texts = [step.text for step in steps if not step.ends]
    if (_shown(texts), steps[-1].ends) == (_one_mark(answer.text), answer.ended):
        return Comparison(len(texts), parted=False)
    last = _parting(texts, answer.text)
    first = last
    while first > 0 and not _whole(texts[first - 1]):  # a character of several tokens: they part in one of them
        first -= 1
    places = range(first, min(last, len(steps) - 1) + 1)
    at = min(places, key=lambda place: _lead(steps[place]), default=len(steps) - 1)
    rounding = min(MOST, max([ROUNDING, *measured, *differences(steps[:at], answer)]))
    step, going_on = steps[at], _one_mark(answer.text)[len(_shown(texts[:at])) :]
    return Comparison(
        at,
        True,
        _lead(step) if _goes_on(step, going_on, rounding) else float("inf"),
        _server_lead(answer, texts, at),
        "its end" if step.ends else step.text.decode("utf-8", errors="replace"),
        going_on[:20] or "its end",
        rounding,
    )


def differences(steps: list[Step], answer: Answer) -> list[float]:
    """Return by how much the leads of equal tokens over the same second token differ between both programs."""
    texts = [step.text for step in steps]
    found = []
    for place, step in enumerate(steps):
        shown = _near(answer, texts, place)
        pair = [text.decode("utf-8", errors="replace") for text, _ in step.best[:2]]
        if [text for text, _ in shown[:2]] == pair:
            found.append(abs(_lead(step) - (shown[0][1] - shown[1][1])))
    return found


def _goes_on(step: Step, rest: str, rounding: float) -> bool:
    """Say whether what the server goes on with can be a token that was nearly as likely; not all of them show."""
    near = [text for text, logit in step.best[1:] if step.best[0][1] - logit <= rounding]
    return any(not text or not _whole(text) or rest.startswith(text.decode("utf-8")) for text in near)


def _lead(step: Step) -> float:
    return step.best[0][1] - step.best[1][1]


def _whole(text: bytes) -> bool:
    """Say whether a token is whole characters: a server shows others only with the token that completes them."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(texts: list[bytes]) -> str:
    return _one_mark(_complete(b"".join(texts)).decode("utf-8", errors="replace"))


def _one_mark(text: str) -> str:
    """Write one replacement character for each run of them, none at the end: programs differ in how many they make."""
    return re.sub("\ufffd+", "\ufffd", text).rstrip("\ufffd")


def _parting(texts: list[bytes], found: str) -> int:
    """Return how many tokens of ours the server's text begins with."""
    for count in range(1, len(texts) + 1):
        if not _one_mark(found).startswith(_shown(texts[:count])):
            return count - 1
    return len(texts)


def _server_lead(answer: Answer, texts: list[bytes], at: int) -> float | None:
    """Return by how much the server preferred its token at a place, if it says so."""
    near = _near(answer, texts, at)
    return near[0][1] - near[1][1] if near else None


def _near(answer: Answer, texts: list[bytes], at: int) -> tuple[tuple[str, float], ...]:
    """Return the server's candidates at a place, two at least, or none: it shows those that complete a character."""
    shown, raw = 0, b""
    for text in texts[:at]:
        raw += text
        shown += bool(text) and _complete(raw) == raw
    if _complete(raw) != raw or shown >= len(answer.near) or len(answer.near[shown]) < 2:
        return ()
    return answer.near[shown]


def _complete(raw: bytes) -> bytes:
    """Cut off a last character that is not whole, as llama.cpp's server judges it (validate_utf8, tools/server)."""
    for index, byte in enumerate(reversed(raw[-4:]), 1):
        for mask, lead, length in ((0xE0, 0xC0, 2), (0xF0, 0xE0, 3), (0xF8, 0xF0, 4)):
            if byte & mask == lead and index < length:
                return raw[:-index]
    return raw


def prove(
    http: httpx.Client, model: str, path: Path, asked: list[tuple[str, str]], answered: list[list[Step]]
) -> dict[str, Any]:
    """Compare the server's greedy answers to (question, instruction) pairs with those of llama.cpp.

    Returns how many answers and tokens agree, and each place where they part. Raises ToolkitError for one that rounding
    does not explain.
    """
    answers = [ask(http, model, question, instruction) for question, instruction in asked]
    pairs = list(zip(answered, answers, strict=True))
    measured = [
        value for steps, answer in pairs for value in differences(steps[: compare(steps, answer).tokens], answer)
    ]
    compared = [compare(steps, answer, measured) for steps, answer in pairs]
    for (question, _), found in zip(asked, compared, strict=True):
        if not found.within_rounding:
            raise ToolkitError(
                f"`{model}` does not answer as llama.cpp does from the same file `{path.name}`: asked "
                f"{question[:60]!r}, the server goes on with {found.theirs!r} instead of {found.ours!r} "
                f"after {found.tokens} tokens, {found.lead:.2f} logits behind",
                hint="update the server: its llama.cpp computes this model otherwise, or it changed the file",
            )
    return {
        "answers": len(compared),
        "agreed": sum(not found.parted for found in compared),
        "tokens": sum(found.tokens for found in compared),
        "rounding": round(max(measured, default=0.0), 4),
        "parted": [
            {"after": found.tokens, "lead": round(found.lead, 4), "server_lead": found.server_lead,
             "llama.cpp": found.ours, "server": found.theirs}
            for found in compared if found.parted
        ],
    }  # fmt: skip
