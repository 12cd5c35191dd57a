"""A model of transformers answers a question greedily."""

from typing import Any

from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer


def greedy_answer(model: Any, tokenizer: Tokenizer, prompt: Prompt, tokens: int, stops: tuple[str, ...]) -> str:
    """Answer with at most `tokens` tokens, up to EOS or a stop string.

    `model` is one of transformers, or of PEFT, with everything loaded.
    """
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos, pad_token_id=tokenizer.eos
    )
    ids = tokenizer.prompt_ids(prompt)
    # What a base ships with its weights (such as a repetition penalty) would fill in whatever is not set here.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    former, inner.generation_config = inner.generation_config, greedy
    try:
        with torch.inference_mode():
            given = torch.tensor([ids], device=next(model.parameters()).device)
            found = model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy, use_cache=True
            )
    finally:
        inner.generation_config = former
    new = found[0, len(ids) :].tolist()
    text = tokenizer.decode(new[: new.index(tokenizer.eos)] if tokenizer.eos in new else new)
    cuts = [text.index(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else text
