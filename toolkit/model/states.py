"""Which models keep a state from token to token, by config.json alone: records in one row would see each other's.

Attention looks at the tokens of its own record only, if it is told where that begins. A state, or a convolution over
the last tokens, goes on over the border between two records (Mamba, gated delta net, RWKV, short convolutions). Some
classes of transformers do not tell attention where a record begins.
"""

from toolkit.model.config_values import Values
from toolkit.model.families.refused import STATE_NAMES, STATES

KEYS = {*STATES, "linear_num_key_heads", "conv_L_cache"}
# Their classes in transformers 5.17 make the mask without the positions that part the records of a row.
BLIND = ("afmoe", "biogpt", "bloom", "falcon", "gpt_oss", "granitemoehybrid", "mpt", "opt", "xglm")
NAMES = (*STATE_NAMES, "falconh1", "hybrid", "kimilinear", "lfm2", "minimax", "qwen3next", "qwen35", "xlstm")


def keeps_state(config: Values) -> bool:
    """Tell whether some layer of a model is no attention, or may be none."""
    return any(_keeps(part) for part in _parts(config))


def reason_to_pad(config: Values) -> str:
    """Say why each record of a micro-batch must have a row of its own; empty if they may share one."""
    if keeps_state(config):
        return "this base keeps a state from token to token"
    if any(part.get("model_type") in BLIND for part in _parts(config)):
        return "transformers would let the records of a row see each other in this base"
    return ""


def _parts(config: Values) -> list[Values]:
    """Return a model's values, and those of its language model if it also sees images."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def _keeps(part: Values) -> bool:
    kinds = [kind for key in ("layer_types", "layers_block_type") for kind in _texts(part.get(key))]
    if kinds:  # what is listed decides
        return any("attention" not in kind or kind == "linear_attention" for kind in kinds)
    names = [*_texts(part.get("architectures")), *_texts([part.get("model_type")])]
    low = [name.lower().replace("_", "") for name in names]
    return any(word in name for word in NAMES for name in low) or any(part.get(key) for key in KEYS)


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
