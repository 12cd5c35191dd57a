"""Prompt settings of every preset, and of formats that users might write, with what is hard to render in them."""

from toolkit.core.config import PromptSettings

FORMATS = {
    "alpaca": PromptSettings(),
    "alpaca, odd": PromptSettings(
        language="{{ .System }} {", instruction="Use tools, <think> {{ hi }}\r\n\xa0\u2028 \\n '\""
    ),
    "alpaca-no-input": PromptSettings(preset="alpaca-no-input"),
    "alpaca-no-input, bare": PromptSettings(preset="alpaca-no-input", instruction="", language=""),
    "chatml": PromptSettings(preset="chatml"),
    "chatml, bare": PromptSettings(preset="chatml", instruction=""),
    "llama3": PromptSettings(preset="llama3", instruction="Be brief"),
    "custom, inst": PromptSettings(
        preset="custom", turn="[INST] {instruction}\n\n{input} [/INST]", after=" ", stops=["[INST]"]
    ),
    "custom, start": PromptSettings(
        preset="custom",
        start="<|system|>\n{instruction}<|end|>\n",
        turn="<|user|>\n{input}<|end|>\n<|assistant|>\n",
        after="\n",
        eos="<|end|>",
    ),
    "custom, braces": PromptSettings(
        preset="custom", turn='{"q": "{{input}}", "tool_call": "{instruction}\\{"} {%- x -%} {#\t', after="}} {{"
    ),
    "custom, behind": PromptSettings(preset="custom", turn="{input}", start="{instruction}", after="{"),
}
