"""Text that looks like a control token, made harmless for a server that would read it as the token."""

import re
from collections.abc import Collection

WORD_JOINER = "\u2060"

# How tokenizers write control tokens. Ollama passes the whole prompt to llama.cpp, which reads such text as the token
# itself, and no request can prevent that. Plain markup such as <b> or [1] is not a control token.
_CONTROL = re.compile(
    r"""<(?=[|｜][^<>\n]{1,80}?[|｜]>)                                      # <|end_of_text|>, <｜User｜>
      | <(?=/?(?:s|unk|pad|bos|eos|cls|sep|mask|think|reponame|filename)>)    # <s>, </s>, <pad>
      | <(?=/?[a-z0-9]+(?:_[a-z0-9]+)+>)                                      # <start_of_turn>, <extra_id_0>
      | <(?=unused[0-9]+>)
      | <(?=</?SYS>>)
      | \[(?=/?(?:INST|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|AVAILABLE_TOOLS|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END
                  |PREFIX|MIDDLE|SUFFIX|THINK|ARGS|CALL_ID|AUDIO)\])""",
    re.VERBOSE,
)


def escape_control_tokens(text: str, controls: Collection[str] = ()) -> str:
    """Put an invisible word joiner (U+2060) after the first character of what looks like a control token.

    `controls` are those of the model's vocabulary; the usual ones of other models are found too. The model then reads
    characters, as in training, but also the joiner's three bytes: a server cannot leave it out.
    """
    for token in sorted((token for token in controls if len(token) > 1 and token in text), key=len, reverse=True):
        text = text.replace(token, token[0] + WORD_JOINER + token[1:])
    return _CONTROL.sub(lambda match: match[0] + WORD_JOINER, text)
