"""Greedy answers of llama.cpp and of the server from the same GGUF file, compared token by token.

Both add up the same numbers in another order (batches, threads, what stands in a cache), so two tokens that are almost
equally likely may change places. Where the answers part, it has to be over such a pair. How much "almost" is depends on
the weights: both programs round activations to 8 bits before they multiply quantized ones, so a last bit that differs
grows. It is measured on the tokens that are equal.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.llamacpp import Step
from toolkit.register import greedy, verify
from toolkit.register.greedy import Manner

QUESTIONS = 10
TOKENS = 64
# Logits by which two leading tokens may differ where the programs part: six times what their leads differ by on the
# equal tokens (root mean square), this much at least. In 60 answers of a SmolLM2-135M trained on the recipe's records,
# on 0.34.1 and 0.24.0 alike, that was 0.005 in F16, 0.13 in Q8_0 and 0.17 in Q4_K_M; the greatest of ten answers 4.7 to
# 6.1 times it for quantized weights; and where answers parted, the leads were up to 0.54.
ROUNDING, SIGMAS = 0.1, 6.0
# Root mean square from which it is no longer rounding: ten of those answers had up to 0.24, and leads of F16 and of
# Q4_K_M, which are two models, differ by 0.48.
MOST = 0.4
OTHERWISE = "update the server: it computes this model otherwise, or it changed the file"
REPEATED = 31  # equal tokens in a row at which servers up to 0.34.0 give up (llm/server.go, llm/llama_server.go)


@dataclass(frozen=True)
class Answer:
    """A server's greedy answer: its text, how many tokens it has, whether it ended by itself, and what came near.

    `near` has texts and log-probabilities of the most likely tokens, of those tokens that the server shows so
    (`shown`). `cut`: the server stopped without saying that it had finished.
    """

    text: str
    tokens: int
    ended: bool
    near: tuple[tuple[tuple[str, float], ...], ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Comparison:
    """How far two answers agree: `tokens` that are equal, and the place where they part, if they do.

    `lead` is by how many logits llama.cpp prefers its own token to the server's there, `server_lead` the reverse;
    `differences` are those of both programs' leads on the equal tokens.
    `past_end` is the token with which llama.cpp ends where the server, having chosen the same, goes on.
    """

    tokens: int
    parted: bool
    differences: tuple[float, ...] = ()
    lead: float = 0.0
    server_lead: float | None = None
    ours: str = ""
    theirs: str = ""
    past_end: str = ""

    def within(self, rounding: float = ROUNDING) -> bool:
        """Say whether they agree, or part over two tokens that are equally likely but for `rounding` logits."""
        return not self.parted or max(self.lead, self.server_lead or 0.0) <= rounding


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
    return Answer(
        str(found.get("response", "")), count, found.get("done_reason") == "stop", near, not found.get("done")
    )


def spread(differences: Sequence[float]) -> float:
    """Return the root mean square of differences of leads, in logits; 0 where there are none."""
    return math.sqrt(sum(value * value for value in differences) / len(differences)) if differences else 0.0


def explained(measured: float) -> float:
    """Return the logits by which two leading tokens may differ where answers part, given the `spread` on equal ones."""
    return max(ROUNDING, SIGMAS * measured)


def compare(steps: list[Step], answer: Answer) -> Comparison:
    """Follow both answers to their end, or to the first token that differs, in either manner of showing tokens."""
    found = _compared(steps, answer, greedy.replaced)
    if found.parted:
        earlier = _compared(_named(steps), answer, greedy.dropped)
        found = max(found, earlier, key=lambda way: (not way.parted, way.tokens))
    return found


def _named(steps: list[Step]) -> list[Step]:
    """Let control tokens have their names for text."""
    return [replace(step, best=((step.control or step.text, step.best[0][1]), *step.best[1:])) for step in steps]


def _compared(steps: list[Step], answer: Answer, manner: Manner) -> Comparison:
    texts = [step.text for step in steps if not step.ends]
    given = greedy.one_mark(answer.text)

    def agreed(tokens: int, past_end: str = "") -> Comparison:
        found = tuple(_differences(steps[:tokens], answer, manner))
        return Comparison(tokens, parted=False, differences=found, past_end=past_end)

    if (manner(texts).text, steps[-1].ends) == (given, answer.ended):
        return agreed(len(texts))
    if _goes_past(steps, given, manner):
        return agreed(len(texts), past_end=steps[-1].text.decode("utf-8", errors="replace"))
    last = _parting(texts, given, manner)
    if answer.cut and manner(texts[:last]).text == given and _repeats(texts[: last + 1]):
        return agreed(last)
    first = last = _longer(steps, answer, given, manner, last)
    while first > 0 and not _whole(texts[first - 1]):  # a character of several tokens: they part in one of them
        first -= 1
    places = range(first, min(last, len(steps) - 1) + 1)
    rests = {place: given[len(manner(texts[:place]).text) :] for place in places}
    at = min(places, key=lambda place: _behind(steps[place], rests[place]), default=len(steps) - 1)
    rest = rests.get(at, "")
    return Comparison(
        at,
        parted=True,
        differences=tuple(_differences(steps[:at], answer, manner)),
        lead=_behind(steps[at], rest),
        server_lead=_server_lead(answer, texts, at, manner),
        ours="its end" if steps[at].ends else steps[at].text.decode("utf-8", errors="replace"),
        theirs=rest[:20] or "its end",
    )


def _goes_past(steps: list[Step], given: str, manner: Manner) -> bool:
    """Say whether the server shows the very token that llama.cpp ends with, and goes on.

    llama.cpp ends at every token that is some model's end by its text; 0.24 at the model's own EOS alone.
    """
    texts = [step.text for step in steps]
    return steps[-1].ends and bool(texts[-1]) and given.startswith(manner(texts).text)


def _repeats(texts: list[bytes]) -> bool:
    """Say whether a server up to 0.34.0 gives an answer up over these tokens, without a word: the last are one text."""
    return len(texts) >= REPEATED and len({text.strip() for text in texts[-REPEATED:]}) == 1


def _differences(steps: list[Step], answer: Answer, manner: Manner) -> Iterator[float]:
    """Yield by how much the leads of equal tokens over the same second token differ between both programs."""
    texts = [step.text for step in steps]
    for place, step in enumerate(steps):
        near = _near(answer, texts, place, manner)
        pair = [text.decode("utf-8", errors="replace") for text, _ in step.best[:2]]
        if [text for text, _ in near[:2]] == pair:
            yield abs(_lead(step) - (near[0][1] - near[1][1]))


def _longer(steps: list[Step], answer: Answer, given: str, manner: Manner, last: int) -> int:
    """Return the first place, up to `last`, where the server chose a token that only begins with the text of ours."""
    texts = [step.text for step in steps[:last] if not step.ends]
    for place, text in enumerate(texts):
        near = _near(answer, texts, place, manner)
        rest = given[len(manner(texts[:place]).text) :]
        if near and text and _whole(text) and rest.startswith(near[0][0]):
            ours = text.decode("utf-8")
            if near[0][0] != ours and near[0][0].startswith(ours):
                return place
    return last


def _behind(step: Step, rest: str) -> float:
    """Return how far behind our token the likeliest one is that the server can have gone on with; not all show.

    Infinite where none of the candidates fits.
    """
    fitting = [
        logit for text, logit in step.best[1:] if not text or not _whole(text) or rest.startswith(text.decode("utf-8"))
    ]
    return step.best[0][1] - fitting[0] if fitting else math.inf


def _lead(step: Step) -> float:
    return step.best[0][1] - step.best[1][1]


def _whole(text: bytes) -> bool:
    """Say whether a token is whole characters: a server shows others only with the token that completes them."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parting(texts: list[bytes], given: str, manner: Manner) -> int:
    """Return how many tokens of ours the server's text begins with."""
    for count in range(1, len(texts) + 1):
        if not given.startswith(manner(texts[:count]).text):
            return count - 1
    return len(texts)


def _server_lead(answer: Answer, texts: list[bytes], at: int, manner: Manner) -> float | None:
    """Return by how much the server preferred its token to ours at a place, or to its second, if it says so."""
    near = _near(answer, texts, at, manner)
    ours = texts[at].decode("utf-8", errors="replace") if at < len(texts) else ""
    return near[0][1] - dict(near[1:]).get(ours, near[1][1]) if near else None


def _near(answer: Answer, texts: list[bytes], at: int, manner: Manner) -> tuple[tuple[str, float], ...]:
    """Return the server's candidates at a place, two at least, or none where it shows none."""
    entry = manner(texts[:at]).following
    if entry is None or entry >= len(answer.near) or len(answer.near[entry]) < 2:
        return ()
    return answer.near[entry]


def prove(
    http: httpx.Client, model: str, path: Path, asked: list[tuple[str, str]], answered: list[list[Step]]
) -> dict[str, Any]:
    """Compare the server's greedy answers to (question, instruction) pairs with those of llama.cpp.

    Returns how many answers and tokens agree, and each place where they part. Raises ToolkitError for one that rounding
    does not explain.
    """
    answers = [ask(http, model, question, instruction) for question, instruction in asked]
    compared = [compare(steps, answer) for steps, answer in zip(answered, answers, strict=True)]
    measured = spread([value for found in compared for value in found.differences])
    if measured > MOST:
        raise ToolkitError(
            f"`{model}` does not compute what llama.cpp does from the same file `{path.name}`: by how much they prefer "
            f"the tokens on which they agree differs by {measured:.2f} logits, {MOST} is the most that rounding makes",
            hint=OTHERWISE,
        )
    rounding = explained(measured)
    for (question, _), found in zip(asked, compared, strict=True):
        if not found.within(rounding):
            raise ToolkitError(
                f"`{model}` does not answer as llama.cpp does from the same file `{path.name}`: asked "
                f"{question[:60]!r}, the server goes on with {found.theirs!r} instead of {found.ours!r} after "
                f"{found.tokens} tokens, which {_far(found)}; rounding explains {rounding:.2f} here",
                hint=OTHERWISE,
            )
    return {
        "answers": len(compared),
        "agreed": sum(not found.parted for found in compared),
        "tokens": sum(found.tokens for found in compared),
        "past_end": sorted({found.past_end for found in compared if found.past_end}),
        "spread": round(measured, 4),
        "rounding": round(rounding, 4),
        "parted": [
            {"after": found.tokens, "lead": round(found.lead, 4), "server_lead": found.server_lead,
             "llama.cpp": found.ours, "server": found.theirs}
            for found in compared if found.parted
        ],
    }  # fmt: skip


def _far(found: Comparison) -> str:
    """Say how sure of themselves both programs are where they part."""
    ours = "is none of its likely tokens" if math.isinf(found.lead) else f"is {found.lead:.2f} logits behind for it"
    theirs = "" if found.server_lead is None else f" and {found.server_lead:.2f} ahead for the server"
    return ours + theirs
