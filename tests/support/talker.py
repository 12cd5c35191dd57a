"""A model whose answer is known: each token has one that follows it."""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tests.support import families


def save_talker(
    folder: Path, *says: str, vocabulary: Callable[[Path], None] = families.save_qwen, family: str = "qwen3"
) -> None:
    """Save a model with layers as Llama's that continues the first of these tokens with the others, in their order.

    They are written as in the vocabulary: a newline is `Ċ`.
    """
    from transformers import AutoModelForCausalLM

    families.save(folder, family, vocabulary=vocabulary, num_hidden_layers=1, tie_word_embeddings=False, vocab_size=512)
    ids = [Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(text) for text in says]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(ids):
            model.lm_head.weight[after] += model.model.embed_tokens.weight[before]
    model.save_pretrained(folder)
