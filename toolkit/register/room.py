"""Whether prompts fit into `num_ctx`, and into the positions that the model was trained on.

A server lowers a larger num_ctx to those positions (llm/server.go, "requested context size too large for model").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.llamacpp.vocabulary import trained_positions
from toolkit.ollama.modelfile import Modelfile
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.register.served_prompt import prompts_of


def warn_of_positions(spec: Modelfile, path: Path) -> None:
    """Warn if num_ctx is more than the model in a GGUF file was trained on; nothing is said where there is no file."""
    positions = trained_positions(path) if path.is_file() else None
    room = spec.parameters.get("num_ctx", 0)
    if positions is not None and room > positions:
        console.warn(
            f"num_ctx is {room:,}, but the model has {positions:,} positions: a server uses {positions:,}, for "
            "question and answer together"
        )


def check_prompts_fit(
    spec: Modelfile, path: Path, prompt_format: PromptFormat, tokenizer: Tokenizer, held_out: Sequence[dict[str, Any]]
) -> None:
    """Raise ToolkitError (exit 2) if a held-out prompt leaves no room for an answer."""
    prompts = (
        prompt.rendered(prompt_format, tokenizer.eos_text)
        for row in held_out
        for prompt in prompts_of(row, prompt_format)
    )
    longest = max((len(tokenizer.prompt_ids(prompt)) for prompt in prompts), default=0)
    room, positions = spec.parameters.get("num_ctx"), trained_positions(path)
    if positions is not None and longest >= positions:
        raise ToolkitError(
            f"the longest held-out prompt has {longest:,} tokens, but the model has {positions:,} positions",
            hint=f"set `train.max_length` to {positions:,} at most, and run `toolkit run`",
            exit_code=USAGE,
        )
    if room is not None and longest >= room:
        raise ToolkitError(
            f"the longest held-out prompt has {longest:,} tokens, but num_ctx is {room:,}: it could not be asked",
            hint=f"`--set ollama.num_ctx={longest + spec.parameters.get('num_predict', 1)}` has room for its answer "
            "too; nothing needs to be trained again",
            exit_code=USAGE,
        )
