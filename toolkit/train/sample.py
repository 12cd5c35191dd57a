"""Questions after training: the answers of the base and of the trained model. Validation shows both."""

import contextlib
from typing import Any

from toolkit.core import console
from toolkit.model.greedy_answer import greedy_answer
from toolkit.prompt.renderings import render
from toolkit.train.job import Job

CHEAP = 1_000_000_000  # parameters beyond which a CPU takes minutes for an answer


def answers(job: Job, model: Any) -> list[dict[str, Any]]:
    """Ask the validation questions, greedily, without the adapter and with it; print the first answer.

    Each has `question`, `instruction`, `tokens` (the most that an answer may have), `before` and `after`. The adapter
    is already saved, so a failure here is only reported: the list is empty then.
    """
    settings, form = job.config.validation, job.prompt_format
    if not settings.questions:
        return []
    if job.backend.device == "cpu" and sum(parameter.numel() for parameter in model.parameters()) > CHEAP:
        console.info("no question is asked: a model of this size takes minutes for an answer on a CPU")
        return []
    found = []
    try:
        job.backend.infer(model)
        with console.progress("questions after training", 2 * len(settings.questions), "answers") as progress:
            for question in settings.questions:
                prompt = render(form, question, settings.instruction)
                after = greedy_answer(model, job.tokenizer, prompt, settings.answer_tokens, form.stops)
                progress.advance()
                with model.disable_adapter():
                    before = greedy_answer(model, job.tokenizer, prompt, settings.answer_tokens, form.stops)
                progress.advance()
                asked = {"question": question, "instruction": settings.instruction, "tokens": settings.answer_tokens}
                found.append({**asked, "before": before, "after": after})
    except Exception as exc:  # generation is the libraries' own, in many versions
        with contextlib.suppress(IndexError):
            console.warn(f"the trained model could not be asked: {(str(exc) or type(exc).__name__).splitlines()[0]}")
        return []
    console.info(f"{settings.questions[0]}\n▶ {str(found[0]['after']).strip()}")
    return found
