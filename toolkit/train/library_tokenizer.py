"""transformers' tokenizer of a base, as its tokenizer.json has it: to train with, and to save next to the adapter."""

import json
from pathlib import Path
from typing import Any

from toolkit.core.files import write_text
from toolkit.core.parsing import read_json

EXACT = "PreTrainedTokenizerFast"  # a name that every release of transformers knows


def library_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder by its tokenizer.json alone.

    The class that tokenizer_config.json names is not asked: LlamaTokenizer and GPT2Tokenizer of transformers 5 split by
    rules of their own, whatever the file says (R1-Distill-Llama, Granite, OLMo-2).
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def save_library_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that any transformers loads it by its tokenizer.json."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = read_json(path, "train again")
    write_text(path, json.dumps({**values, "tokenizer_class": EXACT}, indent=2, ensure_ascii=False) + "\n")
