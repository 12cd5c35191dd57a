"""Ask a model in Ollama from Python: one question, with a system message if you like.

    pip install ollama
    python examples/ask.py MODEL QUESTION [SYSTEM]

The server is OLLAMA_HOST, else the one on this machine.
"""

import sys

import ollama

from toolkit.prompt.escape import escape_control_tokens


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    model, question, *system = sys.argv[1:]
    messages = [{"role": "system", "content": text} for text in system]
    # Text such as <|im_end|> would end the message: Ollama reads it as a control token.
    messages.append({"role": "user", "content": escape_control_tokens(question)})
    for piece in ollama.chat(model, messages=messages, stream=True):
        print(piece["message"]["content"], end="", flush=True)
    print()


if __name__ == "__main__":
    main()
