"""Architectures whose prompts Ollama writes itself: at create it sets a RENDERER, and then reads no TEMPLATE.

Source: server/create.go (createModel) of ollama/ollama, v0.34.0 to v0.34.4 and its head of October 2026.
"""

# llama.cpp's architecture → Ollama's renderer, and how the classes of transformers begin that become it.
FORCED = {
    "gemma4": ("gemma4", "Gemma4"),
    "laguna": ("laguna", "Laguna"),
    "nemotron_h": ("nemotron-3-nano", "NemotronH"),
    "nemotron_h_moe": ("nemotron-3-nano", "NemotronH"),
    "nemotron_h_omni": ("nemotron-3-nano", "NemotronH"),
}


def forced_renderer(name: str) -> str:
    """Name the renderer that Ollama forces on an architecture, "" for none.

    `name` is llama.cpp's name of it, or a class of transformers.
    """
    if name in FORCED:
        return FORCED[name][0]
    return next((renderer for renderer, begin in FORCED.values() if name.startswith(begin)), "")


def said_of(name: str) -> str:
    """Say that Ollama overrides the prompt of an architecture; empty where it does not."""
    renderer = forced_renderer(name)
    if not renderer:
        return ""
    return (
        f"Ollama writes the prompts of {name} itself (RENDERER {renderer}) and ignores the trained one: "
        "`toolkit register` would refuse the model; llama.cpp uses the trained one"
    )
