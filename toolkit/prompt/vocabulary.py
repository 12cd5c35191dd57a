"""What a tokenizer's vocabulary must have: the control tokens of the prompt format, and a token that ends an answer."""

from pathlib import Path
from typing import Any

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.parsing import read_json
from toolkit.prompt.format import THINK, PromptFormat
from toolkit.prompt.renderings import render


def check_format(prompt_format: PromptFormat, controls: dict[str, int], bos: str | None, folder: Path) -> None:
    """Raise ToolkitError (exit 2) if a vocabulary cannot write a prompt format, or servers would read it otherwise."""
    missing = [token for token in prompt_format.controls if token not in controls]
    if missing:
        raise ToolkitError(
            f"the vocabulary of `{folder}` has no control token {', '.join(f'`{token}`' for token in missing)}, which "
            "the prompt format needs",
            hint='choose a base that has it, or `prompt.preset = "alpaca"`, which is plain text and needs none',
            exit_code=USAGE,
        )
    text = render(prompt_format, "").text
    if bos and text.startswith(bos):
        raise ToolkitError(
            f"the prompt format begins with `{bos}`, which every runtime adds itself: it would appear twice",
            hint="leave it out of `prompt.prefix` or `prompt.user_turn`",
            exit_code=USAGE,
        )
    held = [token for token in controls if token in prompt_format.instruction]
    if held:
        raise ToolkitError(
            f"`prompt.instruction` contains the control token `{held[0]}`: training reads it as text, but a server "
            "would read it as the token in every prompt",
            hint="write the instruction without it",
            exit_code=USAGE,
        )


def check_thinking(prompt_format: PromptFormat, encoder: Any, controls: dict[str, int], folder: Path) -> None:
    """Raise ToolkitError (exit 2) if a vocabulary cannot write a closed thinking block, or read one in an answer."""
    if prompt_format.closed and not thinks(encoder):
        raise ToolkitError(
            f"the vocabulary of `{folder}` has no tokens `{THINK[0]}` and `{THINK[1]}`: this base does not think",
            hint='leave `prompt.thinking` empty; "off" is for bases that do, as Qwen3',
            exit_code=USAGE,
        )
    held = [token for token in THINK if token in controls]
    if prompt_format.thoughts and held:
        raise ToolkitError(
            f"`{held[0]}` is a control token of `{folder}`: in an answer it is trained as text, never as the token",
            hint='set `prompt.thinking = "off"`, and remove the thoughts from the answers',
            exit_code=USAGE,
        )


def thinks(encoder: Any) -> bool:
    """Tell whether both marks of a thinking block are tokens that a vocabulary finds in text."""
    added = {token.content for token in encoder.get_added_tokens_decoder().values()}
    return added.issuperset(THINK)


def named_eos(folder: Path) -> tuple[str, Path] | None:
    """Return the EOS that the settings next to a tokenizer name by its text, with their file; None if none does."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read(folder / name).get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return text, folder / name
    return None


def eos_id(folder: Path, encoder: Any, other: Path | None) -> int:
    """Return the EOS that the settings of a folder name, else those of another; raises ToolkitError without one."""
    for place in (folder, *([other] if other else [])):
        named = named_eos(place)
        found: int | None = encoder.token_to_id(named[0]) if named else None
        if found is not None:
            return found
        if named and place == folder:
            raise ToolkitError(
                f"`{named[1]}` names the EOS `{named[0]}`, which tokenizer.json does not have",
                hint="a model whose EOS is lost never stops: save the training's tokenizer there "
                "(tokenizer.save_pretrained(DIR)), or correct eos_token",
            )
        for name in ("generation_config.json", "config.json"):
            stated = _read(place / name).get("eos_token_id")
            first = stated[0] if isinstance(stated, list) and stated else stated
            if type(first) is int and 0 <= first < 2**31 and encoder.id_to_token(first) is not None:
                return first
            if first is not None:
                raise ToolkitError(
                    f"`{place / name}` sets `eos_token_id` to {first!r:.60}, which the tokenizer does not have",
                    hint="name it by its text: set eos_token in tokenizer_config.json",
                )
    raise ToolkitError(
        f"the base model in `{folder}` does not name an end-of-sequence token",
        hint="without EOS a model never stops: add eos_token to its tokenizer_config.json",
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
