"""One question after training: does the model answer at all? The recipe's own check."""

import contextlib
from typing import Any

from toolkit.core import console
from toolkit.prompt.renderings import render
from toolkit.train.job import Job

CHEAP = 1_000_000_000  # parameters beyond which a CPU takes minutes for an answer


def answer(job: Job, model: Any) -> dict[str, str] | None:
    """Ask the first validation question, greedily, and print the answer; None if that was not possible.

    The adapter is already saved, so a failure here is only reported.
    """
    import torch

    settings, tokenizer = job.config.validation, job.tokenizer
    question = settings.questions[0] if settings.questions else ""
    if not question:
        return None
    if job.backend.device == "cpu" and sum(parameter.numel() for parameter in model.parameters()) > CHEAP:
        console.info("no question is asked: a model of this size takes minutes for an answer on a CPU")
        return None
    ids = tokenizer.prompt_ids(render(job.prompt_format, question, settings.instruction))
    try:
        job.backend.infer(model)
        device = next(model.parameters()).device
        given = torch.tensor([ids], device=device)
        with torch.no_grad():
            found = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=settings.answer_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=tokenizer.eos,
                pad_token_id=tokenizer.eos,
            )
    except Exception as exc:  # generation is the libraries' own, in many versions
        with contextlib.suppress(IndexError):
            console.warn(f"the trained model could not be asked: {(str(exc) or type(exc).__name__).splitlines()[0]}")
        return None
    new = found[0, len(ids) :].tolist()
    if new and new[-1] == tokenizer.eos:
        new.pop()
    text = tokenizer.decode(new).strip()
    console.info(f"{question}\n▶ {text}")
    return {"instruction": settings.instruction, "question": question, "answer": text}
