"""Prompt settings of every preset, and of formats that users might write, with what is hard to render in them."""

from toolkit.core.input_settings import PromptSettings

FORMATS = {
    "alpaca": PromptSettings(),
    "alpaca, odd": PromptSettings(
        language="{{ .System }} {", instruction="Use tools, <think> {{ hi }}\r\n\xa0\u2028 \\n '\""
    ),
    "alpaca-no-input": PromptSettings(preset="alpaca-no-input"),
    "alpaca-no-input, bare": PromptSettings(preset="alpaca-no-input", instruction="", language=""),
    "chatml": PromptSettings(preset="chatml"),
    "chatml, bare": PromptSettings(preset="chatml", instruction=""),
    "chatml, closed": PromptSettings(preset="chatml", thinking="off"),
    "chatml, thoughts": PromptSettings(preset="chatml", thinking="keep"),
    "gemma": PromptSettings(preset="gemma"),
    "gemma, bare": PromptSettings(preset="gemma", instruction=""),
    "llama3": PromptSettings(preset="llama3", instruction="Be brief"),
    "custom, inst": PromptSettings(
        preset="custom", user_turn="[INST] {instruction}\n\n{input} [/INST]", suffix=" ", stops=["[INST]"]
    ),
    "custom, start": PromptSettings(
        preset="custom",
        prefix="<|system|>\n{instruction}<|end|>\n",
        user_turn="<|user|>\n{input}<|end|>\n<|assistant|>\n",
        suffix="\n",
        eos="<|end|>",
    ),
    "custom, braces": PromptSettings(
        preset="custom", user_turn='{"q": "{{input}}", "tool_call": "{instruction}\\{"} {%- x -%} {#\t', suffix="}} {{"
    ),
    "custom, behind": PromptSettings(preset="custom", user_turn="{input}", prefix="{instruction}", suffix="{"),
}
