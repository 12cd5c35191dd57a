"""Files as they are laid out: safetensors, GGUF, bitsandbytes' 4 bits, ggml's types; they know no model."""
